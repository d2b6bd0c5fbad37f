"""The decoder against the float64 one of `oracle.py`: contexts, gradients, precision, layout."""

import dataclasses
import functools
import re

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from opsd_jax.config import ConfigError
from opsd_jax.mesh import MeshConfig, make_mesh
from opsd_jax.models import model
from opsd_jax.models.spec import ModelSpec, RopeScaling, validate
from opsd_jax.models.transformer import Context
from tests.models.oracle import continuation_rows, decode_row, float64

SPEC = ModelSpec(
  vocab_size=20, num_layers=2, embed_dim=16, num_heads=4, num_kv_heads=2, head_dim=4, mlp_dim=24
)
UNTIED = dataclasses.replace(SPEC, tie_embeddings=False)

# Hidden states have root mean square near 1, float32 rounds at 6e-8, and a few dozen operations
# follow one another: errors stay near 1e-6 (measured: at most 2e-6), a wrong formula is near 1.
HIDDEN = dict(atol=1e-5, rtol=0)
# Relative to the largest entry of a gradient tree (measured: at most 2e-6).
GRADIENT = 1e-5


# Most of a test's time goes into optimising programs that run once. This halves it and more, and
# leaves alone how a program is partitioned.
QUICK = {'xla_backend_optimization_level': 0}
quick_jit = functools.partial(jax.jit, compiler_options=QUICK)


# What the tests work on.


def one_device():
  return make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])


@functools.cache
def make_params(spec, seed=0):
  """Weights at the scale of initial ones, but with no norm that multiplies by 1 and no bias of 0."""
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    is_scale = path[-1].key == 'scale'
    spread, middle = 0.2 if is_scale else 0.3, float(is_scale and not spec.norm_plus_one)
    return jnp.asarray(middle + spread * rng.normal(size=leaf.shape), leaf.dtype)

  return jax.tree_util.tree_map_with_path(draw, model.abstract_params(spec, one_device()))


def make_rows(lengths, per_question, width, seed=0, pad_to=None):
  """Prompts with the given lengths, and completions, of random tokens throughout."""
  rng = np.random.default_rng(seed)
  prompts = rng.integers(0, SPEC.vocab_size, (len(lengths), pad_to or max(lengths)))
  completions = rng.integers(0, SPEC.vocab_size, (len(lengths) * per_question, width))
  return np.int32(prompts), np.int32(lengths), np.int32(completions)


def count_up(tokens):
  return jnp.broadcast_to(jnp.arange(tokens.shape[1])[None, :], tokens.shape)


@functools.partial(quick_jit, static_argnums=0)
def whole_rows(spec, params, tokens):
  return model.apply(spec, params, tokens, count_up(tokens))


continuation = quick_jit(model.continuation_hidden, static_argnums=0)


def relative_gap(actual, expected):
  """Largest difference of two trees, relative to the largest entry of `expected`."""
  actual, expected = flat(actual), flat(expected)
  return np.abs(actual - expected).max() / np.abs(expected).max()


def flat(tree):
  return np.concatenate([np.float64(x).ravel() for x in jax.tree.leaves(tree)])


# One call over whole rows.


@pytest.mark.parametrize(
  'changes',
  [
    {},
    dict(tie_embeddings=False, qk_norm=False, num_kv_heads=4),
    dict(num_kv_heads=1, head_dim=6, rope_theta=1e6, norm_eps=1e-2),
    dict(num_layers=1, qk_norm=False, rope_theta=10.0),
  ],
  ids=['qwen3', 'untied-no-norm-mha', 'mqa', 'one-layer'],
)
def test_matches_numpy(changes):
  spec = dataclasses.replace(SPEC, **changes)
  params, (tokens, _, _) = make_params(spec), make_rows([7, 7], 1, 1)
  hidden, kv = whole_rows(spec, params, tokens)
  assert hidden.dtype == jnp.float32
  assert kv.key.shape == (spec.num_layers, 2, spec.num_kv_heads, 7, spec.head_dim) == kv.value.shape
  for row in range(2):
    np.testing.assert_allclose(hidden[row], decode_row(spec, params, tokens[row]), **HIDDEN)


@pytest.mark.parametrize('tied', [True, False])
def test_the_head_is_the_embedding_only_where_tied(tied):
  spec = dataclasses.replace(SPEC, tie_embeddings=tied)
  params = make_params(spec)
  assert ('head' in params) == (not tied)
  np.testing.assert_array_equal(model.head(spec, params), params['embedding' if tied else 'head'])


def test_a_later_token_does_not_change_an_earlier_state():
  params, (tokens, _, _) = make_params(SPEC), make_rows([7, 7], 1, 1)
  changed = tokens.copy()
  changed[:, 4:] = (changed[:, 4:] + 1) % SPEC.vocab_size
  before, after = (whole_rows(SPEC, params, t)[0] for t in (tokens, changed))
  np.testing.assert_array_equal(before[:, :4], after[:, :4])
  assert (np.asarray(before[:, 4:]) != np.asarray(after[:, 4:])).any(-1).all()


# Contexts: prompts read once, continuations read after them.


@pytest.mark.parametrize(
  ('lengths', 'per_question', 'width', 'pad_to'),
  [((1, 3, 5), 2, 4, None), ((1, 1), 3, 1, None), ((4,), 1, 3, 9)],
  ids=['ragged', 'one-token', 'padded'],
)
def test_continuations_match_whole_rows(lengths, per_question, width, pad_to):
  rows = make_rows(lengths, per_question, width, pad_to=pad_to)
  hidden = continuation(SPEC, make_params(SPEC), *rows)
  np.testing.assert_allclose(hidden, continuation_rows(SPEC, make_params(SPEC), *rows), **HIDDEN)


def test_prompts_are_read_without_their_last_token():
  prompts, lengths, _ = make_rows([1, 3, 5], 1, 1)
  read = quick_jit(model.read_prompts, static_argnums=0)
  context = read(SPEC, make_params(SPEC), prompts, lengths)
  np.testing.assert_array_equal(context.length, [0, 2, 4])
  assert context.kv.key.shape[3] == 4
  np.testing.assert_array_equal(
    model.last_token(prompts, lengths), [prompts[0, 0], prompts[1, 2], prompts[2, 4]]
  )


def test_a_shared_context_and_an_own_one_match_whole_rows():
  # What decoding does: a prompt shared by two rows, then each row's own padded cache, then a token.
  params, (prompts, lengths, tail) = make_params(SPEC), make_rows([2, 4], 2, 4)
  first = [prompts[0, 1], prompts[0, 1], prompts[1, 3], prompts[1, 3]]
  inputs = np.concatenate([np.int32(first)[:, None], tail], axis=1)
  positions = np.repeat(lengths - 1, 2)[:, None] + np.arange(4)[None]

  @quick_jit
  def in_two_calls(params):
    prompt = model.read_prompts(SPEC, params, prompts, lengths)
    _, kv = model.apply(SPEC, params, inputs[:, :2], positions[:, :2], (prompt,))
    padded = jax.tree.map(lambda x: jnp.concatenate([x, 7 * jnp.ones_like(x)], axis=3), kv)
    cache = Context(padded, jnp.full(4, 2), positions[:, 0])
    return model.apply(SPEC, params, inputs[:, 2:4], positions[:, 2:], (prompt, cache), keep_kv=False)

  hidden, nothing = in_two_calls(params)
  assert nothing is None
  expected = continuation_rows(SPEC, params, prompts, lengths, tail)
  np.testing.assert_allclose(hidden, expected[:, 2:], **HIDDEN)


def test_a_shared_prompt_equals_its_copies():
  params, (prompts, lengths, tail) = make_params(SPEC), make_rows([1, 3, 5], 2, 4)
  shared = continuation(SPEC, params, prompts, lengths, tail)
  copied = continuation(SPEC, params, np.repeat(prompts, 2, 0), np.repeat(lengths, 2), tail)
  np.testing.assert_allclose(shared, copied, **HIDDEN)


@hypothesis.settings(max_examples=15)
@hypothesis.given(st.lists(st.integers(1, 5), min_size=3, max_size=3), st.integers(0, 2**32 - 1))
def test_padding_cannot_matter(lengths, seed):
  params, (prompts, lengths, tail) = make_params(SPEC), make_rows(lengths, 2, 4, pad_to=5)
  ends = np.random.default_rng(seed).integers(0, 5, len(tail))
  other_prompts, _, other_tail = make_rows([5, 5, 5], 2, 4, seed=seed)
  padded = np.arange(5)[None] >= lengths[:, None]
  finished = np.arange(4)[None] >= ends[:, None]
  hidden = continuation(SPEC, params, prompts, lengths, tail)
  changed = continuation(
    SPEC, params, np.where(padded, other_prompts, prompts), lengths, np.where(finished, other_tail, tail)
  )
  # Entry t reads the tokens before t: one past the end is real too. Masked weights are exactly 0.
  real = np.arange(4)[None] <= ends[:, None]
  np.testing.assert_array_equal(np.asarray(hidden)[real], np.asarray(changed)[real])


# Gradients.


CONTEXT_ONLY, UNREAD = 18, 19


def gradient_rows():
  """Rows in which one token is read in a prompt's context alone, and one nowhere."""
  prompts, lengths, tail = make_rows([1, 3, 5], 2, 4)
  prompts, tail = prompts % CONTEXT_ONLY, tail % CONTEXT_ONLY
  prompts[2, 1] = CONTEXT_ONLY
  return prompts, lengths, tail


ROWS = gradient_rows()
PULL = np.random.default_rng(1).normal(size=(6, 4, SPEC.embed_dim)).astype(np.float32)


def through_shared(params, spec=UNTIED):
  return jnp.sum(PULL * model.continuation_hidden(spec, params, *ROWS))


def through_whole_rows(params, spec=UNTIED):
  """The same sum from rows that hold prompt and completion, nothing shared."""
  prompts, lengths, tail = ROWS
  tokens = np.zeros((6, 8), np.int32)
  for b, completion in enumerate(tail):
    whole = np.concatenate([prompts[b // 2][: lengths[b // 2]], completion[:-1]])
    tokens[b, : len(whole)] = whole
  hidden, _ = model.apply(spec, params, tokens, count_up(tokens), keep_kv=False)
  at = np.repeat(lengths - 1, 2)[:, None] + np.arange(4)[None]
  return jnp.sum(PULL * jnp.take_along_axis(hidden, at[..., None], axis=1))


@functools.cache
def compiled_gradient(spec=UNTIED):
  gradient = quick_jit(jax.grad(functools.partial(through_shared, spec=spec)))
  return gradient.lower(make_params(UNTIED)).compile()


def shared_gradient(spec=UNTIED):
  return compiled_gradient(spec)(make_params(UNTIED))


def test_gradients_flow_through_the_shared_prompt():
  whole = quick_jit(jax.grad(through_whole_rows))(make_params(UNTIED))
  assert relative_gap(shared_gradient(), whole) < GRADIENT


def test_a_token_of_the_context_alone_gets_a_gradient():
  touched = np.abs(np.asarray(shared_gradient()['embedding'])).max(-1)
  assert touched[CONTEXT_ONLY] > 1e-3
  assert touched[UNREAD] == 0
  assert (np.asarray(shared_gradient()['head']) == 0).all()


def test_gradients_match_differences_of_the_oracle():
  params = float64(make_params(UNTIED))
  rng = np.random.default_rng(2)
  direction = jax.tree.map(lambda p: rng.normal(size=p.shape), params)

  def along(step):
    moved = jax.tree.map(lambda p, d: p + step * d, params, direction)
    return np.sum(PULL * continuation_rows(UNTIED, moved, *ROWS))

  difference = (along(1e-5) - along(-1e-5)) / 2e-5
  products = jax.tree.map(lambda g, d: np.sum(np.asarray(g, np.float64) * d), shared_gradient(), direction)
  # float32 gradients against central differences good to 3e-7 (measured: 1e-6).
  assert sum(jax.tree.leaves(products)) == pytest.approx(difference, rel=GRADIENT)


@pytest.mark.parametrize('remat', ['full', 'dots'])
def test_recomputation_does_not_change_gradients(remat):
  gradient = shared_gradient(dataclasses.replace(UNTIED, remat=remat))
  # Only the order of a few float32 operations may differ.
  assert relative_gap(gradient, shared_gradient()) < 1e-6


def test_recomputation_holds_less_memory():
  held = {
    remat: compiled_gradient(dataclasses.replace(UNTIED, remat=remat)).memory_analysis()
    for remat in ('none', 'dots', 'full')
  }
  held = {remat: memory.temp_size_in_bytes for remat, memory in held.items()}
  assert held['full'] < held['dots'] < held['none']


BFLOAT16 = dataclasses.replace(UNTIED, dtype='bfloat16')


def test_bfloat16_computes_narrow():
  hidden, kv = whole_rows(BFLOAT16, make_params(UNTIED), ROWS[0])
  assert {hidden.dtype, kv.key.dtype, kv.value.dtype} == {jnp.dtype('bfloat16')}
  expected = np.stack([decode_row(UNTIED, make_params(UNTIED), row) for row in ROWS[0]])
  error = np.sqrt(np.mean((np.float64(hidden) - expected) ** 2))
  # bfloat16 rounds at 2^-9 = 0.002; some twenty roundings in two layers make 0.01.
  assert 1e-3 < error < 0.03


def test_bfloat16_keeps_float32_weights_and_gradients():
  born = model.abstract_params(BFLOAT16, one_device())
  assert {x.dtype for x in jax.tree.leaves(born)} == {jnp.dtype('float32')}
  narrow, wide = shared_gradient(BFLOAT16), shared_gradient()
  assert {x.dtype for x in jax.tree.leaves(narrow)} == {jnp.dtype('float32')}
  # Forward and backward roundings together; some percent of the gradient's norm.
  gap = np.linalg.norm(flat(narrow) - flat(wide)) / np.linalg.norm(flat(wide))
  assert 1e-3 < gap < 0.06


def test_weights_for_decoding_compute_the_same():
  params = model.in_compute_dtype(BFLOAT16, make_params(UNTIED))
  dtypes = jax.tree_util.tree_map_with_path(lambda path, x: (path[-1].key, x.dtype.name), params)
  pairs = set(jax.tree.leaves(dtypes, is_leaf=lambda x: isinstance(x, tuple)))
  assert {dtype for name, dtype in pairs if name != 'scale'} == {'bfloat16'}
  assert {dtype for name, dtype in pairs if name == 'scale'} == {'float32'}
  narrow, wide = (whole_rows(BFLOAT16, p, ROWS[0])[0] for p in (params, make_params(UNTIED)))
  np.testing.assert_array_equal(narrow, wide)


# Birth and layout of the weights.

WIDE = dataclasses.replace(UNTIED, embed_dim=64, mlp_dim=96, vocab_size=80)


def cube():
  return make_mesh(MeshConfig(2, 2, 2))


@functools.cache
def born_sharded():
  return model.init_params(WIDE, jax.random.key(3), cube())


@functools.cache
def born_whole():
  """Initial weights of seeds 3 and 4 on one device."""
  init = quick_jit(functools.partial(model.init_params, WIDE, mesh=one_device()))
  return init(jax.random.key(3)), init(jax.random.key(4))


def test_initial_weights_are_a_function_of_the_seed_alone():
  # The same numbers from another program on another mesh, but for its last bit's rounding.
  first, other = born_whole()
  same = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7)
  jax.tree.map(same, first, born_sharded())
  assert not np.array_equal(first['embedding'], other['embedding'])
  queries = first['layers']['attention']['query']
  assert not np.array_equal(queries[0], queries[1])


def test_initial_weights_have_the_scale_of_their_inputs():
  params = born_whole()[0]
  attend, mlp = params['layers']['attention'], params['layers']['mlp']
  inputs = [
    (params['embedding'], 64),
    (params['head'], 64),
    (attend['query'], 64),
    (attend['key'], 64),
    (attend['value'], 64),
    (attend['out'], 16),
    (mlp['gate'], 64),
    (mlp['up'], 64),
    (mlp['down'], 96),
  ]
  for weights, fan_in in inputs:
    # The standard error of a standard deviation is 1 / sqrt(2 n); five of them.
    assert np.std(np.asarray(weights)) * fan_in**0.5 == pytest.approx(1, abs=5 / np.sqrt(2 * weights.size))
  assert set(np.asarray(params['final_norm']['scale']).tolist()) == {1.0}


def spec_of(array):
  """The partition as a tuple with one entry a dimension."""
  axes = tuple(array.sharding.spec)
  return axes + (None,) * (array.ndim - len(axes))


def test_weights_are_born_sharded():
  params = born_sharded()
  attend, mlp = params['layers']['attention'], params['layers']['mlp']
  f, t = 'fsdp', 'tensor'
  expected = {
    'embedding': (params['embedding'], (t, f)),
    'head': (params['head'], (t, f)),
    'query': (attend['query'], (None, f, t, None)),
    'key': (attend['key'], (None, f, t, None)),
    'value': (attend['value'], (None, f, t, None)),
    'out': (attend['out'], (None, t, None, f)),
    'gate': (mlp['gate'], (None, f, t)),
    'up': (mlp['up'], (None, f, t)),
    'down': (mlp['down'], (None, t, f)),
    'norm': (params['final_norm']['scale'], (None,)),
  }
  for name, (array, axes) in expected.items():
    assert spec_of(array) == axes, name
    share = array.size // 2 ** sum(a is not None for a in axes)
    assert {s.data.size for s in array.addressable_shards} == {share}, name


def test_an_axis_that_does_not_divide_stays_whole():
  spec = dataclasses.replace(UNTIED, num_kv_heads=1, vocab_size=21)
  params = model.abstract_params(spec, cube())
  assert spec_of(params['embedding']) == (None, 'fsdp')
  assert spec_of(params['layers']['attention']['key']) == (None, 'fsdp', None, None)
  assert spec_of(params['layers']['attention']['query']) == (None, 'fsdp', 'tensor', None)


def lowered_on(mesh_or_none):
  tokens = jnp.zeros((4, 5), jnp.int32)
  call = jax.jit(lambda params: model.apply(UNTIED, params, tokens, count_up(tokens)))
  if mesh_or_none is None:
    return call.lower(make_params(UNTIED))
  with jax.set_mesh(mesh_or_none):
    return call.lower(model.abstract_params(UNTIED, mesh_or_none))


def test_layouts_are_in_the_lowered_program():
  pinned = re.findall(
    r'sharding_constraint %\w+ <@mesh, (.*)> : tensor<(.*)xf32>', lowered_on(cube()).as_text()
  )
  rows = '{"data", "fsdp"}'
  assert sorted(pinned) == sorted(
    [
      ('[{"tensor"}, {}]', '20x16'),  # the embedding table
      (f'[{rows}, {{}}, {{}}]', '4x5x16'),  # embedded tokens
      (f'[{rows}, {{}}, {{"tensor"}}, {{}}]', '4x5x4x4'),  # queries
      (f'[{rows}, {{}}, {{"tensor"}}, {{}}]', '4x5x2x4'),  # keys
      (f'[{rows}, {{}}, {{"tensor"}}, {{}}]', '4x5x2x4'),  # values
      (f'[{rows}, {{}}, {{"tensor"}}]', '4x5x24'),  # inside the MLP
      (f'[{rows}, {{}}, {{}}]', '4x5x16'),  # the residual stream
    ]
  )


def test_layouts_are_absent_without_a_mesh():
  assert 'sharding_constraint' not in lowered_on(None).as_text()


def test_compiled_outputs_are_sharded():
  hidden, kv = lowered_on(cube()).compile().output_shardings
  rows = ('data', 'fsdp')
  assert hidden.spec == PartitionSpec(rows)
  assert kv.key.spec == kv.value.spec == PartitionSpec(None, rows, 'tensor')


# Specs that make no model.


def stretch(kind, **more):
  return dict(rope_scaling=RopeScaling(kind, **more))


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (dict(num_layers=0), 'model.num_layers is 0; it must be positive.'),
    (dict(vocab_size=-1), 'model.vocab_size is -1; it must be positive.'),
    (dict(mlp_dim=0), 'model.mlp_dim is 0; it must be positive.'),
    (dict(num_kv_heads=3), 'model.num_heads is 4, not a multiple of model.num_kv_heads (3)'),
    (dict(head_dim=5), 'model.head_dim is 5; rotary embedding needs an even one.'),
    (dict(rope_theta=0.0), 'model.rope_theta is 0.0; it must be positive.'),
    (dict(norm_eps=-1e-6), 'model.norm_eps is -1e-06; it must be positive.'),
    (dict(dtype='bfloat'), "model.dtype is 'bfloat', which is not a choice. Did you mean 'bfloat16'"),
    (dict(remat='dot'), "model.remat is 'dot', which is not a choice. Did you mean 'dots'?"),
    (dict(activation='gelu'), "model.activation is 'gelu', which is not a choice."),
    (dict(attention_softcap=0.0), 'model.attention_softcap is 0.0; it must be positive, or none.'),
    (dict(final_softcap=-30.0), 'model.final_softcap is -30.0; it must be positive, or none.'),
    (dict(query_scale=0.0), 'model.query_scale is 0.0; it must be positive, or none.'),
    (dict(layer_pattern='LS', sliding_window=4), "model.layer_pattern is 'LS'; write L for a local layer"),
    (dict(layer_pattern='LG'), "model.layer_pattern is 'LG', but local layers need model.sliding_window."),
    (dict(layer_pattern='LG', sliding_window=0), 'model.sliding_window is 0; it must be positive, or none.'),
    (dict(sliding_window=4), 'model.sliding_window is 4, but no layer is local'),
    (dict(layer_pattern='GGL', sliding_window=4), 'model.sliding_window is 4, but no layer is local'),
    (dict(rope_local_theta=1e4), 'model.rope_local_theta is 10000.0, but no layer is local'),
    (stretch('ntk'), "model.rope_scaling.kind is 'ntk', which is not a choice."),
    (stretch('linear', factor=0.0), 'model.rope_scaling.factor is 0.0; it must be positive.'),
    (stretch('yarn'), 'model.rope_scaling.original_length is 0; yarn needs the positions'),
    (
      stretch('llama3', original_length=8, low_frequency_factor=4.0),
      'model.rope_scaling.low_frequency_factor is 4.0; it must lie above 0 and below its counterpart, 4.0.',
    ),
    (
      stretch('yarn', original_length=8, beta_slow=33.0),
      'model.rope_scaling.beta_slow is 33.0; it must lie above 0 and below its counterpart, 32.0.',
    ),
    (
      dict(rope_theta=1.0) | stretch('yarn', original_length=8),
      'model.rope_theta is 1.0; yarn needs one above 1.',
    ),
    (
      stretch('yarn', original_length=8, attention_factor=0.0),
      'model.rope_scaling.attention_factor is 0.0; it must be positive, or none.',
    ),
  ],
)
def test_a_bad_spec_is_refused(changes, message):
  with pytest.raises(ConfigError, match=re.escape(message)):
    validate(dataclasses.replace(SPEC, **changes))


def test_a_good_spec_passes():
  validate(SPEC)
  validate(ModelSpec())

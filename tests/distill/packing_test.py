"""However an update's tokens are laid out, each is read after the same tokens and counted once.

What a planned token sees is listed in plain Python from the plan and compared with the sequence itself.
The states are compared with float64 NumPy, a sequence at a time.
"""

import dataclasses
import functools

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest

from opsd_jax.distill import packing, reading
from opsd_jax.models import attention
from opsd_jax.records import Prompts, Reading, Rollout
from tests.models.oracle import decode_row
from tests.models.transformer_test import HIDDEN, SPEC, make_params, quick_jit

WIDTHS, TOKENS = (4, 6), 5  # of the student's and the teacher's prompts; of completions

# The window is shorter than the sequences, two of three layers are local with frequencies of their own,
# and attention is capped where it matters.
WINDOWED = dataclasses.replace(
  SPEC, num_layers=3, layer_pattern='LLG', sliding_window=3, rope_local_theta=100.0, attention_softcap=1.5
)


def make_update(prompts, completions, per_question, seed=0):
  """Prompts of student and teacher with the given lengths, and rollouts; ids tell every place apart."""
  rng = np.random.default_rng(seed)
  questions = len(prompts)
  seen = [
    Prompts(
      rng.integers(0, SPEC.vocab_size, (questions, width), np.int32),
      np.int32([p[role] for p in prompts]),
      np.arange(questions, dtype=np.uint32),
    )
    for role, width in enumerate(WIDTHS)
  ]
  rows = questions * per_question
  rollout = Rollout(
    rng.integers(0, SPEC.vocab_size, (rows, TOKENS), np.int32),
    np.int32(completions),
    np.ones(rows, bool),
    *np.zeros((2, rows, TOKENS), np.float32),
    np.tile(np.arange(per_question, dtype=np.int32), questions),
    np.zeros(rows, np.int32),
  )
  return *seen, rollout


@st.composite
def updates(draw, most=6):
  """Lengths from one token (an EOS first, a prompt of one token) to the full budget."""
  per_question = draw(st.integers(1, 3))
  questions = draw(st.integers(1, most))
  lengths = st.tuples(*(st.integers(1, width) for width in WIDTHS))
  prompts = draw(st.lists(lengths, min_size=questions, max_size=questions))
  rows = questions * per_question
  completions = draw(st.lists(st.integers(1, TOKENS), min_size=rows, max_size=rows))
  return make_update(prompts, completions, per_question, draw(st.integers(0, 99)))


def sequences(prompts, rollout):
  """Every token's place [prompt ids, then completion ids], a row a rollout, as it stands in the records."""
  repeats, after = len(rollout.length) // len(prompts.length), prompts.ids.size
  for b, length in enumerate(rollout.length):
    q = b // repeats
    yield [q * prompts.ids.shape[1] + i for i in range(prompts.length[q])] + [
      after + b * TOKENS + t for t in range(length)
    ]


def seen_by(rows, part, row, column):
  """Places and positions of the tokens that a packed token attends to, itself the last."""
  group, branch = rows.group[part, row], rows.branch[part, row]
  found = [s for s in range(column + 1) if group[s] == group[column] and branch[s] in (0, branch[column])]
  return rows.source[part, row, found].tolist(), rows.position[part, row, found].tolist()


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(updates(), st.sampled_from([None, 1, 30, 60]), st.integers(1, 3))
def test_a_packed_token_sees_its_own_sequence_and_nothing_else(update, micro_tokens, shards):
  student, teacher, rollout = update
  plan = packing.plan(student, [teacher], rollout, packing='packed', micro_tokens=micro_tokens, shards=shards)
  check_origin(plan, rollout)
  for prompts, how in ((student, plan.student), (teacher, plan.teacher[0])):
    whole = list(sequences(prompts, rollout))
    parts, rows, width = how.rows.source.shape
    assert rows % shards == 0 and plan.origin.shape[:2] == (parts, shards)
    per_question = len(rollout.length) // len(student.length)
    assert width == prompts.ids.shape[1] - 1 + per_question * TOKENS
    assert micro_tokens is None or rows == shards or rows * width <= micro_tokens
    assert micro_tokens is not None or parts == 1
    for (part, shard, c), origin in np.ndenumerate(plan.origin):
      if origin == rollout.ids.size:
        continue
      row, column = divmod(int(how.at[part, shard, c]), width)
      b, t = divmod(int(origin), TOKENS)
      before = int(prompts.length[b // per_question]) + t
      places, positions = seen_by(how.rows, part, shard * rows // shards + row, column)
      assert places == whole[b][:before] and positions == list(range(before))


def test_short_sequences_share_rows_and_micro_batches():
  """A run is a prompt but its last token, and a completion: 3 + 2 tokens stand alone in 8, 2 + 2 in pairs."""

  def shapes(prompt, **more):
    student, teacher, rollout = make_update([(prompt, 3)] * 16, [2] * 16, 1)
    plan = packing.plan(student, [teacher], rollout, packing='packed', **more)
    return plan.student.rows.source.shape, plan.teacher[0].rows.source.shape

  assert shapes(4) == ((1, 16, 8), (1, 8, 10))
  assert shapes(3) == ((1, 8, 8), (1, 8, 10))
  assert shapes(3, micro_tokens=40) == ((2, 4, 8), (2, 4, 10))


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(updates(), st.sampled_from([None, 1, 30, 60]), st.integers(1, 3))
def test_rows_project_the_same_tokens(update, micro_tokens, shards):
  student, teacher, rollout = update
  plan = packing.plan(student, [teacher], rollout, micro_tokens=micro_tokens, shards=shards)
  parts, questions = plan.origin.shape[0], len(student.length)
  assert plan.student.rows is None and plan.teacher == (plan.student,)
  widest = WIDTHS[1] - 1 + TOKENS * len(rollout.length) // questions
  if micro_tokens is not None and questions // parts * widest > micro_tokens:
    assert parts == questions or questions // parts == shards  # nothing smaller is left
  if plan.student.at is None:
    assert np.sort(plan.origin.ravel()).tolist() == list(range(rollout.ids.size))
    return
  check_origin(plan, rollout)
  assert plan.origin.size < rollout.ids.size
  # The states of a part of a micro-batch, each with its own place for a value.
  places = reading.split(np.arange(rollout.ids.size).reshape(rollout.ids.shape), parts, questions)
  own = np.asarray(places).reshape(parts, plan.origin.shape[1], -1)
  found = np.take_along_axis(own, plan.student.at, -1)
  real = plan.origin < rollout.ids.size
  np.testing.assert_array_equal(found[real], plan.origin[real])


def check_origin(plan, rollout):
  """Every real token once, and nothing else."""
  found = np.sort(plan.origin[plan.origin < rollout.ids.size]).tolist()
  assert found == np.flatnonzero(np.arange(TOKENS) < rollout.length[:, None]).tolist()
  assert plan.origin.max() <= rollout.ids.size


# The states themselves. Attention goes over fewer queries at a time than any real row has.


@pytest.fixture(autouse=True, scope='module')
def small_blocks():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(attention, 'BLOCK', 5)
    yield


@functools.partial(quick_jit, static_argnums=0)
def states(spec, params, how, prompts, rollout):
  inputs = reading.prepare(how, how.at.shape[0], prompts, rollout)
  return jax.lax.map(lambda part: reading.states(spec, params, part), inputs)


def padded(plan):
  """The plan with as many rows and projected tokens as any of its kind: one shape for many lengths."""
  questions, tokens = 4, 8 * TOKENS
  rows, short = questions - plan.student.rows.source.shape[1], tokens - plan.origin.shape[2]
  packed = jax.tree.map(lambda x: np.pad(x, ((0, 0), (0, rows), (0, 0))), plan.student.rows)
  at = np.pad(plan.student.at, ((0, 0), (0, 0), (0, short)))
  origin = np.pad(plan.origin, ((0, 0), (0, 0), (0, short)), constant_values=tokens)
  return plan.replace(origin=origin, student=Reading(packed, at))


@pytest.mark.parametrize('spec', [SPEC, WINDOWED], ids=['plain', 'windowed'])
@hypothesis.settings(max_examples=8, deadline=None)
@hypothesis.given(
  st.lists(st.integers(1, WIDTHS[0]), min_size=4, max_size=4),
  st.lists(st.integers(1, TOKENS), min_size=8, max_size=8),
)
@hypothesis.example([1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1, 1])
@hypothesis.example([1, 4, 1, 4], [5, 5, 1, 5, 5, 1, 1, 1])
def test_packed_states_are_those_of_each_sequence_alone(spec, prompts, completions):
  student, teacher, rollout = make_update([(p, 1) for p in prompts], completions, 2)
  plan = padded(packing.plan(student, [teacher], rollout, packing='packed'))
  params = make_params(spec)
  hidden = states(spec, params, plan.student, student, rollout)
  hidden = np.asarray(reading.scatter(hidden, plan.origin, rollout.ids.shape))
  for b, length in enumerate(completions):
    whole = np.concatenate([student.ids[b // 2][: prompts[b // 2]], rollout.ids[b][: length - 1]])
    expected = decode_row(spec, params, whole)[prompts[b // 2] - 1 :]
    np.testing.assert_allclose(hidden[b, :length], expected, **HIDDEN)

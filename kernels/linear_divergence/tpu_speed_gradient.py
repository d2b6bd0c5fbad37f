"""Both gradients of a chunk of positions from its stored logits, in one kernel.

The vocabulary is the inner loop. A tile G = d loss / d logits [c, n] exists in VMEM alone: its product
with n rows of the head is added to the hidden states' gradient, which stays in VMEM, and its transpose
times the hidden states to n rows of the head's gradient, which are read and written once a chunk.

A head in bfloat16 has its gradient summed over chunks with 8 digits more: x is kept as its nearest
bfloat16, which is the result in the end, and the rest in 1/256 of half its last place. Float32 sums
would take twice the memory of the result.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.linear_divergence import tpu_blocks as lib
from kernels.linear_divergence import tpu_entries as entries
from kernels.linear_divergence import tpu_speed_store as stores
from kernels.linear_divergence.spec import DivergenceSpec
from kernels.linear_divergence.tpu_backward import Rows

_CORES = 2  # Each takes a part of the vocabulary, with a sum of its own for the hidden states.
# A step's blocks of the vocabulary are as wide as this if a tile of the store has as many.
_WIDEST = 512
_PART = 256
_VMEM_BUDGET = 50 * 2**20


def empty(head: jax.Array, valid: int) -> tuple[jax.Array, ...]:
  """What sums the gradient of `head` [V, D]: itself and, in bfloat16, its further digits."""
  # Padding of the vocabulary alone is never written.
  make = jax.lax.empty if valid == head.shape[0] else jnp.zeros
  rest = (jax.lax.empty(head.shape, jnp.int8),) if head.dtype == jnp.bfloat16 else ()
  return make(head.shape, head.dtype), *rest


def add(
  spec: DivergenceSpec,
  stored: stores.Stored,
  rows: Rows,
  hidden: jax.Array,
  head: jax.Array,
  totals: tuple[jax.Array, ...],
  first: jax.Array,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
  """Gradient of the chunk's hidden states, float32 [c, D], and totals with the chunk's part added.

  Args:
    spec: what to compare.
    stored: see `tpu_speed_store`.
    rows: see `tpu_backward`; float32 [c] each.
    hidden: the student's, [c, D].
    head: the student's, [V, D].
    totals: the head's gradient so far, from `empty`, or () where nobody asks for it.
    first: whether there is nothing in the totals yet, whatever their memory holds.
  """
  count, depth = hidden.shape
  blocks = _blocks(spec, stored, hidden, head, totals)
  lane_rows = jnp.stack(rows, axis=1)
  steps = pl.cdiv(blocks.valid_steps, _CORES)
  parts = stored.tile // blocks.block_vocab

  def tile(core, step):
    # The last core may have a step too many, at the block that it has already.
    return jnp.minimum(core * steps + step, blocks.valid_steps - 1)

  whole = lambda width: pl.BlockSpec(  # noqa: E731
    (count, width), lambda *_: (0, 0), pipeline_mode=pl.Buffered(1)
  )
  logits = pl.BlockSpec(blocks.tile, lambda core, step, _: (0, tile(core, step)))
  by_vocab = pl.BlockSpec((blocks.block_vocab, depth), lambda core, step, _: (tile(core, step), 0))
  maxima = pl.BlockSpec(
    (count, lib.LANES), lambda core, step, _: (0, jax.lax.div(tile(core, step), parts * stores.HALF))
  )
  arrays = [lane_rows, stored.peaks, stored.gaps, stored.maxima, hidden, head, *totals]
  hidden_sum, *totals = pl.pallas_call(
    lambda *refs: _kernel(spec, blocks, steps, parts, refs, len(totals)),
    out_shape=[
      jax.ShapeDtypeStruct((_CORES, count, depth), jnp.float32),
      *(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in totals),
    ],
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=1,
      grid=(_CORES, steps),
      in_specs=[whole(lane_rows.shape[1]), logits, logits, maxima, whole(depth)]
      + [by_vocab] * (1 + len(totals)),
      out_specs=[pl.BlockSpec(memory_space=pl.ANY)] + [by_vocab] * len(totals),
      scratch_shapes=[
        pltpu.VMEM(hidden.shape, jnp.float32),
        pltpu.VMEM(blocks.tile, hidden.dtype),
        pltpu.SemaphoreType.DMA,
      ],
    ),
    # Counted with the scalar.
    input_output_aliases={7 + number: 1 + number for number in range(len(totals))},
    compiler_params=lib.PARAMS,
    name='linear_divergence_apply',
  )(jnp.reshape(first, 1).astype(jnp.int32), *arrays)
  return hidden_sum.sum(0), tuple(totals)


def _blocks(spec, stored, hidden, head, totals) -> lib.Blocks:
  """The widest blocks of the vocabulary that fit into VMEM, and all rows."""
  (count, depth), vocab = hidden.shape, head.shape[0]
  width = min(_WIDEST, stored.tile)
  by_entry = depth * (2 * head.dtype.itemsize + 4 * sum(x.dtype.itemsize for x in totals) + 4)
  by_entry += count * (2 * 2 * stored.peaks.dtype.itemsize + 8)
  fixed = count * depth * (hidden.dtype.itemsize + 4) + count * lib.LANES * 4 * 3
  while width > lib.LANES and fixed + width * by_entry > _VMEM_BUDGET:
    width //= 2
  return lib.Blocks(count, vocab, spec.valid_vocab or vocab, count, width)


def _kernel(spec, blocks, steps: int, parts: int, refs, summed: int) -> None:
  """Grid axis 0 runs over cores, axis 1 over a core's blocks of the vocabulary."""
  first_ref, rows_ref, peak_ref, gap_ref, maxima_ref, hidden_ref, head_ref, *refs = refs
  before, out_ref, after = refs[:summed], refs[summed], refs[summed + 1 : -3]
  sum_ref, level_ref, semaphore = refs[-3:]
  core, step = pl.program_id(0), pl.program_id(1)
  block = core * steps + step

  @pl.when(step == 0)
  def _():
    sum_ref[...] = jnp.zeros(sum_ref.shape, jnp.float32)

  @pl.when(block < blocks.valid_steps)
  def _():
    lib.forget_padding(blocks, head_ref, block)
    head = head_ref[...].astype(hidden_ref.dtype)
    tile = jax.lax.div(block, parts)
    for some in _parts(blocks.rows):
      refs = [ref.at[some] for ref in (rows_ref, peak_ref, gap_ref, maxima_ref)]
      level_ref[some] = _gradient(spec, refs, tile).astype(head.dtype)
      sum_ref[some] += lib.contract(level_ref[some], head, (1, 0))
    for some in _parts(blocks.block_vocab if summed else 0):
      part = lib.contract(level_ref[:, some], hidden_ref[...], (0, 0))
      _accumulate([ref.at[some] for ref in before], [ref.at[some] for ref in after], part, first_ref[0] == 1)

  @pl.when(step == steps - 1)
  def _():
    copy = pltpu.make_async_copy(sum_ref, out_ref.at[core], semaphore)
    copy.start()
    copy.wait()


def _parts(size: int) -> list[slice]:
  """A product's rows a few at a time: of all at once the compiler spills more than it saves."""
  return [slice(start, min(start + _PART, size)) for start in range(0, size, _PART)]


def _gradient(spec, refs, step) -> jax.Array:
  """d loss / d logits of a tile."""
  tile = stores.read(spec, refs, step)
  lanes = refs[0][...]
  level, weight = lanes[:, 4:5], lanes[:, 5:6]
  gradient = entries.slope_at(spec, tile.p, tile.q, tile.gap) - tile.q * level
  if tile.logits is not None:
    gradient *= lib.softcap_slope(spec, tile.logits)
  return gradient * weight


def _accumulate(before, after, part: jax.Array, first: jax.Array) -> None:
  """Adds `part` to a sum kept in one array, or in two."""
  total = before[0][...].astype(jnp.float32)
  if len(before) == 2:
    rest = jax.lax.shift_left(before[1][...].astype(jnp.int32), 8)
    total = _floats(_bits(total) + rest)
  total = jnp.where(first, part, total + part)
  after[0][...] = total.astype(after[0].dtype)
  if len(after) == 2:
    rest = _bits(total) - _bits(total.astype(jnp.bfloat16).astype(jnp.float32))
    rest = jax.lax.shift_right_arithmetic(rest + 128, 8)
    after[1][...] = jnp.clip(rest, -128, 127).astype(jnp.int8)


def _bits(x: jax.Array) -> jax.Array:
  return jax.lax.bitcast_convert_type(x, jnp.int32)


def _floats(x: jax.Array) -> jax.Array:
  return jax.lax.bitcast_convert_type(x, jnp.float32)


def scaled(x: jax.Array, factor: jax.Array) -> jax.Array:
  """x [V, D] times a number, in the place of x, where XLA would keep both."""
  block = pl.BlockSpec((min(_WIDEST, x.shape[0]), x.shape[1]), lambda step, _: (step, 0))

  def kernel(factor_ref, x_ref, out_ref):
    out_ref[...] = (x_ref[...].astype(jnp.float32) * factor_ref[0]).astype(out_ref.dtype)

  return pl.pallas_call(
    kernel,
    out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=1,
      grid=(pl.cdiv(x.shape[0], block.block_shape[0]),),
      in_specs=[block],
      out_specs=block,
    ),
    input_output_aliases={1: 0},
    compiler_params=pltpu.CompilerParams(dimension_semantics=('parallel',), vmem_limit_bytes=lib.VMEM_LIMIT),
    name='linear_divergence_scale',
  )(factor[None], x)

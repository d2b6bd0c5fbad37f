"""Blocks of rows and vocabulary that the TPU kernels step over, and the logits of one tile."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

LANES = 128
# Logit of an entry that does not exist: exp gives 0, and unlike -inf no difference of two gives NaN.
FLOOR = -1e30
# v5p and TPU7x have 64 MiB of VMEM a core, v5e and v6e twice that. The rest is the compiler's.
VMEM_LIMIT = 60 * 2**20
_VMEM_BUDGET = 44 * 2**20
# Cores may share the first grid axis; the second is summed over in VMEM.
PARAMS = pltpu.CompilerParams(dimension_semantics=('parallel', 'arbitrary'), vmem_limit_bytes=VMEM_LIMIT)
# Bytes a logit of a tile costs beside its blocks: float32 values that live at the same time.
_TILE_BYTES = 32

# Rows, then vocabulary entries, of a tile. A head tile is read again for each block of rows, and
# rows again for each head tile: whichever is the outer loop should have the larger side.
ROW_MAJOR = ((1024, 512), (512, 512), (512, 256), (256, 256), (256, 128), (128, 128), (64, 128), (16, 128))
VOCAB_MAJOR = ((512, 1024), (512, 512), (256, 512), (256, 256), (128, 256), (128, 128), (64, 128), (16, 128))


@dataclasses.dataclass(frozen=True)
class Blocks:
  """How N rows and V vocabulary entries are cut; the last block of either may stick out.

  Attributes:
    rows: N.
    vocab: V, rows of the heads.
    valid: entries that are not padding of the head.
    block_rows: rows of a tile, a multiple of 16 (two bfloat16 share a sublane).
    block_vocab: vocabulary entries of a tile, a multiple of 128.
  """

  rows: int
  vocab: int
  valid: int
  block_rows: int
  block_vocab: int

  @property
  def row_steps(self) -> int:
    """Blocks of rows."""
    return pl.cdiv(self.rows, self.block_rows)

  @property
  def vocab_steps(self) -> int:
    """Blocks of the vocabulary."""
    return pl.cdiv(self.vocab, self.block_vocab)

  @property
  def valid_steps(self) -> int:
    """Blocks of the vocabulary that hold more than padding."""
    return pl.cdiv(self.valid, self.block_vocab)

  @property
  def tile(self) -> tuple[int, int]:
    """Shape of a tile of logits."""
    return self.block_rows, self.block_vocab


def choose(
  rows: int, vocab: int, valid: int, row_bytes: int, vocab_bytes: int, candidates: tuple[tuple[int, int], ...]
) -> Blocks:
  """The first of `candidates` whose blocks fit into VMEM, not larger than the arrays need.

  Args:
    rows: N.
    vocab: V.
    valid: valid vocabulary.
    row_bytes: VMEM for one row of a block, all operands together.
    vocab_bytes: VMEM for one vocabulary entry of a block, all operands together.
    candidates: (rows, vocabulary entries), best first; the last is taken if none fits.
  """
  for block_rows, block_vocab in candidates:
    block_rows, block_vocab = min(block_rows, _up(rows, 16)), min(block_vocab, _up(vocab, LANES))
    tile = block_rows * block_vocab * _TILE_BYTES
    if block_rows * row_bytes + block_vocab * vocab_bytes + tile <= _VMEM_BUDGET:
      break
  return Blocks(rows, vocab, valid, block_rows, block_vocab)


def bytes_per_row(*arrays: jax.Array, buffers: int = 2) -> int:
  """VMEM for one row of a block of every array [n, width]: lanes come in 128, blocks in pairs.

  The next block is fetched while one is used, unless there is but one buffer.
  """
  return sum(buffers * _up(x.shape[1], LANES) * x.dtype.itemsize for x in arrays)


def at_least(array: jax.Array, size: int) -> jax.Array:
  """`array` [n, ...] with zeros up to `size` rows, so that no block is larger than its array."""
  missing = max(0, size - array.shape[0])
  return jnp.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1)) if missing else array


def contract(left: jax.Array, right: jax.Array, axes: tuple[int, int]) -> jax.Array:
  """Product over one axis of each matrix, in their type and summed in float32."""
  # Said aloud: a caller's setting of the default precision does not fit bfloat16 operands.
  exact = left.dtype == jnp.float32
  return jax.lax.dot_general(
    left,
    right,
    (((axes[0],), (axes[1],)), ((), ())),
    precision=jax.lax.Precision.HIGHEST if exact else jax.lax.Precision.DEFAULT,
    preferred_element_type=jnp.float32,
  )


def logits(
  hidden: jax.Array, head: jax.Array, temperature: float, softcap: float | None
) -> tuple[jax.Array, jax.Array | float]:
  """Shaped logits [rows, vocab] of a tile and the derivative of the soft-cap, as `kernels.logits`.

  Args:
    hidden: [rows, D].
    head: [vocab, D], of the type of `hidden`.
    temperature: divides the logits.
    softcap: c in c·tanh(logits / c), or None.
  """
  return shaped(contract(hidden, head, (1, 1)), temperature, softcap)


def shaped(raw: jax.Array, temperature: float, softcap: float | None) -> tuple[jax.Array, jax.Array | float]:
  """Logits after soft-cap and temperature, and the derivative of the soft-cap."""
  if softcap is None:
    return raw if temperature == 1 else raw / temperature, 1.0
  slope = jnp.tanh(raw / softcap)
  return slope * (softcap / temperature), 1 - slope * slope


def tile_logits(
  spec, blocks: Blocks, hidden_refs, head_refs, logit_refs, step: jax.Array, end: jax.Array | None = None
) -> None:
  """Writes the shaped logits of tile `step` of both models, FLOOR where the vocabulary has ended.

  Args:
    spec: temperatures and soft-caps.
    blocks: how the arrays are cut.
    hidden_refs: the student's [rows, D] and the teacher's.
    head_refs: the student's [vocab, D] and, where it has its own, the teacher's.
    logit_refs: the student's [rows, vocab] and the teacher's.
    step: which tile of the vocabulary.
    end: [rows, 1], valid entries where that is known at run time alone; see `with_end`.
  """
  for hidden, head, out, temperature, softcap in (
    (hidden_refs[0], head_refs[0], logit_refs[0], spec.student_temperature, spec.student_softcap),
    (hidden_refs[1], head_refs[-1], logit_refs[1], spec.teacher_temperature, spec.teacher_softcap),
  ):
    x = logits(hidden[...], head[...].astype(hidden.dtype), temperature, softcap)[0]
    out[...] = existing_logits(blocks, x, step, end)


def existing_logits(blocks: Blocks, x: jax.Array, step: jax.Array, end: jax.Array | None = None) -> jax.Array:
  """Logits x [rows, vocab] of tile `step`, FLOOR where the vocabulary has ended; `end` see `with_end`."""
  if end is None and blocks.valid % blocks.block_vocab == 0:
    return x
  column = jax.lax.broadcasted_iota(jnp.int32, blocks.tile, 1)
  last = blocks.valid if end is None else end.astype(jnp.int32)
  return jnp.where(column < last - step * blocks.block_vocab, x, FLOOR)


def with_end(rows: jax.Array, end: jax.Array | None) -> jax.Array:
  """`rows` [N, n] with a column more that says how many entries of the heads are valid.

  Args:
    rows: what a kernel reads of every row.
    end: scalar, or None where the number is `Blocks.valid`: then nothing is added.
  """
  if end is None:
    return rows
  column = jnp.broadcast_to(end.astype(rows.dtype), (rows.shape[0], 1))
  return jnp.concatenate([rows, column], axis=1)


def softcap_slope(spec, z: jax.Array) -> jax.Array | float:
  """Derivative of the student's soft-cap at shaped logits, 0 at FLOOR."""
  if spec.student_softcap is None:
    return 1.0
  ratio = z * (spec.student_temperature / spec.student_softcap)
  return 1 - jnp.minimum(ratio * ratio, 1.0)


def forget_padding(blocks: Blocks, head_ref, step: jax.Array, end: jax.Array | None = None) -> None:
  """Zeros in the rows of a block of a head that do not exist, or from `end` [rows, 1]: 0 · NaN is NaN."""
  if end is None and blocks.valid % blocks.block_vocab == 0:
    return
  # A block's first row exists, others may not.
  last = blocks.valid if end is None else jnp.max(end[0:1].astype(jnp.float32)).astype(jnp.int32)

  @pl.when((step + 1) * blocks.block_vocab > last)
  def _():
    head_ref[...] = existing(head_ref[...], last - step * blocks.block_vocab)


def in_lanes(values, shape: tuple[int, int]) -> jax.Array:
  """Values [rows, 1] side by side in the first lanes of [rows, 128]."""
  lane = jax.lax.broadcasted_iota(jnp.int32, shape, 1)
  result = jnp.zeros(shape, jnp.float32)
  for index, value in enumerate(values):
    result = jnp.where(lane == index, value, result)
  return result


def lane_sum(x: jax.Array) -> jax.Array:
  """Every lane's own sum [rows, 128] of x [rows, n·128]."""
  return sum(x[:, start : start + LANES] for start in range(0, x.shape[1], LANES))


def columns(blocks: Blocks, step: jax.Array) -> jax.Array:
  """Vocabulary ids of a tile [rows, vocab], as float32: exact below 2**24, and cheap to reduce."""
  start = step * blocks.block_vocab
  return (jax.lax.broadcasted_iota(jnp.int32, blocks.tile, 1) + start).astype(jnp.float32)


def inside(blocks: Blocks, row_step: jax.Array, vocab_step: jax.Array) -> jax.Array:
  """True at the logits [rows, vocab] of a tile that exist: the others come from unknown memory."""
  rows = blocks.rows - row_step * blocks.block_rows
  vocab = blocks.valid - vocab_step * blocks.block_vocab
  row = jax.lax.broadcasted_iota(jnp.int32, blocks.tile, 0)
  column = jax.lax.broadcasted_iota(jnp.int32, blocks.tile, 1)
  return (row < rows) & (column < vocab)


def existing(block: jax.Array, size: jax.Array) -> jax.Array:
  """`block` [n, D] with zeros from row `size` on: 0 · NaN is NaN."""
  row = jax.lax.broadcasted_iota(jnp.int32, block.shape, 0)
  return jnp.where(row < size, block, jnp.zeros_like(block))


def first(x: jax.Array, value: jax.Array, ids: jax.Array) -> jax.Array:
  """Lowest id at which a row of x [rows, vocab] equals value [rows, 1]."""
  return row_min(jnp.where(x == value, ids, -FLOOR))


def row_max(x: jax.Array) -> jax.Array:
  """Maximum [rows, 1] of x [rows, n]."""
  return jnp.max(x, axis=1, keepdims=True)


def row_min(x: jax.Array) -> jax.Array:
  """Minimum [rows, 1] of x [rows, n]."""
  return jnp.min(x, axis=1, keepdims=True)


def row_sum(x: jax.Array) -> jax.Array:
  """Sum [rows, 1] of x [rows, n]."""
  return jnp.sum(x, axis=1, keepdims=True)


def row_block(blocks: Blocks, width: int, axis: int, buffers: int = 2) -> pl.BlockSpec:
  """Blocks of rows of an array [N, width]; grid axis `axis` counts them."""
  return _block((blocks.block_rows, width), axis, buffers)


def vocab_block(blocks: Blocks, width: int, axis: int, buffers: int = 2) -> pl.BlockSpec:
  """Blocks of vocabulary entries of an array [V, width]; grid axis `axis` counts them."""
  return _block((blocks.block_vocab, width), axis, buffers)


def _block(shape: tuple[int, int], axis: int, buffers: int) -> pl.BlockSpec:
  mode = None if buffers == 2 else pl.Buffered(buffers)
  return pl.BlockSpec(shape, lambda *grid: (grid[axis], 0), pipeline_mode=mode)


def _up(size: int, multiple: int) -> int:
  return -(-size // multiple) * multiple

"""Tiles of both models' logits on a Hopper GPU, made in a stream and handed to whoever sums them.

A block of the grid has a number of rows and a stretch of the vocabulary. One of its warpgroups copies
pieces of hidden states and heads into a ring of slots in shared memory; the others multiply them
(wgmma, float32 sums in registers), each for rows of its own, first the student's tile, then the
teacher's. So no logit leaves the registers, and copies run ahead over the ends of tiles.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels.linear_divergence.gpu_config import WORKER_ROWS, Config
from kernels.linear_divergence.spec import DivergenceSpec

# Logit of an entry that does not exist: exp gives 0, and unlike -inf no difference of two gives NaN.
FLOOR = -1e30


@dataclasses.dataclass(frozen=True)
class Tile:
  """Where a worker's tile of logits is, or some columns of it.

  Attributes:
    shape: (rows, entries).
    rows: first row.
    start: first entry of the whole tile.
    offset: first column.
    repeated: leading entries of the tile that an earlier tile had, or None where no tile has any.
    worker: number of the worker.
  """

  shape: tuple[int, int]
  rows: jax.Array
  start: jax.Array
  offset: int
  repeated: jax.Array | None
  worker: jax.Array

  def parts(self, width: int, arrays: Sequence[jax.Array]) -> list[tuple['Tile', list[jax.Array]]]:
    """The tile and arrays [rows, entries], `width` columns at a time."""
    rows, entries = self.shape
    result = []
    for first in range(0, entries, width):
      cut = [jax.lax.slice(x, (0, first), (rows, first + width)) for x in arrays]
      result.append((dataclasses.replace(self, shape=(rows, width), offset=first), cut))
    return result

  def columns(self) -> jax.Array:
    """int32 [rows, entries]: each entry's number in the whole tile."""
    return plgpu.broadcasted_iota(jnp.int32, self.shape, 1, layout=plgpu.Layout.WGMMA) + self.offset

  def of_rows(self, x: jax.Array) -> jax.Array:
    """[rows] as [rows, entries]."""
    return jax.lax.broadcast_in_dim(x, self.shape, (0,))

  def fresh(self, x: jax.Array, otherwise: float) -> jax.Array:
    """x [rows, entries], and `otherwise` at entries that an earlier tile had."""
    if self.repeated is None:
      return x
    return jnp.where(self.columns() >= self.repeated, x, jnp.full_like(x, otherwise))

  def load(self, ref, index: int) -> jax.Array:
    """Row `index` of a reference [n, N], for this tile's rows."""
    place = ref.at[index, pl.ds(self.rows, self.shape[0])]
    # jax 0.11 has optimised loads of shared memory alone; 0.12 makes the same instructions either way.
    return plgpu.load(place, layout=plgpu.Layout.WGMMA.reduce(1), optimized=False)


def filled(value: float, shape: tuple[int]) -> jax.Array:
  """[rows] of one value, to start a sum over tiles with."""
  return plgpu.layout_cast(jnp.full(shape, value, jnp.float32), plgpu.Layout.WGMMA.reduce(1))


def shaped(spec: DivergenceSpec, raw: Sequence[jax.Array]) -> list[jax.Array]:
  """Student's and teacher's logits after soft-cap and temperature, as `kernels.logits` has them."""
  settings = (
    (spec.student_temperature, spec.student_softcap),
    (spec.teacher_temperature, spec.teacher_softcap),
  )
  result = []
  for x, (temperature, softcap) in zip(raw, settings, strict=True):
    if softcap is not None:
      x, temperature = jnp.tanh(x * (1 / softcap)), temperature / softcap
    result.append(x if temperature == 1 else x * (1 / temperature))
  return result


def norms_of(tile: Tile, ref) -> list[jax.Array]:
  """Norms [rows] from a reference [4 or more, N], as `log_probabilities` takes them."""
  return [tile.load(ref, i) for i in range(4)]


def log_probabilities(
  tile: Tile, norms: Sequence[jax.Array], z: jax.Array, u: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """log p and log q of a tile from shaped logits and norms.

  The norms are the student's maximum and the log of its sum relative to that, then the teacher's: one
  number for both would round large logits.
  """
  max_s, log_s, max_t, log_t = (tile.of_rows(x) for x in norms)
  return u - max_t - log_t, z - max_s - log_s


def run(
  config: Config,
  vocab: int,
  models: Sequence[tuple[jax.Array, jax.Array]],
  others: Sequence[jax.Array],
  out: Sequence[Callable[[int], jax.ShapeDtypeStruct]],
  start: Callable[[Tile, Sequence[Any]], Any],
  add: Callable[[Tile, Sequence[Any], Sequence[jax.Array], Any], Any],
  finish: Callable[[Tile, Sequence[Any], Any, jax.Array], None],
  *,
  scratch: Sequence[Any] = (),
  name: str,
) -> list[jax.Array]:
  """Streams over the tiles of [rows, V] logits.

  Args:
    config: how to cut; N must be a multiple of `config.rows`, V at least `config.vocab`.
    vocab: V, entries that are streamed over.
    models: hidden states [N, D] and head [V or more, D] of each model, bfloat16 or float16, D a
      multiple of `config.depth`.
    others: other inputs.
    out: for each result, its type given the number of stretches.
    start: of (tile, references), what is carried from tile to tile. References are those of `others`,
      `out` and `scratch`.
    add: of (tile, references, raw logits of each model, carried) the new carried values.
    finish: of (tile, references, carried, stretch) after the last tile of a stretch.
    scratch: further memory of a block.
    name: of the kernel.
  """
  count = models[0][0].shape[0]
  tiles, blocks = pl.cdiv(vocab, config.vocab), count // config.rows
  segments = config.stretches(blocks, tiles)
  steps = [hidden.shape[1] // config.depth for hidden, _ in models]
  arrays = 2 * len(models)

  def body(*refs):
    pairs = [(refs[2 * i], refs[2 * i + 1]) for i in range(len(models))]
    hidden_slots, head_slots, full, free = refs[len(refs) - 4 :]
    references = refs[arrays : len(refs) - 4]
    block, segment, thread = (jax.lax.axis_index(axis) for axis in ('block', 'segment', 'thread'))
    begin, end = (jax.lax.div((segment + i) * tiles, segments) for i in (0, 1))
    place = lambda tile: jnp.minimum(tile * config.vocab, vocab - config.vocab)  # noqa: E731
    pieces = sum(steps)

    @pl.when(thread == config.workers)
    def _copy():
      plgpu.set_max_registers(40, action='decrease')

      @pl.loop(begin, end)
      def _(tile):
        first = (tile - begin) * pieces
        for (hidden, head), before, many in zip(pairs, _before(steps), steps, strict=True):

          @pl.loop(0, many)
          def _(piece, hidden=hidden, head=head, before=before):
            count = first + before + piece
            slot = jax.lax.rem(count, config.slots)

            @pl.when(count >= config.slots)
            def _():
              plgpu.barrier_wait(free.at[slot])

            depth = pl.ds(piece * config.depth, config.depth)
            rows = pl.ds(block * config.rows, config.rows)
            plgpu.copy_gmem_to_smem(hidden.at[rows, depth], hidden_slots.at[slot], full.at[slot])
            entries = pl.ds(place(tile), config.vocab)
            plgpu.copy_gmem_to_smem(head.at[entries, depth], head_slots.at[slot], full.at[slot])

    @pl.when(thread < config.workers)
    def _multiply():
      plgpu.set_max_registers(232, action='increase')
      own = pl.ds(thread * WORKER_ROWS, WORKER_ROWS)
      first_row = block * config.rows + thread * WORKER_ROWS

      def where(tile):
        repeated = None if vocab % config.vocab == 0 else tile * config.vocab - place(tile)
        return Tile((WORKER_ROWS, config.vocab), first_row, place(tile), 0, repeated, thread)

      def product(first, many):
        def summed(sum_ref):
          @pl.loop(0, many)
          def _(piece):
            slot = jax.lax.rem(first + piece, config.slots)
            plgpu.barrier_wait(full.at[slot])
            plgpu.wgmma(sum_ref, hidden_slots.at[slot, own], head_slots.at[slot].transpose((1, 0)))
            plgpu.wgmma_wait(1)

            # The products of the piece before have ended; those of this one go on.
            @pl.when(piece > 0)
            def _():
              plgpu.barrier_arrive(free.at[jax.lax.rem(first + piece - 1, config.slots)])

          return sum_ref[...]

        result = pl.run_scoped(summed, plgpu.ACC((WORKER_ROWS, config.vocab), jnp.float32))
        plgpu.barrier_arrive(free.at[jax.lax.rem(first + many - 1, config.slots)])
        return result

      def stream(tile, carried):
        first = (tile - begin) * pieces
        logits = [product(first + before, many) for before, many in zip(_before(steps), steps, strict=True)]
        return add(where(tile), references, logits, carried)

      carried = jax.lax.fori_loop(begin, end, stream, start(where(begin), references))
      finish(where(begin), references, carried, segment)

  dtype = models[0][0].dtype
  transforms = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))
  kernel = plgpu.kernel(
    body,
    out_type=[make(segments) for make in out],
    scratch_types=[
      *scratch,
      plgpu.SMEM((config.slots, config.rows, config.depth), dtype, transforms=transforms),
      plgpu.SMEM((config.slots, config.vocab, config.depth), dtype, transforms=transforms),
      plgpu.Barrier(num_arrivals=2, num_barriers=config.slots),
      plgpu.Barrier(num_arrivals=config.workers, num_barriers=config.slots),
    ],
    grid=(blocks, segments),
    grid_names=('block', 'segment'),
    compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Lane),
    num_threads=config.workers + 1,
    thread_name='thread',
    kernel_name=name,
  )
  return kernel(*(x for pair in models for x in pair), *others)


def _before(steps: Sequence[int]) -> list[int]:
  """Pieces of a tile that come before each model's."""
  return [sum(steps[:i]) for i in range(len(steps))]

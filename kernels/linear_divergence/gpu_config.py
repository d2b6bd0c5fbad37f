"""How the GPU kernels cut their work: numbers to tune, and nothing of Pallas."""

import dataclasses

WORKER_ROWS = 64  # Rows of a wgmma.


@dataclasses.dataclass(frozen=True)
class Config:
  """How the work is cut. What is best is for a measurement to say: none has been made.

  Attributes:
    workers: warpgroups that multiply, 64 rows each; one more copies. A third would leave each thread
      160 registers, fewer than two tiles of 128 entries and the sums need.
    vocab: entries of a tile, a multiple of 8 and at most 256.
    part: entries of a tile that are added up at once, a divisor of `vocab` and a multiple of 8. The
      compiler keeps the order of what is written here, and whole tiles would spill registers.
    depth: of a piece of the sum over the width, a multiple of 64.
    slots: pieces in shared memory at once; (64 workers + vocab)·depth·2 bytes each, of 227 KiB.
    segments: stretches of the vocabulary at least, where there are as many tiles. Blocks of equal rows
      and consecutive stretches run side by side; more of these share fewer rows' hidden states in L2.
    processors: multiprocessors of the GPU: the number of stretches is chosen to fill them.
    step: entries of the outer loop of the backward pass, whose d loss / d logits are held at once.
  """

  workers: int = 2
  vocab: int = 128
  part: int = 8
  depth: int = 64
  slots: int = 5
  segments: int = 8
  processors: int = 132
  step: int = 4096

  @property
  def rows(self) -> int:
    """Rows of a block of the grid."""
    return WORKER_ROWS * self.workers

  def stretches(self, row_blocks: int, tiles: int) -> int:
    """How many stretches `tiles` are cut into: those with which the last round of blocks is fullest."""

    def busy(segments):
      rounds = -(-row_blocks * segments // self.processors)
      return row_blocks * segments / (rounds * self.processors)

    least = max(self.segments, self.processors // row_blocks)
    return min(tiles, max(range(least, 2 * least), key=busy))

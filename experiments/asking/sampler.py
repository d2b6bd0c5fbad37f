"""A loaded model that answers batches of prompts, and where the time goes."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator

import jax
import numpy as np

from opsd_jax import mesh as meshes
from opsd_jax.models.model import Params
from opsd_jax.models.spec import ModelSpec
from opsd_jax.records import Prompts
from opsd_jax.rollout import stream
from opsd_jax.rollout.config import DecodeConfig, SamplingConfig
from opsd_jax.rollout.stream import Drawn


@dataclasses.dataclass(frozen=True)
class Sampler:
  """What sampling takes beside the prompts.

  `vocab` ids are the tokenizer's, the head may have more; `samples` of each prompt are drawn.
  """

  spec: ModelSpec
  mesh: jax.sharding.Mesh
  params: Params
  sampling: SamplingConfig
  eos_ids: tuple[int, ...]
  vocab: int
  samples: int = 1
  seed: int = 0
  decode: DecodeConfig = DecodeConfig()


@dataclasses.dataclass
class Meter:
  """Seconds and tokens so far; `shapes` are those that have been compiled."""

  load: float = 0.0
  compile: float = 0.0
  read: float = 0.0
  draw: float = 0.0
  read_tokens: int = 0
  drawn_tokens: int = 0
  shapes: set[tuple[int, ...]] = dataclasses.field(default_factory=set)

  @contextlib.contextmanager
  def timed(self, stage: str) -> Iterator[None]:
    """Adds the seconds inside to those of a stage."""
    began = time.monotonic()
    try:
      yield
    finally:
      setattr(self, stage, getattr(self, stage) + time.monotonic() - began)

  def summary(self) -> str:
    """Where the time went."""
    lines = [f'loaded in {self.load:.1f} s, compiled in {self.compile:.1f} s']
    for name, tokens, seconds in (
      ('prompts', self.read_tokens, self.read),
      ('completions', self.drawn_tokens, self.draw),
    ):
      rate = f', {tokens / seconds:,.0f} tokens/s' if tokens and seconds else ''
      lines.append(f'{name}: {tokens:,} tokens in {seconds:.1f} s{rate}')
    return '\n'.join(lines)


def draw(sampler: Sampler, prompts: Prompts, budget: np.ndarray, every: int, meter: Meter) -> Iterator[Drawn]:
  """Yields tokens as they are drawn, `every` of them at a time; compiles what is new before.

  Args:
    sampler: the model.
    prompts: Q right-padded prompts.
    budget: int32 [B], tokens of every row; rows of 0 are not drawn, and their prompts not counted.
    every: tokens of a dispatch.
    meter: is told what it took.
  """
  shape = (*prompts.ids.shape, every)
  if shape not in meter.shapes:
    with meter.timed('compile'):  # rows without a budget: everything is compiled and nothing is drawn
      for _ in _stream(sampler, prompts, np.zeros_like(budget), every):
        pass
    meter.shapes.add(shape)
  parts = _stream(sampler, prompts, budget, every)
  with meter.timed('read'):
    next(parts)
  asked = (budget.reshape(len(prompts.length), -1) > 0).any(1)
  meter.read_tokens += int(np.asarray(prompts.length)[asked].sum())
  while True:
    with meter.timed('draw'):
      part = next(parts, None)
    if part is None:
      return
    meter.drawn_tokens += int(part.count.sum())
    yield part


def _stream(sampler: Sampler, prompts: Prompts, budget: np.ndarray, every: int) -> Iterator[Drawn]:
  return stream.stream(
    sampler.spec,
    sampler.params,
    meshes.shard_rows(sampler.mesh, prompts),
    sampler.sampling,
    eos_ids=sampler.eos_ids,
    per_question=sampler.samples,
    seed=sampler.seed,
    valid_vocab=sampler.vocab,
    max_tokens=budget,
    decode=sampler.decode,
    every=every,
  )

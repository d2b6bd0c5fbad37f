"""The parts of a step by the clock: sampler, update and loss, each against a named baseline.

Medians of interleaved repetitions, after one that compiles.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

from kernels.linear_divergence import bench as loss_bench
from opsd_jax.distill import scoring
from opsd_jax.distill.config import ObjectiveConfig, TeacherConfig
from opsd_jax.mesh import MeshConfig, make_mesh
from opsd_jax.models import model
from opsd_jax.models.spec import ModelSpec
from opsd_jax.records import Prompts, Rollout
from opsd_jax.rollout import decode
from opsd_jax.rollout.config import SamplingConfig
from opsd_jax.train import state, step


@dataclasses.dataclass(frozen=True)
class Sizes:
  """What is measured: Q questions, n rollouts of each, P prompt and T completion tokens, V vocabulary."""

  questions: int = 8
  per_question: int = 4
  prompt: int = 256
  tokens: int = 64
  vocab: int = 32_768
  dim: int = 128


@dataclasses.dataclass(frozen=True)
class Row:
  """One line of the table."""

  what: str
  variant: str
  seconds: float
  tokens_per_second: float
  ratio: float
  temp_mib: float | None = None


TINY = Sizes(2, 2, 16, 8, 512, 16)
_LOSS_NAMES = {'reference': 'full logits (baseline)', 'chunked': 'chunked logits'}


def measure(sizes: Sizes, repeats: int) -> list[Row]:
  """Every group of rows."""
  mesh = make_mesh(MeshConfig())
  with jax.set_mesh(mesh):
    rows = _measure_model(sizes, mesh, repeats)
  losses = loss_bench.measure(
    sizes.questions,
    sizes.tokens,
    sizes.dim,
    sizes.vocab,
    loss_bench.SPECS['forward_kl clipped'],
    chunk_tokens=sizes.tokens,
    repeats=repeats,
  )
  return rows + [
    Row(
      'loss and gradient',
      _LOSS_NAMES[r['implementation']],
      r['wall_ms'] / 1e3,
      sizes.questions * sizes.tokens / r['wall_ms'] * 1e3,
      1 / r['wall_ratio'],
      r['temp_bytes'] and r['temp_bytes'] / 2**20,
    )
    for r in losses
  ]


def _measure_model(sizes: Sizes, mesh: jax.sharding.Mesh, repeats: int) -> list[Row]:
  spec = ModelSpec(
    vocab_size=sizes.vocab,
    num_layers=2,
    embed_dim=sizes.dim,
    num_heads=4,
    num_kv_heads=2,
    head_dim=max(sizes.dim // 4, 2),
    mlp_dim=3 * sizes.dim,
  )
  params = model.init_params(spec, jax.random.key(0), mesh)
  rng = np.random.default_rng(0)
  prompts = Prompts(
    ids=rng.integers(sizes.vocab, size=(sizes.questions, sizes.prompt)).astype(np.int32),
    length=np.full(sizes.questions, sizes.prompt, np.int32),
    problem_id=np.arange(sizes.questions, dtype=np.uint32),
  )
  return _rollout_rows(spec, params, prompts, sizes, repeats) + _update_rows(
    spec, params, prompts, sizes, repeats
  )


def _rollout_rows(
  spec: ModelSpec, params: model.Params, prompts: Prompts, sizes: Sizes, repeats: int
) -> list[Row]:
  """One prefill a question against one a rollout."""
  repeated = jax.tree.map(lambda x: np.repeat(x, sizes.per_question, axis=0), prompts)

  def sample(prompts: Prompts, per_question: int) -> Callable[[], Any]:
    return lambda: decode.generate(
      spec, params, prompts, SamplingConfig(max_tokens=sizes.tokens), eos_ids=(), per_question=per_question
    )

  return _rows(
    'rollout',
    {
      'prompt repeated for every rollout (baseline)': sample(repeated, 1),
      'prompt shared': sample(prompts, sizes.per_question),
    },
    _sampled(sizes),
    repeats,
  )


def _update_rows(
  spec: ModelSpec, params: model.Params, prompts: Prompts, sizes: Sizes, repeats: int
) -> list[Row]:
  """Score and step: full logits and a prompt copy a rollout, against chunks and a shared prompt."""
  rollout = jax.block_until_ready(
    decode.generate(
      spec,
      params,
      prompts,
      SamplingConfig(max_tokens=sizes.tokens),
      eos_ids=(),
      per_question=sizes.per_question,
    )
  )
  repeated = jax.tree.map(lambda x: np.repeat(x, sizes.per_question, axis=0), prompts)
  variants = {
    'full logits, prompt repeated (baseline)': ('reference', repeated),
    'full logits, prompt shared': ('reference', prompts),
    'chunked logits, prompt shared': ('chunked', prompts),
  }
  built = {
    name: _update(spec, params, seen, rollout, implementation)
    for name, (implementation, seen) in variants.items()
  }
  rows = _rows('score and update', {name: run for name, (run, _) in built.items()}, _sampled(sizes), repeats)
  return [dataclasses.replace(row, temp_mib=built[row.variant][1]) for row in rows]


def _update(
  spec: ModelSpec, params: model.Params, prompts: Prompts, rollout: Rollout, implementation: str
) -> tuple[Callable[[], Any], float | None]:
  """An update to time, and the compiler's temporaries of its gradient step in MiB."""
  optimizer = optax.adamw(1e-4)
  score = jax.jit(scoring.score_teacher, static_argnums=0)
  compiled = step.make_distill_step(
    spec,
    ObjectiveConfig(implementation=implementation, chunk_tokens=256),
    TeacherConfig(),
    optimizer,
    valid_vocab=spec.vocab_size,
  )
  holder = [state.create(params, optimizer, TeacherConfig())]
  head = model.head(spec, params)

  def run():
    scores = score(spec, params, (prompts,), rollout)
    holder[0], report = compiled(holder[0], prompts, rollout, scores, head)
    return report

  scores = jax.eval_shape(lambda: scoring.score_teacher(spec, params, (prompts,), rollout))
  analysis = compiled.lower(holder[0], prompts, rollout, scores, head).compile().memory_analysis()
  return run, analysis.temp_size_in_bytes / 2**20 if analysis else None


def _sampled(sizes: Sizes) -> int:
  return sizes.questions * sizes.per_question * sizes.tokens


def _rows(what: str, variants: dict[str, Callable[[], Any]], tokens: int, repeats: int) -> list[Row]:
  """Medians of interleaved repetitions, so that all variants meet the same load; ratios to the first."""
  walls: dict[str, list[float]] = {name: [] for name in variants}
  for turn in range(repeats + 1):
    for name, run in variants.items():
      began = time.perf_counter()
      jax.block_until_ready(run())
      if turn:
        walls[name].append(time.perf_counter() - began)
  medians = {name: statistics.median(wall) for name, wall in walls.items()}
  base = next(iter(medians.values()))
  return [Row(what, name, s, tokens / s, base / s) for name, s in medians.items()]


def table(rows: list[Row]) -> str:
  """Markdown; `speed` is relative to the baseline of the same group."""
  lines = ['| what | variant | ms | tokens/s | speed | temporaries MiB |', '|---|---|---:|---:|---:|---:|']
  for r in rows:
    memory = '-' if r.temp_mib is None else f'{r.temp_mib:.1f}'
    lines.append(
      f'| {r.what} | {r.variant} | {1e3 * r.seconds:.1f} | {r.tokens_per_second:,.0f} | '
      f'{r.ratio:.2f}x | {memory} |'
    )
  return '\n'.join(lines)

"""Initial weights: random or those of a folder, and perhaps trained on worked solutions first."""

import dataclasses
import math
import time

import jax
import numpy as np
import optax

from opsd_jax import mesh as meshes
from opsd_jax.config import require
from opsd_jax.data import source
from opsd_jax.distill import views
from opsd_jax.distill.config import TeacherConfig, ViewsConfig
from opsd_jax.models import lora, model, weights
from opsd_jax.records import Example, Problem, Prompts
from opsd_jax.text.tokenizer import Tokenizer
from opsd_jax.train import ledger, loop, state, step
from opsd_jax.train.config import Budget, ColdStartConfig
from opsd_jax.train.setup import Setup


def run(setup: Setup, folder: str, label: str = 'cold start', settings: str = 'cold_start') -> loop.Finished:
  """Trains `cold_start.updates` supervised updates of all weights; continues an earlier attempt.

  Adapters (`lora`) belong to the distillation: they stand beside the weights that this returns. `label`
  is shown in front of the progress, `settings` is where the stage was set.
  """
  if setup.cold_start.updates == 0:
    return _kept(setup, loop.Finished(initial_params(setup), loop.Progress()))
  optimizer = state.make_optimizer(setup.cold_start.optimizer)
  shape = layout(setup)
  work = loop.Work(
    label,
    folder,
    Budget('updates', setup.cold_start.updates),
    start=lambda: state.create(initial_params(setup), optimizer, TeacherConfig()),
    layout=shape,
    update=_make_update(setup, optimizer, shape),
    optimizer_settings=f'{settings}.optimizer',
  )
  return _kept(setup, loop.run(work, setup))


def initial_params(setup: Setup) -> model.Params:
  """The weights before any training: those of `weights.path`, or random ones of the run's seed."""
  masters = setup.cold_start.updates or not setup.lora.rank
  dtype = 'float32' if masters else setup.spec.dtype
  return weights.initial(setup.weights, setup.spec, jax.random.key(setup.seed), setup.mesh, dtype)


def _kept(setup: Setup, finished: loop.Finished) -> loop.Finished:
  params = lora.freeze(setup.lora, setup.spec, finished.params)
  return dataclasses.replace(finished, params=params)


def layout(setup: Setup) -> state.TrainState:
  """Shapes and shardings of the cold start's state."""
  optimizer = state.make_optimizer(setup.cold_start.optimizer)
  return state.describe(model.abstract_params(setup.spec, setup.mesh), optimizer, TeacherConfig())


def _make_update(setup: Setup, optimizer: optax.GradientTransformation, shape: state.TrainState):
  compiled = step.make_supervised_step(
    setup.spec,
    optimizer,
    valid_vocab=setup.exam.valid_vocab,
    chunk_tokens=setup.objective.chunk_tokens,
    layout=state.shardings(shape),
  )

  def update(weights: state.TrainState, number: int):
    began = time.monotonic()
    prompts, ids, length = supervised_batch(setup, number)
    weights, report = compiled(weights, *meshes.shard_rows(setup.mesh, (prompts, ids, length)))
    report = meshes.host(report)
    metrics = {'loss': float(report.loss)} | {k: float(v) for k, v in report.norms.items()}
    metrics |= {k: float(v / report.tokens) for k, v in report.sums.items()}
    read = ledger.padded_positions(prompts.ids.shape, ids.shape, projected=ids.size)
    spent = ledger.student_entry(setup.spec, prompts.length, length, computed=read)
    return weights, loop.Outcome(metrics, spent, bool(report.stepped), {'update': time.monotonic() - began})

  return update


def supervised_batch(setup: Setup, number: int) -> tuple[Prompts, np.ndarray, np.ndarray]:
  """Prompts [B, P], completions int32 [B, T] and their lengths [B] of update `number`."""
  config = setup.cold_start
  teacher_rows = math.floor(config.batch * config.teacher_fraction)
  examples = source.cold_start_examples(
    setup.data, setup.splits.train, config.batch, teacher_rows, setup.seed, number, config.clean
  )
  asked = student_views(config, setup.views)
  texts = [
    views.prompt(asked[row % len(asked)], e.problem, e.role, setup.tokenizer)
    for row, e in enumerate(examples)
  ]
  width = max(setup.views.student_tokens, setup.views.teacher_tokens)
  prompts = views.tokenize_prompts(
    setup.views,
    texts,
    [e.problem for e in examples],
    setup.tokenizer,
    width,
    'the larger of views.student_tokens and views.teacher_tokens',
  )
  return prompts, *tokenize_completions(examples, setup.tokenizer, setup.rollout.sampling.max_tokens)


def student_views(config: ColdStartConfig, usual: ViewsConfig) -> list[ViewsConfig]:
  """The views that the student's rows take in turn; the teacher's is the same in all."""
  return [dataclasses.replace(usual, student=text) for text in config.student_texts] or [usual]


def misfit(problem: Problem, tokenizer: Tokenizer, width: int) -> str | None:
  """Why the worked solution cannot be trained on, in words that many problems share; None if it can."""
  if not problem.solution.strip():
    return 'it has no worked solution to start from'
  if len(tokenizer.encode(problem.solution)) < width:
    return None
  return f'its worked solution and EOS are longer than rollout.sampling.max_tokens ({width})'


def tokenize_completions(
  examples: list[Example], tokenizer: Tokenizer, width: int
) -> tuple[np.ndarray, np.ndarray]:
  """Completion ids [B, width] ending in EOS, right-padded, and their lengths [B].

  Raises:
    ConfigError: a completion and its EOS are longer than `width`.
  """
  ids, length = np.zeros((len(examples), width), np.int32), np.zeros(len(examples), np.int32)
  for row, example in enumerate(examples):
    tokens = [*tokenizer.encode(example.completion), tokenizer.eos_ids[0]]
    require(
      len(tokens) <= width,
      f'the completion of problem {example.problem.id!r} has {len(tokens)} tokens with its EOS, but '
      f'rollout.sampling.max_tokens is {width}; raise it.',
    )
    ids[row, : len(tokens)], length[row] = tokens, len(tokens)
  return ids, length

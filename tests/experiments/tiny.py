"""The quickstart shrunk until it runs in seconds, and how to start it as a user would."""

import os
import pathlib
import subprocess
import sys

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]

SETTINGS = (
  'model.num_layers=1',
  'model.embed_dim=16',
  'model.num_heads=2',
  'model.num_kv_heads=1',
  'model.head_dim=8',
  'model.mlp_dim=32',
  'data.chains.train=200',
  'data.chains.validation=8',
  'data.chains.test=12',
  'rollout.questions=4',
  'cold_start.updates=4',
  'cold_start.batch=8',
  'loop.updates=6',
  'loop.evaluate_every=2',
  'loop.show_every=2',
  'evaluate.samples=2',
  'evaluate.batch=6',
  'checkpoint.every=2',
  'metrics.tensorboard=false',
  'metrics.progress=none',
)
ALONE = (*SETTINGS, 'controls=()')


def command(
  program: str, workdir: pathlib.Path | None, settings=(), *flags: str, experiment: str = 'quickstart'
) -> list[str]:
  """The command line of an entry point, on the shrunk quickstart unless another is named."""
  where = [] if workdir is None else [f'--workdir={workdir}']
  return [
    sys.executable,
    '-m',
    f'experiments.{program}',
    f'--experiment={experiment}',
    *where,
    *(f'--set={s}' for s in settings),
    *flags,
  ]


def with_full_disk(arguments: list[str], limit: int = 16384) -> list[str]:
  """The same command, in a process whose files cannot grow beyond `limit` bytes."""
  limited = f'import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); '
  return [sys.executable, '-c', limited + 'os.execv(sys.argv[1], sys.argv[1:])', *arguments]


def environment(cached: bool = True) -> dict[str, str]:
  """One CPU device; if `cached`, programs that an earlier process of these tests compiled are used again."""
  env = os.environ | {'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': '1'}
  if cached:
    folder = os.environ['OPSD_TEST_COMPILED']
    env |= {'JAX_COMPILATION_CACHE_DIR': folder, 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}
  return env


def call(arguments: list[str], cached: bool = True, **more) -> subprocess.CompletedProcess:
  """Runs to the end, with its output as text."""
  return subprocess.run(
    arguments, cwd=REPOSITORY, env=environment(cached), text=True, capture_output=True, timeout=600, **more
  )

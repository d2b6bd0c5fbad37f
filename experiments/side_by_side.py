"""Several experiments, one after the other or in processes of their own."""

import concurrent.futures
import contextlib
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax

from experiments import common, study
from opsd_jax.analyze.report import write_report
from opsd_jax.config import ConfigError, require
from opsd_jax.experiment import Experiment, build
from opsd_jax.train.loop import TrainingStopped

# Small programs gain nothing from a second thread, and lose by waiting for one that another process took.
_ONE_THREAD = '--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1'


def run(experiments: Sequence[Experiment], folders: Sequence[str], jobs: int) -> list[dict[str, Any]]:
  """The results of each in its folder, `jobs` at a time; what was finished before is not run again.

  With more than one, a process has one thread, shares what it compiles with the others, and writes what it
  has to say to `log.txt` in its folder. Where one fails, the others go on before the error is raised.

  Raises:
    ConfigError: `jobs` is above 1 and the devices are not CPUs, which processes cannot share.
    TrainingStopped: some experiment failed; the message names its log.
  """
  if jobs == 1:
    return [one(each, folder) for each, folder in zip(experiments, folders, strict=True)]
  require(
    jax.default_backend() == 'cpu',
    f'--jobs is {jobs}, but the devices are {jax.default_backend()}s, which one process takes whole; '
    'use --jobs=1.',
  )
  compiled = os.path.join(os.path.dirname(folders[0]), 'compiled')
  with (
    _environment(XLA_FLAGS=f'{os.environ.get("XLA_FLAGS", "")} {_ONE_THREAD}'.strip()),
    concurrent.futures.ProcessPoolExecutor(
      jobs, multiprocessing.get_context('spawn'), max_tasks_per_child=1
    ) as pool,
  ):
    began = time.monotonic()
    pending = {
      pool.submit(_logged, each, folder, compiled): (each, folder)
      for each, folder in zip(experiments, folders, strict=True)
    }
    done, failed = {}, []
    for future in concurrent.futures.as_completed(pending):
      each, folder = pending[future]
      minutes = (time.monotonic() - began) / 60
      if (error := future.exception()) is None:
        done[folder] = future.result()
        print(f'[seed {each.seed}] done after {minutes:.1f} minutes', file=sys.stderr, flush=True)
      else:
        log = os.path.join(folder, 'log.txt')
        failed.append(f'seed {each.seed}: {error} (see {log})')
        print(f'[seed {each.seed}] failed: {error} (see {log})', file=sys.stderr, flush=True)
  if failed:
    raise TrainingStopped('; '.join(failed))
  return [done[folder] for folder in folders]


def one(experiment: Experiment, folder: str) -> dict[str, Any]:
  """The results of an experiment in its folder, with its report."""
  setup = build(experiment)
  workdir = common.claim_workdir(folder, experiment, setup.origin)
  results = study.run(experiment, setup, workdir)
  write_report(workdir)
  return results


def _logged(experiment: Experiment, folder: str, compiled: str) -> dict[str, Any]:
  """In a process of its own."""
  jax.config.update('jax_compilation_cache_dir', compiled)
  os.makedirs(folder, exist_ok=True)
  with open(os.path.join(folder, 'log.txt'), 'a', encoding='utf-8') as log:
    with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
      try:
        return one(experiment, folder)
      except ConfigError as error:
        raise RuntimeError(str(error)) from None


@contextlib.contextmanager
def _environment(**changed: str):
  """What processes that are started inside of it inherit."""
  before = {name: os.environ.get(name) for name in changed}
  os.environ.update(changed)
  try:
    yield
  finally:
    for name, value in before.items():
      if value is None:
        del os.environ[name]
      else:
        os.environ[name] = value

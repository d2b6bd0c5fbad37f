"""Starts a plan through xmanager: packaged once, one work unit a run, one run after the other."""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
from typing import Any

from experiments.launching.plan import Plan, lines
from opsd_jax.config import ConfigError, require

_ENDING_SECONDS = 60  # for a last checkpoint
_TOOLS = {
  'gcloud': "install Google Cloud's CLI (cloud.google.com/sdk/docs/install) and run `gcloud auth login`",
  'xpk': 'pip install xpk, in an environment of its own',
  'git': 'install git, or leave out --prepare',
}


def require_startable(plan: Plan) -> Plan:
  """The plan with its program's whole path.

  Raises:
    ConfigError: xmanager is not installed, or a program of the plan is not there.
  """
  try:
    import xmanager  # noqa: F401
  except ImportError as error:
    raise ConfigError(
      'xmanager is not installed here: pip install -r requirements/launch.txt, in an environment of its own. '
      '--print shows the commands without it.'
    ) from error
  for program in dict.fromkeys([*(command[0] for command in plan.before), plan.program]):
    remedy = _TOOLS.get(program, 'name another by --python')
    require(shutil.which(program) is not None, f'{program} is not on PATH; {remedy}. --print needs it not.')
  return plan._replace(program=os.path.abspath(shutil.which(plan.program)))


def prepare(plan: Plan) -> None:
  """Runs what comes before the runs.

  Raises:
    ConfigError: a command failed; nothing was started then.
  """
  for command, line in zip(plan.before, lines(plan)):
    print(f'preparing: {line}', flush=True)
    code = subprocess.run(command).returncode
    require(code == 0, f'this command ended with code {code}, so that nothing was started: {line}')


async def add(experiment: Any, plan: Plan) -> list[str]:
  """Adds every run to an xmanager experiment that was entered, and waits for it.

  Returns:
    The names of runs that failed.
  """
  from xmanager import xm, xm_local

  [executable] = experiment.package(
    [xm.Packageable(xm.Binary(plan.program), xm_local.Local.Spec(), args=list(plan.shared))]
  )
  # The runs inherit the terminal: a line of output has no limit then, and is there at once.
  executor = xm_local.Local(experimental_stream_output=False)
  failed = []
  for run, line in zip(plan.runs, lines(plan)[len(plan.before) :]):
    print(f'{run.name}: {line}', flush=True)
    unit = await experiment.add(xm.Job(executable, executor, name=run.name, args=dict(run.flags)))
    try:
      await unit.wait_until_complete()
    except xm.ExperimentUnitError:
      failed.append(run.name)
  return failed


def start(plan: Plan, title: str) -> list[str]:
  """Prepares, then runs all; the names of those that failed. The others are run all the same.

  Raises:
    KeyboardInterrupt: this process was interrupted or told to end; so was the run, and it has ended.
  """
  prepare(plan)
  try:
    return asyncio.run(_start(plan, title))
  except (KeyboardInterrupt, asyncio.CancelledError):
    _end()
    raise KeyboardInterrupt from None


def _end() -> None:
  """Ends what was started here. xmanager ends the shell around a run alone, and the run would go on."""
  import psutil  # which xmanager needs

  started = psutil.Process().children(recursive=True)
  for process in started:
    with contextlib.suppress(psutil.NoSuchProcess):
      process.terminate()
  psutil.wait_procs(started, timeout=_ENDING_SECONDS)


async def _start(plan: Plan, title: str) -> list[str]:
  from xmanager import xm_local

  asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asyncio.current_task().cancel)
  failed: list[str] = []
  try:
    async with xm_local.create_experiment(title) as experiment:
      failed += await add(experiment, plan)
  except RuntimeError:  # said once more for runs that failed, which are known
    if not failed:
      raise
  return failed

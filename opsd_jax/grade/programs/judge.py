"""Verdicts on many programs, side by side.

A program that raises an exception, does not compile or ends itself is `wrong`. `timeout` is the wall clock's
word, `error` says that the sandbox itself failed, `unformatted` that a completion held no program, and
`gold_unparsable` that the canonical solution did not give the results to compare with, so that no program
could be right.
"""

import concurrent.futures
import dataclasses
import logging
import os
import sys
from collections.abc import Mapping, Sequence

from opsd_jax.config import ConfigError, require
from opsd_jax.grade.programs import process, sandbox
from opsd_jax.grade.programs.config import ProgramsConfig, validate
from opsd_jax.grade.programs.process import Walls
from opsd_jax.grade.programs.sandbox import Outcome
from opsd_jax.grade.programs.task import Calls, Task, program_paper, referee_paper
from opsd_jax.records import Graded, Verdict

_TRUST = 12  # times its limits are what a canonical solution gets: it is known to end
# Times the canonical solution's time is what a program gets at least; and how many calls share the time that
# one may take, where no canonical solution says how long a right program takes.
_PATIENCE = 4
_PROBE_SECONDS = 60.0  # whatever the limits: a busy machine is no machine without namespaces
# It imports what the sandbox itself does not: the library may be closed to the user that programs run as.
_PROBE = Task(
  'probe',
  '',
  'one',
  'import fractions\ndef one():\n  return 1\n',
  Calls(('[[], {"dict": []}]',), expected=('1',)),
)


def judge(
  programs: Sequence[str | None], tasks: Sequence[Task], config: ProgramsConfig = ProgramsConfig()
) -> dict[str, Graded]:
  """Runs each program against the tests of the task beside it.

  Args:
    programs: B programs, None where a completion held none.
    tasks: B tasks; a task may come many times, as one object.
    config: limits.

  Returns:
    'base', and where every task has further tests 'plus': base and plus tests passed. B verdicts each, in
    the order of the programs.

  Raises:
    ConfigError: lists of different lengths, a setting that cannot work, or a machine on which the sandbox
      does not start.
  """
  require(
    len(programs) == len(tasks), f'{len(programs)} programs and {len(tasks)} tasks; give one task for each.'
  )
  validate(config)
  names = ['base', 'plus'] if tasks and all(task.plus is not None for task in tasks) else ['base']
  needed = {id(t): t for p, t in zip(programs, tasks) if p is not None and t.needs_record}
  with process.code_folder() as folder, concurrent.futures.ThreadPoolExecutor(config.workers) as pool:
    walls = find_walls(folder, config)

    def recorded(task: Task) -> Outcome:
      return _record(task, folder, walls, config)

    def verdicts(program: str | None, task: Task) -> Mapping[str, Verdict]:
      return _verdicts(program, task, records.get(id(task)), folder, walls, config)

    records = dict(zip(needed, pool.map(recorded, needed.values())))
    found = list(pool.map(verdicts, programs, tasks))
  return {name: Graded(tuple(f[name] for f in found)) for name in names}


def check_golds(tasks: Sequence[Task], config: ProgramsConfig = ProgramsConfig()) -> dict[str, Graded]:
  """Verdicts on the canonical solutions: what is not `correct` here bounds what a model can reach."""
  return judge([task.solution or None for task in tasks], tasks, config)


def find_walls(folder: str, config: ProgramsConfig) -> Walls:
  """The best that this machine has of what `config` allows, tried on a program of one line.

  Raises:
    ConfigError: nothing works, or namespaces are required and do not.
  """
  require(sys.platform == 'linux', f'Programs are run on Linux alone, not on {sys.platform}.')
  require(os.path.exists('/proc/self/uid_map'), 'Programs cannot be run here: mount the file system /proc.')
  tried = {'auto': (True, False), 'require': (True,), 'off': (False,)}[config.namespaces]
  patient = dataclasses.replace(config, seconds=_PROBE_SECONDS, call_seconds=_PROBE_SECONDS)
  for namespaces in tried:
    walls = Walls(namespaces, users=process.has_users())
    outcome = run(_PROBE, _PROBE.solution, (), folder, walls, patient)
    if outcome.verdicts.get('base') == Verdict.CORRECT:
      if not namespaces:
        logging.getLogger('absl').warning('programs.namespaces: %s', _missing(walls))
      return walls
  remedy = (
    'set programs.namespaces=auto to go without namespaces'
    if config.namespaces == 'require'
    else 'name a Python that every user can run with programs.python, a temporary folder that every user can '
    'reach with TMPDIR, or check programs.wrapper'
  )
  raise ConfigError(f'Programs cannot be run here ({outcome.end}); {remedy}. {outcome.reason.strip()[-500:]}')


def _missing(walls: Walls) -> str:
  if walls.users:
    return 'without namespaces; programs under test reach the network and can fill folders open to all.'
  return 'without namespaces, as an ordinary user; programs under test can do what this user can do.'


def _record(task: Task, folder: str, walls: Walls, config: ProgramsConfig) -> Outcome:
  """The canonical solution's results."""
  seconds, call_seconds = _TRUST * config.seconds, _TRUST * config.call_seconds
  longer = dataclasses.replace(config, seconds=seconds, call_seconds=call_seconds)
  return run(task, task.solution, (), folder, walls, longer, record=True)


def _verdicts(
  program: str | None, task: Task, record: Outcome | None, folder: str, walls: Walls, config: ProgramsConfig
) -> dict[str, Verdict]:
  """A verdict by suite."""
  if program is None:
    return dict.fromkeys(task.suites, Verdict.UNFORMATTED)
  if record is not None and not all(record.verdicts.get(n) == Verdict.CORRECT for n in task.suites):
    failed = record.end == 'failed'
    return dict.fromkeys(task.suites, Verdict.ERROR if failed else Verdict.GOLD_UNPARSABLE)
  needed = _PATIENCE * record.seconds if record else task.known_calls * config.call_seconds / _PATIENCE
  config = dataclasses.replace(config, seconds=max(config.seconds, needed))
  outcome = run(task, program, record.recorded if record else (), folder, walls, config)
  return {name: verdict(outcome, name) for name in task.suites}


def run(
  task: Task,
  program: str,
  recorded: Sequence[str],
  folder: str,
  walls: Walls,
  config: ProgramsConfig,
  record: bool = False,
) -> Outcome:
  """`sandbox.run` of a program on a task's tests.

  That one program cannot be started is no reason to lose the verdicts on the others.
  """
  asked = referee_paper(task, recorded)
  try:
    return sandbox.run(program_paper(task, program), asked, folder, walls, config, record)
  except OSError as error:
    return Outcome({}, 'failed', str(error))


def verdict(outcome: Outcome, suite: str) -> Verdict:
  """The verdict on a suite; where the referee decided none, what ended the program says it."""
  if suite in outcome.verdicts:
    return Verdict(outcome.verdicts[suite])
  return {'timeout': Verdict.TIMEOUT, 'disk': Verdict.WRONG}.get(outcome.end, Verdict.ERROR)

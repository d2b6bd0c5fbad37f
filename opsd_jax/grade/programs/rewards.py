"""Rewards of training on programs: the share of a problem's tests that a completion's program passes.

As ReNIO's repository has it for its baseline GRPO: the first few tests, compared exactly, and after a few
failures in a row the rest counts as failed. Each test is a program and a sandbox of its own, so that one that
hangs or breaks something leaves the others alone.
"""

import concurrent.futures
import dataclasses
import functools
from collections.abc import Sequence

from opsd_jax.config import ConfigError
from opsd_jax.grade.config import GradeConfig
from opsd_jax.grade.programs import extract, given, judge, process
from opsd_jax.grade.programs.config import ProgramsConfig
from opsd_jax.grade.programs.process import Walls
from opsd_jax.grade.programs.task import Task
from opsd_jax.records import Graded, Problem, Verdict

_START_SECONDS = 5.0  # what the processes may need beside the one call of a test


def grade(completions: Sequence[str], answers: Sequence[str], config: GradeConfig) -> Graded:
  """Verdicts and rewards of the programs in completions; `answers` are the tests, as `given` reads them.

  A program is `correct` where it passes every test that counts; else its verdict is that of the first test
  that it fails, or `error` where the sandbox itself failed under one of them, twice: that test counts as
  failed, and the reward may be too small. Where the tests cannot be read the verdict is `gold_unparsable`.

  Raises:
    ConfigError: the sandbox does not start on this machine.
  """
  known = {answer: _read(answer, config) for answer in dict.fromkeys(answers)}
  tests = [known[answer] for answer in answers]
  programs = [extract.program(text, own[0]) if own else None for text, own in zip(completions, tests)]
  ran = passed(programs, tests, config.programs, config.failures)
  verdicts = [_verdict(*row) for row in zip(programs, tests, ran, strict=True)]
  shares = [row.count(Verdict.CORRECT) / max(len(own), 1) for row, own in zip(ran, tests, strict=True)]
  return Graded(tuple(verdicts), tuple(shares))


def _read(answer: str, config: GradeConfig) -> tuple[Task, ...]:
  """The tests that count; none where the text holds none."""
  try:
    return given.read(answer)[: config.tests]
  except ValueError:
    return ()


def _verdict(program: str | None, tests: Sequence[Task], ran: Sequence[Verdict]) -> Verdict:
  if not tests:
    return Verdict.GOLD_UNPARSABLE
  if program is None:
    return Verdict.UNFORMATTED
  if Verdict.ERROR in ran:
    return Verdict.ERROR
  return next((verdict for verdict in ran if verdict != Verdict.CORRECT), Verdict.CORRECT)


def passed(
  programs: Sequence[str | None], tests: Sequence[Sequence[Task]], config: ProgramsConfig, failures: int
) -> list[tuple[Verdict, ...]]:
  """The verdict of every test that was run, program by program: none where there is no program.

  A program's tests are run in their order, until `failures` of them in a row have failed; programs side by
  side, `config.workers` at a time. Each test has at least the time that its one call may take.
  """
  if not any(program is not None and own for program, own in zip(programs, tests, strict=True)):
    return [()] * len(programs)
  walls = _walls(config)
  config = dataclasses.replace(config, seconds=max(config.seconds, config.call_seconds + _START_SECONDS))
  with process.code_folder() as folder, concurrent.futures.ThreadPoolExecutor(config.workers) as pool:

    def once(program: str, test: Task) -> Verdict:
      return judge.verdict(judge.run(test, program, (), folder, walls, config), 'base')

    def run(program: str | None, own: Sequence[Task]) -> tuple[Verdict, ...]:
      ran: list[Verdict] = []
      for test in own if program is not None else ():
        found = once(program, test)
        ran.append(once(program, test) if found == Verdict.ERROR else found)  # it may be the machine's
        if len(ran) >= failures and Verdict.CORRECT not in ran[-failures:]:
          break
      return tuple(ran)

    return list(pool.map(run, programs, tests))


def require_tests(problem: Problem) -> None:
  """Raises `ConfigError` where a problem has no tests that a program could be judged by."""
  try:
    given.read(problem.answer)
  except ValueError as error:
    raise ConfigError(
      f"grade.rules is 'programs', but problem {problem.id!r} has no tests: its answer is {error}. Name the "
      'field of the tests in data.fields.tests, leave the row out, or choose other rules.'
    ) from error


def require_machine(config: ProgramsConfig) -> None:
  """Raises `ConfigError` where programs cannot be run here; tries one."""
  _walls.cache_clear()
  _walls(config)


@functools.lru_cache
def _walls(config: ProgramsConfig) -> Walls:
  """What this machine has of what `config` allows, tried once: grading asks at every update."""
  with process.code_folder() as folder:
    return judge.find_walls(folder, config)

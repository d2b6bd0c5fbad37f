"""The published benchmarks: canonical solutions pass, and programs made wrong on purpose fail."""

import gzip
import json
import zlib

import pytest

from opsd_jax.grade.programs import judge, schemas
from opsd_jax.grade.programs.config import ProgramsConfig
from opsd_jax.grade.programs.task import Task
from opsd_jax.records import Verdict
from tests.grade.programs import mutants

FILES = {
  'humaneval': 'humaneval/HumanEval.jsonl.gz',
  'humaneval_plus': 'humaneval_plus/HumanEvalPlus.jsonl.gz',
  'mbpp': 'mbpp/mbpp.jsonl',
  'mbpp_plus': 'mbpp_plus/MbppPlus.jsonl.gz',
}
COUNTS = {'humaneval': 164, 'humaneval_plus': 164, 'mbpp': 974, 'mbpp_plus': 378}
# Canonical solutions in which one operator or number can be changed, and how many of those that were changed
# pass all the tests: less than 5 in 100. Some do the same as before.
CHANGED = {'humaneval_plus': (152, 6), 'mbpp_plus': (272, 10)}

pytestmark = pytest.mark.data


def load(name: str, data_root) -> list[Task]:
  path = data_root / FILES[name]
  if not path.is_file():
    pytest.skip(f'no file {path}')
  with gzip.open(path, 'rt') if path.suffix == '.gz' else open(path) as file:
    return [schemas.read(name, json.loads(line), f'{path}, line {n}') for n, line in enumerate(file, 1)]


def failures(found, tasks) -> list[tuple[str, str, str]]:
  return [(k, t.id, str(v)) for k, g in found.items() for t, v in zip(tasks, g.verdicts) if v != 'correct']


@pytest.mark.parametrize('name', FILES)
def test_a_few_canonical_solutions_pass_and_their_mutants_fail(name, data_root):
  tasks = load(name, data_root)
  assert len(tasks) == COUNTS[name]
  few = sorted(tasks, key=lambda task: zlib.crc32(task.id.encode()))[:3]
  wrong = [mutants.without_result(task.solution, task.entry_point) for task in few]
  found = judge.judge([task.solution for task in few] + wrong, few * 2, ProgramsConfig())
  for graded in found.values():
    assert graded.correct.tolist() == [True] * 3 + [False] * 3


@pytest.mark.slow
@pytest.mark.parametrize('name', FILES)
def test_all_canonical_solutions_pass(name, data_root):
  tasks = load(name, data_root)
  assert failures(judge.check_golds(tasks), tasks) == []


@pytest.mark.slow
@pytest.mark.parametrize('name', CHANGED)
def test_programs_made_wrong_fail(name, data_root):
  tasks = load(name, data_root)
  silent = [mutants.without_result(task.solution, task.entry_point) for task in tasks]
  changed = [next(mutants.changed_in_one_place(task.solution, task.id), None) for task in tasks]
  plus = judge.judge(silent + changed, tasks * 2)['plus']
  assert not plus.correct[: len(tasks)].any()
  count, unnoticed = CHANGED[name]
  assert sum(program is not None for program in changed) == count
  assert plus.correct[len(tasks) :].sum() <= unnoticed < 0.05 * count
  assert not {Verdict.ERROR, Verdict.GOLD_UNPARSABLE} & set(plus.verdicts)

"""Verdicts under every rule; the traps of math-verify, and what `strict` makes of them."""

import os
import subprocess
import sys
import threading
import time

import pytest

from experiments import footprint
from opsd_jax.grade import grading
from opsd_jax.grade.config import GradeConfig
from opsd_jax.records import Verdict
from tests.grade.guard_test import ABSURD
from tests.grade.starting_test import REPOSITORY

OPSD, STRICT, CHOICE, TEXT = (GradeConfig(rules=rules) for rules in ('opsd', 'strict', 'choice', 'text'))
RIGHT, WRONG, UNPARSABLE = Verdict.CORRECT, Verdict.WRONG, Verdict.GOLD_UNPARSABLE

# The known answer, the given one, the verdict under `opsd` and under `strict`.
TABLE = [
  ('50%', '0.5', RIGHT, RIGHT),
  (r'50\%', '50', RIGHT, RIGHT),
  ('50', '0.5', WRONG, WRONG),
  ('50', r'50\%', RIGHT, RIGHT),
  ('0.333', '1/3', WRONG, WRONG),
  ('1/3', '0.333', WRONG, WRONG),
  ('1/3', '0.333333', RIGHT, RIGHT),
  (r'\pi', '3.14', WRONG, WRONG),
  ('3.14', r'\pi', WRONG, WRONG),
  ('(1,2)', '[1,2]', WRONG, WRONG),
  ('(1,2)', '1,2', RIGHT, RIGHT),
  ('1,2', '2,1', RIGHT, RIGHT),
  ('(1,2)', '(2,1)', WRONG, WRONG),
  (r'\begin{pmatrix}1\\2\end{pmatrix}', '(1,2)', WRONG, WRONG),
  ('100_8', '100', RIGHT, WRONG),
  ('4210_5', '4210', RIGHT, WRONG),
  ('4210_{5}', '4210_5', RIGHT, RIGHT),
  ('100_8', '64', WRONG, WRONG),
  ('10_{10}', '10', RIGHT, RIGHT),
  ('4210_5', '4210_7', RIGHT, WRONG),
  ('x=5', '5', RIGHT, RIGHT),
  ('5', 'x=5', RIGHT, RIGHT),
  (r'\text{Evelyn}', 'evelyn', RIGHT, RIGHT),
  ('1500', '1.5e3', WRONG, RIGHT),
  ('1.5e3', '1500', WRONG, RIGHT),
  (r'\infty', 'oo', WRONG, WRONG),
  ('10 cm', '10', RIGHT, RIGHT),
  ('10', '10 cm', RIGHT, RIGHT),
  ('6:30', '0.2', RIGHT, WRONG),
  ('6:30', r'\frac15', RIGHT, WRONG),
  ('6:30', '6:30', RIGHT, RIGHT),
  ('6:30', '06:30', RIGHT, RIGHT),
  ('6:30', r'6:30\text{ p.m.}', RIGHT, RIGHT),
  ('3:5', r'\frac35', RIGHT, WRONG),
  ('i', r'\sqrt{-1}', WRONG, WRONG),
  (r'\text{(C)}', 'C', RIGHT, RIGHT),
  ('C', r'\text{(C)}', RIGHT, RIGHT),
  (r'\text{(C)}', '(C)', RIGHT, RIGHT),
  (r'\text{(C)}', 'D', WRONG, WRONG),
  (r'\$36', '36', UNPARSABLE, RIGHT),
  (r'\$36', r'\$36', UNPARSABLE, RIGHT),
  (r'\$32,\!348', '32348', UNPARSABLE, RIGHT),
  (r'\$18.90', '18.9', UNPARSABLE, RIGHT),
  ('27.0', '27', RIGHT, RIGHT),
  ('007', '7', RIGHT, RIGHT),
  ('1,080', '1080', RIGHT, RIGHT),
  (r'1\frac{4}{5}', '1.8', RIGHT, RIGHT),
  (r'\frac12', '0.5', RIGHT, RIGHT),
  (r'-\frac{1}{2}', r'\frac{-1}{2}', RIGHT, RIGHT),
  (r'-\dfrac12', '-0.5', RIGHT, RIGHT),
  (r'\frac{11+9a}{20}', r'\frac{9a+11}{20}', RIGHT, RIGHT),
  (r'x \in [-2,7]', '[-2,7]', RIGHT, RIGHT),
  (r'864 \mbox{ inches}^2', '864', RIGHT, RIGHT),
  (r'5.4 \text{ cents}', '5.4', RIGHT, RIGHT),
  ('[0:1:0]', '[0:1:0]', WRONG, RIGHT),
  ('5', '-5', WRONG, WRONG),
  ('6-5i', '-5i+6', RIGHT, RIGHT),
  ('1,234', '1234', RIGHT, RIGHT),
  ('1', '1.', RIGHT, RIGHT),
  ('0.5', '.5', RIGHT, RIGHT),
  (r'10,\!080', '10080', RIGHT, RIGHT),
  (r'11,\! 111,\! 111,\! 100', '11111111100', RIGHT, RIGHT),
  (r'\frac{270}7\text{ degrees}', r'\frac{270}{7}', RIGHT, RIGHT),
  (r'137 \frac{1}{2}', '137.5', RIGHT, RIGHT),
  (r'5 \text{ or } 7', '5,7', RIGHT, RIGHT),
  (r'90^\circ', '90', RIGHT, RIGHT),
  ('90', '90°', RIGHT, RIGHT),
  ('18', '18 dollars', WRONG, WRONG),
  ('18', r'18\text{ dollars}', RIGHT, RIGHT),
  ('12', '$12$', RIGHT, RIGHT),
  ('3', 'three', WRONG, WRONG),
  ('2', '2!', RIGHT, RIGHT),
  (r'1 \pm \sqrt{19}', r'1+\sqrt{19}, 1-\sqrt{19}', RIGHT, RIGHT),
  ('100', '99.999999999', WRONG, WRONG),
  ('0', '0.0000001', WRONG, WRONG),
  ('5', '5.0000001', WRONG, WRONG),
  (r'\frac{1}{0}', '1', WRONG, WRONG),
  (r'10\text{ million}', '10', RIGHT, WRONG),
  (r'10\text{ million}', '10000000', WRONG, RIGHT),
  ('2', r'2\text{ and a half}', RIGHT, WRONG),
  ('100', r'100\text{ (base 8)}', RIGHT, WRONG),
  ('100', r'100_{\text{eight}}', RIGHT, WRONG),
  ('100_8', r'100_{\text{eight}}', RIGHT, RIGHT),
  ('5', r'5\mathrm{i}', RIGHT, WRONG),
  ('1+2i', r'1+2\mathrm{i}', WRONG, RIGHT),
  ('7', '7\\\\8', RIGHT, WRONG),
  ('7,8', '7\\\\8', WRONG, RIGHT),
  ('BAC', 'CAB', RIGHT, WRONG),
  (r'\{1,2,3\}', '(3,2,1)', RIGHT, WRONG),
  ('0.0000001', '0.0000002', RIGHT, WRONG),
  (r'\begin{pmatrix} 1 \\ 2 \end{pmatrix}', r'\begin{pmatrix}2/2\\4/2\end{pmatrix}', RIGHT, RIGHT),
  (r'\begin{pmatrix} 1 \\ 2 \end{pmatrix}', r'\begin{pmatrix} 1 \\[2pt] 4/2 \end{pmatrix}', WRONG, RIGHT),
  (r'\begin{pmatrix} 1 \\ 2 \end{pmatrix}', r'\begin{pmatrix} 1 \\ 3 \end{pmatrix}', WRONG, WRONG),
  (r'\begin{pmatrix} 1 \\ 2 \end{pmatrix}', r'\begin{pmatrix} 1 & 2 \end{pmatrix}', WRONG, WRONG),
  ('12,34', '1234', WRONG, WRONG),
  ('2^{2023}', '2^{2023}', RIGHT, RIGHT),
  ('1,2,3', '123', WRONG, WRONG),
  (r'\text{even}', 'odd', WRONG, WRONG),
  ('x^2', 'x**2', WRONG, WRONG),
  ('2,3', r'\{2,3\}', RIGHT, RIGHT),
  (r'20\,\%', '20', RIGHT, RIGHT),
  ('1 2', '12', WRONG, WRONG),
  ('25', '5^2', RIGHT, RIGHT),
  (r'k \text{ if } x', 'k', WRONG, WRONG),
  ('0.5', '0.5%', WRONG, WRONG),
  ('-1', '-1.0', RIGHT, RIGHT),
  ('(3, 4)', '(3.0, 4)', RIGHT, RIGHT),
  (r'10\text{ cm}', r'10\text{ m}', RIGHT, RIGHT),
  ('8,(3)', '83', WRONG, WRONG),
  ('1 1/2', '1.5', WRONG, WRONG),
  (r'12 \text{ a.m.}', '12', RIGHT, RIGHT),
  ('3,5,7', '3, 5, 7', RIGHT, RIGHT),
]


@pytest.mark.parametrize(('gold', 'answer', 'opsd', 'strict'), TABLE)
def test_verdicts_of_both_rules(gold, answer, opsd, strict):
  completion = rf'Thus \boxed{{{answer}}}.'
  assert grading.grade([completion], [gold], OPSD).verdicts == (opsd,)
  assert grading.grade([completion], [gold], STRICT).verdicts == (strict,)


@pytest.mark.parametrize('name', ABSURD)
@pytest.mark.parametrize('config', [OPSD, STRICT], ids=['opsd', 'strict'])
def test_absurd_answers_are_wrong_at_once(name, config):
  began = time.monotonic()
  completion = rf'\boxed{{{ABSURD[name]}}}'
  assert not grading.grade([completion] * 3, ['5', r'\frac{\pi}{2}', 'x+1'], config).correct.any()
  assert time.monotonic() - began < 4


def test_an_absurd_gold_has_the_same_text_or_nothing():
  golds = ['10000000!', r'2^{10^{7}}', r'\binom{10^9}{10^8}']
  same = grading.grade([rf'\boxed{{{gold}}}' for gold in golds], golds, STRICT)
  assert same.verdicts == (RIGHT,) * 3
  assert not grading.grade([r'\boxed{1}'] * 3, golds, STRICT).correct.any()
  assert grading.check_golds(golds, STRICT) == (UNPARSABLE,) * 3


HANGING = [rf'(x+y+z+w)^{{{n}}}' for n in (60, 61)], [rf'(x+y+z)^{{{n}}}' for n in (60, 61)]


@pytest.mark.parametrize('rules', ['opsd', 'strict'])
def test_what_the_guard_lets_through_meets_the_limit_of_time(rules):
  config = GradeConfig(rules=rules, seconds=1.0)
  completions = [rf'\boxed{{{answer}}}' for answer in (HANGING[0][0], '(x+1)^2', HANGING[0][1], '7')]
  golds = [HANGING[1][0], 'x^2+2x+1', HANGING[1][1], 'y']
  graded = grading.grade(completions, golds, config)
  assert graded.verdicts == (Verdict.TIMEOUT, RIGHT, Verdict.TIMEOUT, WRONG)


def test_a_worker_without_memory_is_an_error_or_wrong_but_never_right():
  config = GradeConfig(rules='strict', memory_gib=0.25, seconds=3.0)
  graded = grading.grade([rf'\boxed{{{HANGING[0][0]}}}', '#### 7'], [HANGING[1][0], '7.0'], config)
  assert graded.correct.tolist() == [False, True]


def test_unformatted_and_unparsable():
  assert grading.grade(['5', r'\boxed 5', ''], ['5', '5', '5'], OPSD).verdicts == (Verdict.UNFORMATTED,) * 3
  graded = grading.grade(['5', r'\boxed 5', '', 'Answer: 5'], ['5'] * 4, STRICT)
  assert graded.verdicts == (Verdict.UNFORMATTED, RIGHT, Verdict.UNFORMATTED, RIGHT)
  assert graded.answered.tolist() == [False, True, False, True]
  assert grading.grade([r'\boxed{x}'], ['[0:1:0'], STRICT).verdicts == (UNPARSABLE,)


def test_verdicts_do_not_depend_on_how_many_work():
  golds = [gold for gold, *_ in TABLE]
  completions = [rf'\boxed{{{answer}}}' for _, answer, *_ in TABLE]
  found = [grading.grade(completions, golds, GradeConfig(rules='strict', workers=n)).verdicts for n in (1, 3)]
  assert found[0] == found[1] == tuple(strict for *_, strict in TABLE)


def test_multiple_choice():
  completions = [r'\boxed{C}', r'\boxed{\text{(C)}}', 'Answer: C', 'so it is (C)', r'\boxed{B}', 'none']
  expected = (RIGHT, RIGHT, RIGHT, RIGHT, WRONG, Verdict.UNFORMATTED)
  assert grading.grade(completions, ['C'] * 6, CHOICE).verdicts == expected
  assert grading.grade(completions, ['(C)'] * 6, CHOICE).verdicts == expected
  assert grading.check_golds(['A', '(B)', '42', ''], CHOICE) == (RIGHT, RIGHT, UNPARSABLE, UNPARSABLE)


def test_text():
  config = GradeConfig(rules='text', answer='boxed')
  assert grading.grade(['=7', '8', '=07'], ['7'] * 3).verdicts == (RIGHT, Verdict.UNFORMATTED, WRONG)
  assert grading.grade([r'\boxed{1,080}'], ['1080'], config).verdicts == (RIGHT,)
  assert grading.grade([r'\boxed{\frac12}'], ['1/2'], config).verdicts == (WRONG,)
  assert grading.check_golds(['7', 'x'], TEXT) == (RIGHT, RIGHT)
  assert grading.equal(['1,080', '7'], ['1080', '8'], TEXT) == (True, False)


@pytest.mark.parametrize(
  ('rules', 'found'), [('text', '2'), ('opsd', r'\text{(D)} 4'), ('strict', r'\text{(D)} 4'), ('choice', 'D')]
)
def test_the_final_answer_as_text(rules, found):
  assert grading.find(r'<think>1</think> \boxed{\text{(D)} 4} = 2', GradeConfig(rules=rules)) == found


def test_equal_answers():
  first, second = ['0.5', r'\sqrt{8}', '7', 'x+1', '5'], [r'\frac12', r'2\sqrt2', '8', '1+x', '10000000!']
  for config in (OPSD, STRICT):
    assert grading.equal(first, second, config) == (True, True, False, True, False)
    assert grading.equal([], [], config) == ()


HOSTILE = {
  'half a character': '\ud800',
  'zero': '\x00',
  'backslash': '\\',
  'backslashes': '\\' * 3001,
  'an hour of many digits': '9' * 5000 + ':30',
  'a power of many digits': '1e999999999',
  'no digits': '.',
  'digits above the line': '\\frac²3',
  'other digits': '\\binom٣²',
  'nothing above nothing': '\\frac{0}{0.0}',
  'thousands': '1' + ',111' * 300,
  'row of nothing': '\\begin{pmatrix}',
  'code': "__import__('os').abort()",
}


@pytest.mark.parametrize('config', [TEXT, OPSD, STRICT, CHOICE], ids=lambda config: config.rules)
@pytest.mark.parametrize('name', HOSTILE)
def test_nothing_that_a_model_writes_raises(config, name):
  hostile = HOSTILE[name]
  completions = [hostile, rf'\boxed{{{hostile}}}', rf'= {hostile}', rf'Answer: {hostile}']
  for gold in ('5', 'x+1', '6:30', 'C'):
    graded = grading.grade(completions, [gold] * 4, config)
    assert not graded.correct.any() and Verdict.TIMEOUT not in graded.verdicts
  assert len(grading.check_golds([hostile], config)) == 1


def test_every_row_needs_its_answer():
  for config in (OPSD, STRICT, CHOICE, TEXT):
    with pytest.raises(ValueError):
      grading.grade([r'\boxed{1}'] * 2, ['1'], config)


def test_gold_answers_checked_against_themselves():
  golds = [r'\$36', r'\frac{1}{2}', '27.0', '[0:1:0]', '']
  assert grading.check_golds(golds, OPSD) == (UNPARSABLE, RIGHT, RIGHT, WRONG, UNPARSABLE)
  assert grading.check_golds(golds, STRICT) == (RIGHT, RIGHT, RIGHT, RIGHT, UNPARSABLE)


def test_any_thread_may_grade():
  found = {}

  def ask(name):
    golds = [f'x + {name} + {i}' for i in range(10)]
    found[name] = grading.grade([rf'\boxed{{{i + name}+x}}' for i in range(10)], golds, OPSD).correct.all()

  threads = [threading.Thread(target=ask, args=(name,)) for name in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert found == dict.fromkeys(range(4), True)


def test_plain_numbers_start_no_process():
  config = GradeConfig(rules='strict', seconds=4.25)  # of nobody else, so that its pool would be new
  before = footprint.descendants()
  completions = [r'\boxed{1,080.0}', '#### 7', r'\boxed{\dfrac{1}{2}}']
  graded = grading.grade(completions, ['1080', '8', '0.5'], config)
  assert graded.correct.tolist() == [True, False, True]
  assert footprint.descendants() == before


def test_from_a_command_line_with_jax_at_work():
  script = (
    'import jax, jax.numpy as jnp; jnp.ones(8).sum().block_until_ready()\n'
    'from opsd_jax.grade import grading; from opsd_jax.grade.config import GradeConfig\n'
    "print(*grading.grade([r'\\boxed{1+x}'] * 2, ['x+1', 'x'], GradeConfig(rules='opsd')).verdicts)"
  )
  done = subprocess.run(
    [sys.executable, '-W', 'error', '-c', script],
    cwd=REPOSITORY,
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert (done.returncode, done.stdout, done.stderr) == (0, 'correct wrong\n', '')


@pytest.mark.slow
def test_many_gradings_leave_nothing_behind():
  config = GradeConfig(rules='opsd', seconds=3.0)

  def some(start):
    golds = [f'x^2 + {i} + \\frac{{{i}}}{{7}}' for i in range(start, start + 150)]
    hang = [HANGING[0][0]] * (start % 300 == 0)
    completions = [rf'\boxed{{\frac{{{i}}}{{7}} + x^{{2}} + {i}}}' for i in range(start, start + 150)]
    completions += [rf'\boxed{{{answer}}}' for answer in hang]
    graded = grading.grade(completions, golds + HANGING[1][:1] * len(hang), config)
    assert graded.correct[:150].all() and not graded.correct[150:].any()
    workers = footprint.descendants()
    sizes = [footprint.resident(each) for each in workers]
    return footprint.files(), len(workers), footprint.resident(os.getpid()), max(sizes)

  first, *_, last = [some(150 * i) for i in range(1, 9)]
  assert last[0] <= first[0] and last[1] <= first[1]
  assert last[2] < first[2] + 30 * 2**20 and last[3] < first[3] + 100 * 2**20

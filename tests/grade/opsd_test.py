"""`opsd` says right where the published rules do, and only there."""

import random

import pytest

from opsd_jax.grade import answers, grading
from opsd_jax.grade.config import GradeConfig
from opsd_jax.records import Verdict
from tests.grade import oracle, real

OPSD = GradeConfig(rules='opsd')

COMPLETIONS = [
  (r'\boxed{5}', '5'),
  (r'\boxed{007}', '7'),
  (r'\boxed{-0}', '0'),
  (r'\boxed{27}', '27.0'),
  (r'\boxed{1,080}', '1080'),
  (r'\boxed 5', '5'),
  (r'\fbox{5}', '5'),
  (r'\boxed{5', '5'),
  (r'\boxed{5}, in \boxed.', '5'),
  (r'\boxed{}', '5'),
  (r'\boxed{}', ''),
  ('5', '5'),
  (r'\boxed{\$36}', r'\$36'),
  (r'\boxed{36}', r'\$36'),
  (r'\boxed{\$36}', '36'),
  (r'\boxed{$36$}', '36'),
  (r'\boxed{36}', '$36$'),
  (r'\boxed{we have $36$}', '36'),
  (r'\boxed{$35$ or $36$}', '36'),
  (r'<think>\boxed{4}</think>', '4'),
  (r'\boxed{x = 5}', '5'),
  (r'\boxed{100_8}', '100'),
  (r'\boxed{6:30}', r'\frac{1}{5}'),
  (r'\boxed{\text{Evelyn}}', 'evelyn'),
  (r'\boxed{(1,2)}', '1,2'),
  (r'\boxed{' + '9' * 400 + '}', '9' * 400),
  (r'\boxed{2^{2023}}', '2^{2023}'),
  (r'\boxed{2^{2023}}', '2^{2022}'),
  (r'\boxed{100!}', r'100 \cdot 99!'),
]


@pytest.mark.parametrize(('completion', 'gold'), COMPLETIONS)
def test_as_the_published_rules(completion, gold):
  assert answers.opsd(completion) == oracle.boxed(completion)
  assert grading.grade([completion], [gold], OPSD).correct[0] == oracle.right(completion, gold)


def test_small_integers_are_compared_as_math_verify_does():
  numbers = '0 -0 00 1 -1 01 10 -10 100 999999999 1000000000 -999999999 1.0'.split()
  pairs = [(first, second) for first in numbers for second in numbers]
  same = grading.equal([gold for gold, _ in pairs], [answer for _, answer in pairs], OPSD)
  assert same == tuple(oracle.right_answer(answer, gold) for gold, answer in pairs)


def test_where_math_verify_raises_the_texts_are_compared(monkeypatch):
  import math_verify

  from opsd_jax.grade import compare

  def fail(*_, **__):
    raise ValueError

  monkeypatch.setattr(math_verify, 'parse', fail)
  for gold, answer in [('A b', '$ab$'), ('x', 'y'), (r'\$3', '\\3'), ('', '')]:
    assert (compare.opsd(gold, answer) == 'correct') == oracle.right_answer(answer, gold)


def forms(gold, other, rng):
  """Completions whose answer is the gold, another gold or a form of them, boxed well and badly."""
  yield rf'\boxed{{{gold}}}'
  yield rf'\boxed{{{other}}}'
  reformatted = gold.replace(r'\frac', r'\dfrac').replace('(', r'\left(').replace(')', r'\right)')
  perturbed = gold.replace(rng.choice('123456789'), rng.choice('0123456789'), 1)
  content = rng.choice(
    [f' {reformatted} ', f'${gold}$', f'{gold}.', rf'\text{{{gold}}}', f'x = {gold}', f'-{gold}']
  )
  yield rf'The answer is $\boxed{{{content}}}$.'
  yield rf'\boxed{{{perturbed}}} \boxed{{{gold} }}' if rng.random() < 0.3 else rf'\boxed{{{perturbed}}}'
  yield rng.choice(
    [rf'\boxed{{{gold}}} in \boxed', rf'\boxed {gold}', gold, rf'\fbox{{{gold}}}', rf'\boxed{{{gold}']
  )


@pytest.mark.slow
@pytest.mark.data
def test_as_the_published_rules_on_pairs_of_the_benchmarks(data_root):
  rng = random.Random(0)
  known = [gold for name in ('math500', 'hmmt25', 'amc23', 'aime25') for gold in real.golds(data_root, name)]
  chosen = [*(gold for gold in known if '$' in gold), *rng.sample(known, 250)]
  pairs = [(form, gold) for gold in chosen for form in forms(gold, rng.choice(known), rng)]
  graded = grading.grade([form for form, _ in pairs], [gold for _, gold in pairs], OPSD)
  expected = [bool(oracle.right(form, gold)) for form, gold in pairs]
  assert len(pairs) >= 1250 and 300 < sum(expected) < len(pairs) - 300
  wrongly = [
    (*pair, v) for pair, v, right in zip(pairs, graded.verdicts, expected) if (v == 'correct') != right
  ]
  assert wrongly == []
  assert not {Verdict.TIMEOUT, Verdict.ERROR} & set(graded.verdicts)

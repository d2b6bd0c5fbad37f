"""Samples with verdicts, made up: what an evaluation would have found."""

from opsd_jax.evaluate import catalogue
from opsd_jax.evaluate.benchmarks import Loaded
from opsd_jax.evaluate.samples import Sample
from opsd_jax.records import Problem, Verdict

OPSD = {'opsd': Verdict.WRONG, 'strict': Verdict.CORRECT}


def loaded(problems=3, name='mine', **more):
  """A benchmark of so many problems."""
  asked = [Problem(f'{name}/{i}', f'Q{i}', '', str(i), name) for i in range(problems)]
  return Loaded(catalogue.own(name, None), asked, {}, 'digest', {'/data/mine.jsonl': 'ab'}, **more)


def sample(
  problem, number, verdict, *, answer='1', tokens=4, stopped=True, rules='strict', name='mine', prompt=7
):
  """One sample; `verdict` is that of `rules`, or a mapping."""
  verdicts = verdict if isinstance(verdict, dict) else {rules: Verdict(verdict)}
  ids = tuple(range(tokens))
  return Sample(f'{name}/{problem}', number, prompt, ids, stopped, 'text', answer, verdicts)


def table(rows, **more):
  """Samples of rows of letters: c correct, w wrong, u unformatted, t timeout."""
  words = {'c': 'correct', 'w': 'wrong', 'u': 'unformatted', 't': 'timeout'}
  return [sample(i, j, words[letter], **more) for i, row in enumerate(rows) for j, letter in enumerate(row)]

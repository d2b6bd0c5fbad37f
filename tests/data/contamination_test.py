"""What the index finds is what a search by sets of tuples finds, whatever the order."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opsd_jax.data import contamination, texts
from opsd_jax.records import Problem

QUESTION = (
  'Cities $A$ and $B$ are $45$ miles apart. Alicia bikes towards $B$ at 18 miles per hour, and Beth bikes to '
  '$A$ at $\\frac{1}{2}$ of that. How many miles from City $A$ will they be when they meet?'
)


def problems(some, name='p'):
  return [Problem(f'{name}{i}', text, '', '1', name) for i, text in enumerate(some)]


def hits(training, benchmarks, n=13, share=0.5):
  index = contamination.make_index(benchmarks, n)
  found = [o for p in training for o in contamination.overlaps(index, p, share)]
  return {(o.problem, o.benchmark, o.other): o.share for o in found}


def stands_in(part, whole):
  return any(whole[i : i + len(part)] == part for i in range(len(whole)))


def brute(training, benchmarks, n, share):
  """The same by sets of tuples, problem by problem."""

  def grams(words, size):
    return [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]

  every = [(name, p) for name, some in benchmarks.items() for p in some]
  owners = {}
  for _, p in every:
    said = texts.words(p.problem)
    for gram in grams(said, n):
      owners.setdefault(gram, set()).add(texts.canonical(p.problem))
  found = {}
  for name, b in every:
    said = texts.words(b.problem)
    if len(said) < n:
      same = [
        t
        for t in training
        if (texts.canonical(t.problem) or t.problem) == (texts.canonical(b.problem) or b.problem)
        or (
          len(said) >= 6 and stands_in(texts.canonical(b.problem).split(), texts.canonical(t.problem).split())
        )
      ]
      found |= {(t.id, name, b.id): 1.0 for t in same}
      continue
    runs, size = grams(said, n), n
    phrase = [len(owners[gram]) > 3 for gram in runs]
    own = {
      i
      for i in range(len(said))
      if not any(phrase[j] for j in range(max(0, i - size + 1), i + 1) if j < len(runs))
    }
    own = own or set(range(len(said)))
    for t in training:
      theirs = set(grams(texts.words(t.problem), size))
      both = {i for j, gram in enumerate(runs) if gram in theirs for i in range(j, j + size)} & own
      part = len(both) / len(own) if own else 0
      if part > 0 and part >= share:
        found[t.id, name, b.id] = round(part, 4)
  return found


SENTENCE = st.lists(st.sampled_from('a b c d'.split()), max_size=12).map(' '.join)
SOME = st.lists(SENTENCE, max_size=8)


@given(SOME, SOME, SOME, st.integers(1, 9), st.sampled_from([0, 0.3, 0.5, 1.0]))
def test_against_a_search_by_sets(training, first, second, n, share):
  training = problems(training, 't')
  benchmarks = {'one': problems(first, 'a'), 'two': problems(second, 'b')}
  assert hits(training, benchmarks, n, share) == brute(training, benchmarks, n, share)


@given(SOME, SOME, st.integers(1, 4), st.randoms(use_true_random=False))
def test_the_order_does_not_matter(training, held, n, chance):
  training, held = problems(training, 't'), problems(held, 'b')
  expected = hits(training, {'b': held}, n)
  mixed = [chance.sample(some, len(some)) for some in (training, held)]
  assert hits(mixed[0], {'b': mixed[1]}, n) == expected


COPIES = [
  QUESTION.upper(),
  QUESTION.replace(' ', '\n  '),
  QUESTION.replace('$', ''),
  QUESTION.replace(',', ' -- ').replace('.', ';'),
  QUESTION.replace('$A$', '\\( A \\)').replace('\\frac{1}{2}', '\\dfrac 1 2'),
  QUESTION.replace('\\frac{1}{2}', '\\displaystyle \\frac{ 1 }{ 2 }'),
  'Solve this. ' + QUESTION + ' Give your answer as an integer.',
  QUESTION.replace('How many miles from City', 'Find the distance from'),
]


@pytest.mark.parametrize('copy', COPIES, ids=range(len(COPIES)))
def test_planted_copies_are_found(copy):
  others = [f'A box holds {i} red and {i + 2} blue balls; how many are there?' for i in range(30)]
  training = problems([*others[:15], copy, *others[15:]])
  assert set(hits(training, {'b': problems([QUESTION], 'b')})) == {('p15', 'b', 'b0')}


def test_a_part_is_not_a_copy():
  half = ' '.join(QUESTION.split()[:14])
  found = hits(problems([half]), {'b': problems([QUESTION], 'b')}, share=0)
  assert 0 < found['p0', 'b', 'b0'] < 0.5
  assert not hits(problems([half]), {'b': problems([QUESTION], 'b')})


def test_a_short_benchmark_problem_is_looked_for_with_its_signs():
  held = {'b': problems(['What is $2^{10}$ mod 7?'], 'b')}
  others = ['what is 2^10 mod 7', 'Now, what is 2^10 mod 7? Say it.', 'What is 2^9 mod 7?', 'what is']
  assert set(hits(problems(others), held)) == {('p0', 'b', 'b0'), ('p1', 'b', 'b0')}


def test_few_words_are_not_looked_for_inside_others():
  held = {'b': problems(['What is 2+3?'], 'b')}
  assert set(hits(problems(['What is 2+3*4?', 'what is 2 + 3']), held)) == {('p1', 'b', 'b0')}


def test_short_problems_of_signs_do_not_repeat_each_other():
  # Two words each, of which one stands in all: by words they would all be one problem.
  held = {'b': problems(['3+', '3+*', '2+3'], 'b')}
  assert set(hits(problems(['3+*-', '3*', '2-3', '3 + *']), held)) == {('p3', 'b', 'b1')}


def test_phrases_say_nothing():
  phrase = (
    'can be written as m over n where m and n are relatively prime positive integers find the sum of m and n'
  )
  words = 'abcdefghijklmnopqrstuvwxyz'
  held = problems([f'the area of shape {words[i] * 3} {phrase}' for i in range(5)], 'b')
  training = problems([f'the length of the curve zzz {phrase}', f'the area of shape ccc {phrase}'])
  assert set(hits(training, {'b': held})) == {('p1', 'b', 'b2')}
  # Where only one problem has it, nothing tells a phrase from a problem.
  assert set(hits(training, {'b': held[:1]})) >= {('p0', 'b', 'b0')}


def test_copies_of_one_problem_in_several_benchmarks_are_no_phrase():
  held = {name: problems([QUESTION], name) for name in 'abcdef'}
  assert len(hits(problems([QUESTION]), held)) == 6


def test_problems_without_words():
  assert not hits(problems(['.', '?', '$$', 'a b']), {'b': problems(['', '?!'], 'b')})
  assert not hits(problems(['a']), {})


def test_unrelated_problems():
  chance = random.Random(0)
  words = [f'w{i}' for i in range(200)]

  def draw(count):
    return [' '.join(chance.choices(words, k=40)) for _ in range(count)]

  assert not hits(problems(draw(200)), {'b': problems(draw(200), 'b')}, share=0)

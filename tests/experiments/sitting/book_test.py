"""Samples in a file: added, found again, put in order, and told apart from what is something else."""

import dataclasses
import json

import pytest

from experiments.sitting import book as books
from opsd_jax.config import ConfigError
from opsd_jax.evaluate import samples
from opsd_jax.evaluate.samples import Sample
from opsd_jax.records import Verdict


def sample(problem, number, text='so \u2028 é \ud800'):
  return Sample(problem, number, 3, (1, 2), True, text, None, {'strict': Verdict.WRONG})


def bare(problem, number):
  return dataclasses.replace(sample(problem, number), verdicts={})


def open_book(path):
  return books.open_book(str(path), ['b', 'a'], 2)


def test_it_goes_on_in_any_order_and_ends_in_that_of_the_problems(tmp_path):
  path = tmp_path / 'new' / 'samples.jsonl'
  book = open_book(path)
  assert path.read_bytes() == b'' and book.lacking('a') == [0, 1]
  books.add(book, [sample('a', 1), sample('b', 1)])
  books.add(book, [])
  book = open_book(path)
  assert (book.lacking('a'), book.lacking('b'), book.complete) == ([0], [0], False)
  books.add(book, [sample('a', 0)])
  books.add(book, [sample('b', 0)])
  assert book.complete
  books.close(book)
  ordered = [sample(p, i) for p in 'ba' for i in range(2)]
  assert samples.read(str(path)) == ordered == open_book(path).ordered()


def test_a_sample_is_safe_before_it_is_judged(tmp_path):
  path = tmp_path / 'samples.jsonl'
  books.add(open_book(path), [sample('a', 0), bare('a', 1), bare('b', 0)])
  book = open_book(path)
  assert book.lacking('a') == [] and book.unmarked == [bare('a', 1), bare('b', 0)]
  asked = []
  for _ in range(2):  # the second time there is nothing to do
    books.mark(book, lambda found: asked.append(found) or [sample(s.problem, s.sample) for s in found])
  assert asked == [[bare('a', 1), bare('b', 0)]]
  assert path.read_bytes().count(b'\n') == 5
  found = open_book(path)
  assert found.held == book.held and found.unmarked == []
  books.close(found)
  assert samples.read(str(path)) == [sample('b', 0), sample('a', 0), sample('a', 1)]


@pytest.mark.parametrize('kept', range(1, 60, 7))
def test_a_torn_line_is_cut_off(tmp_path, kept):
  path = tmp_path / 'samples.jsonl'
  books.add(open_book(path), [sample('a', 0)])
  whole = path.read_bytes()
  path.write_bytes(whole + whole.replace(b'"sample": 0', b'"sample": 1')[:kept])
  book = open_book(path)
  assert path.read_bytes() == whole and book.lacking('a') == [1]


@pytest.mark.parametrize(
  'line, message',
  [
    ('{', 'line 2 is not JSON'),
    ('[1]', 'line 2 is no sample'),
    (samples.to_line(sample('c', 0)).strip(), "line 2 has sample 0 of problem 'c', which is not asked"),
    (samples.to_line(sample('a', 2)).strip(), "line 2 has sample 2 of problem 'a'"),
    (samples.to_line(sample('a', 0)).strip(), 'line 2 .* or was there before'),
  ],
)
def test_what_is_something_else_stays_as_it_is(tmp_path, line, message):
  path = tmp_path / 'samples.jsonl'
  path.write_text(samples.to_line(sample('a', 0)) + line + '\ntorn', encoding='utf-8')
  before = path.read_bytes()
  with pytest.raises(ConfigError, match=f'samples.jsonl, {message}'):
    open_book(path)
  assert path.read_bytes() == before


def test_verdicts_are_made_anew(tmp_path):
  path = tmp_path / 'samples.jsonl'
  book = open_book(path)
  books.add(book, [sample('a', 0), sample('b', 1)])
  right = {'opsd': Verdict.CORRECT}
  books.mark_again(book, lambda found: [dataclasses.replace(s, verdicts=right) for s in found])
  assert [json.loads(line)['verdicts'] for line in path.read_text().split('\n')[:-1]] == [
    {'opsd': 'correct'}
  ] * 2
  assert book.lacking('a') == [1] and open_book(path).held == book.held


def test_a_place_that_cannot_be_written(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(ConfigError, match='file/samples.jsonl cannot be written: File exists'):
    open_book(tmp_path / 'file' / 'samples.jsonl')

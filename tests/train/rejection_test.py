r"""Which rollouts of a teacher are rejected for their text, beside a search through all places by hand."""

import dataclasses

import hypothesis
import pytest
from hypothesis import strategies as st

from opsd_jax.config import ConfigError
from opsd_jax.train import rejection
from opsd_jax.train.rejection import RejectConfig

PUBLISHED = RejectConfig(truncated=True, lacking='\\boxed', line_times=5, window_times=3, block_times=3)


def distinct(count):
  """A text in which nothing of 8 characters or more stands twice: five digits and a bar, counted up."""
  return ''.join(f'{i:05}|' for i in range(count // 6 + 1))[:count]


# The oracle: every place, every other place.


def lines_repeat(text, times, chars):
  lines = [line.strip() for line in text.split('\n')]
  return any(len(a) >= chars and sum(a == b for b in lines) >= times for a in lines)


def windows_repeat(text, times, chars, stride):
  places = [i for i in range(len(text)) if i % stride == 0 and i + chars <= len(text)]
  same = lambda i, j: all(text[i + n] == text[j + n] for n in range(chars))  # noqa: E731
  return len(text) >= times * chars and any(sum(same(i, j) for j in places) >= times for i in places)


def blocks_repeat(text, times, chars, above):
  stands = lambda i: all(text[i + n] == text[i + n % chars] for n in range(times * chars))  # noqa: E731
  return len(text) > above and any(stands(i) for i in range(len(text) - times * chars + 1))


def oracle(config, text, stopped):
  if config.truncated and not stopped:
    return 'truncated'
  if config.lacking and text.find(config.lacking) < 0:
    return 'lacking'
  if config.line_times and lines_repeat(text, config.line_times, config.line_chars):
    return 'lines'
  if config.window_times and windows_repeat(
    text, config.window_times, config.window_chars, config.window_stride
  ):
    return 'windows'
  if config.block_times and blocks_repeat(text, config.block_times, config.block_chars, config.block_above):
    return 'blocks'
  return None


LINES = dict(line_times=st.integers(2, 3), line_chars=st.integers(1, 4))
WINDOWS = dict(
  window_times=st.integers(2, 3), window_chars=st.integers(1, 5), window_stride=st.integers(1, 4)
)
BLOCKS = dict(block_times=st.integers(2, 3), block_chars=st.integers(1, 5), block_above=st.integers(0, 12))
PLAIN = dict(truncated=st.booleans(), lacking=st.sampled_from(['', 'a', 'ab']))
RULES = st.one_of(
  *(st.builds(RejectConfig, **rule) for rule in (LINES, WINDOWS, BLOCKS, PLAIN)),
  st.builds(RejectConfig, **PLAIN, **LINES, **WINDOWS, **BLOCKS),
)
SHORT = st.text('ab \n', max_size=8)
TEXTS = st.builds(lambda a, b, n, c: a + b * n + c, SHORT, SHORT, st.integers(0, 3), SHORT)
ROLLOUTS = st.tuples(RULES, TEXTS, st.booleans())


@hypothesis.settings(max_examples=400)
@hypothesis.given(ROLLOUTS)
def test_the_reason_is_that_of_the_search(rollout):
  assert rejection.reason(*rollout) == oracle(*rollout)


@pytest.mark.parametrize('name', ['truncated', 'lacking', 'lines', 'windows', 'blocks', None])
def test_every_reason_is_among_what_is_compared(name):
  settings = hypothesis.settings(max_examples=400, database=None, phases=[hypothesis.Phase.generate])
  hypothesis.find(ROLLOUTS, lambda rollout: oracle(*rollout) == name, settings=settings)


# The published numbers.

BOX = '\\boxed{7}'
LINE = 'twenty characters ok'


def windows(count, after=0):
  """The same 100 characters at `count` multiples of 10, with other text between; `after` shifts the last."""
  parts = [distinct(i * 1000 + 50)[-50:] for i in range(count)]
  window = distinct(100)[::-1]
  texts = [window + part for part in parts[:-1]] + ['x' * after, window]
  return ''.join(texts) + 'and more' * 2


def blocks(count, length):
  """A block of 50 characters, `count` times from place 3 on, in a text of that length."""
  head = 'abc' + distinct(50)[::-1] * count
  return head + distinct(length - len(head))


@pytest.mark.parametrize(
  ('text', 'stopped', 'reason'),
  [
    (BOX, True, None),
    (BOX, False, 'truncated'),
    ('the answer is 7', True, 'lacking'),
    ('', True, 'lacking'),
    ('\n'.join([BOX, *[LINE] * 4]), True, None),
    ('\n'.join([BOX, *[LINE, 'other'] * 5]), True, 'lines'),
    ('\n'.join([BOX, *[f'  {LINE}\t', LINE, LINE + '\r'] * 2]), True, 'lines'),
    ('\n'.join([BOX, *[LINE[1:]] * 8]), True, None),
    ('\n'.join([LINE] * 9), True, 'lacking'),
    (windows(3) + BOX, True, 'windows'),
    (windows(2) + BOX, True, None),
    (windows(3, after=1) + BOX, True, None),
    (BOX + 'a' * (299 - len(BOX)), True, None),
    (BOX + 'a' * (300 - len(BOX)), True, 'windows'),
    (blocks(3, 5000)[: 5000 - len(BOX)] + BOX, True, None),
    (blocks(3, 5001)[: 5001 - len(BOX)] + BOX, True, 'blocks'),
    (blocks(2, 5200) + BOX, True, None),
  ],
)
def test_the_published_numbers(text, stopped, reason):
  assert rejection.reason(PUBLISHED, text, stopped) == reason
  assert oracle(PUBLISHED, text, stopped) == reason


def test_by_default_nothing_is_rejected():
  text = '\n'.join(['again and again and again'] * 400)
  assert rejection.reason(RejectConfig(), text, False) is None and not rejection.asked(RejectConfig())
  assert rejection.reason(RejectConfig(), '', False) is None


def test_what_is_asked_about_is_named_in_order():
  assert rejection.asked(PUBLISHED) == ['truncated', 'lacking', 'lines', 'windows', 'blocks']
  assert rejection.asked(RejectConfig(block_times=2, lacking='x')) == ['lacking', 'blocks']


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'line_times': 1}, 'reject.line_times is 1; set at least 2'),
    ({'window_times': -1}, 'reject.window_times is -1'),
    ({'block_times': 1}, 'reject.block_times is 1'),
    ({'line_chars': 0}, 'reject.line_chars is 0; it must be positive'),
    ({'window_stride': 0}, 'reject.window_stride is 0; it must be positive'),
    ({'block_above': -1}, 'reject.block_above is -1'),
  ],
)
def test_rules_that_cannot_be_asked(changes, words):
  with pytest.raises(ConfigError, match=words):
    rejection.validate(dataclasses.replace(PUBLISHED, **changes), 'source.reject')


@pytest.mark.parametrize(
  'field', ['line_chars', 'window_chars', 'window_stride', 'block_chars', 'block_above']
)
def test_sizes_of_a_rule_that_is_not_asked_are_refused(field):
  with pytest.raises(ConfigError, match=rf'source\.reject\.{field} is 7, but .*_times is 0'):
    rejection.validate(RejectConfig(**{field: 7}), 'source.reject')
  rejection.validate(RejectConfig(**{field: 7, f'{field.split("_")[0]}_times': 2}), 'source.reject')

"""Marks alone: what is data stays data, whatever a text is made of."""

from hypothesis import given
from hypothesis import strategies as st

from opsd_jax.text import marks as lib
from opsd_jax.text.marks import CLOSE, OPEN

NAMES = ('<a>', '<a>b', '<<', '</think>', 'é|')
MARKS = lib.make(NAMES)
BITS = st.sampled_from([*NAMES, OPEN, CLOSE, '<', 'a', '>', 'b', '\n', '|'])
TEXTS = st.lists(BITS | st.text(max_size=3), max_size=12).map(''.join)


def split(text):
  """The same without regular expressions: the longest token at each place, from the left."""
  found, at, data = [], 0, ''
  while at < len(text):
    token = max((n for n in NAMES if text.startswith(n, at)), key=len, default=None)
    if token:
      found += [(False, data), (True, token)]
      data = ''
    else:
      data += text[at]
    at += len(token or text[at])
  return [piece for piece in [*found, (False, data)] if piece[1]]


def pieces(text):
  """Pieces with neighbouring data joined."""
  joined = []
  for is_control, piece in lib.pieces(MARKS, text):
    if joined and not is_control and not joined[-1][0]:
      joined[-1] = (False, joined[-1][1] + piece)
    elif piece:
      joined.append((is_control, piece))
  return joined


@given(TEXTS)
def test_a_protected_text_is_data_and_survives(text):
  assert pieces(lib.protect(MARKS, text)) == ([(False, text)] if text else [])
  assert lib.plain(MARKS, lib.protect(MARKS, text)) == text


@given(TEXTS, TEXTS, TEXTS)
def test_texts_between_control_tokens(first, second, third):
  whole = '<a>'.join(lib.protect(MARKS, text) for text in (first, second, third))
  kept = [(False, first), (True, '<a>'), (False, second), (True, '<a>'), (False, third)]
  # A token may go on in the data after it: <a> before b is <a>b, as it is where nothing is marked.
  if not (second.startswith('b') or third.startswith('b')) and '<' not in (first[-1:], second[-1:]):
    assert pieces(whole) == [piece for piece in kept if piece[1]]


@given(TEXTS.filter(lambda text: OPEN not in text and CLOSE not in text))
def test_what_is_not_marked_is_control(text):
  assert pieces(text) == split(text) == [p for p in lib.unmarked_pieces(MARKS, text) if p[1]]


@given(st.text().filter(lambda text: not any(n in text for n in [*NAMES, OPEN, CLOSE])))
def test_most_texts_are_left_as_they_are(text):
  assert lib.protect(MARKS, text) == text and not lib.marked(text)


@given(TEXTS)
def test_half_a_mark_neither_frees_nor_binds_a_token(text):
  """Templates cut contents at tokens, and write the token themselves."""
  cut = lib.protect(MARKS, 'thought</think>' + text).split('</think>')
  assert pieces(cut[0] + '</think>') == [(False, 'thought'), (True, '</think>')]
  rest = pieces(''.join(cut[1:]))
  assert not any(is_control for is_control, _ in rest)


def test_no_control_tokens():
  marks = lib.make(())
  assert list(lib.pieces(marks, lib.protect(marks, f'a{OPEN}'))) == [(False, 'a'), (False, OPEN), (False, '')]


def test_whole_words():
  marks = lib.make(['STOP', '<a>'], ['STOP'])
  found = [p for is_control, p in lib.pieces(marks, 'STOP STOPS <a>STOP xSTOP') if is_control]
  assert found == ['STOP', '<a>', 'STOP']

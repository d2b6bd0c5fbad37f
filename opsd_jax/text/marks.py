"""Marks that tell control tokens a problem's text spells out from those its template writes.

A marked token stands between two noncharacters, which Unicode keeps out of interchanged text; where
one does occur, it is marked like a token, so every text survives. Two marks, because templates cut
contents at tokens (`content.split('</think>')`): half a mark is dropped and frees or binds nothing.
"""

import dataclasses
import re
from collections.abc import Iterable, Iterator

OPEN, CLOSE = '\ufdd0', '\ufdd1'


@dataclasses.dataclass(frozen=True)
class Marks:
  """Regular expressions for one set of control tokens.

  Attributes:
    spelled: what `protect` marks.
    control: control tokens as the tokenizer itself would find them.
    scan: group 1 of a match: marked data; group 2: a control token; neither: half a mark.
  """

  spelled: re.Pattern
  control: re.Pattern
  scan: re.Pattern


def make(names: Iterable[str], whole_words: Iterable[str] = ()) -> Marks:
  """Marks for control tokens; those of `whole_words` are tokens between word boundaries only."""
  # Tokenizers take the longest token that begins at a place, and an alternation takes the first.
  ordered = sorted(names, key=lambda name: (-len(name), name))
  spelled = '|'.join(map(re.escape, ordered)) or '(?!)'
  whole = set(whole_words)
  control = '|'.join(rf'(?<!\w){re.escape(n)}(?!\w)' if n in whole else re.escape(n) for n in ordered)
  control, anything = control or '(?!)', f'{spelled}|{OPEN}|{CLOSE}'
  scan = f'{OPEN}({anything}){CLOSE}|({control})|{OPEN}|{CLOSE}'
  return Marks(*map(re.compile, (anything, control, scan)))


def protect(marks: Marks, text: str) -> str:
  """`text` with every control token spelled out in it marked."""
  return marks.spelled.sub(lambda match: OPEN + match[0] + CLOSE, text)


def marked(text: str) -> bool:
  """Whether a text holds a mark."""
  return OPEN in text or CLOSE in text


def pieces(marks: Marks, text: str) -> Iterator[tuple[bool, str]]:
  """(is a control token, text without marks), in order; data comes in any number of pieces."""
  end = 0
  for match in marks.scan.finditer(text):
    yield False, text[end : match.start()]
    yield match[2] is not None, match[1] or match[2] or ''
    end = match.end()
  yield False, text[end:]


def unmarked_pieces(marks: Marks, text: str) -> Iterator[tuple[bool, str]]:
  """(is a control token, text), in order, of a text in which the two noncharacters mean nothing."""
  end = 0
  for match in marks.control.finditer(text):
    yield False, text[end : match.start()]
    yield True, match[0]
    end = match.end()
  yield False, text[end:]


def plain(marks: Marks, text: str) -> str:
  """`text` without marks."""
  return ''.join(piece for _, piece in pieces(marks, text)) if marked(text) else text

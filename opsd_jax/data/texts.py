"""Texts without what does not matter: their words, to find copies of parts, and marks, to find whole copies.

Prints of one problem differ in case, spaces, punctuation and the dress of their LaTeX: `$x$` or `\\(x\\)`,
`\\dfrac` or `\\frac`, `1,080` or `1080`. Unicode's NFKC makes one character of several that look alike.
"""

import hashlib
import re
import unicodedata

# Scripts that are written without spaces: every character is a word.
_UNSPACED = '\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff'
_LETTERS = rf'[^\W\d_{_UNSPACED}]+'
_FUNCTIONS = frozenset('sin cos tan cot sec csc log ln exp gcd lcm max min mod'.split())
_GREEK = {
  unicodedata.name(chr(code)).split()[-1].lower().replace('lamda', 'lambda'): chr(code)
  for code in range(0x3B1, 0x3CA)
  if code != 0x3C2  # the sigma that ends a word
}
_LAYOUT = frozenset(
  'left right big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr text textbf textit textrm mathrm mathbf '
  'mathit operatorname displaystyle textstyle quad qquad limits nolimits boldsymbol rm bf it'.split()
)
_SAME = {
  'dfrac': 'frac',
  'tfrac': 'frac',
  'dbinom': 'binom',
  'tbinom': 'binom',
  'leq': 'le',
  'geq': 'ge',
  'neq': 'ne',
  'dots': 'ldots',
  'lvert': 'vert',
  'rvert': 'vert',
  'to': 'rightarrow',
}

_THOUSANDS = re.compile(r'(?<=\d)(?:\{,\}|,\\!|,)(?=\d{3}(?!\d))')
_BARE_FRACTION = re.compile(r'(\\[dt]?frac)\s*(\d)\s*(\d)')  # \frac12 is a half
_ENVIRONMENT = re.compile(r'\\(?:begin|end)\s*\{[^{}]*\}')
_COMMAND = re.compile(r'\\([A-Za-z]+)')
_SPACING = re.compile(r'\\[()\[\],;:!]')  # \( and \[ begin mathematics; \, and \! are spaces
_HYPHEN = re.compile(r'(?<=[^\W\d_])-+(?=[^\W\d_]{2})')
_WORD = re.compile(rf'[{_UNSPACED}]|\d+|{_LETTERS}')
_TOKEN = re.compile(rf'\\[a-z]+|[{_UNSPACED}]|\d+(?:\.\d+)?|{_LETTERS}|[^\w\s]')
_SIGNS = frozenset('+-*/=<>^!|%()')  # of ASCII; other signs go by their Unicode category


def words(text: str) -> list[str]:
  """The words of a text, for comparing parts of it.

  NFKC, without case. Runs of letters and runs of digits are words, so `3x` is two; a character of a script
  without spaces is one by itself. Punctuation, signs and LaTeX's commands part words and are none, but for
  functions (`\\sin` is sin) and Greek letters (`\\alpha` is the letter).
  """
  return _WORD.findall(_COMMAND.sub(_spoken, _plain(text)).casefold())


def _spoken(command: re.Match[str]) -> str:
  name = command[1]
  return f' {name if name in _FUNCTIONS else _greek(name.lower())} '


def _greek(name: str) -> str:
  return _GREEK.get(name.removeprefix('var'), '')


def canonical(text: str) -> str:
  """What makes a problem this one and no other: words, numbers, signs and commands, parted by single spaces.

  As `words`, but signs, round brackets and commands stay, because 2+3 and 2-3 are different problems. Left
  out are spaces, punctuation, `$`, braces, and the commands that only lay text out.
  """
  bare = _COMMAND.sub(_named, _SPACING.sub(' ', _plain(text))).casefold()
  return ' '.join(filter(_tells, _TOKEN.findall(_HYPHEN.sub(' ', bare))))


def _named(command: re.Match[str]) -> str:
  name = _SAME.get(command[1], command[1])
  if name in _LAYOUT:
    return ' '
  return f' {name if name in _FUNCTIONS else _greek(name) or chr(92) + name} '


def _tells(token: str) -> bool:
  """Whether a token is more than punctuation, marks and currency."""
  if len(token) > 1 or token.isalnum():
    return True
  return token in _SIGNS if token.isascii() else unicodedata.category(token)[0] == 'S'


def mark(text: str) -> bytes:
  """16 bytes, equal where the `canonical` texts are, in every process; of a text without any, the text's."""
  kept = canonical(text) or text
  return hashlib.blake2b(kept.encode('utf-8', 'surrogatepass'), digest_size=16).digest()


def _plain(text: str) -> str:
  """NFKC, numbers without separators of thousands, no line breaks of LaTeX, no environments."""
  text = unicodedata.normalize('NFKC', text).replace('\u2212', '-').replace('\\\\', ' ')
  text = _BARE_FRACTION.sub(r'\1 \2 \3', _THOUSANDS.sub('', text))
  return _ENVIRONMENT.sub(' ', text)

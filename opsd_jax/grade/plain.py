r"""Answers that need no algebra: the same text, and numbers as exact fractions.

Covers AIME, AMC, GSM8K, SVAMP and DAPO, whose answers are numbers. What is not decided here goes to
math-verify.
"""

import re
from fractions import Fraction

_DIGITS = r'(?:\d{1,3}(?:,\d{3})+|\d+)'
_DECIMAL = rf'(?:{_DIGITS}(?:\.\d*)?|\.\d+)'
_NUMBER = re.compile(rf'(?P<sign>[+-]?)(?P<number>{_DECIMAL})(?:[eE](?P<power>[+-]?\d{{1,3}}))?')
_RATIO = re.compile(
  rf'(?P<sign>[+-]?)(?:(?P<whole>\d*)\\frac(?:\{{(?P<up>-?{_DECIMAL})\}}|(?P<up1>\d))'
  rf'(?:\{{(?P<down>{_DECIMAL})\}}|(?P<down1>\d))|(?P<over>{_DECIMAL})/(?P<under>{_DECIMAL}))'
)
_TEXT = re.compile(r'\\(?:text|textbf|textit|mbox|mathrm|mathbf|rm)\{([^{}]*)\}')
_UPRIGHT = re.compile(r'\\(?:text|mathrm|rm)\{\s*(e|i|\\?pi)\s*\}')
_UNIT = re.compile(r'(?<=[\d}])\\(?:text|mbox|mathrm)\{(?P<unit>[^{}\d]*)\}(?:\^\{?[23]\}?)?$')
_SCALES = {
  'hundred': 10**2,
  'thousand': 10**3,
  'million': 10**6,
  'billion': 10**9,
  'trillion': 10**12,
  'dozen': 12,
}
_SCALE = re.compile(rf'({"|".join(_SCALES)})(?!th)', re.IGNORECASE)
_VALUES = f'{"|".join(_SCALES)}|half|base|remainder'
_COUNTS = re.compile(rf'{_VALUES}|percent|pi\b|or|and|mod', re.IGNORECASE)
_VALUE = re.compile(rf'\b(?:{_VALUES}|pi)\b', re.IGNORECASE)
_BASE = re.compile(r'(?<=\d)_\{?(\w+)\}?')
_BASES = dict(two='2', three='3', four='4', five='5', six='6', seven='7', eight='8', nine='9', ten='10')
_TIME = re.compile(r'(?P<parts>\d{1,9}(?::\d{1,9})+)(?:(?P<half>[ap])\.?m\.?)?', re.IGNORECASE)
_BRACKET = re.compile(r'\\[{}]|\\.|[][(){},]')
_NAME = re.compile('[A-Z]{2,}')
_RATIOS = ('/', '\\frac')
_CLOSE = Fraction(1, 100_000)
_LONGEST = 1000


def tidy(answer: str) -> str:
  r"""LaTeX that says the same without spacing, dollar signs and sizes: `\$32,\!348` is `32,348`.

  `\\` ends a row of a matrix, with what stands beside it left alone; elsewhere it parts two answers.
  """
  text = answer.replace('\u2212', '-').replace('\\$', '').replace('$', '').replace('{,}', ',')
  text = re.sub(r'\\\\(?:\[[\d.]+[a-z]{2}\])?|\\[!,;:> ]|\\q?quad\b|\\displaystyle\b|~', _spacing, text)
  if '\\begin' not in text:
    text = re.sub(r'\\\\(?=\s*[-+\d(])', ',', text)
  text = re.sub(r'\\[dt]frac\b', r'\\frac', text)
  text = _UPRIGHT.sub(lambda upright: '\\pi ' if 'pi' in upright[1] else upright[1], text)
  text = re.sub(r'(?<=,)\s+(?=\d{3}(?!\d))', '', text) if '\\!' in answer else text
  text = re.sub(r'(?<=\d)_(?:10(?!\d)|\{10\})', '', text)
  text = re.sub(r'\s+', ' ', text).strip()
  return text[:-1].rstrip() if re.search(r'[^.]\.$', text) else text


def _spacing(found: re.Match[str]) -> str:
  return '\\\\' if found[0].startswith('\\\\') else ' '


def same_text(first: str, second: str) -> bool:
  """Whether two tidied answers are the same but for spaces, braces around one sign, and text commands."""
  return bool(first) and _squeezed(first) == _squeezed(second)


def _squeezed(text: str) -> str:
  text = re.sub(r'\\(?:left|right)(?![A-Za-z])', '', _TEXT.sub(r'\1', text))
  text = re.sub(r'([_^])\{(\w|\\circ)\}', r'\1\2', text)
  text = re.sub(r'(?<=\d)_\{(\d+)\}', r'_\1', text)
  return re.sub(r'\s+(?!\d)|(?<![\dA-Za-z])\s+', '', text)


def number(text: str) -> Fraction | None:
  r"""The number that a tidied answer is, or None: `1,080`, `007`, `-\frac{1}{2}`, `3/4`, `1\frac12`, `1.5e3`.

  Degrees and units in a text command after a number say nothing, `90^\circ`, `10\text{ cm}`, but for those
  that count: `10\text{ million}` is 10000000.
  """
  if len(text) > _LONGEST:
    return None
  unit = _UNIT.search(text.replace(' ', ''))
  text = text.replace(' \\', '\\').replace('\\frac ', '\\frac').replace('- ', '-')
  text = re.sub(r'(?:\^\{?\\circ\}?|°)$', '', text)
  text = re.sub(r'(?<=\}) (?=\{)', '', text)
  scale = _SCALE.match(unit['unit']) if unit else None
  if unit and not _COUNTS.search(unit['unit'], scale.end() if scale else 0):
    text = _UNIT.sub('', text)
  value = _plain_number(text) if _NUMBER.fullmatch(text) else _ratio(text)
  return value * _SCALES[scale[1].lower()] if scale and value is not None else value


def _plain_number(text: str) -> Fraction:
  match = _NUMBER.fullmatch(text)
  value = _fraction(match['number']) * Fraction(10) ** int(match['power'] or 0)
  return -value if match['sign'] == '-' else value


def _ratio(text: str) -> Fraction | None:
  match = _RATIO.fullmatch(text)
  if match is None:
    return None
  up, down = match['up'] or match['up1'] or match['over'], match['down'] or match['down1'] or match['under']
  if not _fraction(down) or (match['whole'] and up.startswith('-')):
    return None
  value = int(match['whole'] or 0) + _fraction(up) / _fraction(down)
  return -value if match['sign'] == '-' else value


def _fraction(text: str) -> Fraction:
  return Fraction(text.replace(',', '').removesuffix('.'))


def same(first: str, second: str) -> bool | None:
  """Whether two answers are the same; None where that takes algebra."""
  first, second = tidy(first), tidy(second)
  if same_text(first, second):
    return True
  numbers = number(first), number(second)
  if None not in numbers:
    return _same_number(first, second, *numbers)
  kinds = {_listed(first), _listed(second)}
  if kinds == {'set', 'sequence'} or _meant(first) != _meant(second):
    return False
  if _NAME.fullmatch(first) and _NAME.fullmatch(second):
    return False  # `BAC` and `CAB`: algebra would take them for one product
  return _same_time(first, second)


def _same_number(first: str, second: str, one: Fraction, other: Fraction) -> bool | None:
  """Exact, but that a decimal may be a ratio rounded: algebra knows to how many places."""
  rounded = any(ratio in first for ratio in _RATIOS) != any(ratio in second for ratio in _RATIOS)
  near = abs(one - other) <= _CLOSE * min(1, abs(one), abs(other))
  return True if one == other else None if rounded and near else False


def _meant(text: str) -> tuple[list[str], list[str]]:
  """What algebra does not see: the bases of numbers, and words that change a number."""
  bases = [_BASES.get(base.lower(), base) for base in _BASE.findall(_TEXT.sub(r'\1', text))]
  return bases, sorted(word.lower() for word in _VALUE.findall(' '.join(_TEXT.findall(text))))


def _listed(text: str) -> str | None:
  r"""What one pair of brackets around a list makes it: `\{1,2\}` a set, `(1,2)` and `[1,2)` a sequence."""
  text = re.sub(r'\\(?:left|right)(?![A-Za-z])|\s', '', text)
  depth, commas = 0, 0
  for found in _BRACKET.finditer(text):
    depth += (found[0][-1] in '({[') - (found[0][-1] in ')}]')
    commas += found[0] == ',' and depth == 1
    if depth == 0 and found.end() < len(text):
      return None
  kinds = {'\\{': 'set', '(': 'sequence', '[': 'sequence'}
  return next((kind for opening, kind in kinds.items() if commas and text.startswith(opening)), None)


def _same_time(first: str, second: str) -> bool | None:
  """`6:30` is a time or a ratio: only the same parts are the same, and no number is."""
  found = [_TIME.fullmatch(_TEXT.sub(r'\1', text).replace(' ', '')) for text in (first, second)]
  if found == [None, None]:
    return None
  if None in found:
    return False
  parts = [[int(part) for part in match['parts'].split(':')] for match in found]
  halves = {match['half'].lower() for match in found if match['half']}
  return parts[0] == parts[1] and len(halves) < 2

r"""Where the final answer stands in a completion: boxes, `####`, "the answer is", letters of a choice.

`strict` and `choice` read what the completion says after its thoughts. Everything up to the last `</think>`
is a thought, and so is what follows a `<think>` that is never closed: an answer in there was not given. A
thought whose opening tag stands in the prompt and that is cut off cannot be told from an answer.
"""

import re

_BRACED = '\\boxed{'
_BOX = re.compile(r'\\(?:boxed|fbox)(?![A-Za-z])')
_UNBRACED = re.compile(r'\s*(?P<inside>[^\s$]+)')
_HEADING = r'[ \t*_]*(?:\d+[.):]\s+)?[A-Za-z]{2}'  # of Markdown: `#### Step 1`, `#### 2. Add`
_SAID = (
  re.compile(rf'####(?!{_HEADING})(?P<answer>[^\n]*)'),
  re.compile(r'final answer(?: is\b\s*:?|\s*:)(?P<answer>[^\n]*)', re.IGNORECASE),
  re.compile(r'\banswer\s*:(?P<answer>[^\n]*)', re.IGNORECASE),
)
_LETTER = r'\(?(?P<letter>[A-Z])(?:\)|(?![A-Za-z0-9]))'
_MARKS = r'(?:[\s*_$({]|\\(?:text|textbf|mathrm|mathbf|mathsf|boldsymbol)\{|\\\()*'
_LETTER_FIRST = re.compile(rf'^{_MARKS}{_LETTER}')
_LETTER_SAID = re.compile(rf'\b[Aa]nswer(?:\s+is\b)?\s*+:?{_MARKS}{_LETTER}')
_LETTER_LAST = re.compile(r'\((?P<letter>[A-Z])\)[\s.*$]*$|^[\s*]*(?P<alone>[A-Z])[\s.*]*\Z', re.MULTILINE)


def opsd(completion: str) -> str | None:
  r"""The reference's answer: what stands in the box that follows the last mention of `\boxed`.

  None where that mention is followed by anything but a brace (`\boxed 5`) or by braces that never balance,
  whatever stood in an earlier box. `\fbox` is no box, `\{` counts as a brace, and a thought is read as well.
  """
  start = completion.rfind('\\boxed')
  if start < 0:
    return None
  depth = 0
  for match in re.compile(r'[{}]').finditer(completion, start):
    depth += 1 if match[0] == '{' else -1
    if depth == 0 and match[0] == '}':
      inside = completion[start : match.start()]
      return inside.removeprefix(_BRACED).strip() if inside.startswith(_BRACED) else None
  return None


def strict(completion: str) -> str | None:
  r"""The last box that holds something, else the last `#### 5`, `final answer is 5` or `Answer: 5`."""
  text = after_thought(completion)
  return in_last_box(text) or _said(text)


def choice(completion: str) -> str | None:
  """The letter of multiple choice, a capital: in the last box, said to be the answer, or at the very end."""
  text = after_thought(completion)
  boxed = in_last_box(text)
  found = letter(boxed) if boxed else None
  return found or _said_letter(text)


def letter(text: str) -> str | None:
  r"""The letter that a short answer begins with, as a capital: `C`, `(C)`, `\text{(C)}`, `c`, `C. 42`."""
  if len(text.strip()) == 1:
    text = text.upper()
  match = _LETTER_FIRST.match(text)
  return match['letter'] if match else None


def after_thought(completion: str) -> str:
  """The completion without its thoughts, closed or not."""
  _, _, said = completion.rpartition('</think>')
  return said.partition('<think>')[0]


def in_last_box(text: str) -> str | None:
  r"""What stands in the last box that holds something: `\boxed{...}`, `\fbox{...}`, `\boxed 5`.

  A mention of the command without an answer (`put it into \boxed.`) and an unclosed brace are passed over.
  """
  closing = _pairs(text)
  for match in reversed(list(_BOX.finditer(text))):
    inside = _inside(text, match.end(), closing)
    if inside:
      return inside
  return None


def _inside(text: str, start: int, closing: dict[int, int]) -> str | None:
  brace = re.compile(r'\s*\{').match(text, start)
  if brace:
    end = closing.get(brace.end() - 1)
    return None if end is None else text[brace.end() : end].strip()
  match = _UNBRACED.match(text, start)
  inside = match['inside'].rstrip('.,;:)*') if match else ''
  return inside if re.search(r'\d|^\\[A-Za-z]', inside) else None


def _pairs(text: str) -> dict[int, int]:
  r"""Where each brace is closed, `\{` and `\}` passed over: one pass, however many boxes a text repeats."""
  opened: list[int] = []
  closing = {}
  for match in re.finditer(r'\\.|[{}]', text, re.DOTALL):
    if match[0] == '{':
      opened.append(match.start())
    elif match[0] == '}' and opened:
      closing[opened.pop()] = match.start()
  return closing


def _said(text: str) -> str | None:
  for pattern in _SAID:
    for match in reversed(list(pattern.finditer(text))):
      answer = undressed(match['answer'])
      if answer:
        return answer
  return None


def undressed(text: str) -> str:
  r"""A line's answer without what dresses it: `**$5$**.` is `5`."""
  text = text.strip().strip('*').strip()
  if re.search(r'[^.]\.$', text):
    text = text[:-1].strip()
  text = text.strip('*').strip()
  for opening, closing in (('$$', '$$'), ('$', '$'), ('\\(', '\\)'), ('\\[', '\\]')):
    inner = text[len(opening) : -len(closing)]
    if inner and text.startswith(opening) and text.endswith(closing) and opening not in inner:
      return inner.strip()
  return text


def _said_letter(text: str) -> str | None:
  said = list(_LETTER_SAID.finditer(text))
  if said:
    return said[-1]['letter']
  last = list(_LETTER_LAST.finditer(text.rstrip()[-200:]))
  if last and last[-1].end() == len(text.rstrip()[-200:]):
    return last[-1]['letter'] or last[-1]['alone']
  return None

"""The published rules of OPSD's evaluation, written from their description and run in this process.

The answer is what the last `\\boxed` of the text encloses; there is none where that mention is not at once
followed by a brace, or its braces do not balance. Either side without a dollar sign is put between two;
both are parsed without fallback and compared, the known answer first; where that raises, the texts are
compared in lower case without dollar signs and spaces.
"""

import math_verify


def boxed(text):
  last = text.split('\\boxed')[-1] if '\\boxed' in text else ''
  if not last.startswith('{'):
    return None
  depth = 0
  for length, character in enumerate(last):
    depth += {'{': 1, '}': -1}.get(character, 0)
    if depth == 0:
      return last[1:length].strip()
  return None


def right(completion, gold):
  answer = boxed(completion)
  return answer is not None and right_answer(answer, gold)


def right_answer(answer, gold):
  try:
    known, given = (
      math_verify.parse(side if '$' in side else f'${side}$', fallback_mode='no_fallback')
      for side in (gold, answer)
    )
    return math_verify.verify(known, given, timeout_seconds=5)
  except Exception:
    bare = [side.replace('$', '').replace(' ', '').lower() for side in (answer, gold)]
    return bare[0] == bare[1]

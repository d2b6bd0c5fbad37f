"""The program in a completion.

In this order:

1. What stands up to the last `</think>` is dropped. A thought that was not closed stays, as in the published
   evaluations of such models.
2. Of the fenced blocks marked as Python, else of the unmarked ones, the last that defines the wanted function
   counts; where none does, the last. Answers often show a use of the function afterwards. A fence that is
   open to the end counts as closed there, and what the fence is set in by is taken off its lines.
3. Without a fence the text itself counts, up to the last line with which it is Python. It must define the
   wanted function, or be the indented body that continues the task's `starter`.
4. Where the wanted function is missing from what was found, the `starter` is put before it.
"""

import ast
import re
import warnings

from opsd_jax.grade.programs.task import Task

# Indent, fence, words after it, and the text up to the same fence, which may also end the last line.
# It never goes back over what it has read, so that no text takes long.
_FENCE = re.compile(
  r'^([ \t]*+)(`{3,}+|~{3,}+)([^\n`]*+)\n(.*?)(?:(?<![`~])\2[`~]*+[ \t]*+$|\Z)', re.M | re.S
)
_LANGUAGE = re.compile(r'[\s{.]*([\w+#-]*)')
_PYTHON = ('python', 'py', 'python3')
_TRIED = 50  # times that a text without a fence is cut where it stops being Python, at most


def program(completion: str, task: Task) -> str | None:
  """The program to run for `task`, or None where the completion holds none."""
  text = completion.rpartition('</think>')[2].replace('\r\n', '\n')
  found = _fenced(text, task.entry_point)
  if found is None:
    found = _unfenced(text, task)
  if found is None or not found.strip():
    return None
  missing = task.entry_point and not _defines(found, task.entry_point)
  return f'{task.starter}\n{found}' if missing and task.starter else found


def _fenced(text: str, entry: str) -> str | None:
  blocks = [
    (_LANGUAGE.match(mark)[1].lower(), _without(indent, body))
    for indent, _, mark, body in _FENCE.findall(text)
  ]
  marked, bare = ([b for mark, b in blocks if mark in names] for names in (_PYTHON, ('',)))
  for chosen in (marked, bare):
    defining = [body for body in chosen if entry and _defines(body, entry)]
    if defining:
      return defining[-1]
  return (marked or bare or [None])[-1]


def _without(indent: str, body: str) -> str:
  """The lines of a block without what its fence is set in by, as far as they have it: an item of a list."""
  return re.sub(rf'^[ \t]{{1,{len(indent)}}}', '', body, flags=re.M) if indent else body


def _unfenced(text: str, task: Task) -> str | None:
  """The longest run of lines from the start that is Python, if it has, or completes, the wanted function."""
  lines = text.split('\n')
  body = bool(task.starter) and text.strip('\n')[:1] in (' ', '\t')
  above = f'{task.starter}\n' if body else ''
  for _ in range(_TRIED):
    part = '\n'.join(lines)
    if not part.strip():
      return None
    try:
      tree = parsed(above + part)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
      wrong = (getattr(error, 'lineno', None) or len(lines) + 1) - above.count('\n')
      lines = lines[
        : max(0, min(wrong, len(lines)) - 1)
      ]  # what is wrong there stays wrong with fewer lines below
    else:
      return part if body or _usable(tree, part, task.entry_point) else None
  return None


def _usable(tree: ast.Module, part: str, entry: str) -> bool:
  if entry:
    return _defines(part, entry)
  return any(not isinstance(statement, ast.Expr) or _calls(statement) for statement in tree.body)


def _calls(statement: ast.stmt) -> bool:
  return any(isinstance(node, ast.Call) for node in ast.walk(statement))


def _defines(source: str, name: str) -> bool:
  """Whether the program has a function, method or variable of that name, readable as Python or not."""
  name = re.escape(name)
  return bool(re.search(rf'^[ \t]*(?:(?:async\s+)?def\s+{name}\b|{name}\s*(?::[^=\n]*)?=[^=])', source, re.M))


def parsed(source: str) -> ast.Module:
  """The syntax tree of Python that is not ours: warnings of its escapes are kept from our users.

  Raises:
    SyntaxError, ValueError, RecursionError, MemoryError: it is no Python, or none that can be read.
  """
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    return ast.parse(source)

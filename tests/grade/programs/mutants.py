"""Wrong programs made of right ones, by a change of their syntax trees. The choice is deterministic."""

import ast
import copy
import random
from collections.abc import Callable, Iterator

_SWAPPED = {
  ast.Lt: ast.GtE,
  ast.LtE: ast.Gt,
  ast.Gt: ast.LtE,
  ast.GtE: ast.Lt,
  ast.Eq: ast.NotEq,
  ast.NotEq: ast.Eq,
  ast.In: ast.NotIn,
  ast.NotIn: ast.In,
  ast.Is: ast.IsNot,
  ast.IsNot: ast.Is,
  ast.Add: ast.Sub,
  ast.Sub: ast.Add,
  ast.Mult: ast.Add,
  ast.Div: ast.Mult,
  ast.FloorDiv: ast.Mult,
  ast.Mod: ast.FloorDiv,
  ast.And: ast.Or,
  ast.Or: ast.And,
}


def without_result(source: str, entry: str) -> str:
  """The same program, but its function returns None wherever it returned something."""
  tree = ast.parse(source)
  functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == entry]
  for node in ast.walk(functions[-1]):
    if isinstance(node, ast.Return):
      node.value = ast.Constant(None)
  return ast.unparse(tree)


def changed_in_one_place(source: str, seed: str) -> Iterator[str]:
  """Programs with one operator, number or truth value changed, in an order that `seed` decides."""
  tree = ast.parse(source)
  places = [(n, change) for n, node in enumerate(ast.walk(tree)) for change in _changes(node)]
  for number, change in random.Random(seed).sample(places, len(places)):
    changed = copy.deepcopy(tree)
    change(list(ast.walk(changed))[number])
    yield ast.unparse(ast.fix_missing_locations(changed))


def _changes(node: ast.AST) -> Iterator[Callable[[ast.AST], None]]:
  if isinstance(node, ast.Compare) and type(node.ops[0]) in _SWAPPED:
    yield _swap_comparison
  if isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign) and type(node.op) in _SWAPPED:
    yield _swap_operator
  if isinstance(node, ast.Constant) and isinstance(node.value, bool):
    yield _negate
  elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
    yield _increase


def _swap_comparison(node: ast.Compare) -> None:
  node.ops[0] = _SWAPPED[type(node.ops[0])]()


def _swap_operator(node: ast.BinOp | ast.BoolOp | ast.AugAssign) -> None:
  node.op = _SWAPPED[type(node.op)]()


def _negate(node: ast.Constant) -> None:
  node.value = not node.value


def _increase(node: ast.Constant) -> None:
  node.value += 1

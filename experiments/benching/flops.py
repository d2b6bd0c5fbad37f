"""FLOPs of a traced function: its matrix products, those of a loop's body times the loop's trips.

A compiler's own count takes a loop's body once. This one walks what JAX traces, before any compiler, so
that shapes are enough: nothing is allocated.
"""

import math
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr


def count(function: Any, *arguments: Any) -> int:
  """FLOPs of `function(*arguments)`, a multiply-add counted as two; arguments may be shapes.

  `function` may be jitted with static arguments. Elementwise work is left out.

  Raises:
    ValueError: a matrix product stands in a loop whose number of trips is not known.
  """
  traced = function if hasattr(function, 'trace') else jax.jit(function)
  return _jaxpr(traced.trace(*arguments).jaxpr.jaxpr)


def _jaxpr(jaxpr: Jaxpr) -> int:
  return sum(map(_equation, jaxpr.eqns))


def _equation(equation: Any) -> int:
  name, params = equation.primitive.name, equation.params
  if name == 'dot_general':
    (contracted, _), _ = params['dimension_numbers']
    sizes = equation.invars[0].aval.shape
    return 2 * equation.outvars[0].aval.size * math.prod(sizes[i] for i in contracted)
  inner = [_jaxpr(jaxpr) for jaxpr in _inner(params)]
  if name == 'cond':
    return max(inner, default=0)
  if name == 'while' and any(inner):
    raise ValueError('a while loop holds matrix products: the number of its trips is not known.')
  if name == 'pallas_call' and any(inner):
    raise ValueError('a Pallas kernel holds matrix products: they are not counted grid point by grid point.')
  return sum(inner) * (params['length'] if name == 'scan' else 1)


def _inner(params: dict[str, Any]) -> list[Jaxpr]:
  """Programs that an operation runs."""
  values = []
  for value in params.values():
    values += value if isinstance(value, tuple | list) else [value]
  closed = [v.jaxpr if isinstance(v, ClosedJaxpr) else v for v in values]
  return [v for v in closed if isinstance(v, Jaxpr)]

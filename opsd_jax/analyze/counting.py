"""What a compiled program does on one chip: products, bytes of main memory, exchanges.

`cost_analysis` counts the body of a loop once, whatever its length; here an instruction of a body counts as
often as the loop turns. FLOPs are those of matrix products, a multiply-add as two: of `dot`, of the
convolutions that the TPU's compiler makes of it, and of kernels what they say of themselves.
"""

import functools
import re
import types
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from opsd_jax.analyze import hlo

_LABELS = re.compile(r'dim_labels=(\w+)_(\w+)->(\w+)')
_ITSELF = {'fusion', 'async-start', 'call'}  # what stands in the computation that they name


class Exchange(NamedTuple):
  """One exchange between chips.

  Attributes:
    kind: of `hlo.COLLECTIVES`.
    chips: that take part in a group of it.
    sent: bytes that a chip sends, in a ring where that is the way.
  """

  kind: str
  chips: int
  sent: float


class Counted(NamedTuple):
  """What one instruction does on one chip in all its turns.

  Attributes:
    name: of the instruction.
    opcode: likewise.
    operation: what it was in the program, '' where that is not known.
    times: that it runs.
    flops: of matrix products.
    bytes: read from and written to main memory.
    exchanges: between chips, each as often as `times` says already.
  """

  name: str
  opcode: str
  operation: str
  times: int
  flops: int
  bytes: int
  exchanges: tuple[Exchange, ...]


def count(
  text: str,
  turns: Mapping[str, int] = types.MappingProxyType({}),
  chips: int = 1,
  start: str | None = None,
  often: int = 1,
) -> list[Counted]:
  """Everything that a program does, in the order in which it stands there.

  Args:
    text: the compiled program's, for one of its chips.
    turns: as of `hlo.traffic`.
    chips: that run the program: the group of an exchange that names none.
    start: a computation to count alone; None for the whole program.
    often: how often that one runs.
  """
  program, found = hlo.parse(text), []
  for computation, one, turned in hlo.walk(program, start or hlo.entry(text), turns):
    times = turned * often
    flops = products(program, computation, one)
    moved = hlo.moved(program, computation, one)
    sent = tuple(e._replace(sent=e.sent * times) for e in exchanges(program, one, chips))
    if flops or moved or sent:
      named = operation(program, one)
      found.append(Counted(one.name, one.opcode, named, times, flops * times, moved * times, sent))
  return found


def operation(program: Mapping[str, hlo.Computation], one: hlo.Instruction) -> str:
  """What an instruction was in the program, or else one of those inside it; '' where nothing says so."""
  inner = program.get(hlo.called(one, 'calls'), {}).values()
  found = (re.search(r'op_name="([^"]*)"', other.rest) for other in (one, *inner))
  return next((name.group(1) for name in found if name), '')


def total(counted: Iterable[Counted]) -> dict[str, float]:
  """FLOPs, bytes and bytes sent of all instructions, and those sent by the kind of exchange."""
  counted = list(counted)
  sums = {'flops': sum(c.flops for c in counted), 'bytes': sum(c.bytes for c in counted)}
  every = [e for c in counted for e in c.exchanges]
  sums['sent'] = sum(e.sent for e in every)
  return sums | {f'sent_{k}': s for k in hlo.COLLECTIVES if (s := sum(e.sent for e in every if e.kind == k))}


def products(
  program: Mapping[str, hlo.Computation], computation: hlo.Computation, one: hlo.Instruction
) -> int:
  """FLOPs of the matrix products of one instruction, those inside a fusion among them, run once."""
  if one.opcode in _ITSELF:
    inner = program.get(hlo.called(one, 'calls'), {})
    return sum(products(program, inner, other) for other in inner.values())
  if one.opcode == 'dot':
    lhs = computation[one.operands[0]].result[0].dims
    (axes,) = re.findall(r'lhs_contracting_dims=\{([\d,]*)\}', one.rest)
    return 2 * one.result[0].size * int(np.prod([lhs[int(i)] for i in axes.split(',') if i], dtype=np.int64))
  if one.opcode == 'convolution':
    return _convolution(*(computation[name].result[0].dims for name in one.operands), one)
  if one.opcode == 'custom-call':
    said = re.search(r'"cost_estimate":\{[^{}]*"flops":"?(\d+)', one.rest)
    return int(said.group(1)) if said else 0
  return 0


def _convolution(lhs: tuple[int, ...], rhs: tuple[int, ...], one: hlo.Instruction) -> int:
  """Twice its multiply-adds: those with padding, or with the holes of a dilation, are none."""
  inputs, kernel, output = _LABELS.search(one.rest).groups()
  out = one.result[0].dims
  window = re.search(r'window=\{([^}]*)\}', one.rest)
  fields = dict(part.split('=') for part in window.group(1).split()) if window else {}
  met = 1
  for i in range(len(inputs) - 2):
    name = str(i)
    sizes = lhs[inputs.index(name)], rhs[kernel.index(name)], out[output.index(name)]
    met *= _met(*sizes, *(_number(fields, key, i) for key in ('stride', 'pad', 'lhs_dilate', 'rhs_dilate')))
  groups = {key: int(n) for key, n in re.findall(r'\b(feature|batch)_group_count=(\d+)', one.rest)}
  features = lhs[inputs.index('f')] // groups.get('feature', 1) * out[output.index('f')]
  return 2 * met * features * (lhs[inputs.index('b')] // groups.get('batch', 1))


def _number(fields: Mapping[str, str], key: str, place: int) -> int:
  """The entry of a window's attribute for one of its dimensions; of a padding that before the first."""
  default = 0 if key == 'pad' else 1
  return int(fields[key].split('x')[place].split('_')[0]) if key in fields else default


@functools.lru_cache(maxsize=1024)
def _met(size: int, kernel: int, output: int, stride: int, pad: int, holes: int, spread: int) -> int:
  """How often, along one dimension, an entry of the kernel meets one of the input."""
  first = np.arange(output) * stride - pad
  found = 0
  for k in range(kernel):
    at = first + k * spread
    found += int(np.sum((at >= 0) & (at < (size - 1) * holes + 1) & (at % holes == 0)))
  return found


def exchanges(program: Mapping[str, hlo.Computation], one: hlo.Instruction, chips: int) -> list[Exchange]:
  """Those of one instruction, run once; of a pair that starts and ends one, at its start."""
  if one.opcode in _ITSELF:
    inner = program.get(hlo.called(one, 'calls'), {}).values()
    begins = any('AsyncCollectiveStart' in other.rest for other in inner)
    own = [other for other in inner if begins or not hlo.in_pieces(other)]
    return [e for other in own for e in exchanges(program, other, chips)]
  kind = one.opcode.removesuffix('-start')
  if kind not in hlo.COLLECTIVES:
    return []
  result = one.result
  if one.opcode.endswith('-start') and len(result) > 1:  # the operands, then the results, then flags
    half = len(one.operands)
    result = result[half : 2 * half]
  size, members = sum(a.bytes for a in result), _members(one.rest, chips)
  share = (members - 1) / members
  ways = {
    'all-gather': size * share,
    'all-reduce': 2 * size * share,
    'reduce-scatter': size * (members - 1),
    'all-to-all': size * share,
    'collective-permute': float(size),
  }
  return [Exchange(kind, members, ways[kind])] if ways[kind] else []


def _members(rest: str, chips: int) -> int:
  """Chips of a group, however the groups are written."""
  if 'source_target_pairs' in rest:
    return 2
  if found := re.search(r'replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}', rest):
    sizes = dict(re.findall(r"'([^']*)'=(\d+)", found.group(1)))
    named = re.findall(r"'([^']*)'", found.group(2))
    return int(np.prod([int(sizes[name]) for name in named], dtype=np.int64))
  if found := re.search(r'replica_groups=\[(\d+),(\d+)\]<=', rest):
    return int(found.group(2))
  found = re.search(r'replica_groups=\{\{([\d,]+)\}', rest)
  return found.group(1).count(',') + 1 if found else chips

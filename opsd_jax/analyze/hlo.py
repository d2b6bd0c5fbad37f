"""What a compiled program moves in a loop: bytes of main memory and collectives, read off its scheduled HLO.

A decode step is bound by the bytes that it reads, so the plan of the compiler can be held against the floor
(each weight once, each cached key and value once) on a machine that has no such accelerator. A fusion reads
its operands and writes its results; of an operand that it slices it reads the slices, of a buffer that it
updates in place it writes the update. What lies in on-chip memory (`S(n)` in a layout) is free. Sizes are
those of the layout, with the padding of its tiles.
"""

import collections
import dataclasses
import math
import re
import types
from collections.abc import Iterator, Mapping, Sequence

_BITS = {'pred': 8, 's4': 4, 'u4': 4, 's8': 8, 'u8': 8, 's16': 16, 'u16': 16, 's64': 64, 'u64': 64}
_BITS |= {'bf16': 16, 'f16': 16, 'f32': 32, 's32': 32, 'u32': 32, 'f64': 64}
_ARRAY = re.compile(r'\b([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?')
_INSTRUCTION = re.compile(r'\s+(ROOT )?%(\S+) = ')
_FREE = {
  'parameter',
  'get-tuple-element',
  'tuple',
  'bitcast',
  'constant',
  'after-all',
  'iota',
  'partition-id',
}
_SLICES = {'slice', 'dynamic-slice', 'gather'}
_SAME = {'bitcast', 'reshape', 'copy', 'convert', 'transpose'}
COLLECTIVES = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute')


@dataclasses.dataclass(frozen=True)
class Array:
  """One array of an instruction's result: how many numbers, bytes as it lies, where, its sizes."""

  size: int
  bytes: int
  main: bool
  dims: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line: its result's arrays, what it does, to what, what stands in its parentheses and after them."""

  name: str
  result: tuple[Array, ...]
  opcode: str
  operands: tuple[str, ...]
  arguments: str
  rest: str
  root: bool

  @property
  def main_bytes(self) -> int:
    """Of its results in main memory."""
    return sum(a.bytes for a in self.result if a.main)


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Moved:
  """Bytes that an instruction moves in one turn of the loop, over all turns of the loops inside."""

  instruction: str
  opcode: str
  bytes: int


def parse(text: str) -> dict[str, Computation]:
  """The computations of a program's text, by name, and the instructions of each, by name and in order."""
  result: dict[str, Computation] = {}
  current: Computation = {}
  for line in text.splitlines():
    if head := re.match(r'(?:ENTRY )?%(\S+) \(.*\{$', line):
      current = result.setdefault(head.group(1), {})
    elif found := _INSTRUCTION.match(line):
      one = _instruction(found.group(2), line[found.end() :], bool(found.group(1)))
      current[one.name] = one
  return result


def _instruction(name: str, line: str, root: bool) -> Instruction:
  end = _closing(line, 0) if line.startswith('(') else line.index(' ')
  shape, line = line[:end], line[end:].strip()
  opens = line.index('(')
  closes = _closing(line, opens)
  arguments = line[opens + 1 : closes - 1]
  operands = tuple(re.findall(r'%([^\s,()]+)', arguments))
  arrays = tuple(_array(*found) for found in _ARRAY.findall(shape))
  return Instruction(name, arrays, line[:opens], operands, arguments, line[closes:], root)


def _closing(text: str, at: int) -> int:
  """One past the parenthesis that closes the one at `at`."""
  depth = 0
  for i in range(at, len(text)):
    depth += (text[i] == '(') - (text[i] == ')')
    if not depth:
      return i + 1
  raise ValueError(f'no closing parenthesis: {text[:200]}')


def _array(kind: str, dims: str, layout: str) -> Array:
  shape = [int(n) for n in dims.split(',') if n]
  order, _, tiles = layout.partition(':')
  major = [shape[int(i)] for i in reversed(order.split(',')) if i] if order else list(shape)
  if tile := re.search(r'T\(([\d,]+)\)', tiles):
    sides = [int(n) for n in tile.group(1).split(',')][-len(major) :] if major else []
    for i, side in enumerate(sides, len(major) - len(sides)):
      major[i] = -(-major[i] // side) * side
  main = 'S(' not in tiles or 'S(0)' in tiles
  return Array(math.prod(shape), math.prod(major) * _BITS.get(kind, 0) // 8, main, tuple(shape))


def entry(text: str) -> str:
  """The name of the computation that a program begins with."""
  (name,) = re.findall(r'^ENTRY %(\S+) \(', text, re.MULTILINE)
  return name


def loop(program: Mapping[str, Computation]) -> str:
  """The name of the body of the outermost loop that turns a number of times that depends on data.

  Raises:
    ValueError: not exactly one such loop runs from the program's entry.
  """
  inside = {called(i, 'body') for c in program.values() for i in c.values() if i.opcode == 'while'}
  nested = {called(i, 'body') for body in inside for i in _reached(program, body) if i.opcode == 'while'}
  found = [
    called(i, 'body')
    for c in program.values()
    for i in c.values()
    if i.opcode == 'while' and called(i, 'body') not in nested and _trips(program, c, i) is None
  ]
  if len(found) != 1:
    raise ValueError(f'{len(found)} loops of unknown length: {found}')
  return found[0]


def collectives(program: Mapping[str, Computation], body: str) -> list[Instruction]:
  """Every exchange between devices that a computation makes, those of computations that it calls included."""
  return [i for i in _reached(program, body) if i.opcode.removesuffix('-start') in COLLECTIVES]


def traffic(
  program: Mapping[str, Computation], body: str, turns: Mapping[str, int] = types.MappingProxyType({})
) -> list[Moved]:
  """Main-memory bytes of every instruction in one turn of a loop, the largest first.

  Args:
    program: of `parse`.
    body: name of the loop's body.
    turns: how often a loop inside turns whose length depends on data, by a part of the name that its
      operation had in the program; others turn once.
  """
  totals: collections.Counter[tuple[str, str]] = collections.Counter()
  for computation, one, times in walk(program, body, turns):
    totals[one.name, one.opcode] += times * moved(program, computation, one)
  return [Moved(*key, size) for key, size in totals.most_common() if size]


def walk(
  program: Mapping[str, Computation], name: str, turns: Mapping[str, int] = types.MappingProxyType({})
) -> Iterator[tuple[Computation, Instruction, int]]:
  """Every instruction that a computation runs, its own computation, and how often it runs.

  Loops, calls and conditionals are entered; of a conditional that branch which moves most. Fusions are one
  instruction each. Arguments as of `traffic`.
  """
  for one in program[name].values():
    if one.opcode == 'while':
      inside, times = called(one, 'body'), _turns(program, program[name], one, turns)
    elif one.opcode == 'conditional':
      branches = re.findall(r'%([^\s,{}]+)', one.rest[: one.rest.find('metadata')])
      sizes = {
        branch: sum(m.bytes for m in traffic(program, branch, turns))
        for branch in branches
        if branch in program
      }
      inside, times = max(sizes, key=sizes.__getitem__, default=''), 1
    elif one.opcode == 'call':
      inside, times = called(one, 'to_apply'), 1
    else:
      yield program[name], one, 1
      continue
    for computation, inner, often in walk(program, inside, turns) if inside else ():
      yield computation, inner, times * often


def _turns(
  program: Mapping[str, Computation], computation: Computation, one: Instruction, turns: Mapping[str, int]
) -> int:
  """How often a loop turns, by the program or else by `turns`."""
  trips = _trips(program, computation, one)
  return next((n for part, n in turns.items() if part in one.rest), 1) if trips is None else trips


def moved(program: Mapping[str, Computation], computation: Computation, one: Instruction) -> int:
  """Bytes that a single instruction reads from and writes to main memory."""
  if one.opcode in _FREE or one.opcode.endswith('-done') or 'AllocateBuffer' in one.rest:
    return 0
  operands = [computation[name] for name in one.operands]
  inner = program.get(called(one, 'calls'))
  if inner is not None and one.opcode == 'fusion':
    read = sum(min(o.main_bytes, _read(program, inner, i)) for i, o in enumerate(operands))
    return int(read) + _written(program, inner, one.result)
  if one.opcode == 'dynamic-update-slice':
    update = operands[1].result[0]
    return update.bytes * (update.main + one.result[0].main)
  result = one.result
  if one.opcode.endswith('-start'):  # returns what it reads as well: a copy behind, others before the result
    result = result[:1] if one.opcode == 'copy-start' else result[1:2] or result
  wrote = sum(a.bytes for a in result if a.main)
  if one.opcode.removesuffix('-start') in _SLICES:
    return wrote + min(operands[0].main_bytes, result[0].bytes)
  return wrote + sum(o.main_bytes for o in operands)


def _read(program: Mapping[str, Computation], inner: Computation, number: int) -> float:
  """Bytes that a fusion reads of its operand: those of its slices, infinity where it is used whole."""
  (parameter,) = (i.name for i in inner.values() if i.opcode == 'parameter' and i.arguments == str(number))
  return _used(program, inner, parameter)


def _used(program: Mapping[str, Computation], inner: Computation, name: str) -> float:
  total = 0.0
  for user in inner.values():
    for place in (i for i, operand in enumerate(user.operands) if operand == name):
      if user.opcode in _SLICES and place == 0:
        total += user.result[0].bytes
      elif user.opcode == 'dynamic-update-slice' and place == 0:
        total += 0  # the rest of the buffer stays where it is
      elif user.opcode == 'tuple' and user.root or in_pieces(user):
        total += 0  # handed on
      elif user.opcode in _SAME and not user.root:
        total += _used(program, inner, user.name)
      elif user.opcode == 'fusion':
        total += _read(program, program[called(user, 'calls')], place)
      else:
        return math.inf
  return total


def _written(program: Mapping[str, Computation], inner: Computation, results: tuple[Array, ...]) -> int:
  root = _root(inner)
  # A root that is no tuple may have several results itself.
  parts = [inner[name] for name in root.operands] if root.opcode == 'tuple' else [root] * len(results)
  return sum(_update(program, inner, part, a) for part, a in zip(parts, results, strict=True) if a.main)


def _update(program: Mapping[str, Computation], inner: Computation, part: Instruction, result: Array) -> int:
  """Bytes of one result: those of the update where it is a buffer that was updated in place."""
  while part.opcode == 'bitcast':
    part = inner[part.operands[0]]
  if part.opcode == 'parameter' or 'AsyncCollectiveDone' in part.rest:
    return 0  # handed on
  if part.opcode == 'dynamic-update-slice':
    return inner[part.operands[1]].result[0].bytes
  if part.opcode == 'fusion' and len(part.result) == 1:  # one inside another
    return _written(program, program[called(part, 'calls')], (result,))
  return result.bytes


def in_pieces(one: Instruction) -> bool:
  """Whether it belongs to an exchange that runs beside others' work, one of which stands in a fusion with it.

  The TPU's compiler writes such an exchange into every fusion that drives it on, whole each time; it begins
  in the one that has an `AsyncCollectiveStart`.
  """
  return 'chain_id=' in one.rest or 'custom_call_target="AsyncCollective' in one.rest


def _reached(program: Mapping[str, Computation], name: str) -> list[Instruction]:
  """The instructions of a computation and of all that it calls."""
  found, names, seen = [], [name], set()
  while names:
    if (name := names.pop()) not in seen and name in program:
      seen.add(name)
      found += program[name].values()
      names += [other for i in program[name].values() for other in re.findall(r'%([^\s,(){}]+)', i.rest)]
  return found


def called(one: Instruction, attribute: str) -> str:
  """The computation that an attribute of an instruction names, '' where it has none."""
  found = re.search(rf'\b{attribute}=%([^\s,]+)', one.rest)
  return found.group(1) if found else ''


def _trips(program: Mapping[str, Computation], computation: Computation, one: Instruction) -> int | None:
  """How often a loop turns, or None where that depends on data."""
  if found := re.search(r'"known_trip_count":\{"n":"(\d+)"', one.rest):
    return int(found.group(1))
  condition = program[called(one, 'condition')]
  root = _root(condition)
  # A loop from one number to before another compares its counter with that one and asks for nothing else.
  ends = [condition[o] for o in root.operands if condition[o].opcode == 'constant']
  counters = [condition[o] for o in root.operands if condition[o].opcode == 'get-tuple-element']
  if root.opcode != 'compare' or not ends or not counters:
    return None
  place = int(re.search(r'index=(\d+)', counters[0].rest).group(1))
  begin = _constant(computation, computation[one.operands[0]].operands[place : place + 1])
  body = program[called(one, 'body')]
  stepped = body[_root(body).operands[place]]
  step = _constant(body, stepped.operands) if stepped.opcode == 'add' else None
  return -(-(int(ends[0].arguments) - (begin or 0)) // (step or 1))


def _root(computation: Computation) -> Instruction:
  (root,) = (i for i in computation.values() if i.root)
  return root


def _constant(computation: Computation, names: Sequence[str]) -> int | None:
  """The first of the instructions that is a constant, None if none is."""
  found = (computation[name] for name in names if name in computation)
  return next((int(i.arguments) for i in found if i.opcode == 'constant'), None)

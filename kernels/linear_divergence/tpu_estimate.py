"""Time and memory of a call on a TPU as the TPU compiler plans them, on a machine without one.

    TPU_LIBRARY_PATH=.../libtpu.so python -m kernels.linear_divergence.tpu_estimate \\
      '{"chip": "v5e", "tokens": 8192, "width": 2048, "spec": {"kind": "reverse_kl"}}'

Every number is an estimate: nothing runs. Operations that XLA compiles carry its own estimate of
cycles in the scheduled program. A Pallas kernel has none, so that its final instruction bundles are
replayed: a bundle takes a cycle, or as long as a matrix unit that it needs is busy. What the replay
does not know is waiting for memory outside VMEM; a branch without matrix instructions (the first or
the last step of a sum) is not taken. Of loops whose length depends on data, those in a kernel count
once (a scatter's turns), others not at all (a second look at rows without a certificate). XLA's gathers
of rows and sorts have no estimate and count nothing.
"""

import dataclasses
import glob
import json
import os
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence

import jax


@dataclasses.dataclass(frozen=True)
class Chip:
  """What the estimate needs to know of a chip.

  Attributes:
    topology: its name for `jax.experimental.topologies`, one chip if possible.
    bounds: chips of a host in that topology.
    cores: cores that share a kernel's parallel grid axis.
    hertz: clock of a core.
    flops: peak bfloat16 operations per second of the device, all its cores.
    units: matrix units of a core.
    edge: rows and columns of a matrix unit.
  """

  topology: str
  bounds: tuple[int, int, int]
  cores: int
  hertz: float
  flops: float
  units: int
  edge: int

  @property
  def matmul_cycles(self) -> float:
    """Cycles for which a matrix instruction, 16 rows against one unit's weights, holds its unit."""
    per_unit = self.flops / self.hertz / self.cores / self.units
    return 2 * 16 * self.edge**2 / per_unit


CHIPS = {
  'v5e': Chip('v5e:1x1', (1, 1, 1), 1, 1.5e9, 197e12, 4, 128),
  'v5p': Chip('v5p:1x1x1', (1, 1, 1), 2, 1.75e9, 459e12, 4, 128),
  'v6e': Chip('v6e:1x1', (1, 1, 1), 1, 1.75e9, 918e12, 2, 256),
}

_BUNDLE = re.compile(r'^ *0?x?[0-9a-f]+\s+(?:[A-Z]{2} ?)*: *(>*) *\{')
_UNIT = re.compile(r'\bvmatmul\S*\.mxu(\d)')
_EXIT = re.compile(r'scmp\.ge\.s32\.totalorder \S+ (\d+)')


@dataclasses.dataclass(frozen=True)
class Kernel:
  """One grid step of a Pallas kernel as compiled.

  Attributes:
    bundles: instruction bundles, those of inner loops times their trips.
    matmul: cycles in which the matrix units are busy: the least that a step can take.
    cycles: of the replay.
    spills: bundles with a register moved to or from memory.
  """

  bundles: float
  matmul: float
  cycles: float
  spills: int


def replay(text: str, chip: Chip) -> Kernel:
  """Cycles of one grid step from the text of a kernel's final bundles."""
  free = [0.0] * chip.units
  clock = bundles = matmul = 0.0
  spills = 0
  for units, body, spill in _loops(text):
    start, busy = clock, 0
    clock += 1
    for unit in units:
      clock = max(clock, free[unit] + 1)
      free[unit] = clock - 1 + chip.matmul_cycles
      busy += chip.matmul_cycles
    bundles += body
    matmul += busy * body / chip.units
    spills += spill
    # A loop's bundles are walked once, and count as often as they run.
    if body > 1:
      extra = (clock - start) * (body - 1)
      clock += extra
      free = [x + extra for x in free]
  return Kernel(bundles, matmul, clock, spills)


def _loops(text: str) -> list[tuple[list[int], float, bool]]:
  """(Matrix units, times it runs in a grid step, whether it spills) of each bundle."""
  lines = [(len(match.group(1)), line) for line in _taken(text) if (match := _BUNDLE.match(line)) is not None]
  trips = _trips(lines)
  return [
    ([int(unit) for unit in _UNIT.findall(line)], trip, '_spill]' in line)
    for (_, line), trip in zip(lines, trips, strict=True)
  ]


def _taken(text: str) -> list[str]:
  """Lines without those that a forward branch may skip and that hold no matrix instruction."""
  lines = text.splitlines()
  starts = {}
  for number, line in enumerate(lines):
    for region in re.findall(r'(?:Start|Start/End empty) region (\d+)', line):
      starts[region] = number
  matmuls = [number for number, line in enumerate(lines) if 'vmatmul' in line]
  skipped = set()
  for number, line in enumerate(lines):
    branch = re.search(r'sbr\.rel \(.*target = \$region(\d+)', line)
    end = starts.get(branch.group(1), 0) if branch else 0
    # Four bundles after a branch run in any case.
    if matmuls and end > number + 5 and not any(number < matmul < end for matmul in matmuls):
      skipped.update(range(number + 5, end))
  return [line for number, line in enumerate(lines) if number not in skipped]


def _trips(lines: Sequence[tuple[int, str]]) -> list[float]:
  """How often each bundle runs in a grid step: the grid is the outermost loop, depth 1."""
  result = [1.0] * len(lines)
  start = 0
  while start < len(lines):
    depth = lines[start][0]
    if depth < 2:
      start += 1
      continue
    end = start
    while end < len(lines) and lines[end][0] >= 2:
      end += 1
    # Two loops in a row are told apart by the marks of their first bundles.
    heads = [i for i in range(start, end) if re.match(r'^\s*\S+\s+(?:[A-Z]{2} )*L[BH]', lines[i][1])]
    for head, stop in zip(heads, [*heads[1:], end], strict=True):
      exits = [int(x) for _, line in lines[head:stop] for x in _EXIT.findall(line)]
      for i in range(head, stop):
        result[i] = float(exits[-1]) if exits else 1.0
    start = end
  return result


def program_cycles(hlo: str, kernels: Mapping[str, float]) -> dict[str, float]:
  """Cycles of every operation of a scheduled program, by name, times how often it runs.

  Args:
    hlo: text of the compiled program.
    kernels: cycles of a call, by the name of the Pallas kernel.
  """
  computations = _computations(hlo)
  totals: dict[str, float] = {}

  def visit(name: str, times: float) -> None:
    for line in computations[name]:
      operation = re.match(r'\s*(?:ROOT )?%(\S+) = ', line).group(1)
      if ' while(' in line:
        # A loop over 0 to n - 1 compares its counter with n, the one constant of its condition.
        condition = '\n'.join(computations[re.search(r'condition=%([^\s,]+)', line).group(1)])
        trips = re.findall(r' constant\((\d+)\)', condition)
        # Without one its length depends on data: it is left out.
        if len(trips) > 1:
          raise ValueError(f'The trips of loop {operation} are not known from its condition: {condition}')
        visit(re.search(r'body=%([^\s,]+)', line).group(1), times * int(trips[0]) if trips else 0)
      elif 'custom_call_target="tpu_custom_call"' in line:
        names = [name for name in kernels if name in line.split('metadata=', 1)[-1][:400]]
        totals[operation] = totals.get(operation, 0) + times * kernels[max(names, key=len)]
      elif found := re.search(r'"estimated_cycles":"(\d+)"', line):
        totals[operation] = totals.get(operation, 0) + times * int(found.group(1))

  visit(re.search(r'^ENTRY %(\S+)', hlo, re.MULTILINE).group(1), 1)
  return totals


def _computations(hlo: str) -> dict[str, list[str]]:
  """Instructions of each computation, by its name."""
  result, current = {}, None
  for line in hlo.splitlines():
    head = re.match(r'(?:ENTRY )?%(\S+) \(.*\{$', line)
    if head:
      current = result.setdefault(head.group(1), [])
    elif current is not None and re.match(r'\s+(?:ROOT )?%\S+ = ', line):
      current.append(line)
  return result


def grids(jaxpr) -> dict[str, tuple[int, ...]]:
  """Grid of every Pallas kernel in a traced function, by its name."""
  result = {}
  for equation in jaxpr.eqns:
    if equation.primitive.name == 'pallas_call':
      result[equation.params['name'] or 'kernel'] = tuple(equation.params['grid_mapping'].grid)
      continue
    for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, 'eqns')):
      inner = getattr(value, 'jaxpr', value)
      if hasattr(inner, 'eqns'):
        result |= grids(inner)
  return result


def estimate(function, chip: Chip, shapes: Sequence[jax.ShapeDtypeStruct], folder: str) -> dict:
  """Compiles `function(*shapes)` for `chip` and reads what the compiler left in `folder`.

  Args:
    function: to be jitted.
    chip: what to compile for.
    shapes: of the arguments.
    folder: where this process's compiler writes final bundles, see `prepare`.
  """
  from jax.experimental import topologies

  device = topologies.get_topology_desc(
    platform='tpu', topology_name=chip.topology, chips_per_host_bounds=chip.bounds, num_slices=1
  ).devices[0]
  sharding = jax.sharding.SingleDeviceSharding(device)
  shaped = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)  # noqa: E731
  arguments = jax.tree.map(shaped, shapes)
  traced = jax.jit(function).trace(*arguments)
  compiled = traced.lower().compile()
  kernels, cycles = {}, {}
  for name, grid in grids(traced.jaxpr.jaxpr).items():
    (*_, path) = sorted(glob.glob(f'{folder}/*{name}*-final_bundles.txt')) or [None]
    if path and 'schedule-analysis' not in path:
      with open(path) as file:
        kernels[name] = replay(file.read(), chip)
      steps = 1
      for size in grid:
        steps *= size
      cycles[name] = kernels[name].cycles * steps / chip.cores
  memory = compiled.memory_analysis()
  operations = program_cycles(compiled.as_text(), cycles)
  return dict(
    seconds=sum(operations.values()) / chip.hertz,
    temporaries=memory.temp_size_in_bytes,
    kernels={name: dataclasses.asdict(kernel) for name, kernel in kernels.items()},
    operations=dict(sorted(operations.items(), key=lambda item: -item[1])[:8]),
  )


def prepare(folder: str) -> None:
  """Makes the TPU compiler write final bundles into `folder`; before it is first loaded."""
  os.environ |= dict(
    JAX_PLATFORMS='cpu',
    ALLOW_MULTIPLE_LIBTPU_LOAD='1',
    TPU_SKIP_MDS_QUERY='1',
    TPU_WORKER_HOSTNAMES='localhost',
    LIBTPU_INIT_ARGS=f'--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true --xla_jf_dump_llo_html=false '
    '--xla_jf_dump_llo_pass_label_regex=final_bundles',
  )


def divergence(
  chip: str,
  tokens: int,
  width: int,
  vocab: int = 151_936,
  spec: Mapping | None = None,
  gradients: Sequence[int] = (0, 1),
  head: str = 'bfloat16',
  cached: bool = False,
  **keywords,
) -> dict:
  """`estimate` of the loss and its gradients, with R: its time over that of 8·tokens·width·vocab flop.

  Args:
    chip: a key of `CHIPS`.
    tokens: positions.
    width: of both hidden states.
    vocab: rows of both heads.
    spec: fields of `DivergenceSpec`.
    gradients: 0 for the hidden states, 1 for the head.
    head: type of the heads.
    cached: whether the top-k is all that is known of the teacher.
    **keywords: of `linear_divergence`, or of `linear_divergence_from_top_k`; with mode `speed`, the mean is
      weighted and the weights are given.
  """
  import jax.numpy as jnp

  from kernels.linear_divergence import api

  compared = api.DivergenceSpec(**(spec or {}))
  call = api.linear_divergence_from_top_k if cached else api.linear_divergence

  keywords.setdefault('implementation', 'tpu')
  weighted = keywords.get('mode') == 'speed'

  def loss(*arrays):
    if weighted:
      *arrays, weights = arrays
      result = call(*arrays, compared, weights=weights, **keywords)
      return (result.loss * weights).sum() / weights.sum(), result
    result = call(*arrays, compared, **keywords)
    return result.loss.mean(), result

  hidden = jax.ShapeDtypeStruct((1, tokens, width), jnp.bfloat16)
  heads = jax.ShapeDtypeStruct((vocab, width), head)
  lists = [jax.ShapeDtypeStruct((1, tokens, compared.k), dtype) for dtype in (jnp.int32, jnp.float32)]
  teacher = (api.TeacherTopK(*lists),) if cached else (hidden, heads)
  weights = (jax.ShapeDtypeStruct((1, tokens), jnp.float32),) if weighted else ()
  shapes = (hidden, heads, *teacher, jax.ShapeDtypeStruct((1, tokens), jnp.int32), *weights)
  step = jax.value_and_grad(loss, tuple(gradients), has_aux=True) if gradients else loss
  with tempfile.TemporaryDirectory(dir='/dev/shm' if os.path.isdir('/dev/shm') else None) as folder:
    prepare(folder)
    result = estimate(step, CHIPS[chip], shapes, folder)
  ideal = 8 * tokens * width * vocab / CHIPS[chip].flops
  return dict(R=result['seconds'] / ideal) | result


if __name__ == '__main__':
  print(json.dumps(divergence(**json.loads(sys.argv[1])), indent=2))

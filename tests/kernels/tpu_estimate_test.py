"""The reading of what a TPU compiler leaves, on texts whose times are counted by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl

from kernels.linear_divergence import tpu_estimate
from kernels.linear_divergence.tpu_estimate import CHIPS, Chip

# Four units of 128 by 128 that do 16 rows in 16 cycles.
CHIP = Chip('', (1, 1, 1), cores=1, hertz=1e9, flops=4 * 2 * 128**2 * 1e9, units=4, edge=128)


def bundle(number, text='', depth=1, mark=''):
  return f' {number:#x} {mark or "  "}: {">" * depth} {{ {text} }}'


def test_matrix_units_of_the_chips():
  # From the sizes of the units and the peak rates that their makers state.
  assert CHIP.matmul_cycles == 16
  for name, cycles in (('v5e', 16), ('v5p', 16), ('v6e', 8)):
    assert CHIPS[name].matmul_cycles == pytest.approx(cycles, rel=0.01)


def test_a_bundle_takes_a_cycle_or_waits_for_its_matrix_unit():
  matmul = '%1 = vmatmul.bf16.gmra.mxu{}'
  plain = [bundle(i) for i in range(10)]
  assert tpu_estimate.replay('\n'.join(plain), CHIP).cycles == 10
  # Two units work side by side; the third instruction waits until the first unit is free.
  lines = [bundle(0, matmul.format(0)), bundle(1, matmul.format(1)), bundle(2, matmul.format(0)), *plain]
  kernel = tpu_estimate.replay('\n'.join(lines), CHIP)
  assert (kernel.bundles, kernel.cycles) == (13, 1 + 16 + 10)
  assert kernel.matmul == 3 * 16 / 4


def test_an_inner_loop_counts_as_often_as_it_runs():
  lines = [bundle(0)]
  lines += [bundle(1, depth=2, mark='LB'), bundle(2, '%p1 = scmp.ge.s32.totalorder %s1, 7', depth=2)]
  lines += [bundle(3)]
  assert tpu_estimate.replay('\n'.join(lines), CHIP).cycles == 2 + 2 * 7


def test_a_branch_without_matrix_instructions_is_not_taken():
  branch = bundle(0, '%9 = sbr.rel (%p1) target = $region7')
  inside = [bundle(i) for i in range(1, 21)]
  after = bundle(21, '%1 = vmatmul.bf16.gmra.mxu0') + ' /* Start region 7 */'
  kernel = tpu_estimate.replay('\n'.join([branch, *inside, after]), CHIP)
  assert kernel.bundles == 1 + 4 + 1  # The branch, the four after it, and its target.
  taken = [branch, *inside[:-1], bundle(20, '%2 = vmatmul.bf16.gmra.mxu1'), after]
  assert tpu_estimate.replay('\n'.join(taken), CHIP).bundles == 22


PROGRAM = """
%condition (c: (s32[])) -> pred[] {
  %five = s32[] constant(5)
  ROOT %less = pred[] compare(%counter, %five), direction=LT
}

%endless (c: (s32[])) -> pred[] {
  ROOT %other = pred[] compare(%counter, %bound), direction=LT
}

%body (b: (s32[])) -> (s32[]) {
  %call = f32[8] custom-call(%x), custom_call_target="tpu_custom_call", metadata={op_name="jit(f)/my_kernel"}
  ROOT %product = f32[8] fusion(%call), backend_config={"estimated_cycles":"100"}
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %first = f32[8] fusion(%a), backend_config={"estimated_cycles":"30"}
  %loop = (s32[]) while(%t), condition=%condition, body=%body
  ROOT %unknown = (s32[]) while(%t), condition=%endless, body=%body
}
"""


def test_operations_of_a_loop_count_as_often_as_it_runs():
  program = '\n'.join(line for line in PROGRAM.splitlines() if '%unknown' not in line)
  cycles = tpu_estimate.program_cycles(program, {'my_kernel': 7.0, 'kernel': 1.0})
  assert cycles == {'first': 30, 'call': 35, 'product': 500}


def test_a_loop_as_long_as_the_data_say_is_left_out():
  cycles = tpu_estimate.program_cycles(PROGRAM, {'my_kernel': 7.0})
  assert cycles['first'] == 30 and sum(cycles.values()) == 30 + 535


def test_grids_are_found_inside_loops():
  def add(x_ref, out_ref):
    out_ref[...] = x_ref[...] + 1

  def function(x):
    block = pl.BlockSpec((8, 128), lambda i: (i, 0))
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    call = pl.pallas_call(add, grid=(3,), in_specs=[block], out_specs=block, out_shape=shape, name='add')
    return jax.lax.fori_loop(0, 2, lambda _, x: call(x), x)

  jaxpr = jax.make_jaxpr(jax.jit(function))(jnp.zeros((24, 128)))
  assert tpu_estimate.grids(jaxpr.jaxpr) == {'add': (3,)}

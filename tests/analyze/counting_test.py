"""Products and exchanges of programs written by hand, and of one that was compiled, against hand counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from opsd_jax import mesh as meshes
from opsd_jax.analyze import counting
from opsd_jax.mesh import MeshConfig

# A loop of 3 turns around a fused product [8, 16] x [16, 32], whose result is summed over pairs of chips.
PROGRAM = """HloModule jit_f, is_scheduled=true

%fused (p0: bf16[8,16], p1: bf16[16,32]) -> bf16[8,32] {
  %p0 = bf16[8,16]{1,0} parameter(0)
  %p1 = bf16[16,32]{1,0} parameter(1)
  ROOT %product = bf16[8,32]{1,0} convolution(%p0, %p1), dim_labels=bf_io->bf
}

%body (t: (s32[], bf16[8,16], bf16[16,32])) -> (s32[], bf16[8,16], bf16[16,32]) {
  %t = (s32[], bf16[8,16]{1,0}, bf16[16,32]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %x = bf16[8,16]{1,0} get-tuple-element(%t), index=1
  %w = bf16[16,32]{1,0} get-tuple-element(%t), index=2
  %y = bf16[8,32]{1,0} fusion(%x, %w), kind=kOutput, calls=%fused, metadata={op_name="jit(f)/while/dot"}
  %s = bf16[8,32]{1,0} all-reduce(%y), channel_id=1, replica_groups={{0,1},{2,3}}, to_apply=%add
  ROOT %next = (s32[], bf16[8,16]{1,0}, bf16[16,32]{1,0}) tuple(%i, %x, %w)
}

%condition (c: (s32[], bf16[8,16], bf16[16,32])) -> pred[] {
  %c = (s32[], bf16[8,16]{1,0}, bf16[16,32]{1,0}) parameter(0)
  %at = s32[] get-tuple-element(%c), index=0
  %end = s32[] constant(3)
  ROOT %less = pred[] compare(%at, %end), direction=LT
}

ENTRY %main (a: (s32[], bf16[8,16], bf16[16,32])) -> (s32[], bf16[8,16], bf16[16,32]) {
  %a = (s32[], bf16[8,16]{1,0}, bf16[16,32]{1,0}) parameter(0)
  ROOT %loop = (s32[], bf16[8,16]{1,0}, bf16[16,32]{1,0}) while(%a), condition=%condition, body=%body
}
"""


def test_a_body_counts_as_often_as_its_loop_turns():
  found = counting.count(PROGRAM)
  assert [(one.name, one.times) for one in found] == [('y', 3), ('s', 3)]
  total = counting.total(found)
  assert total['flops'] == 3 * 2 * 8 * 16 * 32
  assert total['bytes'] == 3 * 2 * (
    8 * 16 + 16 * 32 + 8 * 32 + 2 * 8 * 32
  )  # the sum reads and writes as well
  assert total['sent'] == total['sent_all-reduce'] == 3 * 2 * (8 * 32 * 2) * 1 / 2
  assert found[0].operation == 'jit(f)/while/dot'


def test_a_counter_may_take_two_at_a_time():
  text = PROGRAM.replace(
    '  ROOT %next', '  %two = s32[] constant(2)\n  %more = s32[] add(%i, %two)\n  ROOT %next'
  )
  found = counting.count(text.replace('tuple(%i,', 'tuple(%more,'))
  assert {one.name: one.times for one in found} == {'y': 2, 's': 2, 'more': 2}


def instruction(line, *operands):
  """FLOPs of a last instruction over parameters of some shapes."""
  parameters = [f'  %p{i} = {shape} parameter({i})' for i, shape in enumerate(operands)]
  lines = [*parameters, f'  ROOT {line}']
  text = '\n'.join(['ENTRY %main (a: f32[]) -> f32[] {', *lines, '}'])
  return counting.count(text, chips=8)[-1]


# As the TPU's compiler writes products: a batch is a dimension of the window whose input has holes, heads are
# one whose kernel lies backwards over a padded input. Each is batch x rows x columns x inner.
@pytest.mark.parametrize(
  'line, shapes, flops',
  [
    ('%r = f32[4,5]{1,0} dot(%p0, %p1), lhs_contracting_dims={0}, rhs_contracting_dims={1}',
     ('f32[7,4]{1,0}', 'f32[5,7]{1,0}'), 2 * 4 * 5 * 7),
    ('%r = f32[3,4,5]{2,1,0} dot(%p0, %p1), lhs_batch_dims={0}, lhs_contracting_dims={2,3}',
     ('f32[3,4,6,2]{3,2,1,0}', 'f32[3,6,2,5]{3,2,1,0}'), 2 * 3 * 4 * 5 * 12),
    ('%r = f32[64,1279,4]{1,2,0} convolution(%p0, %p1), window={size=64 stride=63 lhs_dilate=64}, '
     'dim_labels=0bf_0oi->0bf', ('f32[64,1279,128]{2,1,0}', 'f32[64,4,128]{2,1,0}'), 2 * 64 * 1279 * 4 * 128),
    ('%r = bf16[64,4,128]{2,0,1} convolution(%p0, %p1), window={size=4 pad=3_3 rhs_reversal=1}, '
     'dim_labels=bf0_i0o->b0f', ('bf16[64,4096,1]{1,0,2}', 'bf16[4096,4,128]{2,1,0}'), 2 * 64 * 4096 * 512),
    ('%r = f32[2,6,6,8]{3,2,1,0} convolution(%p0, %p1), window={size=3x3 pad=1_1x1_1}, '
     'dim_labels=b01f_01io->b01f, feature_group_count=4', ('f32[2,6,6,4]{3,2,1,0}', 'f32[3,3,1,8]{3,2,1,0}'),
     2 * 2 * 8 * (3 * 6 - 2) ** 2),
    ('%r = f32[8]{0} custom-call(%p0), custom_call_target="tpu_custom_call", '
     'backend_config={"custom_call_config":{"body":"x","cost_estimate":{"flops":"4242","transcendentals":"1"}}}',
     ('f32[8]{0}',), 4242),
  ],
)  # fmt: skip
def test_products(line, shapes, flops):
  assert instruction(line, *shapes).flops == flops


# Bytes that one of 8 chips sends of a result of 4 KiB, in groups of 4 unless said otherwise.
@pytest.mark.parametrize(
  'line, members, sent',
  [
    ('%r = f32[1024]{0} all-gather(%p0), replica_groups=[2,4]<=[8], dimensions={0}', 4, 4096 * 3 / 4),
    ('%r = f32[1024]{0} all-reduce(%p0), replica_groups={}, to_apply=%add', 8, 2 * 4096 * 7 / 8),
    ("%r = f32[1024]{0} reduce-scatter(%p0), replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={0}", 4,
     4096 * 3),
    ("%r = f32[1024]{0} all-to-all(%p0), replica_groups=mesh['a'=2,'b'=2,'c'=2] {'a','c'}", 4, 4096 * 3 / 4),
    ('%r = f32[1024]{0} collective-permute(%p0), source_target_pairs={{0,1},{1,0}}', 2, 4096),
    ('%r = (f32[256]{0}, f32[1024]{0}) all-gather-start(%p0), replica_groups={{0,1,2,3},{4,5,6,7}}', 4,
     4096 * 3 / 4),
    ('%r = (f32[1024]{0}, f32[1024]{0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%p0), '
     'source_target_pairs={{0,1}}', 2, 4096),
  ],
)  # fmt: skip
def test_exchanges(line, members, sent):
  ((kind, chips, found),) = instruction(line, 'f32[256]{0}').exchanges
  assert (chips, found) == (members, sent) and kind in line


# An all-gather [2, 16] to [8, 16] that runs beside a product, as the TPU's compiler writes it: whole in each
# of the fusions that begin, drive on and end it, and handed from one to the next without a copy.
PIECES = """HloModule jit_g, is_scheduled=true

%begin (b0: bf16[2,16]) -> (bf16[2,16], bf16[8,16], u32[]) {
  %b0 = bf16[2,16]{1,0} parameter(0)
  %g1 = @gather(%b0), @groups
  ROOT %start = @started custom-call(%g1), custom_call_target="AsyncCollectiveStart"
}

%drive (d0: bf16[2,16], d1: bf16[8,16], d2: bf16[8,16], d3: bf16[16,32]) -> (bf16[8,32], bf16[2,16]) {
  %d2 = bf16[8,16]{1,0} parameter(2)
  %d3 = bf16[16,32]{1,0} parameter(3)
  %product = bf16[8,32]{1,0} convolution(%d2, %d3), dim_labels=bf_io->bf
  %d0 = bf16[2,16]{1,0} parameter(0)
  %d1 = bf16[8,16]{1,0} parameter(1)
  %g2 = @gather(%d0), @groups
  ROOT %both = (bf16[8,32]{1,0}, bf16[2,16]{1,0}, bf16[8,16]{1,0}) tuple(%product, %d0, %d1)
}

%end (e0: bf16[2,16], e1: bf16[8,16]) -> bf16[8,16] {
  %e0 = bf16[2,16]{1,0} parameter(0)
  %e1 = bf16[8,16]{1,0} parameter(1)
  %g3 = @gather(%e0), @groups
  ROOT %done = bf16[8,16]{1,0} custom-call(%e0, %e1, %g3), custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (a: bf16[2,16], x: bf16[8,16], w: bf16[16,32]) -> bf16[8,16] {
  %a = bf16[2,16]{1,0} parameter(0)
  %x = bf16[8,16]{1,0} parameter(1)
  %w = bf16[16,32]{1,0} parameter(2)
  %s = @started fusion(%a), kind=kCustom, calls=%begin
  %s0 = bf16[2,16]{1,0} get-tuple-element(%s), index=0
  %s1 = bf16[8,16]{1,0} get-tuple-element(%s), index=1
  %m = (bf16[8,32]{1,0}, bf16[2,16]{1,0}, bf16[8,16]{1,0}) fusion(%s0, %s1, %x, %w), calls=%drive
  %m1 = bf16[2,16]{1,0} get-tuple-element(%m), index=1
  %m2 = bf16[8,16]{1,0} get-tuple-element(%m), index=2
  ROOT %y = bf16[8,16]{1,0} fusion(%m1, %m2), kind=kCustom, calls=%end
}
""".replace('@gather', 'bf16[8,16]{1,0} all-gather')
PIECES = PIECES.replace('@started', '(bf16[2,16]{1,0}, bf16[8,16]{1,0}, u32[]{:S(2)})')
PIECES = PIECES.replace(
  '@groups', 'replica_groups={{0,1,2,3}}, dimensions={0}, frontend_attributes={chain_id="0"}'
)


def test_an_exchange_in_pieces_counts_once():
  found = counting.count(PIECES)
  assert [(one.name, len(one.exchanges)) for one in found] == [('s', 1), ('m', 0)]
  assert counting.total(found)['sent'] == 8 * 16 * 2 * 3 / 4
  assert [one.bytes for one in found] == [2 * (2 * 16 + 8 * 16), 2 * (8 * 16 + 16 * 32 + 8 * 32)]
  assert [one.flops for one in found] == [0, 2 * 8 * 16 * 32]


def test_a_compiled_program():
  """Five layers of a scan, rows over 4 chips and columns over 2: what each does, by hand."""
  mesh = meshes.make_mesh(MeshConfig(1, 4, 2))

  def place(shape, *axes):
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(*axes)))

  def f(x, wide, narrow):
    x, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w[0]) @ w[1], None), x, (wide, narrow))
    return jnp.sum(x)

  arguments = (
    place((64, 128), 'fsdp'),
    place((5, 128, 96), None, None, 'tensor'),
    place((5, 96, 128), None, 'tensor'),
  )
  compiled = jax.jit(f).lower(*arguments).compile()
  total = counting.total(counting.count(compiled.as_text(), chips=8))
  rows, columns = 64 // 4, 96 // 2
  assert total['flops'] == 5 * 2 * (2 * rows * 128 * columns)
  # Each layer sums [rows, 128] over the two chips of a row; the end sums one number over the others.
  layer = 2 * rows * 128 * 4 * 1 / 2
  assert 5 * layer <= total['sent'] <= 5 * layer + 64
  # What this is for: the compiler's own count has the body once.
  assert compiled.cost_analysis()['flops'] < total['flops'] / 2


def test_every_window_position_is_counted_as_numpy_slides():
  rng = np.random.default_rng(0)
  for size, kernel, stride, pad, holes, spread in rng.integers(1, 5, (50, 6)):
    spaced = np.zeros((size - 1) * holes + 1, int)
    spaced[::holes] = 1
    padded = np.pad(spaced, (pad, 3))
    reach = (kernel - 1) * spread + 1
    starts = [s for s in range(0, len(padded) - reach + 1, stride)]
    met = sum(int(padded[s : s + reach : spread].sum()) for s in starts)
    assert counting._met(size, kernel, len(starts), stride, pad, holes, spread) == met

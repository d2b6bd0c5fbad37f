"""Bytes and exchanges of a program that was written by hand, so that every number can be counted."""

import pytest

from opsd_jax.analyze import hlo

# A token loop over 3 layers: the weights [3, 8, 128] are sliced a layer at a time, the cache [3, 16, 128] is
# read whole and gets one row. `S(1)` is on-chip memory. Tiles of 8 by 128 pad [4, 100] to [8, 128].
PROGRAM = """HloModule jit_decode, is_scheduled=true

%slice_and_use (p0: f32[3,8,128], p1: s32[], p2: f32[8,128]) -> f32[8,128] {
  %p0 = f32[3,8,128]{2,1,0:T(8,128)} parameter(0)
  %p1 = s32[]{:T(128)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %p2 = f32[8,128]{1,0:T(8,128)} parameter(2)
  %same = f32[3,8,128]{2,1,0:T(8,128)} bitcast(%p0)
  %layer = f32[1,8,128]{2,1,0:T(8,128)} dynamic-slice(%same, %p1, %zero, %zero), dynamic_slice_sizes={1,8,128}
  %flat = f32[8,128]{1,0:T(8,128)} bitcast(%layer)
  ROOT %sum = f32[8,128]{1,0:T(8,128)} add(%flat, %p2)
}

%write_row (c0: bf16[3,16,128], c1: bf16[3,1,128], c2: s32[]) -> bf16[3,16,128] {
  %c0 = bf16[3,16,128]{2,1,0:T(8,128)(2,1)} parameter(0)
  %c1 = bf16[3,1,128]{2,1,0} parameter(1)
  %c2 = s32[]{:T(128)} parameter(2)
  %none = s32[]{:T(128)} constant(0)
  %put = bf16[3,16,128]{2,1,0:T(8,128)(2,1)} dynamic-update-slice(%c0, %c1, %none, %c2, %none)
  ROOT %out = bf16[3,16,128]{2,1,0:T(8,128)(2,1)} bitcast(%put)
}

%layer_body (l: (s32[], f32[8,128], f32[3,8,128])) -> (s32[], f32[8,128], f32[3,8,128]) {
  %l = @layers parameter(0)
  %l0 = s32[]{:T(128)S(6)} get-tuple-element(%l), index=0
  %l1 = f32[8,128]{1,0:T(8,128)S(1)} get-tuple-element(%l), index=1
  %l2 = f32[3,8,128]{2,1,0:T(8,128)} get-tuple-element(%l), index=2
  %fused = f32[8,128]{1,0:T(8,128)S(1)} fusion(%l2, %l0, %l1), kind=kLoop, calls=%slice_and_use
  ROOT %lt = @layers tuple(%l0, %fused, %l2)
}

%layer_condition (q: (s32[], f32[8,128], f32[3,8,128])) -> pred[] {
  %q = @layers parameter(0)
  %q0 = s32[]{:T(128)} get-tuple-element(%q), index=0
  %layers = s32[]{:T(128)} constant(3)
  ROOT %less = pred[]{:T(512)} compare(%q0, %layers), direction=LT
}

%refill_body (r: (s32[], f32[4,100])) -> (s32[], f32[4,100]) {
  %r = @rows parameter(0)
  %r0 = s32[]{:T(128)S(6)} get-tuple-element(%r), index=0
  %r1 = f32[4,100]{1,0:T(8,128)} get-tuple-element(%r), index=1
  %moved = f32[4,100]{0,1:T(8,128)} copy(%r1)
  ROOT %rt = (s32[]{:T(128)}, f32[4,100]{0,1:T(8,128)}) tuple(%r0, %moved)
}

%refill_condition (s: (s32[], f32[4,100])) -> pred[] {
  %s = @rows parameter(0)
  %s0 = s32[]{:T(128)} get-tuple-element(%s), index=0
  %bound = s32[]{:T(128)} constant(5)
  %more = pred[]{:T(512)} compare(%s0, %bound), direction=LT
  ROOT %both = pred[]{:T(512)} and(%more, %more)
}

%body (t: (s32[], f32[8,128], f32[3,8,128], bf16[3,16,128], f32[4,100])) -> (s32[], f32[8,128]) {
  %t = @layers parameter(0)
  %t0 = s32[]{:T(128)S(6)} get-tuple-element(%t), index=0
  %t1 = f32[8,128]{1,0:T(8,128)S(1)} get-tuple-element(%t), index=1
  %t2 = f32[3,8,128]{2,1,0:T(8,128)} get-tuple-element(%t), index=2
  %t3 = bf16[3,16,128]{2,1,0:T(8,128)(2,1)} get-tuple-element(%t), index=3
  %t4 = f32[4,100]{1,0:T(8,128)} get-tuple-element(%t), index=4
  %pair = @layers tuple(%t0, %t1, %t2)
  %scan = @layers while(%pair), condition=%layer_condition, body=%layer_body
  %some = @rows tuple(%t0, %t4)
  %refill = @rows while(%some), condition=%refill_condition, body=%refill_body, metadata={name="refill/"}
  %row = bf16[3,1,128]{2,1,0:T(8,128)(2,1)S(1)} custom-call(), custom_call_target="AllocateBuffer"
  %written = bf16[3,16,128]{2,1,0:T(8,128)(2,1)} fusion(%t3, %row, %t0), kind=kLoop, calls=%write_row
  %early = (f32[4,100]{1,0:T(8,128)S(1)}, f32[4,100]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%t4)
  %there = f32[4,100]{1,0:T(8,128)S(1)} copy-done(%early)
  %gathered = f32[8,256]{1,0:T(8,128)S(1)} all-gather(%t1), channel_id=1, dimensions={1}
  ROOT %end = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)S(1)}) tuple(%t0, %t1)
}

%condition (u: (s32[], f32[8,128])) -> pred[] {
  %u = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)S(1)}) parameter(0)
  ROOT %going = pred[]{:T(512)} custom-call(%u), custom_call_target="AnyActive"
}

ENTRY %main (a: f32[8,128]) -> f32[8,128] {
  %a = f32[8,128]{1,0:T(8,128)} parameter(0)
  %start = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)S(1)}) tuple(%a, %a)
  %loop = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)S(1)}) while(%start), condition=%condition, body=%body
  %before = f32[8,512]{1,0:T(8,128)} all-gather(%a), channel_id=2, dimensions={1}
  ROOT %result = f32[8,128]{1,0:T(8,128)S(1)} get-tuple-element(%loop), index=1
}
"""
PROGRAM = PROGRAM.replace(
  '@layers', '(s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)S(1)}, f32[3,8,128]{2,1,0:T(8,128)})'
)
PROGRAM = PROGRAM.replace('@rows', '(s32[]{:T(128)}, f32[4,100]{1,0:T(8,128)})')


@pytest.fixture(scope='module')
def program():
  return hlo.parse(PROGRAM)


def test_the_loop_is_the_outermost_one_of_unknown_length(program):
  assert hlo.loop(program) == 'body'
  with pytest.raises(ValueError, match='0 loops of unknown length'):
    hlo.loop(hlo.parse(PROGRAM.partition('%body (')[0]))


def test_exchanges_are_those_inside_the_loop(program):
  (found,) = hlo.collectives(program, 'body')
  assert found.name == 'gathered' and found.result[0].size == 8 * 256


@pytest.mark.parametrize('turns', [1, 4])
def test_bytes_of_a_turn(program, turns):
  found = {m.instruction: m.bytes for m in hlo.traffic(program, 'body', {'other': 7, 'refill/': turns})}
  assert found == {
    'fused': 3 * 8 * 128 * 4,  # a layer's weights at every turn; all else is on the chip
    'written': 3 * 128 * 2,  # the new row
    'moved': turns
    * (8 * 128 + 104 * 128)
    * 4,  # read [4, 100] as it lies, and written [100, 4], as that lies
    'early': 8 * 128 * 4,  # read once, into on-chip memory
  }


def test_sizes_of_types():
  one = hlo.parse(PROGRAM)['main']['before'].result[0]
  assert one == hlo.Array(8 * 512, 8 * 512 * 4, True, (8, 512))
  bits = hlo._array('s4', '8,256', '1,0:T(8,128)S(1)')
  assert bits == hlo.Array(8 * 256, 8 * 128, False, (8, 256))

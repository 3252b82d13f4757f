"""What XLA's text of a program says is read: bytes, loops, branches, layouts, kinds."""

import pytest

from lung_unet.benchmark import traffic
from lung_unet.benchmark.hlo import Array, Program

TEXT = """\
HloModule jit_step, is_scheduled=true, entry_computation_layout={(f32[4,8]{1,0})->f32[4,8]{1,0}}

%fused_slice (p0: f32[10,8], p1: s32[]) -> f32[1,8] {
  %p0 = f32[10,8]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %ds = f32[1,8]{1,0} dynamic-slice(%p0, %p1, %zero), dynamic_slice_sizes={1,8}
}

%fused_update (p0: f32[10,8], p1: f32[1,8], p2: s32[]) -> f32[10,8] {
  %p0 = f32[10,8]{1,0} parameter(0)
  %p1 = f32[1,8]{1,0} parameter(1)
  %p2 = s32[] parameter(2)
  %zero = s32[] constant(0)
  ROOT %dus = f32[10,8]{1,0} dynamic-update-slice(%p0, %p1, %p2, %zero)
}

%fused_norm (p0: bf16[2,4,4,4,8]) -> f32[2,8] {
  %p0 = bf16[2,4,4,4,8]{4,3,2,1,0} parameter(0)
  %c = f32[2,4,4,4,8]{4,3,2,1,0} convert(%p0), metadata={op_name="jit(step)/transpose(jvp(norm))/convert"}
  %zero = f32[] constant(0)
  ROOT %r = f32[2,8]{1,0} reduce(%c, %zero), dimensions={1,2,3}, to_apply=%add
}

%fused_turn (p0: bf16[2,4,4,4,8]) -> bf16[2,8,4,4,4] {
  %p0 = bf16[2,4,4,4,8]{4,3,2,1,0} parameter(0)
  ROOT %t = bf16[2,8,4,4,4]{4,3,2,1,0} transpose(%p0), dimensions={0,4,1,2,3}
}

%body (s: (s32[], f32[10,8])) -> (s32[], f32[10,8]) {
  %s = (s32[], f32[10,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %x = f32[10,8]{1,0} get-tuple-element(%s), index=1
  %row = f32[1,8]{1,0} fusion(%x, %i), kind=kLoop, calls=%fused_slice, metadata={op_name="jit(step)/augmentation/while/body/x"}
  %put = f32[10,8]{1,0} fusion(%x, %row, %i), kind=kLoop, calls=%fused_update, metadata={op_name="jit(step)/augmentation/while/body/y"}
  ROOT %out = (s32[], f32[10,8]{1,0}) tuple(%i, %put)
}

%small (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %n = f32[8]{0} negate(%p)
}

%large (p: f32[10,8]) -> f32[10,8] {
  %p = f32[10,8]{1,0} parameter(0)
  ROOT %n = f32[10,8]{1,0} negate(%p)
}

ENTRY %main.7 (a: bf16[2,4,4,4,8], k: bf16[16,3,3,3,8], /*index=2*/s: (s32[], f32[10,8])) -> bf16[2,4,4,4,16] {
  %a = bf16[2,4,4,4,8]{4,3,2,1,0} parameter(0)
  %k = bf16[16,3,3,3,8]{4,3,2,1,0} parameter(1)
  %s = (s32[], /*index=1*/f32[10,8]{1,0}) parameter(2)
  %loop = (s32[], f32[10,8]{1,0}) while(%s), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"5"},"x":[{"y":"1"}]}
  %sums = f32[2,8]{1,0} fusion(%a), kind=kInput, calls=%fused_norm
  %p = pred[] constant(true)
  %either = f32[8]{0} conditional(%p, %s, %s), true_computation=%small, false_computation=%large
  %turned = bf16[2,8,4,4,4]{4,3,2,1,0} fusion(%a), kind=kLoop, calls=%fused_turn
  %conv = (bf16[2,4,4,4,16]{4,3,2,1,0}, u8[0]{0}) custom-call(%a, %k), window={size=3x3x3 pad=1_1x1_1x1_1}, dim_labels=b012f_o012i->b012f, custom_call_target="__cudnn$convForward"
  %y = bf16[2,4,4,4,16]{4,3,2,1,0} get-tuple-element(%conv), index=0
  %dw = (bf16[16,3,3,3,8]{4,3,2,1,0}, u8[0]{0}) custom-call(%a, %y), window={size=3x3x3 pad=1_1x1_1x1_1}, dim_labels=b012f_o012i->b012f, custom_call_target="__cudnn$convBackwardFilter"
  ROOT %dx = (bf16[2,4,4,4,8]{0,1,2,3,4}, u8[0]{0}) custom-call(%y, %k), window={size=3x3x3 pad=1_1x1_1x1_1}, dim_labels=b012f_o012i->b012f, custom_call_target="__cudnn$convBackwardInput", backend_config={"estimated_cycles":"120"}
}
"""  # noqa: E501
A, K, Y = 2 * 64 * 8 * 2, 16 * 27 * 8 * 2, 2 * 64 * 16 * 2  # bytes


@pytest.fixture
def program():
    return Program(TEXT)


def test_bytes_are_grouped_by_what_moves_them(program):
    found = {kind: n for kind, n in traffic.bytes_by_kind(program).items() if n}
    assert found == {
        "convolutions": 3 * (A + K + Y),
        "norm statistics": A + 2 * 8 * 4,
        # Five times: a row of eight read and written, then read and put in its place; the index.
        "augmentation": 5 * (2 * 32 + 4 + 2 * 32 + 4),
        "elementwise": 2 * 80 * 4,  # the branch that moves more
        "copies": 2 * A,
    }


def test_convolutions_have_layouts_of_memory_and_flops(program):
    found = traffic.convolutions(program)
    assert traffic.layouts(found) == {"b012f_o012i->b012f": 2, "f210b_o012i->b012f": 1}
    assert [c.flops for c, _ in found] == [2 * 2 * 64 * 27 * 8 * 16] * 3
    assert [c.channels_last for c, _ in found] == [True, True, False]


def test_few_channels_cost_as_much_as_eight():
    program = Program(TEXT.replace("4,4,4,8]", "4,4,4,1]").replace("3,3,3,8]", "3,3,3,1]"))
    for convolution, _ in traffic.convolutions(program):
        assert convolution.padded_flops == 8 * convolution.flops


def test_a_transposed_activation_is_named_and_a_weight_is_not(program):
    assert traffic.moved_activations(program, 64, set()) == ["turned"]
    assert traffic.moved_activations(program, 64, {2 * 64 * 8}) == []
    assert traffic.moved_activations(program, 2048, set()) == []


def test_cycles_are_summed_where_there_are_any(program):
    assert traffic.estimated_cycles(program) == 120
    assert traffic.estimated_cycles(Program(TEXT.replace("estimated_cycles", "x"))) is None


@pytest.mark.parametrize(
    ("layout", "size"),
    [("2,1,0", 3 * 5 * 10 * 2), ("2,1,0:T(8,128)(2,1)", 3 * 8 * 128 * 2),
     ("0,1,2:T(8,128)", 10 * 8 * 128 * 2), ("2,1,0:T(8,128)S(1)", 0)],
)  # fmt: skip
def test_a_tpu_pads_to_tiles_and_its_fast_memory_is_not_counted(layout, size):
    assert Array("bf16", (3, 5, 10), layout).bytes == size

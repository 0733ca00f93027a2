"""HLO texts of a TPU and a GPU: what is read of them, and what is counted."""

from pathlib import Path

import pytest

from jaxinfer.analysis import hlo
from jaxinfer.analysis.hlo.findings import collectives, kernels, unaliased
from jaxinfer.analysis.hlo.parse import shape_of
from jaxinfer.errors import InputError

pytestmark = pytest.mark.quick
DATA = Path(__file__).parent.parent / "data" / "hlo"


@pytest.fixture(scope="module")
def tpu():
    """Six layers x + silu(x W) V scanned on four chips of a v5e, compiled ahead of time by libtpu 0.0.42."""
    return (DATA / "tpu_v5e.txt").read_text()


@pytest.fixture(scope="module")
def gpu():
    """Written by hand: a product by cuBLAS, collectives in two parts, a kernel of Mosaic's, an update in place."""
    return (DATA / "gpu.txt").read_text()


@pytest.mark.parametrize(
    ("text", "size", "written"),
    [
        ("f32[2,3]{1,0:T(8,128)S(1)}", 24, "f32[2,3]"),
        ("bf16[8,512]{1,0:T(8,128)(2,1)}", 8192, "bf16[8,512]"),
        ("pred[]", 1, "pred[]"),
        ("s4[5]{0:E(4)}", 3, "s4[5]"),
        ("f8e4m3fn[7]{0}", 7, "f8e4m3fn[7]"),
        ("(s32[], (f32[2]{0}, token[]), /*index=5*/u8[<=3]{0})", 4 + 8 + 3, "(s32[], (f32[2], token[]), u8[3])"),
    ],
)
def test_shapes(text, size, written):
    assert (shape_of(text).bytes, str(shape_of(text))) == (size, written)


def test_text_of_a_tpu(tpu):
    module = hlo.parse(tpu)
    assert module.entry.name == "main.3_spmd"
    assert module.aliases == {(0,): (0, ())}
    assert module.entry.parameters[1].shape.layout == "2,1,0:T(8,128)(2,1)"
    found = hlo.count(module)
    assert found.unknown_loops == ()
    layers, rows, width, inner = 6, 8, 512, 2048 // 4
    assert found.total.work.matmul == layers * 2 * (2 * rows * width * inner)  # written as convolutions
    assert found.total.work.transcendental == layers * rows * inner
    weights = layers * 2 * width * inner * 2
    assert weights < found.total.arguments < 1.01 * weights  # a fusion reads the slice of its layer, within another one
    (reduced,) = collectives(found)
    assert (reduced.opcode, reduced.bytes, reduced.group, reduced.times) == ("all-reduce", rows * width * 2, 4, layers)
    assert reduced.wire == 2 * 3 / 4 * rows * width * 2
    update = next(x for x in found.top() if x.instruction.name == "bitcast_dynamic-update-slice_fusion")
    assert update.cost.written == rows * width * 4  # not 16 times that, which stays
    assert found.by_scope(lambda path: "mlp" if "mlp" in path else "")["mlp"].work.matmul == found.total.work.matmul


def test_what_another_core_runs_is_a_computation_of_its_own(tpu):
    name = next(name for name in hlo.parse(tpu).computations if name != "main.3_spmd")
    ends = tpu.replace("\n}\n", '\n}, execution_thread="sparsecore"\n', 1)
    assert ends != tpu
    assert list(hlo.parse(ends).computations) == list(hlo.parse(tpu).computations)
    assert hlo.count(hlo.parse(ends)).total == hlo.count(hlo.parse(tpu)).total
    assert name in hlo.parse(ends).computations


def test_a_loop_whose_count_is_given_or_unknown(tpu):
    once, known = hlo.count(tpu, once=True).total, hlo.count(tpu).total
    assert known.work.matmul == 6 * once.work.matmul
    assert "known_trip_count" not in tpu  # the condition compares with a constant
    noted = tpu.replace(
        "wide.region_0.1_spmd.sunk, metadata",
        'wide.region_0.1_spmd.sunk, backend_config={"known_trip_count":{"n":"5"}}, metadata',
    )
    assert hlo.count(noted).total.work.matmul == 5 * once.work.matmul
    unsaid = tpu.replace("direction=LT", "direction=NE")
    found = hlo.count(unsaid)
    assert found.unknown_loops == ("while.11 jit(f)/while",)
    assert found.total.work.matmul == once.work.matmul
    for key in ("jit(f)/while", "while"):
        given = hlo.count(unsaid, {key: 7})
        assert given.unknown_loops == ()
        assert given.total.work.matmul == 7 * once.work.matmul


def test_text_of_a_gpu(gpu):
    report = hlo.report(gpu)
    assert report.total.work.matmul == 2 * 8 * 1024 * 512
    assert set(report.count.unknown_kernels) == {"mosaic_gpu_v2"}
    assert {x.target: x.operations for x in report.kernels} == {
        "__cublas$gemm": 2 * 8 * 1024 * 512,
        "mosaic_gpu_v2": None,
    }
    assert [(x.opcode, x.bytes, x.group) for x in report.collectives] == [
        ("all-reduce", 8 * 1024 * 2, 4),
        ("all-gather", 16 * 1024 * 2, 2),
    ]
    assert report.collectives[1].wire == 8 * 1024 * 2
    assert report.operators["up_proj"].work.matmul == report.total.work.matmul
    assert report.operators["commit"].written == 1024 * 4
    assert report.operators["commit"].read == 1024 * 2 + 4  # the last row and the place, not the cache
    (lost,) = report.unaliased  # XLA's note of a donor
    assert (lost.name, lost.bytes) == ("unused", 28)
    assert report.memory is None
    assert report.xla is None
    place = report.count.module.computations["main"].instructions["fusion.1"]
    assert place.source == "step.py:12"
    assert "mosaic_gpu_v2" in report.markdown()


def test_sizes_tell_a_product_whose_axes_are_not_written(gpu):
    start = gpu.index(', backend_config={"gemm')
    bare = gpu[:start] + gpu[gpu.index("\n", start) :]
    assert kernels(hlo.count(bare))[0].operations == 2 * 8 * 1024 * 512


def test_an_estimate_of_a_kernel_counts(gpu):
    figures = '{"flops":"123","transcendentals":"4","bytes_accessed":"20000"}'
    estimate = f'backend_config={{"custom_call_config":{{"cost_estimate":{figures}}}}}'
    told = gpu.replace("operand_layout_constraints={bf16[8,1024]{1,0}}", estimate)
    found = hlo.count(told)
    item = next(x for x in found.top() if x.instruction.name == "kernel")
    assert found.unknown_kernels == ()
    assert (item.cost.operations, item.cost.work.transcendental, item.cost.bytes) == (123, 4, 20000)


def test_a_text_alone_knows_the_donors_that_xla_notes(gpu):
    assert [x.name for x in unaliased(hlo.parse(gpu))] == ["unused"]
    assert unaliased(hlo.parse(gpu.replace("buffer_donor={ (2, {}) }, ", ""))) == ()


@pytest.mark.parametrize("text", ["", "hello\nworld", "HloModule jit_f, is_scheduled=true\n"])
def test_what_is_no_hlo_is_refused(text):
    with pytest.raises(InputError, match="HLO text") as refused:
        hlo.parse(text)
    assert "\n" not in str(refused.value)

"""Calibration: what was measured comes back, between it is interpolated, and a file is read as it was written."""

import math

import pytest

from jaxinfer import InputError
from jaxinfer.analysis import hardware
from jaxinfer.analysis.roofline import Setting, analyze
from jaxinfer.analysis.roofline.calibration import REST, Calibration, Point, load, save, sizes_of
from jaxinfer.analysis.roofline.shapes import config_of
from jaxinfer.runtime.placed import chunks

pytestmark = pytest.mark.quick

SMALL = config_of("smollm2-135m")
DEVICE = hardware.get("l4")


def points(slow, rest, weights="float32", lengths=(16, 64, 512), contexts=(64, 512, 2048)):
    """Points as a machine would give them that is `slow(kind, tokens, size)` times slower than its roofline."""
    found = []
    for tokens in (1, 4, *lengths):
        for context in contexts:
            call = Setting(prompt=max(context, tokens), weights=32, activations=32, kv=32, prompt_logits=False)
            stage = "decode" if tokens <= 4 else "prefill"
            call = call.replace(batch=tokens) if stage == "decode" else call.replace(prompt=tokens)
            made = analyze(SMALL, DEVICE, call).stages[stage]
            sizes = sizes_of([timed.operator for timed in made])
            for kind, size in sizes.items():
                bound = sum(timed.total for timed in made if timed.operator.kind == kind)
                found.append(Point(kind, weights, tokens, size, bound, bound * slow(kind, tokens, size)))
            found.append(Point(REST, weights, tokens, context, 0.0, rest(tokens)))
    return tuple(found)


def made_of(setting, stage):
    return [timed.operator for timed in analyze(SMALL, DEVICE, setting).stages[stage]]


def test_a_machine_of_constant_slowness_is_predicted_exactly():
    machine = Calibration("slow", points(lambda *_: 1.7, lambda tokens: 0.001))
    setting = Setting(batch=2, prompt=700, generate=40, weights=32, activations=32, kv=32)
    plain, slow = analyze(SMALL, DEVICE, setting), analyze(SMALL, DEVICE, setting, calibration=machine)
    assert slow.seconds("decode") == pytest.approx(1.7 * plain.seconds("decode") + 0.001)
    calls = list(chunks(700))
    assert slow.seconds("prefill") > 1.7 * plain.seconds("prefill") + 0.001 * len(calls)
    weights = plain.total("prefill", "weights")
    assert slow.total("prefill", "weights") == pytest.approx(len(calls) * weights, rel=0.3)  # read in each of them
    assert slow.totals("decode")["bytes"] == plain.totals("decode")["bytes"]


def test_slowness_between_what_was_measured():
    def slow(kind, tokens, size):
        return 2.0 * tokens**-0.2 if kind == "linear" else 1.0

    machine = Calibration("small", points(slow, lambda tokens: 0.0))
    setting = Setting(batch=2, prompt=100, weights=32, activations=32, kv=32, prompt_logits=False)
    for kind, found in machine.slowdowns(made_of(setting, "decode")).items():
        assert found == pytest.approx(slow(kind, 2, 0))
    far = machine.slowdowns(made_of(setting.replace(prompt=4096), "prefill"))
    assert far["linear"] == pytest.approx(slow("linear", 512, 0))  # as at the end of what was measured


def test_weights_have_their_own_points():
    both = points(lambda *_: 2.0, lambda _: 0.0) + points(lambda *_: 5.0, lambda _: 0.0, weights="int8")
    machine = Calibration("both", both)
    made = made_of(Setting(), "decode")
    assert machine.for_weights("int8").slowdowns(made)["linear"] == pytest.approx(5.0)
    assert machine.for_weights("float32").slowdowns(made)["linear"] == pytest.approx(2.0)
    with pytest.raises(InputError, match="weights='int4' were not measured on both: float32, int8"):
        machine.for_weights("int4")


def test_a_file_comes_back(tmp_path):
    machine = Calibration("a machine, with a comma", points(lambda *_: 1.25, lambda _: 1e-5))
    save(machine, tmp_path / "machine.csv")
    assert load(tmp_path / "machine.csv") == machine
    assert load(tmp_path / "machine.csv") == machine


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: "", "expected a line of columns kind,weights"),
        (lambda text: text.replace("kind,", "sort,"), "expected a line of columns kind,weights"),
        (lambda text: "\n".join(text.splitlines()[:2]), "holds no points"),
        (lambda text: text + "linear,float32,1,2\n", "has 4 values, expected 6"),
        (lambda text: text + "linear,float32,1,2,3,nan\n", "seconds must be a positive number, got 'nan'"),
        (lambda text: text + "linear,float32,0,2,3,4\n", "tokens must be a positive number, got '0'"),
        (lambda text: text + "linear,float32,1,x,3,4\n", "size must be a positive number, got 'x'"),
    ],
)
def test_a_damaged_file_is_named_with_its_line(change, words, tmp_path):
    file = tmp_path / "machine.csv"
    save(Calibration("m", points(lambda *_: 1.0, lambda _: 0.0)), file)
    text = change(file.read_text())
    file.write_text(text)
    with pytest.raises(InputError) as caught:
        load(file)
    assert str(caught.value).startswith(str(file))
    assert words in str(caught.value)
    if "values" in words or "positive" in words:
        assert f"line {len(text.splitlines())}:" in str(caught.value)


def test_compat_has_none():
    machine = Calibration("m", (Point("linear", "float32", 1, 1, 1, 2),))
    with pytest.raises(InputError, match="leave one of them out"):
        analyze(config_of("llama-2-7b"), DEVICE, Setting(), compat="llm-viewer", calibration=machine)
    found = machine.slowdowns(made_of(Setting(), "decode"))
    assert math.isclose(found["linear"], 2)
    assert found["attention"] == 1.0  # it was not measured

"""Calibration: what was measured comes back, between it is interpolated, and a file is read as it was written."""

import math

import pytest

from jaxinfer import InputError
from jaxinfer.analysis import hardware
from jaxinfer.analysis.roofline import Setting, analyze
from jaxinfer.analysis.roofline.calibration import REST, Calibration, Place, Point, load, save
from jaxinfer.analysis.roofline.shapes import config_of
from jaxinfer.runtime.placed import chunks

pytestmark = pytest.mark.quick

SMALL = config_of("smollm2-135m")
DEVICE = hardware.get("l4")


def points(slow, rest, weights="float32", lengths=(16, 64, 512), contexts=(64, 512, 2048), model=SMALL):
    """Points as a machine would give them that is `slow(kind, place)` times slower than its roofline."""
    found = []
    for tokens in (1, 4, *lengths):
        for context in contexts:
            call = Setting(prompt=context, weights=32, activations=32, kv=32, prompt_logits=False)
            stage = "decode" if tokens <= 4 else "prefill"
            call = call.replace(batch=tokens) if stage == "decode" else call.replace(prompt=tokens)
            made = analyze(model, DEVICE, call).stages[stage]
            place = Place.of([timed.operator for timed in made], stage == "decode")
            where = (weights, stage, place.width, place.tokens, place.context)
            for kind in {timed.operator.kind for timed in made}:
                bound = sum(timed.total for timed in made if timed.operator.kind == kind)
                found.append(Point(kind, *where, bound, bound * slow(kind, place)))
            found.append(Point(REST, *where, 0.0, rest(place)))
    return tuple(found)


def made_of(setting, stage):
    return [timed.operator for timed in analyze(SMALL, DEVICE, setting).stages[stage]]


def slowdowns(machine, setting, stage):
    made = made_of(setting, stage)
    return machine.slowdowns(made, Place.of(made, stage == "decode"))


def test_a_machine_of_constant_slowness_is_predicted_exactly():
    machine = Calibration("slow", points(lambda *_: 1.7, lambda _: 0.001))
    setting = Setting(batch=2, prompt=700, generate=40, weights=32, activations=32, kv=32)
    plain, slow = analyze(SMALL, DEVICE, setting), analyze(SMALL, DEVICE, setting, calibration=machine)
    assert slow.seconds("decode") == pytest.approx(1.7 * plain.seconds("decode") + 0.001)
    calls = list(chunks(700))
    assert slow.seconds("prefill") > 1.7 * plain.seconds("prefill") + 0.001 * len(calls)
    weights = plain.total("prefill", "weights")
    assert slow.total("prefill", "weights") == pytest.approx(len(calls) * weights, rel=0.3)  # read in each of them
    assert slow.totals("decode")["bytes"] == plain.totals("decode")["bytes"]


def test_slowness_between_what_was_measured():
    def slow(kind, place):
        return 2.0 * place.tokens**-0.2 if kind == "linear" else 1.0

    machine = Calibration("small", points(slow, lambda _: 0.0))
    setting = Setting(batch=2, prompt=100, weights=32, activations=32, kv=32, prompt_logits=False)
    for kind, found in slowdowns(machine, setting, "decode").items():
        assert found == pytest.approx(slow(kind, Place("decode", 1, 2, 100)))
    far = slowdowns(machine, setting.replace(prompt=4096), "prefill")
    assert far["linear"] == pytest.approx(2.0 * 512**-0.2)  # as at the end of what was measured


def test_steps_and_prompts_are_apart_and_context_counts():
    def slow(kind, place):
        by_context = (place.context / 64) ** 0.3 if kind == "attention" else 1.0
        return by_context * (3.0 if place.stage == "decode" else 1.2)

    machine = Calibration("both", points(slow, lambda place: 1e-6 * place.context * place.tokens))
    setting = Setting(weights=32, activations=32, kv=32, prompt_logits=False)
    for batch, context in ((1, 300), (2, 300), (3, 1024)):
        step = setting.replace(batch=batch, prompt=context)
        found = slowdowns(machine, step, "decode")
        assert found["attention"] == pytest.approx(3.0 * (context / 64) ** 0.3)
        assert found["linear"] == pytest.approx(3.0)
    assert slowdowns(machine, setting.replace(prompt=40), "prefill")["linear"] == pytest.approx(1.2)
    assert machine.rest(Place("decode", 1, 4, 512)) == pytest.approx(1e-6 * 512 * 4)


def test_models_are_apart():
    large = config_of("llama-3-8b")
    both = points(lambda *_: 4.0, lambda _: 0.0) + points(lambda *_: 1.5, lambda _: 0.0, model=large)
    machine = Calibration("both", both)
    setting = Setting(prompt=300, weights=32, activations=32, kv=32)
    assert slowdowns(machine, setting, "decode")["attention"] == pytest.approx(4.0)
    between = analyze(config_of("llama-3.2-1b"), DEVICE, setting, calibration=machine)
    plain = analyze(config_of("llama-3.2-1b"), DEVICE, setting)
    assert 1.5 < between.seconds("decode") / plain.seconds("decode") < 4.0


def test_weights_have_their_own_points():
    both = points(lambda *_: 2.0, lambda _: 0.0) + points(lambda *_: 5.0, lambda _: 0.0, weights="int8")
    machine = Calibration("both", both)
    assert slowdowns(machine.for_weights("int8"), Setting(), "decode")["linear"] == pytest.approx(5.0)
    assert slowdowns(machine.for_weights("float32"), Setting(), "decode")["linear"] == pytest.approx(2.0)
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
        (lambda text: text + "linear,float32,1,2\n", "has 4 values, expected 8"),
        (lambda text: text + "linear,float32,decode,1,1,2,3,nan\n", "seconds must be a positive number, got 'nan'"),
        (lambda text: text + "linear,float32,decode,1,0,2,3,4\n", "tokens must be a positive number, got '0'"),
        (lambda text: text + "linear,float32,decode,1,1,x,3,4\n", "context must be a positive number, got 'x'"),
        (lambda text: text + "linear,float32,both,1,1,2,3,4\n", "stage must be prefill or decode, got 'both'"),
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
    if "values" in words or "must be" in words:
        assert f"line {len(text.splitlines())}:" in str(caught.value)


def test_compat_has_none():
    machine = Calibration("m", (Point("linear", "float32", "decode", 1, 1, 1, 1, 2),))
    with pytest.raises(InputError, match="leave one of them out"):
        analyze(config_of("llama-2-7b"), DEVICE, Setting(), compat="llm-viewer", calibration=machine)
    found = slowdowns(machine, Setting(), "decode")
    assert math.isclose(found["linear"], 2)
    assert found["attention"] == 1.0  # it was not measured

"""What decoding_speedup.py predicts from counted steps and the time of a step by its width."""

import pytest
import scripts

pytestmark = pytest.mark.quick

speedup = scripts.load("decoding_speedup")

SECONDS = {1: 10.0, 4: 15.0, 8: 18.0}
NARROW = {"name": "lookup", "width": 8, "ngram": 5, "min_ngram": 2, "narrow": 4}
WIDE = {"name": "lookup", "width": 8}
BOTH = {"name": "fallback", "first": WIDE, "second": {"name": "speculative", "width": 4}}


def row(method, narrow, wide, idle, emitted):
    """Two prompts with so many steps after short matches, after long ones, and without a guess, all of one batch."""
    counts = [
        {"steps": a + b + c, "guessed": a + b, "proposed": 3 * a + 7 * b, "emitted": n}
        for a, b, c, n in zip(narrow, wide, idle, emitted, strict=True)
    ]
    return {"method": method, "prompts": counts}


@pytest.mark.parametrize(
    ("method", "narrow", "wide", "idle", "guessing", "seconds"),
    [
        (NARROW, (3, 2), (1, 0), (6, 9), 0.0, 5 * 15 + 1 * 18 + 15 * 10),
        (NARROW, (0, 2), (0, 3), (0, 1), 0.5, 2 * 15.5 + 3 * 18.5 + 1 * 10),
        (NARROW, (0, 0), (0, 0), (4, 5), 0.5, 9 * 10),
        (NARROW, (0, 0), (4, 5), (0, 0), 0.0, 9 * 18),
        ({"name": "adaptive", "method": NARROW}, (3, 2), (1, 0), (6, 9), 0.0, 5 * 15 + 1 * 18 + 15 * 10),
        (BOTH, (3, 2), (1, 0), (0, 0), 0.5, 5 * 15.5 + 1 * 18.5),
        (WIDE, (0, 0), (4, 2), (1, 0), 0.5, 6 * 18.5 + 1 * 10),
        ("greedy", (0, 0), (0, 0), (4, 5), 0.0, 9 * 10),
    ],
)
def test_a_step_costs_what_its_width_costs(method, narrow, wide, idle, guessing, seconds):
    steps = {str(width): value for width, value in SECONDS.items()}
    twice = {width: 2 * value for width, value in steps.items()}
    beside = [{"step_seconds": step, "guessing_seconds": 0.0} for step in (steps, twice)]
    record = row(method, narrow, wide, idle, (17, 23)) | {"beside": beside}
    plain = 40 * 10 / (seconds - guessing * sum(narrow + wide))
    assert speedup.predicted(record) == pytest.approx([plain, plain])  # each pass by its own clock
    beside[0]["guessing_seconds"] = 2 * guessing  # of the guesses the mean
    assert speedup.predicted(record)[0] == pytest.approx(40 * 10 / seconds)


def test_each_pass_is_compared_with_its_own_prediction():
    """A machine that was slower in the second pass, and with it the steps that were measured behind that."""
    steps = [{"1": 10.0, "8": 20.0}, {"1": 10.0, "8": 30.0}]
    beside = [{"step_seconds": one, "guessing_seconds": 0.0} for one in steps]
    record = row(WIDE, (0,), (4,), (0,), (8,)) | {"beside": beside}
    record |= {"decode_rates": [11.0, 7.0], "baseline_rates": [10.0, 10.0]}
    assert speedup.predicted(record) == pytest.approx([1.0, 2 / 3])
    assert speedup.of_predicted(record) == pytest.approx((1.1 + 1.05) / 2)
    assert speedup.of_predicted(record | {"decode_rates": [11.0, None]}) is None


def test_long_prompts_count_by_the_steps_behind_them():
    counts = [(100, 40, 40), (900, 80, 10), (50, 0, 0)]  # the last has no room for a step
    prompts = [{"prompt_tokens": n, "emitted": m, "steps": steps} for n, m, steps in counts]
    assert speedup.live_tokens({"prompts": prompts}) == round((40 * 120 + 10 * 940 + 1 * 50) / 51)


def test_steps_are_measured_at_the_size_of_a_whole_batch(monkeypatch, tiny_llama):
    """Also in the pass whose guesses are timed on the few prompts that are left over."""
    asked = []
    monkeypatch.setattr(speedup, "step_seconds", lambda *args: asked.append(args[1:]) or {1: 1.0, 8: 2.0})
    monkeypatch.setattr(speedup, "propose_seconds", lambda model, method, batches, policy: float(len(batches[0])))
    prompts = [{"prompt_tokens": 10, "emitted": 4, "steps": 4, "guessed": 2}]
    found = speedup.costs(tiny_llama, {"method": WIDE, "policy": None, "prompts": prompts}, [[[7], [8]]], 4)
    assert asked == [([1, 8], 4, 12)]
    assert found == {"step_seconds": {"1": 1.0, "8": 2.0}, "guessing_seconds": 2.0}


def test_guesses_are_measured_on_all_prompts():
    tokens = [[i] for i in range(7)]
    assert speedup.dealt(tokens, 1, 3) == [[[[0]], [[3]], [[6]]], [[[1]], [[4]]], [[[2]], [[5]]]]
    assert speedup.dealt(tokens, 4, 1) == [[[[0], [1], [2], [3]], [[4], [5], [6]]]]
    assert speedup.dealt(tokens[:2], 1, 3) == [[[[0]]], [[[1]]], [[[0]]]]  # no pass without any
    assert speedup.dealt(tokens, 1, 2, most=3) == [[[[0]], [[6]]], [[[3]]]]  # evenly apart


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (NARROW, (8, 4)),
        (WIDE, (8, 8)),
        ({"name": "adaptive", "method": NARROW}, (8, 4)),
        ("greedy", (1, 1)),
        (BOTH, (8, 4)),
    ],
)
def test_the_widths_to_measure(method, expected):
    assert speedup.widths_of({"method": method}) == expected

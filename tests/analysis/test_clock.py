"""Latencies of generations, and what is measured in turn."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

import jaxinfer
from jaxinfer.analysis import clock
from jaxinfer.analysis.clock import Watch, clock_of, clocked, compared, take_turns
from jaxinfer.analysis.hardware import Hardware
from jaxinfer.errors import InputError
from jaxinfer.runtime.stats import Stats

pytestmark = pytest.mark.quick

DEVICE = Hardware("test", "A test", "cpu", 1e9, {"float32": 1e11}, 1e10, 1e6, None, None, None, {})


def stats(**values):
    given = {
        "steps": [4, 4],
        "guessed": [0, 0],
        "runs": [[], []],
        "proposed": [6, 6],
        "accepted": [2, 0],
        "emitted": [6, 4],
        "prompt_tokens": [3, 3],
        "seconds": {"prefill": 1.0, "decode": 4.0, "compile": 9.0},
        "weight_bytes": 100,
        "cache_bytes": 20,
        "temp_bytes": 3,
        "step_bytes": 110,
    }
    return Stats(**given | values)


def test_latencies_of_rows():
    watch = Watch(start=0.0, seconds=[2.0, 3.0, 4.0, 6.0], tokens=[[1, 0], [3, 1], [3, 2], [6, 4]])
    found = clock_of(stats(), watch, 0.5, 0.25)
    assert found.ttft == pytest.approx((2 + 3) / 2)
    assert found.tpot == pytest.approx(((6 - 2) / 5 + (6 - 3) / 3) / 2)
    gaps = [1.0, 3.0, 1.0, 2.0]  # of the first row, then of the second
    assert found.itl["mean"] == pytest.approx(np.mean(gaps))
    assert found.itl["p50"] == pytest.approx(1.5)
    assert found.itl["p90"] == pytest.approx(np.percentile(gaps, 90))
    assert found.end_to_end == 6.0
    assert found.throughput == pytest.approx(10 / 6)
    assert found.tokens_per_step == pytest.approx(10 / 8)
    assert found.accepted_per_step == pytest.approx(2 / 8)
    assert found.compile_seconds == 9.0
    assert (found.mbu, found.mfu) == (0.5, 0.25)
    assert found.as_dict()["itl"]["p99"] == found.itl["p99"]


def test_one_token_has_no_time_between_tokens():
    found = clock_of(stats(), Watch(start=0.0, seconds=[2.0], tokens=[[1, 1]]))
    assert (found.ttft, found.tpot, found.itl) == (2.0, None, {})


def test_a_generation_and_its_shares(tiny_llama, ragged):
    prompts = ragged([4, 9])
    found = clocked(tiny_llama, prompts, 6, hardware=DEVICE)
    again = clocked(tiny_llama, prompts, 6, hardware=DEVICE)
    assert again.compile_seconds == 0.0
    assert 0 < found.ttft <= found.end_to_end
    assert found.tpot > 0
    assert found.throughput == pytest.approx(12 / found.end_to_end)
    assert found.tokens_per_step == 1.0
    # 0.3 MB of weights a step at 1 GB/s, over the time between tokens
    weights = sum(x.nbytes for x in jax.tree.leaves(tiny_llama.params))
    rough = weights / 1e9 / again.itl["mean"]
    assert 0.2 * rough < again.mbu < 5 * rough
    with pytest.raises(InputError, match="prompts"):
        clocked(tiny_llama, "text")


def test_turns_go_on_until_all_have_ended():
    order = []

    def run(name, times):
        for i in range(times):
            order.append(f"{name}{i}")
            yield ""  # an item may be empty

    take_turns([run("a", 1), run("b", 3)], first=1)
    assert order == ["b0", "a0", "b1", "b2"]


def test_a_row_and_its_baseline_in_turn(tiny_llama, ragged, monkeypatch):
    calls = []
    advance = clock.Generation.advance
    monkeypatch.setattr(
        clock.Generation,
        "advance",
        lambda self, steps: (calls.append(type(self.method).__name__), advance(self, steps)),
    )
    prompts = ragged([6])
    begin = {
        "greedy": lambda: clock.begun(tiny_llama, prompts, 8),
        "lookup": lambda: clock.begun(tiny_llama, prompts, 8, jaxinfer.Lookup(width=2)),
    }
    found = compared(begin, repeats=2, steps=2)
    assert [len(passes) for passes in found.values()] == [2, 2]
    assert all(one.emitted == [8] and one.seconds["compile"] == 0 for passes in found.values() for one in passes)
    assert all(one.seconds["decode"] > 0 for passes in found.values() for one in passes)
    assert calls[:2] == ["Greedy", "Lookup"]
    assert calls[:3] != ["Greedy"] * 3


def test_memory_is_the_devices_own_count_where_it_has_one(monkeypatch):
    watch = Watch(start=0.0, seconds=[2.0], tokens=[[1, 1]])
    assert clock_of(stats(), watch).peak_bytes == 123
    device = SimpleNamespace(memory_stats=lambda: {"peak_bytes_in_use": 7})
    monkeypatch.setattr(clock.jax, "local_devices", lambda: [device])
    assert clock_of(stats(), watch).peak_bytes == 7

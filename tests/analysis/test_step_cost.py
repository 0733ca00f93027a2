import dataclasses

import pytest

from jaxinfer import Lookup, Speculative
from jaxinfer.analysis import step_cost
from jaxinfer.analysis.step_cost import Still, acceptance_to_break_even, propose_seconds, step_seconds


def test_every_width_is_measured_and_emits_one_token_a_step(tiny_llama, ragged):
    seconds = step_seconds(tiny_llama, [1, 4, 1], batch=2, live=16, rounds=2, steps=3)
    assert list(seconds) == [1, 4]
    assert all(value > 0 for value in seconds.values())
    prompts = ragged((5, 9))
    still = tiny_llama.generate(prompts, max_new_tokens=10, method=Still(4))
    assert still.tokens == tiny_llama.generate(prompts, max_new_tokens=10).tokens
    assert still.stats.steps == still.stats.guessed == [10, 10]
    assert still.stats.runs == [[0, 10, 0, 0, 0]] * 2


def test_what_a_guess_costs_follows_the_size_of_the_draft(tiny_llama, monkeypatch):
    asked = []

    def seconds(model, widths, **options):
        asked.append((model.name, tuple(widths), options))
        return {width: 0.25 if model.name == "small" else 0.5 * width for width in widths}

    monkeypatch.setattr(step_cost, "step_seconds", seconds)
    model = tiny_llama.attach(draft=dataclasses.replace(tiny_llama, name="small"))
    assert step_cost.speculation_costs(model, 5, live=16) == (0.5, 5.0)
    assert asked == [("random", (1, 5), {"live": 16}), ("small", (1,), {"live": 16})]


def test_a_chain_of_guesses_costs_more_than_looking_them_up(tiny_llama):
    model = tiny_llama.attach(draft=tiny_llama)
    chain, found = (propose_seconds(model, method, [[1, 2, 1, 2]]) for method in (Speculative(9), Lookup(9)))
    assert chain > 2 * found > 0  # nine forwards, and none


@pytest.mark.parametrize(("a", "width"), [(0.5, 2), (0.8, 8), (0.95, 4)])
def test_the_acceptance_that_pays_is_the_inverse_of_expected_tokens(a, width):
    tokens = (1 - a**width) / (1 - a)
    assert acceptance_to_break_even(tokens, width) == pytest.approx(a, abs=1e-6)


def test_where_nothing_or_anything_pays():
    assert acceptance_to_break_even(4.1, 4) is None
    assert acceptance_to_break_even(0.9, 4) == pytest.approx(0, abs=1e-6)

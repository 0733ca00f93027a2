import dataclasses
import itertools
from types import SimpleNamespace

import jax
import pytest

from jaxinfer import Greedy, Lookup, Speculative
from jaxinfer.analysis import step_cost
from jaxinfer.analysis.step_cost import Still, acceptance_to_break_even, propose_seconds, step_seconds
from jaxinfer.decoding.sampling.settings import Sampling
from jaxinfer.runtime.generation import Generation


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
    chain, found = (propose_seconds(model, method, [[[1, 2, 1, 2]]]) for method in (Speculative(9), Lookup(9)))
    assert chain > 2 * found > 0  # nine forwards, and none


def test_guesses_that_are_not_made_take_no_time(tiny_llama):
    assert propose_seconds(tiny_llama, Greedy(), [[[1, 2, 1, 2]]]) == 0
    assert propose_seconds(tiny_llama, Lookup(4, min_ngram=3, ngram=3), [[[1, 2, 3], [4]]], new_tokens=3) == 0


def test_guesses_are_timed_on_every_batch_of_prompts(tiny_llama, monkeypatch):
    """The mean over the batches, however many steps of each were timed, but for one for which nothing is guessed."""
    taken = {1: [1.0], 2: [], 3: [2.0, 3.0, 4.0]}
    monkeypatch.setattr(
        step_cost, "_guesses", lambda call, generation, begin: iter(taken[int(generation.state.tokens[0, 0])])
    )
    batches = [[[1, 5]], [[2]], [[3, 7, 5]]]
    assert propose_seconds(tiny_llama, Lookup(4), batches) == 2.0
    assert propose_seconds(tiny_llama, Lookup(4), batches, places=1) == 1.5
    assert propose_seconds(tiny_llama, Lookup(4), batches[1:2]) == 0


def test_a_guess_takes_the_median_of_three_times(tiny_llama, monkeypatch):
    """Of each step, from the sixth token on; what the first call takes, which compiles, is not among them."""
    prompts, sampling, policy = [[1, 2, 1, 2]], Sampling(temperature=0.0), tiny_llama.default_policy()
    running = Generation.begin(tiny_llama.placed, prompts, [9], Still(3), policy, sampling, [0], (), logprobs=False)
    taken, lengths = iter([99.0, 5.0, 1.0, 3.0, 7.0, 7.5, 1.0]), []
    ticks = (tick for seconds in taken for tick in (0.0, seconds))
    monkeypatch.setattr(step_cost, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))

    def propose(held, params, extras, state):
        lengths.append(int(state.n[0]))
        return Still(3).propose(None, state)

    assert list(itertools.islice(step_cost._guesses(propose, running, 6), 2)) == [3.0, 7.0]
    assert lengths == [10] * 4 + [11] * 3


def test_what_a_draft_model_missed_is_read_before_each_guess(tiny_llama):
    """Guesses are timed at several places, and each call finds the draft model where the last step left it."""
    lengths = []

    class Watched(Speculative):
        def propose(self, ctx, state):
            jax.debug.callback(lambda n, held: lengths.append((int(n), int(held))), state.n[0], state.held.length[0])
            return super().propose(ctx, state)

    model = tiny_llama.attach(draft=tiny_llama)
    assert propose_seconds(model, Watched(3), [[[1, 2, 1, 2]]], new_tokens=40, places=4) > 0
    jax.effects_barrier()
    measured = [pair for pair in lengths if lengths.count(pair) >= 3]  # the clock; a step asks once
    assert len(set(measured)) == 4
    assert all(held < n for n, held in measured)


@pytest.mark.parametrize(("a", "width"), [(0.5, 2), (0.8, 8), (0.95, 4)])
def test_the_acceptance_that_pays_is_the_inverse_of_expected_tokens(a, width):
    tokens = (1 - a**width) / (1 - a)
    assert acceptance_to_break_even(tokens, width) == pytest.approx(a, abs=1e-6)


def test_where_nothing_or_anything_pays():
    assert acceptance_to_break_even(4.1, 4) is None
    assert acceptance_to_break_even(0.9, 4) == pytest.approx(0, abs=1e-6)

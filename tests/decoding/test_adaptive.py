"""The switch around a method: off where guesses do not pay, on again where they do, and the same text throughout."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
import pytest

from jaxinfer import Adaptive, Contrastive, InputError, Jacobi, Lookahead, Lookup, Recycling, Speculative
from jaxinfer.decoding.contract import DecodeMethod, Draft, Verdict
from jaxinfer.decoding.sampling.acceptance import accept

LENGTHS = (3, 9, 20)
NEW = 90


@dataclass(frozen=True)
class Wrong(DecodeMethod):
    """Guesses what is never said, in rows whose prompt is shorter than `longest`; in others nothing."""

    longest: int
    width: int = 4

    def init(self, ctx, state):
        return state.n  # the length of the prompt

    def propose(self, ctx, state):
        tokens = jnp.repeat(state.pending[:, None], self.width, axis=1).at[:, 1:].set(96)
        return Draft(tokens, size=jnp.where(state.aux < self.longest, self.width, 1))

    def verify(self, ctx, state, draft, output, logits):
        return Verdict(*accept(state, draft, logits.at[..., 96].set(-1e9)), aux=state.aux)


def test_guesses_that_never_hit_are_soon_given_up(tiny_llama, ragged):
    method = Adaptive(Wrong(longest=15), break_even=1.5, probe=16)
    plain = tiny_llama.generate(ragged(LENGTHS), max_new_tokens=NEW, method=Wrong(longest=0))
    result = tiny_llama.generate(ragged(LENGTHS), max_new_tokens=NEW, method=method)
    assert result.tokens == plain.tokens
    assert result.stats.steps == [NEW] * 3
    # Two tries of half a step at first, then one behind every sixteen quiet steps.
    tries = 2 + (NEW - 2) // 17
    assert result.stats.guessed == [tries, tries, 0]


@pytest.mark.parametrize(("break_even", "tries"), [(1.25, 10), (1.75, 3), (2.0, 2), (3.0, 1), (3.5, 1)])
def test_tries_cost_a_step_and_half_a_per_cent(tiny_llama, break_even, tries):
    """A step's worth of them at the beginning of a text, and one more whenever it is paid for."""
    wrong = Adaptive(Wrong(longest=15), break_even=break_even)
    result = tiny_llama.generate([[1, 2, 3]], max_new_tokens=330, method=wrong)
    assert result.stats.guessed == [tries]
    assert tries * (break_even - 1) <= 1 + 0.005 * 330


def test_a_good_run_is_not_ended_by_a_few_poor_steps():
    """However good it was: what is saved up is two steps more than a try costs."""
    method, credit, off = Adaptive(break_even=1.5), jnp.array([1.0, 1.0, 1.0]), []
    for n in [4, 4, 4, *[1] * 6]:
        off.append(method.is_off(credit).tolist())
        sizes = jnp.array([4, 4, 1])  # the second row always emits one token, the third has nothing to say
        credit = method.credited(credit, jnp.where(method.is_off(credit), 1, sizes), jnp.array([n, 1, 1]))
    assert [row[0] for row in off] == [False] * 8 + [True]
    assert [row[1] for row in off] == [False] * 2 + [True] * 7
    assert credit[2] == 1


def test_a_dear_first_try_waits(tiny_llama, ragged):
    """Tries that cost two steps each: one of them is there at first, the other is earned in twenty steps of forty."""
    wrong, costs = Wrong(longest=15), dict(break_even=3.0, probe=40)
    plain = tiny_llama.generate(ragged(LENGTHS), max_new_tokens=NEW, method=Wrong(longest=0))
    for new, tries in [(20, 0), (21, 1), (61, 1), (62, 2)]:
        result = tiny_llama.generate(ragged(LENGTHS), max_new_tokens=new, method=Adaptive(wrong, **costs))
        assert result.tokens == [row[:new] for row in plain.tokens]
        assert result.stats.guessed == [tries, tries, 0]


@pytest.mark.parametrize(("probe", "quiet", "new"), [(10, 4, 51), (100, 34, 91)])
def test_a_dear_method_that_pays_is_switched_on_for_good(tiny_llama, ragged, probe, quiet, new):
    """The model is its own draft: if it has read all that it missed, every guess is right, four tokens a step."""
    twin = tiny_llama.attach(draft=tiny_llama)
    method = Adaptive(Speculative(4), break_even=2.5, probe=probe)
    wide = -(-(new - quiet) // 4)  # a text begins with one step, and a try of 1.5 is paid by 1 + quiet x 1.5 / probe
    for _ in range(2):
        result = twin.generate(ragged(LENGTHS), max_new_tokens=new, method=method)
        assert result.tokens == tiny_llama.generate(ragged(LENGTHS), max_new_tokens=new).tokens
        assert result.stats.steps == [quiet + wide] * 3
        assert result.stats.accepted == [new - quiet - wide] * 3


@pytest.mark.parametrize(("credit", "steps"), [(1.2, 80), (1.5, 20)])
def test_a_draft_model_begins_with_its_credit_or_never(tiny_llama, ragged, credit, steps):
    """What is missing would be earned in sixty steps, but not what the draft model would have to read first."""
    twin = tiny_llama.attach(draft=tiny_llama)
    method = Adaptive(Speculative(4), break_even=2.5, credit=credit)
    result = twin.generate(ragged(LENGTHS), max_new_tokens=80, method=method)
    assert result.tokens == tiny_llama.generate(ragged(LENGTHS), max_new_tokens=80).tokens
    assert result.stats.steps == [steps] * 3
    assert result.stats.guessed == [steps % 80] * 3


def test_what_pays_stays_on(tiny_llama, ragged):
    prompts = ragged(LENGTHS)
    plain = tiny_llama.generate(prompts, max_new_tokens=200, method=Lookup())
    result = tiny_llama.generate(prompts, max_new_tokens=200, method=Adaptive(Lookup(), break_even=1.0))
    assert result.tokens == plain.tokens
    assert result.stats.steps == plain.stats.steps  # a step never emits less than one token


def test_a_good_try_switches_on_again(tiny_llama):
    """Lookup has nothing right to say at first; once the text repeats itself it has."""
    prompt = np.random.default_rng(1).integers(0, 97, 40).tolist()
    never = tiny_llama.generate([prompt], max_new_tokens=300, method=Adaptive(Lookup(), break_even=2.0, probe=10**6))
    again = tiny_llama.generate([prompt], max_new_tokens=300, method=Adaptive(Lookup(), break_even=2.0, probe=8))
    assert again.tokens == never.tokens
    assert again.stats.guessed[0] > never.stats.guessed[0] > 0
    assert again.stats.tokens_per_step > 1.2 * never.stats.tokens_per_step


ALWAYS = [Jacobi(4), Jacobi(4, blocks=True), Lookahead(3, 3, 2, 64), Recycling(8)]


@pytest.mark.parametrize("method", ALWAYS, ids=str)
@pytest.mark.parametrize("lengths", [LENGTHS, LENGTHS[1:2]], ids=str)
def test_methods_that_always_guess_are_switched_off_and_on(tiny_llama, ragged, method, lengths):
    """Alone a row's step has one column when it is off; in a batch it has the others' columns, and none counts."""
    prompts = ragged(lengths)
    greedy = tiny_llama.generate(prompts, max_new_tokens=NEW)
    switched = Adaptive(method, break_even=2.5, probe=4)
    for _ in range(2):
        result = tiny_llama.generate(prompts, max_new_tokens=NEW, method=switched)
        assert result.tokens == greedy.tokens
        assert all(0 < a < b for a, b in zip(result.stats.guessed, result.stats.steps, strict=True))


def test_what_it_refuses(tiny_llama):
    with pytest.raises(InputError, match="Contrastive guesses in every step: it cannot be switched off"):
        tiny_llama.generate([[1]], max_new_tokens=2, method=Adaptive(Contrastive()))
    with pytest.raises(InputError, match=r"break_even=0\.5 must be at least 1"):
        Adaptive(break_even=0.5)
    with pytest.raises(InputError, match="probe=0 must be at least 1"):
        Adaptive(probe=0)
    with pytest.raises(InputError, match=r"credit=-0\.5 must be at least 0"):
        Adaptive(credit=-0.5)
    with pytest.raises(InputError, match="must not be adaptive itself"):
        Adaptive(Adaptive())

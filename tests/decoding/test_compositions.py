"""Methods in methods: one where another has no guess, and a draft model that drafts for itself."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import pytest
from small_methods import Watched, blurred

from jaxinfer import (
    Adaptive,
    Cascade,
    EarlyExit,
    Fallback,
    Greedy,
    InputError,
    Jacobi,
    Lookup,
    Medusa,
    SelfSpeculative,
    Speculative,
    Suffix,
    Window,
)
from jaxinfer.decoding.contract import DecodeMethod, Draft, Verdict
from jaxinfer.decoding.methods.fallback import choose
from jaxinfer.decoding.sampling.acceptance import accept
from jaxinfer.experiment import registry
from jaxinfer.experiment.merge import Origin

LENGTHS = (1, 4, 30, 17, 64)
NEW = 60


@dataclass(frozen=True)
class Oracle(DecodeMethod):
    """Knows the text, and says seven tokens of it in every other stretch of ten."""

    texts: tuple[tuple[int, ...], ...]
    width: int = 8
    samples: ClassVar[bool] = True

    def propose(self, ctx, state):
        places = jnp.minimum(state.n[:, None] - 1 + jnp.arange(8), len(self.texts[0]) - 1)
        tokens = jnp.take_along_axis(jnp.array(self.texts), places, axis=1)
        return Draft(tokens, size=jnp.where(state.n // 10 % 2 == 0, jnp.minimum(8, state.limit - state.n), 1))

    def verify(self, ctx, state, draft, output, logits):
        return Verdict(*accept(state, draft, logits))


def test_each_row_takes_the_guesses_of_the_one_that_has_some(tiny_llama, ragged):
    """Both are always right, so a guess that is not accepted would mean that the draft model had missed some tokens."""
    prompts = ragged(LENGTHS)
    greedy = tiny_llama.generate(prompts, max_new_tokens=NEW).tokens
    texts = [prompt + new for prompt, new in zip(prompts, greedy, strict=True)]
    longest = max(map(len, texts))
    oracle = Oracle(tuple(tuple(text + [0] * (longest - len(text))) for text in texts))
    method = Fallback(oracle, Speculative(3))
    result = tiny_llama.attach(draft=tiny_llama).generate(prompts, max_new_tokens=NEW, method=method)
    assert result.tokens == greedy
    assert result.stats.accepted == result.stats.proposed
    for row, runs in enumerate(result.stats.runs):
        assert runs[8] > 0, row  # of the one
        assert runs[3] > runs[8], row  # of the other
        assert runs[1] <= 1, row


class WatchedFallback(Watched, Fallback):
    pass


def test_a_step_is_as_wide_as_the_guesses_in_it(tiny_llama):
    """Lookup in two widths and a draft model in a third: each step is scored at the least that holds its guesses."""
    prompt = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]
    method = WatchedFallback(Lookup(8, ngram=4, min_ngram=2, narrow=4), Speculative(3))
    Watched.seen.clear()
    result = tiny_llama.attach(draft=tiny_llama).generate([prompt], max_new_tokens=120, method=method)
    jax.effects_barrier()
    assert result.tokens == tiny_llama.generate([prompt], max_new_tokens=120).tokens
    assert {width for width, _ in Watched.seen} >= {3, 4, 8}
    assert all(width == min(w for w in (1, 3, 4, 8) if w >= size) for width, size in Watched.seen)


def test_chains_and_trees_mix():
    chain = Draft(jnp.array([[1, 2, 3], [4, 5, 6]]), jnp.array([3, 1]), proposal=jnp.full((2, 3, 9), 0.5))
    tree = Draft(jnp.array([[1, 7, 8, 7, 7], [4, 5, 6, 7, 8]]), jnp.array([5, 4]), jnp.array([[-1, 0, 0, 1, 2]] * 2))
    both = choose(chain.size > 1, chain, tree)
    assert both.tokens.tolist() == [[1, 2, 3, 0, 0], [4, 5, 6, 7, 8]]
    assert both.size.tolist() == [3, 4]
    assert both.parent.tolist() == [[-1, 0, 1, 2, 3], [-1, 0, 0, 1, 2]]
    assert both.drawn.tolist() == [True, False]
    assert both.proposal.shape == (2, 5, 9)
    assert both.depth.tolist() == [[0, 1, 2, 3, 4], [0, 1, 1, 2, 2]]


def test_a_tree_first_and_a_chain_that_goes_on(tiny_gemma, ragged):
    prompts = ragged(LENGTHS)
    method = Fallback(Suffix(8, ngram=3, min_ngram=2, depth=4, matches=4), SelfSpeculative(4, skip=(2,)))
    result = tiny_gemma.generate(prompts, max_new_tokens=NEW, method=method, policy=Window())
    assert result.tokens == tiny_gemma.generate(prompts, max_new_tokens=NEW, policy=Window()).tokens
    assert sum(result.stats.guessed) > sum(result.stats.steps) - 2 * len(LENGTHS)


def test_a_cascade_drafts_what_its_draft_model_would_alone(tiny_llama, ragged):
    model, prompts = tiny_llama.attach(draft=blurred(tiny_llama)), ragged(LENGTHS)
    plain = model.generate(prompts, max_new_tokens=NEW, method=Speculative(5))
    cascade = model.generate(prompts, max_new_tokens=NEW, method=Cascade(5, Lookup(3)))
    assert cascade.tokens == plain.tokens == tiny_llama.generate(prompts, max_new_tokens=NEW).tokens
    for name in ("steps", "proposed", "accepted", "runs"):
        assert getattr(cascade.stats, name) == getattr(plain.stats, name)
    assert 0 < sum(plain.stats.accepted) < sum(plain.stats.proposed)


def test_a_draft_of_a_draft_drafts_what_the_draft_would_alone(tiny_llama, ragged):
    """The middle one writes what it would write by itself, only in fewer forwards."""
    good, third, prompts = blurred(tiny_llama), blurred(tiny_llama, seed=1), ragged(LENGTHS)
    greedy = tiny_llama.generate(prompts, max_new_tokens=NEW).tokens
    plain = tiny_llama.attach(draft=good).generate(prompts, max_new_tokens=NEW, method=Speculative(5))
    model = tiny_llama.attach(draft=good.attach(draft=third))
    found = model.generate(prompts, max_new_tokens=NEW, method=Cascade(5, Speculative(3)))
    assert found.tokens == greedy
    for name in ("steps", "proposed", "accepted", "runs"):
        assert getattr(found.stats, name) == getattr(plain.stats, name)
    assert found.stats.weight_bytes == 3 * sum(x.nbytes for x in jax.tree.leaves(tiny_llama.params))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Fallback(Greedy(), Lookup()), "first: Greedy makes no guesses"),
        (lambda: Fallback(Lookup(), EarlyExit()), "second: EarlyExit makes no guesses"),
        (lambda: Fallback(Medusa(typical=True), Lookup()), "first: Medusa is lossy"),
        (lambda: Cascade(inner=Greedy()), "inner: Greedy makes no guesses"),
        (lambda: Cascade(inner=Cascade(inner=Medusa())), "inner: Medusa guesses from hidden states"),
        (lambda: Cascade(1), "width=1 must be at least 2"),
    ],
)
def test_what_is_no_composition(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_what_needs_something_says_so(tiny_llama):
    with pytest.raises(InputError, match="Fallback needs draft"):
        tiny_llama.generate([[1]], method=Fallback())
    with pytest.raises(InputError, match="Cascade needs draft"):
        tiny_llama.generate([[1]], method=Cascade())
    with pytest.raises(InputError, match=r"needs draft\.draft: draft\.attach\(draft=\.\.\.\)"):
        tiny_llama.attach(draft=tiny_llama).generate([[1]], method=Adaptive(Cascade(inner=Speculative())))
    with pytest.raises(InputError, match="Jacobi guesses in every step, so the second method would never be asked"):
        tiny_llama.generate([[1]], max_new_tokens=2, method=Fallback(Jacobi(3), Lookup(3)))
    with pytest.raises(InputError, match="exit=7 must be between"):
        tiny_llama.attach(draft=tiny_llama).generate([[1]], method=Cascade(inner=SelfSpeculative(exit=7)))
    assert Fallback(Speculative(), Medusa()).needs == ("draft", "heads")


def test_a_config_names_both():
    spec = {"name": "fallback", "first": {"name": "suffix", "width": 9}, "second": "self_speculative"}
    made = registry.method(spec, (), Origin("a.yaml"))
    assert made == Fallback(Suffix(9), SelfSpeculative())
    assert registry.as_mapping(made, "fallback")["second"]["name"] == "self_speculative"
    assert made.width == 9

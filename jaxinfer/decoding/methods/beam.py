"""Beam search, and diverse beam search (Vijayakumar et al. 2016)."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import struct

from jaxinfer.decoding.contract import Context, DecodeMethod, DecodeState, Draft, Hypotheses, Verdict
from jaxinfer.decoding.sampling.stopping import hold_back
from jaxinfer.errors import InputError
from jaxinfer.host.values import typed
from jaxinfer.network.transformer import Output

MOST_BEAMS = 1024
NEVER = -1e9  # the score of what is not there


@struct.dataclass
class Search:
    """The state of a search: the beams of each prompt in G groups of W, which search one after the other."""

    score: jax.Array  # f32[B, G, W]: of the texts in the rows of the state, best first
    running: jax.Array  # bool[B, G]: whether a group may still find something better than it has
    prompt: jax.Array  # i32[B]: tokens of the prompt
    ended: Hypotheses  # leaves [B, G, W, ...]: the best texts that have ended, best first


@dataclass(frozen=True)
class Beam(DecodeMethod):
    """Beam search: the likeliest texts instead of the likeliest next token; in groups, texts that differ. Not greedy's.

    A text of n new tokens scores its log-probability divided by n ** length_penalty. At each step the best of a group's
    continuations that do not end go on; those that end, at a stop token or at the limit, compete for its W places, if
    they are among the best W of all. Equal to transformers' beam search.

    In groups (Vijayakumar et al. 2016, equation 5 with Hamming diversity) each group searches after those before it,
    and a token counts `diversity_penalty` less for every beam of theirs that takes it in this step. As in the authors'
    code, that stays in the score.
    """

    beams: int = 4
    length_penalty: float = 1.0  # above 0 long texts gain, below 0 short ones; 0: the log-probability itself
    early_stopping: bool | Literal["never"] = False
    """When a group stops: True: as soon as it has W texts. False: when its best running beam, if it ended here, would
    not beat the worst of them. "never": when it could not at any length, which is exact if scores only fall."""
    returned: int = 1  # texts of each prompt that the result holds, best first
    groups: int = 1
    diversity_penalty: float = 0.0

    lossless: ClassVar[bool] = False
    holds_back: ClassVar[bool] = True

    def __post_init__(self):
        typed(self)
        if self.beams < 1:
            raise InputError(f"beams={self.beams} must be at least 1")
        if not 1 <= self.returned <= self.beams:
            raise InputError(f"returned={self.returned} must be between 1 and beams={self.beams}")
        if self.groups < 1 or self.beams % self.groups:
            raise InputError(f"groups={self.groups} must divide beams={self.beams}")
        if not math.isfinite(self.length_penalty):
            raise InputError(f"length_penalty={self.length_penalty} must be a finite number")
        if not 0 <= self.diversity_penalty < -NEVER:
            raise InputError(f"diversity_penalty={self.diversity_penalty} must be 0 or a positive number")
        if (self.diversity_penalty > 0) != (self.groups > 1):
            raise InputError(
                f"groups={self.groups} with diversity_penalty={self.diversity_penalty}: several groups need a penalty "
                "above 0, or they all find the same; one group needs 0"
            )
        if not isinstance(self.early_stopping, bool) and self.early_stopping != "never":
            raise InputError(f"early_stopping={self.early_stopping!r} must be True, False or 'never'")

    @property
    def rows_per_prompt(self) -> int:
        return self.beams

    def check(self, model: Any, policy: Any) -> None:
        vocab = model.config.vocab_size
        if self.beams > min(vocab, MOST_BEAMS):
            why = f"the vocabulary's size is {vocab}" if vocab < MOST_BEAMS else "each is a row with a cache of its own"
            raise InputError(f"beams={self.beams} must be at most {min(vocab, MOST_BEAMS)}: {why}")

    def init(self, ctx: Context, state: DecodeState) -> Search:
        shape = (len(state.n) // self.beams, self.groups, self.beams // self.groups)
        # The beams of a prompt begin alike: only the first of each group counts, or all would go on as the same text.
        score = jnp.full(shape, NEVER, jnp.float32).at[:, :, 0].set(0.0)
        logprobs = None if state.logprobs is None else state.logprobs.reshape(*shape, -1)
        none = jnp.zeros(shape, jnp.int32), jnp.full(shape, NEVER, jnp.float32)
        ended = Hypotheses(state.tokens.reshape(*shape, -1), *none, logprobs)
        return Search(score, jnp.ones(shape[:2], bool), state.n[:: self.beams], ended)

    def propose(self, ctx: Context, state: DecodeState) -> Draft:
        return Draft(state.pending[:, None], size=jnp.ones_like(state.n))

    def verify(self, ctx: Context, state: DecodeState, draft: Draft, output: Output, logits: jax.Array) -> Verdict:
        search = state.aux
        batch, groups, width = search.score.shape
        # As in transformers, what is held back is still of the distribution that scores are of.
        logp = hold_back(state, draft.depth, jax.nn.log_softmax(logits))[:, 0].reshape(batch, groups, width, -1)
        vocab = logp.shape[-1]
        # W of so many candidates do not end, whichever stop tokens there are.
        count = min(width * (1 + len(state.stop)), width * vocab)

        def one_group(taken: jax.Array, group: tuple[jax.Array, ...]) -> tuple[jax.Array, tuple[jax.Array, ...]]:
            """Search in a group; taken f32[B, V]: how often those before it have taken each token in this step."""
            logp, score, running = group
            total = score[:, :, None] + logp - self.diversity_penalty * taken[:, None]
            best, index = jax.lax.top_k(total.reshape(batch, -1), count)
            beam, token = index // vocab, index % vocab
            stops = jnp.any(token[:, :, None] == state.stop, axis=2)
            going, chosen = jax.lax.top_k(jnp.where(stops, 2 * NEVER, best), width)
            told = jax.nn.one_hot(jnp.take_along_axis(token, chosen, axis=1), vocab).sum(axis=1)
            return taken + running[:, None] * told, (best, beam, token, stops, going, chosen)

        by_group = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (logp, search.score, search.running))
        _, found = jax.lax.scan(one_group, jnp.zeros((batch, vocab)), by_group)
        best, beam, token, stops, going, chosen = (jnp.moveaxis(x, 0, 1) for x in found)

        alive = search.running & ~state.done.reshape(batch, groups, width)[:, :, 0]
        n, limit = state.n[:: self.beams, None] + 1, state.limit[:: self.beams, None]
        ends = alive[:, :, None] & (stops | (n == limit)[:, :, None])[:, :, :width]
        rows = jnp.arange(batch * self.beams).reshape(batch, groups, width)
        origin = jnp.take_along_axis(rows, beam, axis=2)  # [B, G, count]
        ended = self._keep(state, search, ends, best, origin, token, logp)
        running = alive & (n < limit) & self._may_improve(search.prompt, n, limit, going, ended)
        verdict = Verdict(
            emit=jnp.take_along_axis(token, chosen, axis=2).reshape(-1, 1),
            n=jnp.ones_like(state.n),
            aux=Search(going, running, search.prompt, ended),
            rows=jnp.where(alive[:, :, None], jnp.take_along_axis(origin, chosen, axis=2), rows).reshape(-1),
            done=jnp.repeat(~jnp.any(running, axis=1), self.beams),
        )
        return verdict

    def _keep(
        self,
        state: DecodeState,
        search: Search,
        ends: jax.Array,
        best: jax.Array,
        origin: jax.Array,
        token: jax.Array,
        logp: jax.Array,
    ) -> Hypotheses:
        """Keep the best W of each group's texts that have ended, with the candidates that end now, bool[B, G, W].

        best, origin, token [B, G, W or more]: the candidates' scores, the rows that they go on from, their last tokens.
        """
        width = ends.shape[2]
        best, origin, token = (x[:, :, :width] for x in (best, origin, token))
        place = jnp.arange(state.tokens.shape[1]) == state.n[origin][..., None]
        length = state.n[origin] + 1 - search.prompt[:, None, None]
        score = jnp.where(ends, best / length.astype(jnp.float32) ** self.length_penalty, NEVER)
        logprobs = None
        if state.logprobs is not None:
            last = logp.reshape(-1, logp.shape[-1])[origin, token]
            logprobs = jnp.where(place, last[..., None], state.logprobs[origin])
        texts = jnp.where(place, token[..., None], state.tokens[origin])
        new = Hypotheses(texts, jnp.where(ends, state.n[origin] + 1, 0), score, logprobs)
        both = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=2), search.ended, new)
        _, kept = jax.lax.top_k(both.score, width)
        return _take(both, kept, axis=2)

    def _may_improve(
        self, prompt: jax.Array, n: jax.Array, limit: jax.Array, score: jax.Array, ended: Hypotheses
    ) -> jax.Array:
        """Tell which groups go on, bool[B, G], after a step to n i32[B, 1] tokens; score f32[B, G, W] as it is now."""
        full = jnp.all(ended.n > 0, axis=2)
        if self.early_stopping is True:
            hopeful = ~full
        else:
            furthest = limit if self.early_stopping == "never" and self.length_penalty > 0 else n
            length = (furthest - prompt[:, None]).astype(jnp.float32)
            hopeful = score[:, :, 0] / length**self.length_penalty > jnp.min(ended.score, axis=2)
        return ~full | hopeful

    def hypotheses(self, state: DecodeState) -> Hypotheses:
        """Give the best `returned` of all groups' texts; none of a prompt that is still searched."""
        batch = len(state.n) // self.beams
        flat = jax.tree.map(lambda x: x.reshape(batch, self.beams, *x.shape[3:]), state.aux.ended)
        _, order = jax.lax.top_k(flat.score, self.returned)
        best = _take(flat, order, axis=1)
        return dataclasses.replace(best, n=jnp.where(state.done[:: self.beams, None], best.n, 0))


def _take(texts: Hypotheses, order: jax.Array, axis: int) -> Hypotheses:
    """Take those of the hypotheses, which lie along an axis, that i32[..., K] names."""

    def pick(x: jax.Array) -> jax.Array:
        return jnp.take_along_axis(x, order.reshape(*order.shape, *(1,) * (x.ndim - axis - 1)), axis=axis)

    return jax.tree.map(pick, texts)

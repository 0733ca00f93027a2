"""The draft length that makes most tokens a second, by the acceptance seen so far.

With a the chance that a guess is right, g guesses make (1 - a^(g+1)) / (1 - a) tokens a step (Leviathan et al. 2023,
equation 1), and take g c + 1 times as long as a step without, c the time of a guess (theorem 3.8). Every row follows
its own estimate of a, on the device, so its text does not depend on its neighbours.
"""

import jax
import jax.numpy as jnp
from flax import struct

FADING = 0.95  # weight of the past in the running counts, from step to step
FIRST = (4.0, 5.0)  # a row begins as if four of five guesses had been right
PULL = 0.1  # and goes back to that: what is not tested any more is forgotten, so a row that gave up tries again


@struct.dataclass
class Acceptance:
    """Running counts of each row: guesses that were right, f32[B], of those that were tested, f32[B]."""

    right: jax.Array
    tested: jax.Array

    @property
    def rate(self) -> jax.Array:
        """Give f32[B]: the chance that the next guess is right."""
        return self.right / self.tested


def unknown(batch: int) -> Acceptance:
    """Give the counts that rows begin with."""
    return Acceptance(*(jnp.full(batch, count) for count in FIRST))


def observe(seen: Acceptance, size: jax.Array, n: jax.Array) -> Acceptance:
    """Give the counts after a step over size[B] columns that emitted n[B] tokens.

    The guesses that were accepted were tested, and the first that was not. A step without guesses costs a row some of
    what it knows. The pull to `FIRST` makes a row that never pays guess in vain for 2 % of a step's time at most:
    (1 - FADING) * PULL * FIRST[1] * (FIRST[0] / FIRST[1] - c) on average, whatever its acceptance is.
    """

    def fade(count: jax.Array, first: float, new: jax.Array) -> jax.Array:
        return FADING * count + (1 - FADING) * PULL * first + new

    right, rejected = jnp.minimum(n, size) - 1, n < size
    return Acceptance(fade(seen.right, FIRST[0], right), fade(seen.tested, FIRST[1], right + rejected))


def expected_tokens(rate: jax.Array, most: int) -> jax.Array:
    """Give f32[..., most + 1]: tokens a step with 0, 1, ... guesses, each right with probability rate[...]."""
    return jnp.cumsum(rate[..., None] ** jnp.arange(most + 1), axis=-1)


def best_length(rate: jax.Array, most: int, draft_cost: float, wide_cost: float = 1.0) -> jax.Array:
    """Give i32[...]: how many guesses, from 0 to `most`, make most tokens in a unit of time.

    Times are in steps without guesses: draft_cost of one guess, wide_cost of a step with guesses
    (`analysis.step_cost.speculation_costs`). As many columns are computed in it, whatever the number of guesses.
    """
    guesses = jnp.arange(most + 1)
    seconds = jnp.where(guesses == 0, 1.0, wide_cost + guesses * draft_cost)
    return jnp.argmax(expected_tokens(rate, most) / seconds, axis=-1).astype(jnp.int32)

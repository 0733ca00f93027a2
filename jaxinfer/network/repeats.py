"""The repeats of a segment as a function of their weights, gathered one repeat at a time where they are fully sharded.

`transformer.Transformer` scans Flax modules that take each weight out of its stack where it is used, and gather it
there. Here a repeat's weights are gathered before it runs, as stacks of one, for two reasons. A layer whose control
flow follows its tokens, as that of experts does, may not talk to devices that have other tokens. And the next repeat's
weights can be asked for while this one computes: they are then part of what the loop carries, and nothing that this
repeat computes waits for them.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxinfer.layers.attention import Place
from jaxinfer.sharding import choices, layouts
from jaxinfer.weights.qtensor import is_quantized
from jaxinfer.weights.resting import Resting

Repeat = Callable[[Any, jax.Array, list[Place]], tuple[jax.Array, Any]]
"""(params, x, places of one repeat) -> x, what the repeat makes."""


def _is_weight(x: Any) -> bool:
    return isinstance(x, Resting) or is_quantized(x)


def are_spread(params: Any) -> bool:
    """Tell whether some of the weights lie split over devices that compute with them whole."""
    return any(isinstance(x, Resting) for x in jax.tree.leaves(params, is_leaf=_is_weight))


def scan(repeat: Repeat, params: Any, x: jax.Array, places: list[Place]) -> tuple[jax.Array, Any]:
    """Run a repeat at each of places i32[repeats]: x, and what they make with an axis of repeats in front."""
    layout = layouts.active()
    if layout is None or not are_spread(params):
        return jax.lax.scan(lambda x, at: repeat(params, x, at), x, places)
    whole = dataclasses.replace(layout, rules=dataclasses.replace(layout.rules, at_rest=()))
    layers = places[0].layer

    def run(mine: Any, x: jax.Array, at: list[Place]) -> tuple[jax.Array, Any]:
        with layouts.use(whole):
            return repeat(mine, x, [dataclasses.replace(place, layer=jnp.int32(0)) for place in at])

    if not choices.GATHER_AHEAD.here():
        return jax.lax.scan(lambda x, at: run(gathered(params, at[0].layer), x, at), x, places)

    def one(carry: tuple[jax.Array, Any], part: tuple[list[Place], jax.Array]) -> Any:
        (x, mine), (at, following) = carry, part
        ahead = gathered(params, following)
        x, made = run(mine, x, at)
        return (x, ahead), made

    # The last repeat asks for the first one's weights, which nobody reads.
    (x, _), made = jax.lax.scan(one, (x, gathered(params, layers[0])), (places, jnp.roll(layers, -1)))
    return x, made


def gathered(params: Any, layer: jax.Array) -> Any:
    """Take one layer of every stack, whole, as a stack of one."""

    def take(weight: Any) -> Any:
        if isinstance(weight, Resting):
            return jax.tree.map(lambda x: x[None], weight.layer(layer))
        return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, layer), weight)

    return jax.tree.map(take, params, is_leaf=_is_weight)

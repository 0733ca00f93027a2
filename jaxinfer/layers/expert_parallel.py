"""Experts spread over the devices of the mesh axis `expert`: tokens go to their experts and back.

Each device holds E / P of the experts and the tokens of its own rows (GShard, Lepikhin et al. 2020). It routes its own
tokens and packs, for every device of the axis, those that go there: a token once, however many of its experts lie
there, with the names of its k experts and their gates beside it in the same buffer. One all-to-all brings them there,
one brings back what a device's experts make of a token, summed with its gates.

A buffer has a fixed size and loads have not. All n tokens of a device may go to one other, and a buffer with room for
all of them, P * n rows, is as large as if every token went everywhere. So it has `room` for twice what goes there if
all devices get as much, and what is left over goes in further rounds of the same two all-to-alls, until no device has
anything left: exact whatever the load. Where that room is all n tokens, as in a step of few rows, there is one round
and nothing to agree upon. Otherwise the devices agree on the number of rounds by an all-reduce of one number.

    bytes that a device packs a layer and round    P * room * (D + k + k * 4 / b) * b there, P * room * D * b back

for activations of b bytes a number: the names of experts take b bytes each, gates are float32.

Where the rows cannot be split over the axis (a batch of one), every device has all tokens, computes those of its own
experts, and one all-reduce adds up. So it is where tokens do not choose (`expert_choice`, `soft`), which takes all
tokens of the batch in one place, and with `dense`. Where the axis does not divide the experts, every device has all of
them, and no token moves.

Weights in plain arrays may be split over `tensor` as well: each device computes its part of the feed-forward width,
and one all-reduce a layer adds up. Quantized ones are left to the partitioner there, which knows how their scales
lie, and adds up after each block of rows; so that all take part, devices compute as many blocks as the one with most.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxinfer.config import MoE
from jaxinfer.layers import expert_dispatch, routing
from jaxinfer.layers.expert_dispatch import Expert
from jaxinfer.sharding import Sharding, layouts
from jaxinfer.weights.qtensor import is_quantized

AXIS = "expert"
SLACK = 2  # how many times as much as even loads need a buffer holds
ROWS = 8  # what a buffer holds is a multiple of


@dataclass(frozen=True)
class Stacks:
    """The weights of all experts, arrays or quantized stacks [L, E, ...], and the logical axes of each."""

    weights: Any  # by name; kernels and biases
    axes: dict[str, tuple[str, ...]]
    ffn: Callable[[Any, jax.Array | None], Expert]  # of the weights, and what biases of outputs are multiplied by


@dataclass(frozen=True)
class Spread:
    """The places of activations [B, T, ...] and of a layer's experts on the mesh that is traced for."""

    layout: Sharding
    shape: tuple[int, int, int]  # of the activations, [B, T, D]
    experts: int
    split: bool  # whether the axis divides the experts

    @classmethod
    def of(cls, shape: tuple[int, ...], experts: int) -> "Spread | None":
        """Look at the layout that is traced for; None where it has no axis of that name over which experts go."""
        layout = layouts.active()
        if layout is None or layout.size(AXIS) == 1 or AXIS not in layout.rules.targets("experts"):
            return None
        b, t, d = shape
        return cls(layout, (b, t, d), experts, experts % layout.size(AXIS) == 0)

    @property
    def devices(self) -> int:
        return self.layout.size(AXIS)

    @property
    def rows(self) -> PartitionSpec:
        """Give the layout of activations: how rows are split, and their tokens."""
        return PartitionSpec(*self.layout.of(("batch", "tokens", None), self.shape).spec[:2])

    @property
    def row_axes(self) -> tuple[str, ...]:
        """Name the mesh axes over which they are split."""
        return tuple(name for entry in self.rows for name in _names(entry))

    @property
    def at_rest(self) -> bool:
        """Tell whether weights are split besides while no layer computes with them."""
        return any(self.layout.size(axis) > 1 for _, axis in self.layout.rules.at_rest)

    @property
    def goes(self) -> bool:
        """Tell whether tokens go to their experts: whether these, and the rows, are split over the axis."""
        return self.split and AXIS in self.row_axes

    def route(
        self, logits: jax.Array, moe: MoE, bias: jax.Array | None, tokens: jax.Array, live: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Route as `routing.route` does, for all arrays [N, ...]: each device its own tokens.

        Routers that look at all tokens see all their logits on every device.
        """
        if moe.router in ("sinkhorn", "auction"):
            logits, live = self.everywhere(logits), self.everywhere(live)
            return routing.route(logits, moe, bias, tokens, live)
        corrections = () if bias is None else (bias,)

        def own(logits, tokens, live, *corrections):
            n = math.prod(live.shape)
            flat = logits.reshape(n, -1), moe, *(corrections or (None,)), tokens.reshape(n), live.reshape(n)
            return tuple(x.reshape(*live.shape, -1) for x in routing.route(*flat))

        parts = self._by_row(logits), self._by_row(tokens)[..., 0], self._by_row(live)[..., 0]
        specs = (*(self.rows,) * 3, *(PartitionSpec(),) * len(corrections))
        gates, experts = self._map(own, specs, (self.rows, self.rows))(*parts, *corrections)
        return gates.reshape(len(live), -1), experts.reshape(len(live), -1)

    def everywhere(self, x: jax.Array) -> jax.Array:
        """Give every device the whole of a small array."""
        return layouts.constrain(x, *(None,) * x.ndim)

    def token_choice(self, x: jax.Array, gates: jax.Array, experts: jax.Array, stacks: Stacks) -> jax.Array:
        """Compute each token's own experts: x[N, D], gates and experts [N, k] -> float32[N, D].

        An expert that is none, E, is not computed.
        """
        mine = tuple({AXIS, *self.row_axes, *self._inner(stacks)})
        rest = any(size > 1 and name not in mine for name, size in self.layout.mesh.shape.items())
        # The partitioner may put collectives into a block of rows: then all devices compute as many of them.
        agree = partial(jax.lax.pmax, axis_name=mine) if rest else None

        def body(x, gates, experts, names, ffn):
            shape, k = x.shape, gates.shape[-1]
            x, gates, experts = x.reshape(-1, shape[-1]), gates.reshape(-1, k), experts.reshape(-1, k)
            if self.goes:
                return _there_and_back(x, gates, experts, names, ffn, self, agree).reshape(shape)
            sizes = expert_dispatch.block_sizes(len(x), k, self.experts)
            own = _own(experts, names)
            return expert_dispatch.dropless(x, gates, own, ffn, len(names), sizes, agree).reshape(shape)

        parts = (self._by_row(x), self._by_row(gates), self._by_row(experts))
        y = self._computed(body, parts, (self.rows,) * 3, self.rows, stacks, adds=not self.goes)
        return y.reshape(x.shape)

    def dense(self, x: jax.Array, gates: jax.Array, experts: jax.Array, stacks: Stacks) -> jax.Array:
        """Compute every expert for every token, as `expert_dispatch.dense`: each device its own experts."""
        whole = PartitionSpec()

        def body(x, gates, experts, names, ffn):
            return expert_dispatch.dense(x, gates, _own(experts, names), ffn, len(names))

        return self._computed(body, (x, gates, experts), (whole,) * 3, whole, stacks)

    def chosen_by_experts(self, x: jax.Array, gates: jax.Array, tokens: jax.Array, stacks: Stacks) -> jax.Array:
        """Send x[N, D] to the tokens [E, C] of each expert and back, as `expert_dispatch.chosen_by_experts`."""
        whole, by_expert = PartitionSpec(), PartitionSpec(AXIS if self.split else None)

        def body(x, gates, tokens, names, ffn):
            return expert_dispatch.chosen_by_experts(x, gates, tokens, ffn)

        return self._computed(body, (x, gates, tokens), (whole, by_expert, by_expert), whole, stacks)

    def soft(self, x: jax.Array, logits: jax.Array, stacks: Stacks, live: jax.Array) -> jax.Array:
        """Compute slots that mix all tokens: x[N, D], logits [N, E, P] -> float32[N, D], as `expert_dispatch.soft`."""
        whole, by_expert = PartitionSpec(), PartitionSpec(None, AXIS if self.split else None)
        back = jax.nn.softmax(logits.astype(jnp.float32).reshape(len(x), -1), axis=-1).reshape(logits.shape)

        def body(x, logits, back, live, names, ffn):
            return expert_dispatch.soft(x, logits, ffn, live, back)

        specs = (whole, by_expert, by_expert, whole)
        return self._computed(body, (x, logits, back, live), specs, whole, stacks)

    def _by_row(self, x: jax.Array) -> jax.Array:
        """[N, ...] -> [B, T, ...], laid out as the activations are."""
        x = x.reshape(*self.shape[:2], -1)
        return layouts.constrain(x, "batch", "tokens", None)

    def _computed(
        self,
        body: Callable[..., jax.Array],
        parts: tuple[jax.Array, ...],
        specs: tuple[PartitionSpec, ...],
        out: PartitionSpec,
        stacks: Stacks,
        adds: bool = True,
    ) -> jax.Array:
        """Run body(*parts, names of the own experts, their ffn) on every device.

        adds: the results of the axis are to be added up. Those of a feed-forward width that is split always are.
        """
        inner = self._inner(stacks)

        def laid(weight: Any, axes: Any) -> Any:
            axes = weight.axes(axes) if is_quantized(weight) else axes
            return jax.tree.map(lambda x, own: self._kept(own, x.shape, inner), weight, axes)

        weights = jax.tree.map(
            lambda axes, weight: laid(weight, axes), stacks.axes, stacks.weights, is_leaf=lambda a: type(a) is tuple
        )
        names = jnp.arange(self.experts, dtype=jnp.int32)  # each device gets its own
        over = (*((AXIS,) if adds and self.split else ()), *inner)

        first = jnp.arange(math.prod(self.layout.size(axis) for axis in inner)) == 0  # of those that add up a sum

        def own(*args):
            *given, names, first, weights = args
            y = body(*given, names, stacks.ffn(weights, first[0].astype(jnp.float32) if inner else None))
            return jax.lax.psum(y, over) if over else y

        by_expert = PartitionSpec(AXIS if self.split else None)
        run = self._map(own, (*specs, by_expert, PartitionSpec(inner or None), weights), out, inner)
        return run(*parts, names, first, stacks.weights)

    def _inner(self, stacks: Stacks) -> tuple[str, ...]:
        """Name the mesh axes over which the feed-forward width is split and sums are taken here."""
        found: set[tuple[str, ...]] = set()
        for name, axes in stacks.axes.items():
            weight = stacks.weights[name]
            if is_quantized(weight):
                return ()
            spec = self.layout.of(axes, weight.shape).spec
            found |= {_names(entry) for axis, entry in zip(axes, spec, strict=True) if axis == "mlp"}
        return found.pop() if len(found) == 1 else ()

    def _kept(self, axes: tuple[str | None, ...], shape: tuple[int, ...], inner: tuple[str, ...]) -> PartitionSpec:
        """Give the layout of a weight, as far as the axes go that are taken apart by hand."""
        taken = (*((AXIS,) if self.split else ()), *inner)
        entries = [tuple(name for name in _names(e) if name in taken) for e in self.layout.of(axes, shape).spec]
        return PartitionSpec(*(entry or None for entry in entries))

    def _map(self, fun: Callable[..., Any], specs: Any, out: Any, inner: tuple[str, ...] = ()) -> Callable[..., Any]:
        names, around = {AXIS, *self.row_axes, *inner}, jax.sharding.get_abstract_mesh()
        mesh = self.layout.mesh if around.empty else around  # within another, the one that knows what that splits
        return jax.shard_map(fun, mesh=mesh, in_specs=specs, out_specs=out, axis_names=names, check_vma=False)


def room(n: int, k: int, devices: int) -> int:
    """Count the tokens of n that a buffer holds for each device, of k experts each; n: all there are."""
    even = -(-SLACK * n * k // devices)
    return min(n, -(-even // ROWS) * ROWS)


def buffer_bytes(n: int, k: int, width: int, devices: int, dtype: Any) -> tuple[int, int]:
    """Count the bytes that a device packs in a round for n tokens [width] of k experts each: there, and back."""
    size = jnp.dtype(dtype).itemsize
    rows = devices * room(n, k, devices)
    return rows * (width * size + k * size + k * 4), rows * width * size


def _there_and_back(
    x: jax.Array, gates: jax.Array, experts: jax.Array, names: jax.Array, ffn: Expert, spread: Spread, agree: Any
) -> jax.Array:
    """Compute, on all devices of the axis, the experts of each one's tokens: x[n, D] -> float32[n, D]."""
    (n, d), k, own = x.shape, experts.shape[1], len(names)
    devices, n_experts = spread.devices, spread.experts
    size = room(n, k, devices)
    sizes = expert_dispatch.block_sizes(devices * n, k, n_experts)
    # For each device the tokens that go there, in order; n is none.
    goes = jnp.any(experts[:, :, None] // own == jnp.arange(devices), axis=1)
    queue = jnp.sort(jnp.where(goes.T, jnp.arange(n), n), axis=1)
    nobody = jnp.full((1, k), n_experts, experts.dtype), jnp.zeros((1, k), gates.dtype), jnp.zeros((1, d), x.dtype)
    chosen, by, what = (jnp.concatenate([a, b]) for a, b in zip((experts, gates, x), nobody, strict=True))
    letters = _packed(what, by, chosen)

    def once(tokens: jax.Array, out: jax.Array) -> jax.Array:  # i32[P, size]: those that go in this round
        got = jax.lax.all_to_all(letters[tokens], AXIS, 0, 0)
        y, by, chosen = _unpacked(got.reshape(devices * size, -1), d, k, x.dtype)
        made = expert_dispatch.dropless(y, by, _own(chosen, names), ffn, own, sizes, agree).astype(x.dtype)
        back = jax.lax.all_to_all(_bits(made).reshape(devices, size, d), AXIS, 0, 0)
        back = jax.lax.bitcast_convert_type(back, x.dtype).astype(jnp.float32)
        return out.at[tokens].add(back, mode="drop")

    start = jnp.zeros((n, d), jnp.float32)
    if size == n:
        return once(queue, start)
    most = jax.lax.pmax(jnp.max(jnp.sum(goes, axis=0)), spread.row_axes)
    queue = jnp.pad(queue, ((0, 0), (0, -n % size)), constant_values=n)
    step = lambda i, out: once(jax.lax.dynamic_slice_in_dim(queue, i * size, size, axis=1), out)  # noqa: E731
    return jax.lax.fori_loop(0, -(-most // size), step, start)


def _own(experts: jax.Array, names: jax.Array) -> jax.Array:
    """Count experts from the first of a device's own; others are none, one past its last."""
    local = experts - names[0]
    return jnp.where((local >= 0) & (local < len(names)), local, len(names)).astype(jnp.int32)


def _packed(x: jax.Array, gates: jax.Array, experts: jax.Array) -> jax.Array:
    """Put x[n, D], gates float32[n, k] and experts i32[n, k] into one buffer [n, ...] of x's bits.

    They are whole numbers, since what is no number as a float would not survive as one.
    """
    bits = _bits(x)
    as_bits = jax.lax.bitcast_convert_type(gates.astype(jnp.float32), bits.dtype).reshape(len(x), -1)
    return jnp.concatenate([bits, experts.astype(bits.dtype), as_bits], axis=1)


def _unpacked(buffer: jax.Array, d: int, k: int, dtype: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Go back from `_packed`: x[n, d], gates float32[n, k], experts i32[n, k]."""
    x, experts, gates = jnp.split(buffer, [d, d + k], axis=1)
    gates = gates.reshape(len(buffer), k, -1) if gates.shape[1] > k else gates
    return (
        jax.lax.bitcast_convert_type(x, dtype),
        jax.lax.bitcast_convert_type(gates, jnp.float32),
        experts.astype(jnp.int32),
    )


def _bits(x: jax.Array) -> jax.Array:
    """See floats of 4 or 2 bytes as whole numbers of as many."""
    return jax.lax.bitcast_convert_type(x, jnp.uint32 if x.dtype.itemsize == 4 else jnp.uint16)


def _names(entry: Any) -> tuple[str, ...]:
    """List the mesh axes of an entry of a PartitionSpec."""
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)

"""Stages: layers split over a mesh axis, and parts of the batch that go through them (GPipe, Huang et al. 2019).

Each of P stages holds the weights, and the cache, of its own run of layers. The rows of a batch are taken in M parts,
and in M + P - 1 ticks every part goes through every stage: in a tick a stage runs its layers over the part at hand and
passes what comes out on to the next. So P - 1 of the ticks of each stage are idle: a share (P - 1) / (M + P - 1), which
a batch of one row pays in full. Weights and cache never move; activations do, [B / M, T, D] a tick.

    time  0   1   2   3         P = 2, M = 3
    s0    p0  p1  p2  -
    s1    -   p0  p1  p2

The parts of a batch are read out of the cache without a copy: [L, B, ...] is [L * M, B / M, ...], where part m of layer
l is number l * M + m. That holds for the rows of one device, so mesh axes that split rows are split by hand here, as
stages are; over all others, such as `tensor`, the compiler splits what a stage does.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import PartitionSpec

from jaxinfer.cache.store import Cache, Store, extent
from jaxinfer.config import LayerKind, ModelConfig, Segment
from jaxinfer.errors import InputError
from jaxinfer.layers.attention import Place, Step
from jaxinfer.sharding import Sharding, choices, layouts
from jaxinfer.weights.qtensor import is_quantized
from jaxinfer.weights.resting import Resting, mesh_axes, resting

Layers = Callable[[Any, jax.Array, list[Place], Step], tuple[jax.Array, Any]]
"""(params, x[B, T, D], places, step) -> x after the repeats of a segment at these places, and what they made: by kind
(keys and values, leaves [layers, B, ...]) and (routing, leaves [layers, ...]), and between [layers, B, T, D] or None.
"""


def axis_of(layout: Sharding | None) -> str | None:
    """Name the mesh axis over which layers are split, None without one."""
    if layout is None:
        return None
    return next((name for name in layout.rules.targets("layers") if layout.size(name) > 1), None)


def count(cfg: ModelConfig, layout: Sharding | None = None) -> int:
    """Count the stages of a model in the program being traced, or on a layout; 1 where it cannot be split."""
    layout = layouts.active() if layout is None else layout
    axis = axis_of(layout)
    if axis is None or layout is None or problem(cfg, axis, layout.size(axis)):
        return 1
    return layout.size(axis)


def check(cfg: ModelConfig, layout: Sharding) -> None:
    """Raise InputError where the layers of a model cannot be split as its layout says."""
    axis = axis_of(layout)
    found = problem(cfg, axis, layout.size(axis)) if axis else None
    if found:
        raise InputError(found)


def split_kinds(cfg: ModelConfig) -> dict[str, int]:
    """Count the stages over which the layers of each kind are split in the program being traced, by name, if any."""
    parts = count(cfg)
    split = (segment for segment in cfg.segments if parts > 1 and segment.repeats % parts == 0)
    return {kind.name: parts for segment in split for kind in segment.pattern}


def segments(cfg: ModelConfig, stages: int) -> tuple[Segment, ...]:
    """Give the segments that one stage holds."""
    return tuple(s if s.repeats % stages else replace(s, repeats=s.repeats // stages) for s in cfg.segments)


def problem(cfg: ModelConfig, axis: str, stages: int) -> str | None:
    """Say why the layers of a model cannot be split into so many stages, or None.

    Its largest segment must divide. A smaller one that does not, such as DeepSeek-V3's 3 dense layers before 58 others,
    lies whole on every stage, all of which compute it; its kinds of layers must be its own, and their caches whole too.
    """
    divides = [segment.repeats % stages == 0 for segment in cfg.segments]
    split, whole = (
        {k for d, s in zip(divides, cfg.segments, strict=True) if d is x for k in s.pattern} for x in (True, False)
    )
    sizes = [len(segment.pattern) * segment.repeats for segment in cfg.segments]
    largest = sizes.index(max(sizes))
    if divides[largest] and not split & whole and all(cfg.count(kind) % stages for kind in whole):
        return None
    at = divides.index(False) if divides[largest] else largest
    segment = cfg.segments[at]
    common = math.gcd(*(s.repeats for s in cfg.segments)) if divides[largest] else segment.repeats
    would = [str(size) for size in range(2, common + 1) if common % size == 0]
    each = f" of {len(segment.pattern)} layers" if len(segment.pattern) > 1 else ""
    known = f"sizes that do: {', '.join(would)}" if would else "no size above 1 does"
    repeats = f"{segment.repeats} repeats{each}"
    return f"mesh axis {axis}={stages} does not divide segment {at} of the layers, {repeats}; {known}"


def run(
    layers: Layers,
    params: Any,
    axes: Any,
    places: Callable[[], list[Place]],
    x: jax.Array,
    step: Step,
    kinds: Sequence[LayerKind],
) -> tuple[jax.Array, tuple[dict[str, Any], dict[str, Any], jax.Array | None]]:
    """Run the layers of a segment in stages: what `layers` gives, of all of them.

    params, axes: its stacks [repeats, ...], and their logical axes. places: makes those of the repeats of one stage,
    within its part of stacks and stores. kinds: of the layers of the pattern.
    """
    layout = layouts.active()
    axis = axis_of(layout)
    assert layout is not None
    assert axis is not None
    together = any(_looks_around(kind, step.decoding) for kind in kinds)
    stages, by_hand = layout.size(axis), _by_hand(layout, axis, together)
    of_rows = layout.rules.spec(("batch",), x.shape[:1], layout.mesh)[0]
    rows = tuple(name for name in mesh_axes(of_rows) if name in by_hand and not together)
    local = len(x) // math.prod(layout.size(name) for name in rows)
    parts = 1 if together else largest_divisor(local, layout.rules.microbatches or stages)
    by_row, by_layer = PartitionSpec(rows or None), PartitionSpec(axis, rows or None)

    params = lying(params, axes)
    spec = partial(_spec, layout=layout, by_hand=by_hand)
    params_spec = jax.tree.map(lambda names, weight: spec(weight, names), axes, params, is_leaf=_is_axes)
    stores = {kind.name: step.cache.stores[kind.name] for kind in kinds}
    tree, forked = step.tree, step.tree is not None and len(step.tree) == len(x)  # or one tree for all rows
    by_token = {name: getattr(step, name) for name in ("tokens", "positions", "length", "live")}
    given = {"x": x, "step": by_token, "tree": tree if forked else None, "committed": step.cache.length}

    def stage(number, params, given, tree, stores):
        with layouts.use(layout.within(*by_hand)):
            return ticks(number[0], params, jax.tree.map(partial(_apart, parts), given), tree, stores)

    def ticks(number, params, given, tree, stores):
        views = {name: _view(store, parts) for name, store in stores.items()}

        def tick(arrived, t):
            part = jnp.clip(t - number, 0, parts - 1)  # nonsense in a tick that is idle here
            own = jax.tree.map(lambda a: _pick(a, part), given)
            at = {name: _rows(store, views[name], part, parts) for name, store in stores.items()}
            cache = Cache(at, length=own["committed"], aux=None, policy=step.cache.policy)
            extents = {name: extent(store) for name, store in at.items() if isinstance(store, Store)}
            tree_here = own["tree"] if forked else tree
            here = replace(step, **own["step"], tree=tree_here, cache=cache, extents=extents)
            y = jnp.where(number == 0, own["x"], arrived)
            y, made = layers(params, y, _moved(places(), kinds, stores, part, parts), here)
            onward = jax.lax.ppermute(y, axis, [(i, i + 1) for i in range(stages - 1)])
            return onward, (y, made)

        count = jnp.arange(parts + stages - 1, dtype=jnp.int32)
        _, (left, (made, routing, between)) = jax.lax.scan(tick, jnp.zeros_like(given["x"][0]), count)

        def at_work(a):  # the ticks in which this stage has a part
            return jax.lax.dynamic_slice_in_dim(a, number, parts)

        def joined(a):  # [M, layers, B / M, ...] -> [layers, B, ...]
            a = jnp.moveaxis(at_work(a), 0, 1)
            return a.reshape(a.shape[0], a.shape[1] * a.shape[2], *a.shape[3:])

        last = jnp.where(number == stages - 1, at_work(left), 0)
        out = jax.lax.psum(last, axis)
        tokens = jnp.sum(given["step"]["live"], axis=(1, 2)).astype(jnp.float32)
        routing = jax.tree.map(lambda a: _mean(at_work(a), tokens, rows), routing)
        return out.reshape(-1, *out.shape[2:]), (jax.tree.map(joined, made), routing, jax.tree.map(joined, between))

    split = jax.shard_map(
        stage,
        mesh=layout.here,
        in_specs=(
            *(PartitionSpec(axis), params_spec, by_row, PartitionSpec()),
            {name: _store_spec(store, axis, by_row, by_layer) for name, store in stores.items()},
        ),
        out_specs=(by_row, (by_layer, PartitionSpec(axis), by_layer)),
        axis_names=set(by_hand),
        check_vma=False,
    )
    return split(jnp.arange(stages, dtype=jnp.int32), params, given, None if forked else tree, stores)


def largest_divisor(n: int, most: int) -> int:
    """Give the largest number up to `most` that divides n."""
    return next(size for size in range(min(n, most), 0, -1) if n % size == 0)


def _looks_around(kind: LayerKind, decoding: bool) -> bool:
    """Tell whether what a layer does with a token depends on other rows of the batch."""
    moe = kind.moe
    return moe is not None and moe.looks_around and not (decoding and moe.in_decode == "dropless")


def _by_hand(layout: Sharding, axis: str, together: bool) -> tuple[str, ...]:
    """List the mesh axes that `run` splits itself: stages, rows of the batch, and those over which weights lie.

    One that splits something else as well, such as experts, is left to the compiler, and so are those of rows that
    must stay together.
    """
    rules = layout.rules
    others = {target for logical, target in rules.table if logical not in ("batch", "layers")}
    rows = () if together else rules.targets("batch")
    names = dict.fromkeys((axis, *rows, *(target for _, target in rules.at_rest)))
    return tuple(name for name in names if name not in others and layout.size(name) > 1)


def lying(params: Any, axes: Any) -> Any:
    """Give parameters, whose logical axes are given too, as `Resting` where they are."""
    return jax.tree.map(lambda names, weight: resting(weight, names), axes, params, is_leaf=_is_axes)


def _is_axes(x: Any) -> bool:
    return type(x) is tuple


def _spec(weight: Any, axes: Any, layout: Sharding, by_hand: tuple[str, ...]) -> Any:
    """Give the layouts of the arrays of a weight, as far as they are split by hand."""
    own = weight.weight if isinstance(weight, Resting) else weight
    named = jax.tree.leaves(own.axes(axes) if is_quantized(own) else axes, is_leaf=_is_axes)
    arrays, tree = jax.tree.flatten(weight)
    specs = []
    for names, x in zip(named, arrays, strict=True):
        spec = layout.rules.spec(names, x.shape, layout.mesh, at_rest=True)
        mine = (tuple(name for name in mesh_axes(entry) if name in by_hand) for entry in tuple(spec))
        specs.append(PartitionSpec(*(names or None for names in mine)))
    return jax.tree.unflatten(tree, specs)


def _store_spec(store: Any, axis: str, by_row: Any, by_layer: Any) -> Any:
    """Give the layout of a store, as far as it is split by hand."""
    if not isinstance(store, Store):
        return by_layer
    stacked = PartitionSpec(axis) if _is_pool(store) else by_layer
    k, v = (jax.tree.map(lambda _: stacked, numbers) for numbers in (store.k, store.v))
    return replace(store, k=k, v=v, pos=by_row, pages=by_row if _is_pool(store) else None)


def _moved(
    places: list[Place], kinds: Sequence[LayerKind], stores: dict[str, Any], part: jax.Array, parts: int
) -> list[Place]:
    """Give the places in the views of stores for one part of the rows."""
    return [
        place if _is_pool(stores[kind.name]) else replace(place, slot=place.slot * parts + part)
        for kind, place in zip(kinds, places, strict=True)
    ]


def _apart(parts: int, x: jax.Array) -> jax.Array:
    """Divide the rows of x[B, ...]: [parts, B / parts, ...]."""
    return x.reshape(parts, -1, *x.shape[1:])


def _pick(x: jax.Array, part: jax.Array) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(x, part, keepdims=False)


def _is_pool(store: Any) -> bool:
    """Tell whether rows share the blocks of a store."""
    return isinstance(store, Store) and store.pages is not None


def _view(store: Any, parts: int) -> Any:
    """Give a store, arrays [L, B, ...], as [L * parts, B / parts, ...]: the same memory. A pool stays as it is."""
    if _is_pool(store):
        return store

    def view(x: jax.Array) -> jax.Array:
        y = x.reshape(x.shape[0] * parts, x.shape[1] // parts, *x.shape[2:])
        if parts == 1 or not choices.LAYOUT_OF_VIEWS.here():
            return y
        return with_layout_constraint(y, Layout(tuple(range(y.ndim))))

    if not isinstance(store, Store):
        return jax.tree.map(view, store)
    return replace(store, k=jax.tree.map(view, store.k), v=jax.tree.map(view, store.v))


def _rows(store: Any, view: Any, part: jax.Array, parts: int) -> Any:
    """Give the view of a store with the positions of one part's rows."""
    if not isinstance(store, Store):
        return view
    pos, pages = jax.tree.map(lambda a: _pick(_apart(parts, a), part), (store.pos, store.pages))
    return replace(view, pos=pos, pages=pages)


def _mean(x: jax.Array, weights: jax.Array, rows: tuple[str, ...]) -> jax.Array:
    """Average x[parts, ...] by the tokens in each part, over the rows of all devices."""
    total = jnp.sum(weights)
    summed = jnp.tensordot(weights, x, axes=1)
    total, summed = (jax.lax.psum(a, rows) if rows else a for a in (total, summed))
    return summed / jnp.maximum(total, 1.0)

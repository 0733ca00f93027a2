"""The one network: embed, segments of blocks, final norm. Logits apart, where they are wanted.

    forward = Transformer(cfg, dtype).apply({"params": params}, tokens, positions, cache, tree)

The cache is read-only inside: forward attends over what is committed and over its own T fresh tokens, and returns the
fresh keys and values for `policy.commit`.
"""

import math
from functools import cache, partial
from typing import Any, cast

import einops
import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from jaxinfer.cache import Dense
from jaxinfer.cache.store import Cache
from jaxinfer.config import LayerKind, ModelConfig, Segment
from jaxinfer.layers.attention import Attention, Place, Step
from jaxinfer.layers.embed import Embedding
from jaxinfer.layers.linear import Linear
from jaxinfer.layers.mla import LatentAttention
from jaxinfer.layers.mlp import MLP
from jaxinfer.layers.moe import Experts
from jaxinfer.layers.norm import Norm
from jaxinfer.layers.recurrent import mixer_of
from jaxinfer.network import repeats, stages
from jaxinfer.sharding import choices, layouts
from jaxinfer.sharding.layouts import constrain

ARGMAX_BLOCK = 256


@struct.dataclass
class Output:
    """The result of one forward."""

    hidden: jax.Array  # [B, T, D], after the final norm
    fresh: dict[str, Any]  # by layer kind: (k, v) in storage format, leaves [L, B, K, T, ...]
    routing: dict[str, Any] = struct.field(default_factory=dict)  # by layer kind: RouterStats, leaves [L, ...]
    stats: Any = None  # what a policy wants to know of this step
    layers: Any = None  # [L + 1, B, T, D], if asked for: the embedding, then what each layer leaves, without a norm
    depth: jax.Array | None = None  # i32[B]: how many layers the tokens of each row went through; None: all


class Block(nn.Module):
    """Attention and MLP inside residuals, with norms around them. Its weights are stacks of `layers`."""

    cfg: ModelConfig
    kind: LayerKind
    layers: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, place: Place, step: Step) -> tuple[jax.Array, tuple[Any, Any], Any]:
        """Map x[B, T, D] -> [B, T, D], fresh (k, v), and what the router did, None without one."""
        cfg, routed = self.cfg, None

        def norm(name, y, wanted):
            if not wanted:
                return y
            return Norm(cfg.norm_eps, cfg.norm, cfg.norm_bias, layers=self.layers, name=name)(y, place.layer)

        def add(x, name, y):
            y = norm(name, y, cfg.post_norms)
            return x + (y if cfg.residual_scale == 1.0 else y * jnp.asarray(cfg.residual_scale, y.dtype))

        with jax.named_scope("attention"):
            behind_norm = norm("attention_norm", x, cfg.pre_norms)
            if self.kind.mixer:
                mixer, name = mixer_of(self.kind), "mixer"
            else:
                mixer, name = LatentAttention if cfg.mla else Attention, "attention"
            y, fresh = mixer(cfg, self.kind, self.layers, self.dtype, name=name)(behind_norm, place, step)
            residual, x = x, add(x, "attention_post_norm", y)
        if not cfg.d_ff and not self.kind.moe:
            return constrain(x, "batch", "tokens", "embed"), fresh, None
        with jax.named_scope("mlp"):
            if not cfg.shared_norm:
                behind_norm = norm("mlp_norm", residual if cfg.parallel else x, cfg.pre_norms)
            if self.kind.moe:
                experts = Experts(cfg, self.kind.moe, self.layers, self.dtype, name="moe")
                y, routed = experts(behind_norm, place.layer, step.tokens, step.live, step.decoding)
            else:
                y = MLP(cfg, self.layers, self.dtype, name="mlp")(behind_norm, place.layer)
            x = add(x, "mlp_post_norm", y)
        return constrain(x, "batch", "tokens", "embed"), fresh, routed


class Pattern(nn.Module):
    """One repeat of a segment: the body that is scanned."""

    cfg: ModelConfig
    segment: Segment
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, places: list[Place], step: Step):
        made, left = [], []
        for j, (kind, place) in enumerate(zip(self.segment.pattern, places, strict=True)):
            block = Block(self.cfg, kind, self.segment.repeats, self.dtype, name=f"layer_{j}")
            x, *new = block(x, place, step)
            made.append(tuple(new))
            left.append(x)
        return x, (made, jnp.stack(left) if step.layers else None)


class Transformer(nn.Module):
    """A decoder-only Transformer. Static under jit: configuration and weight dtype are its identity."""

    cfg: ModelConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        cfg = self.cfg
        self.embed = Embedding(cfg, self.dtype)
        scan = partial(
            nn.scan,
            variable_broadcast="params",  # the stacks as a whole: each product takes its layer out itself
            split_rngs={"params": False},
            in_axes=(0, nn.broadcast),
            check_constancy_invariants=False,  # the body writes no variables: it need not be traced twice
        )
        for i, segment in enumerate(cfg.segments):
            # One call of the body declares the whole stacks.
            pattern = Pattern if self.is_initializing() else scan(Pattern, length=segment.repeats)
            setattr(self, f"segment_{i}", pattern(cfg, segment, self.dtype))
        self.final_norm = Norm(cfg.norm_eps, cfg.norm, cfg.norm_bias)
        if not cfg.tie_embeddings:
            shape, axes = (cfg.vocab_size, cfg.d_model), ("vocab", "embed")
            self.head = Linear(shape, axes, dtype=self.dtype, out_dtype=jnp.float32)

    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        cache: Cache,
        tree: jax.Array | None = None,
        n: jax.Array | None = None,
        decoding: bool = False,
        layers: bool = False,
    ) -> Output:
        """Run over tokens, positions i32[B, T]; tree bool[B, T, T] or None for a chain -> Output.

        n: i32[B], how many of each row's tokens are not padding; None: all. decoding: a step of the decode loop.
        layers: whether to keep the hidden states between the layers.
        """
        x = constrain(self.embed(tokens, positions), "batch", "tokens", "embed")
        step = Step.of(tokens, positions, n, tree, cache, decoding, layers)
        left = [x[None]]
        made: dict[str, list] = {kind.name: [] for kind in self.cfg.kinds}
        for i, (segment, places) in enumerate(zip(self.cfg.segments, layer_places(self.cfg), strict=True)):
            places = jax.tree.map(lambda x: x[0], places) if self.is_initializing() else places
            if not self.is_initializing() and runs_apart(self.cfg, segment):
                stacks = self.variables["params"][f"segment_{i}"]
                x, (new, between) = run_apart(self.cfg, i, self.dtype, stacks, x, places, step)
            else:
                x, (new, between) = getattr(self, f"segment_{i}")(x, places, step)
                new = by_kind(segment, new)
            left += [] if between is None else [between.reshape(-1, *x.shape)]
            for name, output in new.items():
                made[name].append(output)
        outputs = joined(self.cfg, made)
        routing = {name: routed for name, (_, routed) in outputs.items() if routed is not None}
        fresh = {name: kv for name, (kv, _) in outputs.items()}
        return Output(self.final_norm(x), fresh, routing, layers=jnp.concatenate(left) if layers else None)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Map hidden[B, T, D] -> float32[B, T, V]."""
        with jax.named_scope("logits"):
            cfg = self.cfg
            logits = self.embed.attend(hidden) if cfg.tie_embeddings else self.head(hidden)
            if cfg.logit_scale != 1.0:
                logits = logits * cfg.logit_scale
            if cfg.logit_softcap:
                logits = cfg.logit_softcap * jnp.tanh(logits / cfg.logit_softcap)
            return constrain(logits, "batch", "tokens", "vocab")

    def whole(self, tokens: jax.Array, positions: jax.Array, cache: Cache) -> jax.Array:
        """Run forward and logits in one, which touches every parameter, for initialization."""
        return self.logits(self(tokens, positions, cache).hidden)


def forward(
    model: Transformer, params: Any, tokens: jax.Array, positions: jax.Array, cache: Cache, **options
) -> Output:
    """Run the network as a function of its parameters: see `Transformer.__call__`."""
    return cast(Output, model.apply({"params": params}, tokens, positions, cache, **options))


def logits_of(model: Transformer, params: Any, hidden: jax.Array) -> jax.Array:
    """Map hidden[B, T, D] -> float32[B, T, V]."""
    return cast(jax.Array, model.apply({"params": params}, hidden, method=Transformer.logits))


def likeliest_token(logits: jax.Array) -> jax.Array:
    """Return the most likely tokens of logits[..., V], of equals the first: i32[...].

    XLA on a CPU looks for an argmax one number at a time, 0.9 ms for eight times 49,152. A maximum it finds in vectors:
    so first that of each block, and then the place in the best of the blocks.
    """
    block = math.gcd(logits.shape[-1], ARGMAX_BLOCK)
    if not choices.ARGMAX_IN_BLOCKS.here() or block < 32:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    blocks = einops.rearrange(logits, "... (n block) -> ... n block", block=block)
    best = jnp.argmax(jnp.max(blocks, axis=-1), axis=-1)
    within = jnp.take_along_axis(blocks, best[..., None, None], axis=-2)[..., 0, :]
    return (best * block + jnp.argmax(within, axis=-1)).astype(jnp.int32)


def likeliest_tokens(logits: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Return the `count` largest of logits[..., V], falling, of equals the first ones: the logits, and i32[..., count].

    `lax.top_k`, which on a CPU takes 0.4 ms for eight times 49,152. No block holds one of them whose maximum is not
    among the `count` largest maxima; so what is searched is the maxima, and then the best blocks in their order.
    """
    block = math.gcd(logits.shape[-1], ARGMAX_BLOCK)
    if not choices.ARGMAX_IN_BLOCKS.here() or block < 32 or logits.shape[-1] < 4 * count * block:
        return jax.lax.top_k(logits, count)
    blocks = einops.rearrange(logits, "... (n block) -> ... n block", block=block)
    chosen = jnp.sort(jax.lax.top_k(jnp.max(blocks, axis=-1), count)[1], axis=-1)
    some = jnp.take_along_axis(blocks, chosen[..., None], axis=-2)
    best, place = jax.lax.top_k(einops.rearrange(some, "... n block -> ... (n block)"), count)
    return best, jnp.take_along_axis(chosen, place // block, axis=-1) * block + place % block


def layer_places(cfg: ModelConfig) -> list[list[Place]]:
    """Return, for each segment and each position of its pattern, the places of its repeats: arrays i32[repeats].

    In a store the layers of a kind lie in order; where they are split into stages, stage by stage.
    """
    seen, parts = dict.fromkeys(cfg.kinds, 0), stages.count(cfg)
    slots: list[list[list[int]]] = [[[] for _ in segment.pattern] for segment in cfg.segments]
    for stage in range(parts):
        for segment, columns in zip(cfg.segments, slots, strict=True):
            of_stage, rest = divmod(segment.repeats, parts)
            if rest:  # not split
                of_stage = 0 if stage else segment.repeats
            for _ in range(of_stage):
                for kind, column in zip(segment.pattern, columns, strict=True):
                    column.append(seen[kind])
                    seen[kind] += 1
    places = []
    for segment, columns in zip(cfg.segments, slots, strict=True):
        layers = jnp.arange(segment.repeats, dtype=jnp.int32)
        places.append([Place(layers, jnp.array(column, jnp.int32)) for column in columns])
    return places


def runs_apart(cfg: ModelConfig, segment: Segment) -> bool:
    """Tell whether the layers of a segment run as a function of their weights: in stages, or gathered ahead."""
    layout = layouts.active()
    if layout is None:
        return False
    ahead = any(layout.size(axis) > 1 for _, axis in layout.rules.at_rest) and choices.GATHER_AHEAD.here()
    parts = stages.count(cfg)
    return ahead or (parts > 1 and segment.repeats % parts == 0)


def run_apart(
    cfg: ModelConfig, i: int, dtype: jnp.dtype, params: Any, x: jax.Array, places: list[Place], step: Step
) -> tuple[jax.Array, tuple[dict[str, Any], jax.Array | None]]:
    """Run segment i: x, and what its layers make by kind, leaves [layers of that kind, ...], and leave after them."""
    segment, parts = cfg.segments[i], stages.count(cfg)
    pattern = Pattern(cfg, segment, dtype, name=f"segment_{i}", parent=None)
    axes = param_axes(cfg)[f"segment_{i}"]

    def layers(params: Any, x: jax.Array, places: list[Place], step: Step) -> tuple[jax.Array, Any]:
        def repeat(params: Any, x: jax.Array, at: list[Place]) -> tuple[jax.Array, Any]:
            return cast(Any, pattern.apply({"params": params}, x, at, step))

        x, (new, between) = repeats.scan(repeat, params, x, places)
        made = by_kind(segment, new)
        fresh, routing = ({name: both[at] for name, both in made.items()} for at in (0, 1))
        return x, (fresh, routing, None if between is None else between.reshape(-1, *x.shape))

    if parts == 1 or segment.repeats % parts:
        x, (fresh, routing, between) = layers(stages.lying(params, axes), x, places, step)
    else:
        of_stage = cfg.replace(segments=stages.segments(cfg, parts))
        own = lambda: layer_places(of_stage)[i]  # noqa: E731
        x, (fresh, routing, between) = stages.run(layers, params, axes, own, x, step, segment.pattern)
    return x, ({name: (kv, routing[name]) for name, kv in fresh.items()}, between)


def by_kind(segment: Segment, made: list) -> dict[str, Any]:
    """Turn leaves [repeats, ...] by position in the pattern into [layers of that kind, ...] by kind, in order."""
    groups: dict[str, list] = {}
    for kind, outputs in zip(segment.pattern, made, strict=True):
        groups.setdefault(kind.name, []).append(outputs)

    def interleave(*parts):
        if len(parts) == 1:
            return parts[0]
        return jnp.stack(parts, axis=1).reshape(-1, *parts[0].shape[1:])

    return {name: jax.tree.map(interleave, *outputs) for name, outputs in groups.items()}


def joined(cfg: ModelConfig, made: dict[str, list]) -> dict[str, Any]:
    """Join by kind what the segments of a model have made, leaves [layers, ...], in the order of stores."""
    of_stages = stages.split_kinds(cfg)
    return {name: jax.tree.map(partial(concat, of_stages.get(name, 1)), *outputs) for name, outputs in made.items()}


def concat(parts: int, *outputs: jax.Array) -> jax.Array:
    """Join layers [layers, ...] of several segments; of layers in `parts` stages, stage by stage."""
    if len(outputs) == 1:  # `jnp.concatenate` would copy it
        return outputs[0]
    if parts == 1:
        return jnp.concatenate(outputs)
    by_stage = [output.reshape(parts, -1, *output.shape[1:]) for output in outputs]
    return jnp.concatenate(by_stage, axis=1).reshape(-1, *outputs[0].shape[1:])


def _initialize(cfg: ModelConfig, dtype: jnp.dtype, key: jax.Array) -> Any:
    one = jnp.zeros((1, 1), jnp.int32)
    cache = Dense().init(cfg, 1, 1, dtype)
    return Transformer(cfg, dtype).init(key, one, one, cache, method=Transformer.whole)["params"]


def init_params(cfg: ModelConfig, dtype: jnp.dtype, key: jax.Array) -> dict:
    """Make random weights, as the plain nested dict that a checkpoint gives too."""
    return nn.meta.unbox(jax.jit(_initialize, static_argnums=(0, 1))(cfg, dtype, key))


def abstract_params(cfg: ModelConfig, dtype: jnp.dtype) -> dict:
    """Return the parameter tree as jax.ShapeDtypeStruct: what a checkpoint has to fill."""
    boxed = jax.eval_shape(partial(_initialize, cfg, jnp.dtype(dtype)), jax.random.key(0))
    return nn.meta.unbox(boxed)


@cache
def param_axes(cfg: ModelConfig) -> dict:
    """Return the parameter tree's logical axes: a tuple of names for each leaf."""
    with layouts.use(None):
        boxed = jax.eval_shape(partial(_initialize, cfg, jnp.dtype("float32")), jax.random.key(0))
    return jax.tree.map(tuple, nn.get_partition_spec(boxed), is_leaf=lambda x: isinstance(x, jax.P))

"""The one network: embed, segments of blocks, final norm. Logits apart, where they are wanted.

    forward = Transformer(cfg, dtype).apply({"params": params}, tokens, positions, cache, tree)

The cache is read-only inside: forward attends over what is committed and over its own T fresh tokens, and returns the
fresh keys and values for `policy.commit`.
"""

import math
from functools import partial
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
from jaxinfer.sharding import choices
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
            x, (new, between) = getattr(self, f"segment_{i}")(x, places, step)
            left += [] if between is None else [between.reshape(-1, *x.shape)]
            for name, outputs in by_kind(segment, new).items():
                made[name].append(outputs)
        joined = {name: jax.tree.map(lambda *parts: concat(parts), *outputs) for name, outputs in made.items()}
        routing = {name: routed for name, (_, routed) in joined.items() if routed is not None}
        fresh = {name: kv for name, (kv, _) in joined.items()}
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
    """Return, for each segment and each position of its pattern, the places of its repeats: arrays i32[repeats]."""
    seen = dict.fromkeys(cfg.kinds, 0)
    places = []
    for segment in cfg.segments:
        slots: list[list[int]] = [[] for _ in segment.pattern]
        for _ in range(segment.repeats):
            for j, kind in enumerate(segment.pattern):
                slots[j].append(seen[kind])
                seen[kind] += 1
        layers = jnp.arange(segment.repeats, dtype=jnp.int32)
        places.append([Place(layers, jnp.array(column, jnp.int32)) for column in slots])
    return places


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


def concat(parts: tuple[jax.Array, ...]) -> jax.Array:
    """Join as `jnp.concatenate`, which would copy a single part too."""
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts)


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


def param_axes(cfg: ModelConfig) -> dict:
    """Return the parameter tree's logical axes: a tuple of names for each leaf."""
    boxed = jax.eval_shape(partial(_initialize, cfg, jnp.dtype("float32")), jax.random.key(0))
    return jax.tree.map(tuple, nn.get_partition_spec(boxed), is_leaf=lambda x: isinstance(x, jax.P))

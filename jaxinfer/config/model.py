"""A model: its layers by kind, and what holds for all of them."""

import dataclasses
import itertools
from dataclasses import dataclass
from typing import Literal

from jaxinfer.config.checks import positive, whole
from jaxinfer.config.mixers import MLA, SSM, LinearAttention, MoE
from jaxinfer.config.positions import Rope

Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "relu2", "swiglu_clamped"]
NormKind = Literal["rms", "layer"]


_PLAIN = Rope()


@dataclass(frozen=True)
class LayerKind:
    """The settings of one kind of layer. The kind's cache slots, or states, are held in a store called `name`."""

    name: str = "global"
    rope: Rope | None = _PLAIN  # None: no rotary positions (NoPE; or the model has others)
    window: int | None = None  # a query at position q sees positions above q - window
    moe: MoE | None = None
    mixer: SSM | LinearAttention | None = None  # what carries a state from token to token; None: softmax attention

    def __post_init__(self):
        whole(1, window=self.window)


@dataclass(frozen=True)
class Segment:
    """`repeats` copies of a pattern of layers. Weights are stacked over the repeats and scanned."""

    pattern: tuple[LayerKind, ...]
    repeats: int


@dataclass(frozen=True)
class ModelConfig:
    """One decoder-only Transformer: embed, segments of blocks, final norm, head."""

    family: str
    vocab_size: int
    d_model: int
    d_ff: int  # 0: no MLP
    n_heads: int
    n_kv_heads: int
    head_dim: int
    segments: tuple[Segment, ...]
    max_positions: int
    norm_eps: float = 1e-5
    norm: NormKind = "rms"
    norm_bias: bool = False
    activation: Activation = "silu"
    gated: bool = True  # the MLP multiplies the activation with a second projection
    attention_bias: bool = False  # of q, k and v
    output_bias: bool = False  # of the projection after attention
    mlp_bias: bool = False
    qk_norm: Literal["head", "whole"] | None = None  # RMSNorm of q and k before RoPE: each head, or all heads as one
    pre_norms: bool = True  # a norm before attention and before the MLP
    post_norms: bool = False  # one after each, before the residual (Gemma 2 and 3; OLMo 2 has these alone)
    parallel: bool = False  # attention and MLP read the same residual, and both are added to it (GPT-J, GPT-NeoX)
    shared_norm: bool = False  # parallel: one norm in front of both (Falcon 7B)
    tie_embeddings: bool = True
    embed_norm: bool = False  # a norm after the embedding (BLOOM)
    embed_scale: float = 1.0
    residual_scale: float = 1.0  # what attention and MLP are multiplied by before they are added (Granite)
    logit_scale: float = 1.0
    query_scale: float | None = None  # what q is multiplied by; None: head_dim ** -0.5
    attention_softcap: float | None = None  # cap * tanh(score / cap) (Gemma 2)
    logit_softcap: float | None = None
    absolute_positions: Literal["learned", "sinusoidal"] | None = None  # added to the embedding
    alibi: float | None = None  # what ALiBi's slopes are multiplied by (Press et al. 2022): scores fall with distance
    sinks: bool = False  # a learned score for each head that takes its share of the softmax and adds nothing (gpt-oss)
    mla: MLA | None = None  # latent attention in place of keys and values for each head

    def __post_init__(self):
        whole(1, vocab_size=self.vocab_size, d_model=self.d_model, n_heads=self.n_heads, n_kv_heads=self.n_kv_heads)
        whole(1, head_dim=self.head_dim, max_positions=self.max_positions)
        whole(0, d_ff=self.d_ff)
        positive(norm_eps=self.norm_eps, embed_scale=self.embed_scale, logit_scale=self.logit_scale, alibi=self.alibi)
        positive(residual_scale=self.residual_scale, query_scale=self.query_scale)
        positive(attention_softcap=self.attention_softcap, logit_softcap=self.logit_softcap)
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads={self.n_heads} must be a multiple of n_kv_heads={self.n_kv_heads}")
        for rope in (kind.rope for kind in self.kinds if kind.rope):
            head = self.mla.rope_dim if self.mla else self.head_dim
            width = head if rope.width is None else rope.width
            name = "head_dim" if rope.width is None else "rotary width"
            if width % 2 or not 0 < width <= head:
                raise ValueError(f"{name}={width} must be even for rotary positions, and at most {head}")
            if width < 4 and rope.scaling and rope.scaling.kind in ("ntk", "dynamic"):
                raise ValueError(f"{name}={width} must be at least 4 for {rope.scaling.kind} scaling")
            for divisors in (rope.scaling.divisors, rope.scaling.short_divisors) if rope.scaling else ():
                if divisors and len(divisors) != width // 2:
                    raise ValueError(
                        f"longrope has {len(divisors)} factors, expected {width // 2}: one for each frequency"
                    )

        if self.mla and self.head_dim != self.mla.nope_dim + self.mla.rope_dim:
            raise ValueError(
                f"head_dim={self.head_dim} must be nope_dim + rope_dim = {self.mla.nope_dim + self.mla.rope_dim}"
            )

    @property
    def n_layers(self) -> int:
        return sum(len(segment.pattern) * segment.repeats for segment in self.segments)

    @property
    def kinds(self) -> tuple[LayerKind, ...]:
        """Return the distinct layer kinds, in order of appearance."""
        return tuple(dict.fromkeys(kind for segment in self.segments for kind in segment.pattern))

    @property
    def layers(self) -> tuple[LayerKind, ...]:
        """Return the kind of every layer, first to last."""
        return tuple(itertools.chain.from_iterable(s.pattern * s.repeats for s in self.segments))

    @property
    def stored(self) -> tuple[int, int, int]:
        """Return what the cache holds of a token in a layer: heads, width of a key, width of a value.

        Values of width 0 are the first columns of the keys.
        """
        if self.mla:
            return 1, self.mla.kv_rank + self.mla.rope_dim, 0
        return self.n_kv_heads, self.head_dim, self.head_dim

    def count(self, kind: LayerKind) -> int:
        """Count the layers of this kind."""
        return sum(segment.pattern.count(kind) * segment.repeats for segment in self.segments)

    def replace(self, **changes) -> "ModelConfig":
        return dataclasses.replace(self, **changes)


def segments_of(kinds: list[LayerKind], period: int) -> tuple[Segment, ...]:
    """Cut a model's layers, given one by one, into scanned segments: whole periods first, then what is left over.

    Example: 26 layers of period 6 become one segment of 4 repeats and one of a pattern of 2, once.
    """
    periods = len(kinds) // period
    segments = [Segment(tuple(kinds[:period]), periods)] if periods else []
    rest = tuple(kinds[periods * period :])
    if rest:
        segments.append(Segment(rest, 1))
    return tuple(segments)

"""What a model is, as data: frozen, hashable, static under jit.

Shapes in this package: B batch, T tokens in this step, S cache slots, L layers, N query heads, K key/value heads,
H head width, D model width, F feed-forward width, V vocabulary.
"""

import dataclasses
import itertools
from dataclasses import dataclass
from typing import Literal

Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "relu2", "swiglu_clamped"]
NormKind = Literal["rms", "layer"]
WeightFormat = Literal["int8", "int4", "int4-64", "int4-128", "w8a8"]  # what `transform.quantize` rounds weights to


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are changed to reach beyond the trained length.

    - `linear` divides every frequency by `factor` (position interpolation, Chen et al. 2023).
    - `ntk` raises the base so that the lowest frequency is divided by `factor` and the highest is kept (NTK-aware
      scaling).
    - `dynamic` raises the base with the length of the text, from `original_max_positions` on (dynamic NTK scaling).
    - `llama3` divides the low frequencies only and blends between the two bands (Llama 3.1 reference code).
    - `yarn` blends by the turns that a dimension makes in the trained length, between `beta_slow` and `beta_fast`, and
      multiplies q and k by `magnitude` (YaRN, Peng et al. 2023, section 3).
    - `longrope` divides each frequency by its own entry of `divisors` and multiplies q and k by `magnitude` (LongRoPE,
      Ding et al. 2024); in texts of up to `original_max_positions`, by its entry of `short_divisors`, if there are any.

    Where the length of the text matters, it is that of the prompt, and behind it that of the text up to the token: what
    is in the cache stays as it was turned.
    """

    kind: Literal["linear", "ntk", "dynamic", "llama3", "yarn", "longrope"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True  # yarn: the edges of the blend are whole dimensions
    magnitude: float = 1.0
    divisors: tuple[float, ...] = ()
    short_divisors: tuple[float, ...] = ()

    @property
    def follows_length(self) -> bool:
        """Whether the frequencies depend on how long the text is."""
        return self.kind == "dynamic" or bool(self.short_divisors)


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding (RoFormer, Su et al. 2021).

    Half layout: dimension i turns with i + width/2; interleaved: with its neighbour. A head's dimensions from `width`
    on do not turn (partial rotary, GPT-NeoX).
    """

    theta: float = 10_000.0
    scaling: RopeScaling | None = None
    width: int | None = None  # None: the whole head
    interleaved: bool = False


Router = Literal["softmax", "topk", "sigmoid", "sinkhorn", "auction", "hash", "expert_choice", "soft"]


@dataclass(frozen=True)
class MoE:
    """A mixture of experts in place of the MLP (Shazeer et al. 2017).

    router, which `jaxinfer.layers.routing` defines:

    - `softmax`: the top_k largest of the softmax over all experts. With top_k 1: Switch (Fedus et al. 2021).
    - `topk`: the softmax over the top_k largest logits (Mixtral).
    - `sigmoid`: the top_k largest sigmoids, for the choice corrected by a bias that keeps loads even (DeepSeek-V3).
    - `sinkhorn`: the top_k largest of an assignment that wants all experts equally (S-BASE, Clark et al. 2022).
    - `auction`: one expert a token, every expert as many tokens as any other, the sum of the logits as large as it can
      be; the gate is a sigmoid (BASE, Lewis et al. 2021). Decode steps take the expert with the largest logit.
    - `hash`: a fixed function of the token's id (Hash Layers, Roller et al. 2021).
    - `expert_choice`: every expert takes as many tokens as it has room for (Zhou et al. 2022). Not causal.
    - `soft`: slots are means of all tokens (Soft MoE, Puigcerver et al. 2023). Not causal.

    dispatch, which `jaxinfer.layers.dispatch` defines: `dropless` computes every token's own experts; `capacity` gives
    each expert at most capacity_factor * tokens * top_k / experts tokens of a batch and drops the rest into the
    residual; `dense` computes all experts for all tokens: the reference.

    With `capacity`, `sinkhorn`, `auction`, `expert_choice` and `soft`, what a token gets depends on the tokens beside
    it. Decode steps, which see few, route each token alone unless `in_decode` is `same`.
    """

    experts: int
    top_k: int
    d_ff: int  # of one expert
    router: Router = "softmax"
    normalize: bool = False  # the gates of a token's experts are made to sum to one
    equal_gates: bool = False  # every chosen expert counts fully (MoEfication, Zhang et al. 2022)
    scale: float = 1.0  # what gates are multiplied by
    groups: int | None = None  # groups of experts, of which a token goes to its best `top_groups` (DeepSeek-V2)
    top_groups: int = 1
    bias: bool = False  # of the router and of the experts (gpt-oss)
    shared_d_ff: int | None = None  # an expert that every token passes through
    shared_gate: bool = False  # the shared expert is multiplied by a sigmoid of the token (Qwen 2 MoE)
    dispatch: Literal["dropless", "capacity", "dense"] = "dropless"
    capacity_factor: float = 1.25
    priority: Literal["order", "gate"] = "order"  # who has a slot: the first tokens, or those with the largest gates
    slots: int = 1  # of an expert in a `soft` mixture
    in_decode: Literal["dropless", "same"] = "dropless"

    def __post_init__(self):
        if not 0 < self.top_k <= self.experts:
            raise ValueError(f"top_k={self.top_k} must be between 1 and the number of experts, {self.experts}")
        if self.router == "auction" and (self.top_k != 1 or self.groups is not None):
            raise ValueError(f"an auction gives a token one expert of all: top_k={self.top_k} must be 1, groups=None")
        if self.capacity_factor <= 0:
            raise ValueError(f"capacity_factor={self.capacity_factor} must be above 0")
        if self.slots < 1:
            raise ValueError(f"slots={self.slots} must be at least 1")
        if self.groups is None:
            return
        if self.groups < 1 or self.experts % self.groups:
            raise ValueError(f"groups={self.groups} must divide the number of experts, {self.experts}")
        if not 0 < self.top_groups <= self.groups:
            raise ValueError(f"top_groups={self.top_groups} must be between 1 and the number of groups, {self.groups}")
        if self.top_k > self.top_groups * (self.experts // self.groups):
            raise ValueError(f"top_k={self.top_k} experts do not fit into {self.top_groups} of {self.groups} groups")

    @property
    def looks_around(self) -> bool:
        """Whether what a token gets depends on the other tokens of the batch."""
        return self.dispatch == "capacity" or self.router in ("sinkhorn", "auction", "expert_choice", "soft")

    def alone(self) -> "MoE":
        """The same experts, with every token routed for itself."""
        free: dict[Router, Router] = {"sinkhorn": "softmax", "expert_choice": "softmax", "auction": "sigmoid"}
        router = free.get(self.router, self.router)
        dispatch = "dropless" if self.dispatch == "capacity" else self.dispatch
        return dataclasses.replace(self, router=router, dispatch=dispatch)


@dataclass(frozen=True)
class MLA:
    """Multi-head latent attention (DeepSeek-V2, 2024, section 2.1): the cache holds one short vector a token.

    It is a latent of kv_rank, from which every head makes its own keys and values, and a key of rope_dim that turns and
    that all heads share. `head_dim` of the model is nope_dim + rope_dim.
    """

    kv_rank: int
    nope_dim: int
    rope_dim: int
    v_dim: int
    q_rank: int | None = None  # queries come from a latent too

    def __post_init__(self):
        if self.rope_dim % 2:
            raise ValueError(f"rope_dim={self.rope_dim} must be even for rotary positions")


@dataclass(frozen=True)
class SSM:
    """A selective state space in place of attention: Mamba (Gu and Dao 2023) or Mamba-2 (Dao and Gu 2024)."""

    version: Literal[1, 2]
    width: int  # channels that go through a state
    state: int  # numbers that a channel carries
    conv: int = 4  # tokens that the convolution in front of it spans
    dt_rank: int = 1  # Mamba: the rank of the step size
    heads: int = 1  # Mamba-2: the channels of a head share one decay
    groups: int = 1  # Mamba-2: the heads of a group share what goes into the state and what is read off it
    bias: bool = False
    conv_bias: bool = True
    dt_limit: tuple[float, float] = (0.0, float("inf"))

    def __post_init__(self):
        if self.conv < 2:
            raise ValueError(f"conv={self.conv} must be at least 2")
        if self.version == 2 and (self.width % self.heads or self.heads % self.groups):
            raise ValueError(f"heads={self.heads} must divide width={self.width}, and groups={self.groups} the heads")

    def carried(self, cfg: "ModelConfig") -> dict[str, tuple[int, ...]]:
        """The shapes of a row's state in one layer."""
        if self.version == 1:
            return {"conv": (self.conv - 1, self.width), "ssm": (self.width, self.state)}
        channels = self.width + 2 * self.groups * self.state
        return {"conv": (self.conv - 1, channels), "ssm": (self.heads, self.width // self.heads, self.state)}


@dataclass(frozen=True)
class LinearAttention:
    """Attention with a feature map, elu + 1, in place of the softmax (Katharopoulos et al. 2020)."""

    def carried(self, cfg: "ModelConfig") -> dict[str, tuple[int, ...]]:
        """The shapes of a row's state in one layer: sums over keys and values, and over keys alone."""
        return {"sums": (cfg.n_heads, cfg.head_dim + 1, cfg.head_dim)}


@dataclass(frozen=True)
class LayerKind:
    """What layers of one kind share. Their cache slots, or states, are held together, in a store called `name`."""

    name: str = "global"
    rope: Rope | None = Rope()  # None: no rotary positions (NoPE; or the model has others)
    window: int | None = None  # a query at position q sees positions above q - window
    moe: MoE | None = None
    mixer: SSM | LinearAttention | None = None  # what carries a state from token to token; None: softmax attention


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
    output_bias: bool = False  # of the projection behind attention
    mlp_bias: bool = False
    qk_norm: Literal["head", "whole"] | None = None  # RMSNorm of q and k before RoPE: each head, or all heads as one
    pre_norms: bool = True  # a norm before attention and before the MLP
    post_norms: bool = False  # one behind each, before the residual (Gemma 2 and 3; OLMo 2 has these alone)
    parallel: bool = False  # attention and MLP read the same residual, and both are added to it (GPT-J, GPT-NeoX)
    shared_norm: bool = False  # parallel: one norm in front of both (Falcon 7B)
    tie_embeddings: bool = True
    embed_norm: bool = False  # a norm behind the embedding (BLOOM)
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
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads={self.n_heads} must be a multiple of n_kv_heads={self.n_kv_heads}")
        for rope in (kind.rope for kind in self.kinds if kind.rope):
            whole = self.mla.rope_dim if self.mla else self.head_dim
            width = whole if rope.width is None else rope.width
            name = "head_dim" if rope.width is None else "rotary width"
            if width % 2 or not 0 < width <= whole:
                raise ValueError(f"{name}={width} must be even for rotary positions, and at most {whole}")
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
        """The distinct layer kinds, in order of appearance."""
        return tuple(dict.fromkeys(kind for segment in self.segments for kind in segment.pattern))

    @property
    def layers(self) -> tuple[LayerKind, ...]:
        """The kind of every layer, first to last."""
        return tuple(itertools.chain.from_iterable(s.pattern * s.repeats for s in self.segments))

    @property
    def stored(self) -> tuple[int, int, int]:
        """What the cache holds of a token in a layer: heads, width of a key, width of a value.

        Values of width 0 are the first columns of the keys.
        """
        if self.mla:
            return 1, self.mla.kv_rank + self.mla.rope_dim, 0
        return self.n_kv_heads, self.head_dim, self.head_dim

    def count(self, kind: LayerKind) -> int:
        """How many layers are of this kind."""
        return sum(segment.pattern.count(kind) * segment.repeats for segment in self.segments)

    def replace(self, **changes) -> "ModelConfig":
        return dataclasses.replace(self, **changes)


def segments_of(kinds: list[LayerKind], period: int) -> tuple[Segment, ...]:
    """Cut a model's layers, given one by one, into scanned segments: whole periods first, then what is left over.

    Example: 26 layers of period 6 become one segment of 4 repeats and one of a pattern of 2, once.
    """
    whole = len(kinds) // period
    segments = [Segment(tuple(kinds[:period]), whole)] if whole else []
    rest = tuple(kinds[whole * period :])
    if rest:
        segments.append(Segment(rest, 1))
    return tuple(segments)

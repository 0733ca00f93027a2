"""What a model is, as data: frozen, hashable, static under jit.

Shapes in this package: B batch, T tokens in this step, S cache slots, L layers, N query heads, K key/value heads,
H head width, D model width, F feed-forward width, V vocabulary.
"""

import dataclasses
import itertools
from dataclasses import dataclass
from typing import Literal

Activation = Literal["silu", "gelu_tanh"]


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are changed to reach beyond the trained length.

    `linear` divides every frequency by `factor` (position interpolation, Chen et al. 2023). `llama3` divides the low
    frequencies only and blends between the two bands (Llama 3.1 reference code).
    """

    kind: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding (RoFormer, Su et al. 2021), half layout: dimension i turns with i + H/2."""

    theta: float = 10_000.0
    scaling: RopeScaling | None = None


@dataclass(frozen=True)
class LayerKind:
    """What layers of one kind share. Their cache slots are held together, in a store called `name`."""

    name: str = "global"
    rope: Rope = Rope()
    window: int | None = None  # a query at position q sees positions above q - window


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
    d_ff: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    segments: tuple[Segment, ...]
    max_positions: int
    norm_eps: float = 1e-5
    activation: Activation = "silu"
    qk_norm: bool = False  # RMSNorm over each head of q and k, before RoPE
    post_norms: bool = False  # a second norm behind attention and MLP, before the residual (Gemma 2, 3)
    tie_embeddings: bool = True
    embed_scale: float = 1.0
    query_scale: float | None = None  # what q is multiplied by; None: head_dim ** -0.5

    def __post_init__(self):
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads={self.n_heads} must be a multiple of n_kv_heads={self.n_kv_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} must be even for rotary positions")

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

"""The description of a model, as data: frozen, hashable, static under jit.

Shapes in this package: B batch, T tokens in this step, S cache slots, L layers, N query heads, K key/value heads,
H head width, D model width, F feed-forward width, V vocabulary.
"""

from jaxinfer.config.checks import MOST
from jaxinfer.config.mixers import MLA, SSM, LinearAttention, MoE, Router
from jaxinfer.config.model import (
    Activation,
    LayerKind,
    ModelConfig,
    NormKind,
    Segment,
    segments_of,
)
from jaxinfer.config.positions import Rope, RopeScaling, ScalingKind

__all__ = [
    "MLA",
    "MOST",
    "SSM",
    "Activation",
    "LayerKind",
    "LinearAttention",
    "MoE",
    "ModelConfig",
    "NormKind",
    "Rope",
    "RopeScaling",
    "Router",
    "ScalingKind",
    "Segment",
    "segments_of",
]

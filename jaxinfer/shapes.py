"""Models that are known by their shape alone: random weights, for speed and memory where there is no checkpoint."""

from jaxinfer.config import LayerKind, ModelConfig, Rope, Segment
from jaxinfer.errors import InputError, nearest

PREFIX = "random:"


LLAMA2_7B = ModelConfig(
    family="llama",
    vocab_size=32_000,
    d_model=4096,
    d_ff=11_008,
    n_heads=32,
    n_kv_heads=32,
    head_dim=128,
    segments=(Segment((LayerKind(rope=Rope(10_000.0)),), 32),),
    max_positions=4096,
    tie_embeddings=False,
)
LLAMA3_8B = LLAMA2_7B.replace(
    vocab_size=128_256,
    d_ff=14_336,
    n_kv_heads=8,
    segments=(Segment((LayerKind(rope=Rope(500_000.0)),), 32),),
    max_positions=8192,
)
SHAPES = {"llama2-7b": LLAMA2_7B, "llama3-8b": LLAMA3_8B}
"""By name: Llama 2 7B (Touvron et al. 2023) and Llama 3 8B (Grattafiori et al. 2024, table 3)."""


def shape_of(source: str) -> ModelConfig | None:
    """The shape that `random:NAME` names; None for a source of another kind. Raises InputError for an unknown name."""
    if not source.startswith(PREFIX):
        return None
    name = source.removeprefix(PREFIX)
    if name not in SHAPES:
        raise InputError(f"{source}: is no known shape: {', '.join(SHAPES)}{nearest(name, SHAPES)}")
    return SHAPES[name]

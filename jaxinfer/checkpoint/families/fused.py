"""Pieces for the families that keep q, k and v of a layer in one tensor, head by head or group by group."""

from collections.abc import Callable

from jaxinfer.checkpoint.mapping import Part, Rule
from jaxinfer.config import ModelConfig


def grouped(which: str, axis: int = 0) -> Callable[[ModelConfig], Part]:
    """q, k or v where each key/value head follows its queries, and its value follows it (GPT-NeoX, BLOOM, Falcon)."""

    def part(cfg: ModelConfig) -> Part:
        group = cfg.n_heads // cfg.n_kv_heads
        start, count = {"q": (0, group), "k": (group, 1), "v": (group + 1, 1)}[which]
        return Part(start, count, group + 2, cfg.n_kv_heads, axis)

    return part


def in_turn(which: str, axis: int = 0) -> Callable[[ModelConfig], Part]:
    """q, k or v where all heads of q come first, then those of k, then those of v (Phi-3, MPT, GPT-2)."""

    def part(cfg: ModelConfig) -> Part:
        n, k = cfg.n_heads, cfg.n_kv_heads
        start, count = {"q": (0, n), "k": (n, k), "v": (n + k, k)}[which]
        return Part(start, count, n + 2 * k, axis=axis)

    return part


def named(prefix: str, names: dict[str, str], axes: dict[str, str]) -> tuple[Rule, ...]:
    """Rows for weights in layers: parameter -> name in the file, between `prefix` and the suffix that fits it."""
    rows = []
    for param, name in names.items():
        suffix = "bias" if param.endswith("bias") else "weight"
        rows.append(Rule(param, f"{prefix}.{{n}}.{name}.{suffix}", None, axes.get(param, "d -> d")))
    return tuple(rows)


def qkv(hf: str, part: Callable, bias: bool = True, axis: int = 0, gguf: str | None = None) -> tuple[Rule, ...]:
    """The rows of q, k and v in the fused tensor `hf` (without suffix); axis 1: the file holds [in, out]."""
    other = gguf and f"{gguf}.weight"
    kernel = "n h d -> d (n h)" if axis else "n h d -> (n h) d"
    rows = [Rule(f"attention/{x}/kernel", f"{hf}.weight", other, kernel, part=part(x, axis)) for x in "qkv"]
    if bias:
        rows += [Rule(f"attention/{x}/bias", f"{hf}.bias", None, "n h -> (n h)", part=part(x)) for x in "qkv"]
    return tuple(rows)


MLP_AXES = {
    "attention/o/kernel": "d n h -> d (n h)",
    "mlp/up/kernel": "f d -> f d",
    "mlp/up/bias": "f -> f",
    "mlp/down/kernel": "d f -> d f",
}


def with_biases(names: dict[str, str]) -> dict[str, str]:
    """The same names for kernels and scales, and for the biases beside them."""
    return names | {path.rsplit("/", 1)[0] + "/bias": name for path, name in names.items()}

"""Pieces for the families that keep q, k and v of a layer in one tensor, head by head or group by group."""

from collections.abc import Callable

from jaxinfer.checkpoint.mapping import Part, Rule
from jaxinfer.config import ModelConfig


def grouped(which: str, axis: int = 0) -> Callable[[ModelConfig], Part]:
    """Return q, k or v where each key/value head follows its queries, then its value (GPT-NeoX, BLOOM, Falcon)."""

    def part(cfg: ModelConfig) -> Part:
        group = cfg.n_heads // cfg.n_kv_heads
        start, count = {"q": (0, group), "k": (group, 1), "v": (group + 1, 1)}[which]
        return Part(start, count, group + 2, cfg.n_kv_heads, axis)

    return part


def in_turn(which: str, axis: int = 0) -> Callable[[ModelConfig], Part]:
    """Return q, k or v where all heads of q come first, then those of k, then those of v (Phi-3, MPT, GPT-2)."""

    def part(cfg: ModelConfig) -> Part:
        n, k = cfg.n_heads, cfg.n_kv_heads
        start, count = {"q": (0, n), "k": (n, k), "v": (n + k, k)}[which]
        return Part(start, count, n + 2 * k, axis=axis)

    return part


def whole_model(embed: str, head: str, norm: str) -> tuple[Rule, ...]:
    """Return rows for what is in no layer: the names in Hugging Face files of embedding, head and final norm."""
    return (
        Rule("embed/embedding", f"{embed}.weight", "token_embd.weight", "v d -> v d"),
        Rule("head/kernel", f"{head}.weight", "output.weight", "v d -> v d"),
        Rule("final_norm/scale", f"{norm}.weight", "output_norm.weight", "d -> d"),
        Rule("final_norm/bias", f"{norm}.bias", "output_norm.bias", "d -> d"),
    )


def named(prefix: str, names: dict[str, str], axes: dict[str, str]) -> tuple[Rule, ...]:
    """Return rows for weights in layers: parameter -> name in the file, between `prefix` and the suffix that fits."""
    rows = []
    for param, name in names.items():
        block, what = param.rsplit("/", 1)
        suffix = "bias" if what == "bias" else "weight"
        gguf = f"blk.{{n}}.{_GGUF[block]}.{suffix}"
        own, other = (table.get(param, "d -> d") for table in (axes, GGUF_AXES))
        rows.append(Rule(param, f"{prefix}.{{n}}.{name}.{suffix}", gguf, own, gguf_axes=other))
    return tuple(rows)


def qkv(hf: str, part: Callable, bias: bool = True, axis: int = 0) -> tuple[Rule, ...]:
    """Return the rows of q, k and v in the fused tensor `hf` (without suffix); axis 1: the file holds [in, out].

    GGUF files have them fused too, all heads in turn and [out, in] whatever the family.
    """
    kernel, gguf = "n h d -> d (n h)" if axis else "n h d -> (n h) d", "blk.{n}.attn_qkv"
    rows = []
    for x in "qkv":
        options = dict(gguf_axes="n h d -> (n h) d", part=part(x, axis), gguf_part=in_turn(x))
        rows.append(Rule(f"attention/{x}/kernel", f"{hf}.weight", f"{gguf}.weight", kernel, **options))
        if bias:
            shares = dict(part=part(x), gguf_part=in_turn(x))
            rows.append(Rule(f"attention/{x}/bias", f"{hf}.bias", f"{gguf}.bias", "n h -> (n h)", **shares))
    return tuple(rows)


MLP_AXES = {
    "attention/o/kernel": "d n h -> d (n h)",
    "mlp/up/kernel": "f d -> f d",
    "mlp/up/bias": "f -> f",
    "mlp/down/kernel": "d f -> d f",
}
GGUF_AXES = MLP_AXES | {f"attention/{x}/kernel": "n h d -> (n h) d" for x in "qkv"}
GGUF_AXES |= {f"attention/{x}/bias": "n h -> (n h)" for x in "qkv"}
_GGUF = {
    "attention_norm": "attn_norm",
    "mlp_norm": "ffn_norm",
    "attention/q": "attn_q",
    "attention/k": "attn_k",
    "attention/v": "attn_v",
    "attention/o": "attn_output",
    "mlp/up": "ffn_up",
    "mlp/down": "ffn_down",
}


def with_biases(names: dict[str, str]) -> dict[str, str]:
    """Return the same names for kernels and scales, and for the biases beside them."""
    return names | {path.rsplit("/", 1)[0] + "/bias": name for path, name in names.items()}

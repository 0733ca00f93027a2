"""Rows of the tables and pieces of the configuration readers that families share."""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

from jaxinfer.checkpoint.families.rope import context, gguf_rope, rope_fields, rope_of, trained_context
from jaxinfer.checkpoint.fields import Fields
from jaxinfer.checkpoint.mapping import Rule, Tensors
from jaxinfer.config import Activation, LayerKind, ModelConfig, MoE, Rope, Segment, segments_of
from jaxinfer.errors import InputError, shown


def layer(param: str, hf: str, gguf: str | None, axes: str, **options) -> Rule:
    """Return the row of a weight in the layers, with the prefixes and suffix that both formats put around its name."""
    return Rule(param, f"model.layers.{{n}}.{hf}.weight", gguf and f"blk.{{n}}.{gguf}.weight", axes, **options)


def biases(*rules: Rule) -> tuple[Rule, ...]:
    """Return the rows of the biases of these projections: a model without them skips them."""
    return tuple(map(_bias, rules))


def _bias(rule: Rule) -> Rule:
    def outward(axes: str) -> str:
        """Cut `"n h d -> (n h) d"` to `"n h -> (n h)"`: the file's side alone. `o` and `down` have one axis there."""
        if rule.param in ("attention/o/kernel", "mlp/down/kernel"):
            return "d -> d"
        return " ".join(axis for axis in axes.split() if axis != "d")

    gguf_axes = rule.gguf_axes and outward(rule.gguf_axes)
    return _renamed(rule, "kernel", axes=outward(rule.axes), gguf_axes=gguf_axes)


def norm_biases(*rules: Rule) -> tuple[Rule, ...]:
    """Return the rows of the biases of these norms."""
    return tuple(_renamed(rule, "scale", axes=rule.axes) for rule in rules)


def _renamed(rule: Rule, what: str, **options: Any) -> Rule:
    """Return the row of the bias beside a kernel or a scale."""
    gguf = rule.gguf and rule.gguf.removesuffix("weight") + "bias"
    return Rule(rule.param.removesuffix(what) + "bias", rule.hf.removesuffix("weight") + "bias", gguf, **options)


EMBED = (
    Rule("embed/embedding", "model.embed_tokens.weight", "token_embd.weight", "v d -> v d"),
    Rule("head/kernel", "lm_head.weight", "output.weight", "v d -> v d"),
)

# GGUF files of the Llama lineage hold q and k for the interleaved RoPE: the halves of a head, element by element.
INTERLEAVED = "n (two half) d -> (n half two) d"

TURNED_QUERY_AND_KEY = (
    layer("attention/q/kernel", "self_attn.q_proj", "attn_q", "n h d -> (n h) d", gguf_axes=INTERLEAVED),
    layer("attention/k/kernel", "self_attn.k_proj", "attn_k", "n h d -> (n h) d", gguf_axes=INTERLEAVED),
)

QUERY_AND_KEY = (
    layer("attention/q/kernel", "self_attn.q_proj", "attn_q", "n h d -> (n h) d"),
    layer("attention/k/kernel", "self_attn.k_proj", "attn_k", "n h d -> (n h) d"),
)

VALUE_AND_OUTPUT = (
    layer("attention/v/kernel", "self_attn.v_proj", "attn_v", "n h d -> (n h) d"),
    layer("attention/o/kernel", "self_attn.o_proj", "attn_output", "d n h -> d (n h)"),
)

GATED_MLP = (
    layer("mlp/gate/kernel", "mlp.gate_proj", "ffn_gate", "f d -> f d"),
    layer("mlp/up/kernel", "mlp.up_proj", "ffn_up", "f d -> f d"),
    layer("mlp/down/kernel", "mlp.down_proj", "ffn_down", "d f -> d f"),
)

NORMS = (
    layer("attention_norm/scale", "input_layernorm", "attn_norm", "d -> d"),
    layer("mlp_norm/scale", "post_attention_layernorm", "ffn_norm", "d -> d"),
    Rule("final_norm/scale", "model.norm.weight", "output_norm.weight", "d -> d"),
)

_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
}


HF_ACTIVATIONS: dict[Activation, str] = {
    "silu": "silu",
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
    "relu": "relu",
    "relu2": "relu2",
    "swiglu_clamped": "silu",
}


def activation(fields: Fields, name: str, default: str) -> Activation:
    """Return ModelConfig's name for the activation that a field names."""
    value = fields.text(name, default)
    if value not in _ACTIVATIONS:
        raise InputError(f"{fields.file}: {name}={shown(value)} is not supported; supported: {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[value]


def head_dim(fields: Fields, name: str, d_model: int, n_heads: int) -> int:
    """Return the width of a head: what the field says, or d_model / n_heads where that is a whole number."""
    return fields.integer(name) if d_model % n_heads else fields.integer(name, d_model // n_heads)


def even_share(fields: Fields, d_model: int, n_heads: int) -> int:
    """Return the width of a head in families whose files cannot say it."""
    if d_model % n_heads:
        raise InputError(f"{fields.file}: a width of {shown(d_model)} cannot be shared by {shown(n_heads)} heads")
    return d_model // n_heads


def shortest_segments(kinds: list[LayerKind]) -> tuple[Segment, ...]:
    """Return the segments that spell out the fewest layers: of a pattern that repeats, or of runs of equal layers."""
    period = next(p for p in range(1, len(kinds) + 1) if all(k == kinds[n % p] for n, k in enumerate(kinds)))
    periodic = segments_of(kinds, period)
    runs = tuple(Segment((kind,), len(list(group))) for kind, group in itertools.groupby(kinds))
    return min(periodic, runs, key=lambda segments: sum(len(segment.pattern) for segment in segments))


def hf_decoder(fields: Fields, family: str, **settings: Any) -> ModelConfig:
    """Read what configurations of the Llama lineage have in common. `settings` are ModelConfig's, and come first.

    A list of layer kinds may be given as `kinds`; without one, all layers are of one kind, with the file's RoPE.
    """
    d_model, n_heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    n_layers = fields.integer("num_hidden_layers")
    kinds = settings.pop("kinds", None) or [LayerKind("global", rope_of(fields))] * n_layers
    read: dict[str, Callable[[], Any]] = {
        "vocab_size": lambda: fields.integer("vocab_size"),
        "d_ff": lambda: fields.integer("intermediate_size"),
        "n_kv_heads": lambda: fields.integer("num_key_value_heads", n_heads),
        "head_dim": lambda: head_dim(fields, "head_dim", d_model, n_heads),
        "max_positions": lambda: context(fields, 2048),
        "norm_eps": lambda: fields.positive("rms_norm_eps", 1e-6),
        "activation": lambda: activation(fields, "hidden_act", "silu"),
        "tie_embeddings": lambda: fields.flag("tie_word_embeddings", False),
    }
    values: dict[str, Any] = {
        name: settings.pop(name) if name in settings else reader() for name, reader in read.items()
    }
    segments = shortest_segments(kinds)
    return ModelConfig(family=family, d_model=d_model, n_heads=n_heads, segments=segments, **values, **settings)


def decoder_fields(cfg: ModelConfig) -> dict[str, Any]:
    """Return the inverse of `hf_decoder`, with the fields that single families add left to them."""
    fields = {
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.d_model,
        "intermediate_size": cfg.d_ff,
        "num_hidden_layers": cfg.n_layers,
        "num_attention_heads": cfg.n_heads,
        "num_key_value_heads": cfg.n_kv_heads,
        "head_dim": cfg.head_dim,
        "max_position_embeddings": trained_context(cfg),
        "rms_norm_eps": cfg.norm_eps,
        "hidden_act": HF_ACTIVATIONS[cfg.activation],
        "tie_word_embeddings": cfg.tie_embeddings,
        "attention_bias": cfg.attention_bias,
        "mlp_bias": cfg.mlp_bias,
    }
    rope = next((kind.rope for kind in cfg.kinds if kind.rope), None)
    return fields if rope is None else fields | {"rope_parameters": rope_fields(rope, cfg.head_dim)}


def window_fields(cfg: ModelConfig) -> dict[str, Any]:
    """Return the inverse of `windowed`."""
    types = ["sliding_attention" if kind.window else "full_attention" for kind in cfg.layers]
    window = next((kind.window for kind in cfg.kinds if kind.window), None)
    return {"layer_types": types, "sliding_window": window, "use_sliding_window": window is not None}


def gguf_decoder(fields: Fields, tensors: Tensors, family: str, **settings) -> ModelConfig:
    """Read what the metadata of Llama's lineage in GGUF files share. `settings` are ModelConfig's and come first.

    `kinds` is given the file's RoPE and the number of layers, and gives their kinds; without it, all are alike.
    `partial`: `rope.dimension_count` says what part of a head turns.
    """
    d_model, n_heads = fields.integer("embedding_length"), fields.integer("attention.head_count")
    width = head_dim(fields, "attention.key_length", d_model, n_heads)
    rope = gguf_rope(fields, tensors, fields.positive("rope.freq_base", 10_000.0), width)
    # Of latent attention the family says which part turns.
    turning = width if settings.get("mla") else fields.integer("rope.dimension_count", width)
    allowed = f"even and at most {width}" if settings.pop("partial", False) else f"{width}, the width of a head"
    if turning % 2 or turning > width or (turning != width and not allowed.startswith("even")):
        raise InputError(f"{fields.file}: {fields.prefix}rope.dimension_count={turning} must be {allowed}")
    rope = dataclasses.replace(rope, width=None if turning == width else turning)
    kinds = settings.pop("kinds", lambda rope, n: [LayerKind("global", rope)] * n)
    given: dict[str, Any] = dict(
        vocab_size=gguf_vocab_size(fields, tensors),
        d_model=d_model,
        d_ff=settings.pop("d_ff", None) or fields.integer("feed_forward_length"),
        n_heads=n_heads,
        n_kv_heads=fields.integer("attention.head_count_kv", n_heads),
        head_dim=width,
        segments=shortest_segments(kinds(rope, fields.integer("block_count"))),
        max_positions=_context(fields, rope),
        norm_eps=settings.pop("norm_eps", None) or fields.positive("attention.layer_norm_rms_epsilon"),
        tie_embeddings="output.weight" not in tensors,
    )
    return ModelConfig(family=family, **(given | settings))


def _context(fields: Fields, rope: Rope) -> int:
    """Count the positions: YaRN reaches its factor times the trained length, which not all files say.

    (The converter copies `max_position_embeddings`; what linear scaling reaches is in it.)
    """
    told, scaling = fields.integer("context_length"), rope.scaling
    if scaling is None or scaling.kind != "yarn":
        return told
    return max(told, int(scaling.original_max_positions * scaling.factor))


def gguf_layer_norm(fields: Fields) -> float:
    """Return `norm_eps` of a family whose norms are layer norms."""
    return fields.positive("attention.layer_norm_epsilon")


def without_rope(rope: Rope, n_layers: int) -> list[LayerKind]:
    """Return the kinds of the layers of a family whose positions are not rotary."""
    return [LayerKind("global", None)] * n_layers


def windowed(
    fields: Fields,
    types: list[str] | None,
    n_layers: int,
    moe: MoE | None = None,
    *,
    window: int,
    rope: Rope | None = None,
) -> list[LayerKind]:
    """Read the kinds of the layers that `layer_types` lists: sliding_attention has the window, full_attention none.

    `types`: in place of the file's; `window`: where it names none; `rope`: in place of the file's.
    """
    known = ("sliding_attention", "full_attention")
    if types is None:
        types = fields.listed("layer_types", n_layers, known, None) or ["full_attention"] * n_layers
    rope = rope or rope_of(fields)
    window = fields.integer("sliding_window", window) if known[0] in types else window
    kinds = {known[0]: LayerKind("local", rope, window, moe), known[1]: LayerKind("global", rope, moe=moe)}
    return [kinds[name] for name in types]


def gguf_vocab_size(fields: Fields, tensors: Tensors) -> int:
    """Return the rows of the embedding: metadata often lacks the vocabulary's size."""
    if "token_embd.weight" not in tensors:
        raise InputError(f"{fields.file}: tensor 'token_embd.weight' is missing")
    return tensors["token_embd.weight"].shape[0]

"""Mamba and Mamba-2: selective state spaces and nothing else."""

import math
from functools import partial
from typing import Any, Literal

import numpy as np

from jaxinfer.checkpoint.families.common import gguf_vocab_size, shortest_segments
from jaxinfer.checkpoint.fields import Fields, is_finite
from jaxinfer.checkpoint.mapping import Family, Rule, Tensor, Tensors
from jaxinfer.config import SSM, LayerKind, ModelConfig
from jaxinfer.errors import InputError, shown

NO_BOUND = 1 << 20  # the state has no end; positions are counted all the same


def _row(param: str, hf: str, gguf: str, axes: str, gguf_axes: str | None = None) -> Rule:
    return Rule(param, f"backbone.layers.{{n}}.{hf}", f"blk.{{n}}.{gguf}", axes, gguf_axes=gguf_axes)


_RULES = (
    Rule("embed/embedding", "backbone.embeddings.weight", "token_embd.weight", "v d -> v d"),
    Rule("head/kernel", "lm_head.weight", "output.weight", "v d -> v d"),
    Rule("final_norm/scale", "backbone.norm_f.weight", "output_norm.weight", "d -> d"),
    _row("attention_norm/scale", "norm.weight", "attn_norm.weight", "d -> d"),
    _row("mixer/in/kernel", "mixer.in_proj.weight", "ssm_in.weight", "w d -> w d"),
    _row("mixer/in/bias", "mixer.in_proj.bias", "ssm_in.bias", "w -> w"),
    _row("mixer/conv", "mixer.conv1d.weight", "ssm_conv1d.weight", "w k -> w 1 k", "w k -> w k"),
    _row("mixer/conv_bias", "mixer.conv1d.bias", "ssm_conv1d.bias", "w -> w"),
    _row("mixer/out/kernel", "mixer.out_proj.weight", "ssm_out.weight", "d w -> d w"),
    _row("mixer/out/bias", "mixer.out_proj.bias", "ssm_out.bias", "d -> d"),
)


def _decoder(fields: Fields, family: str, ssm: SSM, tied: bool) -> ModelConfig:
    if fields.text("hidden_act", "silu") != "silu":
        raise InputError(f"{fields.file}: hidden_act={shown(fields.text('hidden_act'))}: only 'silu' is supported")
    return _model(
        ssm,
        fields.integer("num_hidden_layers"),
        family=family,
        vocab_size=fields.integer("vocab_size"),
        d_model=fields.integer("hidden_size"),
        norm_eps=fields.positive("layer_norm_epsilon", 1e-5),
        tie_embeddings=fields.flag("tie_word_embeddings", tied),
    )


def _model(ssm: SSM, n_layers: int, **settings: Any) -> ModelConfig:
    return ModelConfig(
        d_ff=0,
        n_heads=ssm.heads,
        n_kv_heads=ssm.heads,
        head_dim=ssm.width // ssm.heads,
        segments=shortest_segments([LayerKind("state", rope=None, mixer=ssm)] * n_layers),
        max_positions=NO_BOUND,
        **settings,
    )


def _common(fields: Fields) -> dict[str, Any]:
    return dict(
        width=int(fields.positive("expand", 2) * fields.integer("hidden_size")),
        conv=fields.integer("conv_kernel", 4),
        bias=fields.flag("use_bias", False),
        conv_bias=fields.flag("use_conv_bias", True),
    )


def _mamba(fields: Fields) -> ModelConfig:
    rank = fields.get("time_step_rank", "auto")
    rank = math.ceil(fields.integer("hidden_size") / 16) if rank == "auto" else fields.integer("time_step_rank")
    ssm = SSM(1, state=fields.integer("state_size", 16), dt_rank=rank, **_common(fields))
    return _decoder(fields, "mamba", ssm, True)


def _mamba2(fields: Fields) -> ModelConfig:
    low, high = map(_bound, fields.listed("time_step_limit", 2, None, [0.0, math.inf]))
    if low is None or high is None:
        found = shown(fields.get("time_step_limit"))
        raise InputError(f"{fields.file}: field 'time_step_limit' must be a list of two numbers, not {found}")
    ssm = SSM(
        2,
        state=fields.integer("state_size", 128),
        heads=fields.integer("num_heads", 128),
        groups=fields.integer("n_groups", 8),
        dt_limit=(low, high),
        **_common(fields),
    )
    return _decoder(fields, "mamba2", ssm, False)


def _bound(value: Any) -> float | None:
    """Read a number, or infinity as transformers writes it, {"__float__": "Infinity"}; None for anything else."""
    if isinstance(value, dict):
        return {"Infinity": math.inf, "-Infinity": -math.inf}.get(str(value.get("__float__")))
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and (value in (math.inf, -math.inf) or is_finite(value)) else None


def _gguf(version: Literal[1, 2], family: str):
    """Return a reader of GGUF metadata, in which `time_step_rank` counts the heads of Mamba-2."""

    def read(fields: Fields, tensors: Tensors) -> ModelConfig:
        fields.refuse("ssm.dt_b_c_rms", "norms of dt, B and C (FalconMamba) are not supported")
        rank = fields.integer("ssm.time_step_rank")
        ssm = SSM(
            version,
            width=fields.integer("ssm.inner_size"),
            state=fields.integer("ssm.state_size"),
            conv=fields.integer("ssm.conv_kernel"),
            bias="blk.0.ssm_in.bias" in tensors,
            conv_bias="blk.0.ssm_conv1d.bias" in tensors,
            dt_rank=rank if version == 1 else 1,
            heads=1 if version == 1 else rank,
            groups=fields.integer("ssm.group_count", 1),
        )
        return _model(
            ssm,
            fields.integer("block_count"),
            family=family,
            vocab_size=gguf_vocab_size(fields, tensors),
            d_model=fields.integer("embedding_length"),
            norm_eps=fields.number("attention.layer_norm_rms_epsilon"),
            tie_embeddings="output.weight" not in tensors,
        )

    return read


def _from_gguf_tensors(cfg: ModelConfig, tensors: Tensors) -> Tensors:
    """Undo how files store the decay, as A itself, minus exp(A_log), and Mamba-2's norm, as one row a group."""
    found = dict(tensors)
    for name, x in tensors.items():
        if name.endswith(".ssm_a"):
            found[name] = Tensor(x.shape, partial(_a_log, x))
        if name.endswith(".ssm_norm.weight") and len(x.shape) == 2:
            found[name] = Tensor((math.prod(x.shape),), partial(_flat, x))
    return found


def _a_log(a: Tensor, start: int, stop: int) -> np.ndarray:
    return np.log(-a.rows(start, stop))


def _flat(matrix: Tensor, start: int, stop: int) -> np.ndarray:
    """Return the elements of a matrix, row after row."""
    width = matrix.shape[1]
    first = start // width
    return matrix.rows(first, -(-stop // width)).reshape(-1)[start - first * width : stop - first * width]


def _fields(cfg: ModelConfig) -> dict[str, Any]:
    ssm = cfg.kinds[0].mixer
    assert isinstance(ssm, SSM)
    own: dict[str, Any] = {"intermediate_size": ssm.width, "time_step_rank": ssm.dt_rank}
    if ssm.version == 2:
        own = {"num_heads": ssm.heads, "head_dim": ssm.width // ssm.heads, "n_groups": ssm.groups}
        if math.isfinite(ssm.dt_limit[1]):
            own["time_step_limit"] = list(ssm.dt_limit)
    expand = ssm.width / cfg.d_model
    return own | {
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.d_model,
        "num_hidden_layers": cfg.n_layers,
        "state_size": ssm.state,
        "conv_kernel": ssm.conv,
        "expand": int(expand) if expand == int(expand) else expand,
        "use_bias": ssm.bias,
        "use_conv_bias": ssm.conv_bias,
        "layer_norm_epsilon": cfg.norm_eps,
        "tie_word_embeddings": cfg.tie_embeddings,
    }


MAMBA = Family(
    name="mamba",
    rules=(
        *_RULES,
        _row("mixer/skip", "mixer.D", "ssm_d", "w -> w"),
        _row("mixer/select/kernel", "mixer.x_proj.weight", "ssm_x.weight", "r w -> r w"),
        _row("mixer/dt/kernel", "mixer.dt_proj.weight", "ssm_dt.weight", "w r -> w r"),
        _row("mixer/dt/bias", "mixer.dt_proj.bias", "ssm_dt.bias", "w -> w"),
        _row("mixer/a_log", "mixer.A_log", "ssm_a", "w s -> w s"),
    ),
    hf_types=("mamba",),
    hf_config=_mamba,
    hf_fields=_fields,
    gguf_arch="mamba",
    gguf_config=_gguf(1, "mamba"),
    gguf_tensors=_from_gguf_tensors,
    ignore=r"lm_head\.weight",
)

MAMBA2 = Family(
    name="mamba2",
    rules=(
        *_RULES,
        _row("mixer/skip", "mixer.D", "ssm_d", "n -> n", "n -> n 1"),
        _row("mixer/dt_bias", "mixer.dt_bias", "ssm_dt.bias", "n -> n"),
        _row("mixer/a_log", "mixer.A_log", "ssm_a", "n -> n", "n -> n 1"),
        _row("mixer/norm", "mixer.norm.weight", "ssm_norm.weight", "w -> w"),
    ),
    hf_types=("mamba2",),
    hf_config=_mamba2,
    hf_fields=_fields,
    gguf_arch="mamba2",
    gguf_config=_gguf(2, "mamba2"),
    gguf_tensors=_from_gguf_tensors,
    ignore=r"lm_head\.weight",
)

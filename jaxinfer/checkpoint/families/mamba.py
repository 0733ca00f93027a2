"""Mamba and Mamba-2: selective state spaces and nothing else."""

import math
from typing import Any

from jaxinfer.checkpoint.families.common import shortest_segments
from jaxinfer.checkpoint.fields import Fields
from jaxinfer.checkpoint.mapping import Family, Rule
from jaxinfer.config import SSM, LayerKind, ModelConfig
from jaxinfer.errors import InputError

NO_BOUND = 1 << 20  # the state has no end; positions are counted all the same


def _row(param: str, hf: str, axes: str) -> Rule:
    return Rule(param, f"backbone.layers.{{n}}.{hf}", None, axes)


_RULES = (
    Rule("embed/embedding", "backbone.embeddings.weight", None, "v d -> v d"),
    Rule("head/kernel", "lm_head.weight", None, "v d -> v d"),
    Rule("final_norm/scale", "backbone.norm_f.weight", None, "d -> d"),
    _row("attention_norm/scale", "norm.weight", "d -> d"),
    _row("mixer/in/kernel", "mixer.in_proj.weight", "w d -> w d"),
    _row("mixer/in/bias", "mixer.in_proj.bias", "w -> w"),
    _row("mixer/conv", "mixer.conv1d.weight", "w k -> w 1 k"),
    _row("mixer/conv_bias", "mixer.conv1d.bias", "w -> w"),
    _row("mixer/skip", "mixer.D", "w -> w"),
    _row("mixer/out/kernel", "mixer.out_proj.weight", "d w -> d w"),
    _row("mixer/out/bias", "mixer.out_proj.bias", "d -> d"),
)


def _decoder(fields: Fields, family: str, ssm: SSM, tied: bool) -> ModelConfig:
    if fields.text("hidden_act", "silu") != "silu":
        raise InputError(f"{fields.file}: hidden_act={fields.text('hidden_act')!r}: only 'silu' is supported")
    kinds = [LayerKind("state", rope=None, mixer=ssm)] * fields.integer("num_hidden_layers")
    return ModelConfig(
        family=family,
        vocab_size=fields.integer("vocab_size"),
        d_model=fields.integer("hidden_size"),
        d_ff=0,
        n_heads=ssm.heads,
        n_kv_heads=ssm.heads,
        head_dim=ssm.width // ssm.heads,
        segments=shortest_segments(kinds),
        max_positions=NO_BOUND,
        norm_eps=fields.number("layer_norm_epsilon", 1e-5),
        tie_embeddings=fields.flag("tie_word_embeddings", tied),
    )


def _common(fields: Fields) -> dict[str, Any]:
    return dict(
        width=int(fields.number("expand", 2) * fields.integer("hidden_size")),
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
    limit = fields.get("time_step_limit", [0.0, math.inf])
    if not isinstance(limit, list) or len(limit) != 2:
        raise InputError(f"{fields.file}: field 'time_step_limit' must be a list of two numbers, not {limit!r}")
    low, high = (float(x["__float__"] if isinstance(x, dict) else x) for x in limit)
    ssm = SSM(
        2,
        state=fields.integer("state_size", 128),
        heads=fields.integer("num_heads", 128),
        groups=fields.integer("n_groups", 8),
        dt_limit=(low, high),
        **_common(fields),
    )
    return _decoder(fields, "mamba2", ssm, False)


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
        _row("mixer/select/kernel", "mixer.x_proj.weight", "r w -> r w"),
        _row("mixer/dt/kernel", "mixer.dt_proj.weight", "w r -> w r"),
        _row("mixer/dt/bias", "mixer.dt_proj.bias", "w -> w"),
        _row("mixer/a_log", "mixer.A_log", "w s -> w s"),
    ),
    hf_types=("mamba",),
    hf_config=_mamba,
    hf_fields=_fields,
    ignore=r"lm_head\.weight",
)

MAMBA2 = Family(
    name="mamba2",
    rules=(
        *_RULES,
        _row("mixer/dt_bias", "mixer.dt_bias", "n -> n"),
        _row("mixer/a_log", "mixer.A_log", "n -> n"),
        _row("mixer/norm", "mixer.norm.weight", "w -> w"),
    ),
    hf_types=("mamba2",),
    hf_config=_mamba2,
    hf_fields=_fields,
    ignore=r"lm_head\.weight",
)

"""The data of the page: models as programs, devices as constants, formats as bits."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from jaxinfer.analysis.explorer.programs import ARGUMENTS, FIELDS, MEMORY, programs
from jaxinfer.analysis.hardware import Hardware
from jaxinfer.analysis.hardware.constants import BITS
from jaxinfer.analysis.roofline import Storage, llm_viewer
from jaxinfer.analysis.roofline.formats import kv_storage, weight_storage
from jaxinfer.config import ModelConfig

WEIGHTS = {
    "float32": "float32",
    "bfloat16": "bfloat16",
    "fp8": "fp8, a scale an output",
    "int8": "int8, a scale an output",
    "w8a8": "int8 times int8 (w8a8)",
    "int4": "int4, groups of 32",
    "int4-64": "int4, groups of 64",
    "int4-128": "int4, groups of 128",
    "nf4": "nf4, double quantization",
    "4": "4 bits, groups of 128 (GPTQ, AWQ)",
    "3": "3 bits, groups of 128",
    "2": "2 bits, groups of 128",
}
"""The words of a control for the formats of weights, by the name that `--weights` knows them by."""
KV = {
    "float32": "float32",
    "bfloat16": "bfloat16",
    "fp8": "fp8, a scale a head",
    "int8": "int8, a scale a head",
    "4": "4 bits, a scale a head",
    "2": "2 bits, a scale a head",
}


def catalog(models: Mapping[str, ModelConfig], devices: Iterable[Hardware]) -> dict[str, Any]:
    """Give all that the page computes with, as plain data."""
    return {
        "arguments": ARGUMENTS,
        "fields": FIELDS,
        "memory": MEMORY,
        "bits": BITS,
        "models": {name: _model(config) for name, config in models.items()},
        "hardware": {device.name: _device(device) for device in devices},
        "weights": {name: _weights(label, weight_storage(name)) for name, label in WEIGHTS.items()},
        "kv": {name: {"label": label, "within": _stored(kv_storage(name))} for name, label in KV.items()},
    }


def _model(config: ModelConfig) -> dict[str, Any]:
    experts = [kind.moe.experts for kind in config.kinds if kind.moe]
    return {
        "family": config.family,
        "layers": config.n_layers,
        "heads": config.n_heads,
        "kv_heads": config.n_kv_heads,
        "width": config.d_model,
        "vocabulary": config.vocab_size,
        "positions": config.max_positions,
        "experts": experts[0] if experts else 0,
        "parallel": config.parallel,
        **programs(config),
    }


def _device(device: Hardware) -> dict[str, Any]:
    there = llm_viewer.as_there(device)
    plain = {"flops": dict(device.flops), "sources": dict(device.sources)}
    compat = {"bandwidth": there.bandwidth, "flops": dict(there.flops), "on_chip": there.on_chip}
    return asdict(device) | plain | {"llm-viewer": compat}


def _weights(label: str, storage: Storage) -> dict[str, Any]:
    within, outside = _stored(storage), _stored(storage.outside)
    return {"label": label, "within": within, "outside": outside, "operands": storage.operands}


def _stored(storage: Storage) -> tuple[float, float, float]:
    return storage.bits, storage.scales, storage.row_scales

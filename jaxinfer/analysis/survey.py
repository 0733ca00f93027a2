"""The figures of a survey of inference, as rows of plain data that the roofline analysis gives.

"LLM Inference Unveiled: Survey and Roofline Model Insights" (Yuan et al. 2024) explains techniques by the roofline of
one device. Each function here gives the data of one of its figures for a `Study`; `FIGURES` has them by name. Bytes,
seconds, operations and operations/s throughout; figures are bounds, which no engine reaches.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jaxinfer.analysis.hardware import Hardware
from jaxinfer.analysis.roofline import Operator, Roofline, Setting, Timed, analyze
from jaxinfer.analysis.roofline.analysis import STAGES, Stage, timed
from jaxinfer.config import ModelConfig, Segment

Row = dict[str, Any]
FORMATS = {
    "W16": (16, 16, 16),
    "W8": (8, 16, 16),
    "W4": (4, 16, 16),
    "W2": (2, 16, 16),
    "W8A8": (8, 8, 16),
    "W4A4": (4, 4, 16),
    "KV8": (16, 16, 8),
    "KV4": (16, 16, 4),
    "W8A8KV8": (8, 8, 8),
    "W4KV4": (4, 16, 4),
    "W4A4KV4": (4, 4, 4),
    "KV2": (16, 16, 2),
}
"""Bits of weights, activations, and keys and values, by the survey's way of writing: what is not named has 16."""


@dataclass(frozen=True)
class Study:
    """The models, the device and the sizes of the figures.

    disk: bytes/s of the disk that weights are read from; batches and lengths: those of curves; longest: tokens up to
    which the cache grows; cases: batch and length of bars.
    """

    small: ModelConfig
    large: ModelConfig
    mixture: ModelConfig
    device: Hardware
    others: tuple[Hardware, ...]
    disk: float
    length: int
    batches: tuple[int, ...]
    lengths: tuple[int, ...]
    longest: int
    cases: tuple[tuple[int, ...], ...]

    def of(self, config: ModelConfig, form: str = "W16", device: Hardware | None = None, **more: Any) -> Roofline:
        """Analyze a model in one of `FORMATS`; the prompt has `length` tokens where nothing else is said."""
        weights, activations, kv = FORMATS[form]
        setting = Setting(**{"prompt": self.length, "weights": weights, "activations": activations, "kv": kv, **more})
        return analyze(config, device or self.device, setting)


def rooflines(study: Study) -> list[Row]:
    """Give each operator's place below the roofs of 16 bits and of W8A8 (8 bits of the cache too), in both stages."""
    rows = []
    for form in ("W16", "W8A8KV8"):
        found = study.of(study.small, form)
        for stage in STAGES:
            rows += [{"format": form, "stage": stage, **_place(one)} for one in found.stages[stage]]
    return rows


def memory(study: Study) -> list[Row]:
    """Give the memory of a decode step by format, and its share of that of 16 bits, by batch and length."""
    rows = []
    for batch, length in study.cases:
        plain = None
        for form in ("W16", "W4", "W8A8", "W4A4", "KV8", "KV4", "W8A8KV8", "W4KV4", "W4A4KV4"):
            held = study.of(study.large, form, batch=batch, prompt=length).memory("decode")
            found = dict(held) if isinstance(held, Mapping) else held.as_dict()
            plain = plain or found["total"]
            rows.append({"batch": batch, "length": length, "format": form, **found, "share": found["total"] / plain})
    return rows


def decode_time(study: Study) -> list[Row]:
    """Give the seconds of a decode step by format and batch."""
    forms = ("W16", "W8", "W4", "W2", "W8A8", "W4KV4")
    return [
        {"format": form, "batch": batch, "seconds": study.of(study.large, form, batch=batch).seconds("decode")}
        for form in forms
        for batch in study.batches
    ]


def prefill_time(study: Study) -> list[Row]:
    """Give the seconds of a prefill by format and length, attention fused."""
    forms = ("W16", "W4", "W8A8", "W4A4")
    return [
        {
            "format": form,
            "length": length,
            "seconds": study.of(study.large, form, prompt=length, flash=True).seconds("prefill"),
        }
        for form in forms
        for length in study.lengths
    ]


def cache_memory(study: Study) -> list[Row]:
    """Give the bytes of the cache of one row by bits and length, beside the weights in 16 bits."""
    rows = []
    lengths = [round(study.longest * i / 20) for i in range(1, 21)]
    for form in ("W16", "KV8", "KV4", "KV2"):
        for length in lengths:
            held = study.of(study.large, form, prompt=length).peak_memory
            rows.append({"bits": FORMATS[form][2], "length": length, "kv": held["kv"], "weights": held["weights"]})
    return rows


def flash_attention(study: Study) -> list[Row]:
    """Give bytes and seconds of attention and of the whole stage, with three operators and with one, by length."""
    rows = []
    for stage in STAGES:
        for length in study.lengths:
            row: Row = {"stage": stage, "length": length}
            for name, flash in (("plain", False), ("fused", True)):
                found = study.of(study.small, prompt=length, flash=flash)
                parts = [one for one in found.stages[stage] if one.operator.kind == "attention"]
                row[f"{name}_bytes"] = sum(one.operator.bytes * one.operator.layers for one in parts)
                row[f"{name}_seconds"] = sum(one.total for one in parts)
                row[f"{name}_stage"] = found.seconds(stage)
            rows.append(row)
    return rows


def fusion(study: Study) -> list[Row]:
    """Give bytes and seconds of groups of operators one by one, and as one operator each, in both stages.

    A fused group reads what comes from outside and writes what leaves it: what they hand on stays on the chip.
    """
    rows = []
    for stage in STAGES:
        found, flash = (study.of(study.small, flash=fused).stages[stage] for fused in (False, True))
        alone = {one.operator.name: one for one in found}
        whole = next(one for one in flash if one.operator.name == "fused_attention")
        for name, parts, kept in _groups({name: one.operator for name, one in alone.items()}):
            one = whole if kept is None else timed(kept, study.device)
            rows.append(
                {
                    "stage": stage,
                    "group": name,
                    "operators": ", ".join(part.name for part in parts),
                    "bytes": sum(part.bytes * part.layers for part in parts),
                    "fused_bytes": one.operator.bytes * one.operator.layers,
                    "seconds": sum(alone[part.name].total for part in parts),
                    "fused_seconds": one.total,
                    "bound": one.bound,
                }
            )
    return rows


def _groups(one: Mapping[str, Operator]) -> Iterator[tuple[str, list[Operator], Operator | None]]:
    """Give each group's name, its operators, and them as one; None: attention, which the analyzer knows as one."""
    norm, q, k, v, rope = (one[name] for name in ("attn_norm", "q_proj", "k_proj", "v_proj", "rope"))
    inner = norm.written + q.read + k.read + v.read + rope.read + rope.written
    yield "q, k, v", [norm, q, k, v, rope], _as_one([norm, q, k, v, rope], inner)
    yield "attention", [one[name] for name in ("qk_matmul", "softmax", "sv_matmul")], None
    for name, added in (("out_proj", "attn_add"), ("down_proj", "mlp_add")):
        parts = [one[name], one[added]]
        yield name.removesuffix("_proj"), parts, _as_one(parts, 2 * one[name].written)
    norm, gate, up, act = (one[name] for name in ("mlp_norm", "gate_proj", "up_proj", "mlp_act"))
    inner = norm.written + gate.read + up.read + gate.written + up.written + act.read
    yield "gate, up", [norm, gate, up, act], _as_one([norm, gate, up, act], inner)


def _as_one(parts: Sequence[Operator], inner: float) -> Operator:
    """Make one operator of several that hand on `inner` bytes, writing and reading counted."""
    kinds = ("ops", "weights", "read", "written", "kv_read", "kv_written")
    sums = {name: sum(getattr(part, name) for part in parts) for name in kinds}
    first, last = parts[0], parts[-1]
    outside = sums["read"] + sums["written"] - inner
    name = "+".join(part.name for part in parts)
    return replace(first, **{**sums, "name": name, "read": outside - last.written, "written": last.written})


def offloading(study: Study) -> list[Row]:
    """Give the place of linears (weights) and of attention (cache) where their bytes come over a slower link."""
    rows = []
    device = study.device
    tiers = {"device memory": device.bandwidth, "host memory over PCIe": device.host_link, "disk": study.disk}
    for tier, bandwidth in tiers.items():
        if bandwidth is None:
            continue
        slower = replace(study.device, bandwidth=bandwidth)
        for stage, batch in (("decode", 1), ("decode", 64), ("prefill", 1), ("prefill", 64)):
            found = study.of(study.small, device=slower, batch=batch, flash=True)
            for one in found.stages[stage]:  # type: ignore[index]
                if one.operator.name in ("up_proj", "fused_attention"):
                    of = "weights" if one.operator.kind == "linear" else "cache"
                    rows.append(
                        {"tier": tier, "bandwidth": bandwidth, "batch": batch, "stage": stage, "of": of} | _place(one)
                    )
    return rows


def batching(study: Study) -> list[Row]:
    """Give latency, throughput and memory of a decode step by batch."""
    rows = []
    for batch in study.batches:
        found = study.of(study.small, batch=batch)
        seconds, held = found.seconds("decode"), found.peak_memory["total"]
        fits = held <= study.device.memory
        rate = batch / seconds
        rows.append({"batch": batch, "seconds": seconds, "tokens_per_second": rate, "memory": held, "fits": fits})
    return rows


def bandwidth(study: Study) -> list[Row]:
    """Give the seconds of a decode step over the bandwidth: of the device with another memory, and of real devices.

    chips: how many it takes to hold weights and cache; they compute one after the other, each its own layers, and
    their exchange is not counted, so that many chips take as long as one would that held all.
    """
    rows = []
    for batch in (1, 32):
        for step in range(25):
            rate = 1e11 * 10 ** (step / 8)
            device = replace(study.device, bandwidth=rate)
            seconds = study.of(study.small, device=device, batch=batch).seconds("decode")
            rows.append({"device": "", "batch": batch, "bandwidth": rate, "seconds": seconds, "chips": None})
        for device in (study.device, *study.others):
            found = study.of(study.small, device=device, batch=batch)
            chips = math.ceil(found.peak_memory["total"] / device.memory)
            seconds = found.seconds("decode")
            rows.append(
                {
                    "device": device.name,
                    "batch": batch,
                    "bandwidth": device.bandwidth,
                    "seconds": seconds,
                    "chips": chips,
                }
            )
    return rows


def dynamic(study: Study) -> list[Row]:
    """Give whole stages on the roofline with part of the layers, of the neurons, and of the experts.

    The dense model beside the mixture has the parameters of all its experts in one MLP.
    """
    kinds = [kind for kind in study.mixture.kinds if kind.moe and kind.moe.experts]
    experts = kinds[0].moe
    assert experts is not None
    plain = Segment((replace(kinds[0], moe=None),), study.mixture.n_layers)
    dense = study.mixture.replace(d_ff=experts.experts * experts.d_ff, segments=(plain,))
    cases: list[tuple[str, ModelConfig, dict[str, Any]]] = [
        ("all layers and neurons", study.small, {}),
        ("early exit, half of the layers", study.small, {"depth": 0.5}),
        ("a quarter of the neurons", study.small, {"active": 0.25}),
        ("dense, of the mixture's size", dense, {}),
        (f"mixture, {experts.top_k} of {experts.experts} experts", study.mixture, {}),
    ]
    rows = []
    stages: tuple[tuple[Stage, int], ...] = (("decode", 1), ("decode", 16), ("prefill", 1))
    for stage, batch in stages:
        for name, config, setting in cases:
            found = study.of(config, batch=batch, flash=True, **setting)
            sums, seconds = found.totals(stage), found.seconds(stage)
            rows.append(
                {
                    "stage": stage,
                    "batch": batch,
                    "variant": name,
                    "ops": sums["ops"],
                    "bytes": sums["bytes"],
                    "intensity": sums["intensity"],
                    "rate": sums["ops"] / seconds,
                    "seconds": seconds,
                }
            )
    return rows


def _place(one: Timed) -> Row:
    """Give an operator's place on a roofline."""
    made = one.operator
    return {
        "operator": made.name,
        "intensity": made.intensity,
        "rate": one.rate,
        "bound": one.bound,
        "seconds": one.total,
    }


FIGURES: dict[str, Callable[[Study], list[Row]]] = {
    "rooflines": rooflines,
    "memory": memory,
    "decode_time": decode_time,
    "prefill_time": prefill_time,
    "cache_memory": cache_memory,
    "flash_attention": flash_attention,
    "fusion": fusion,
    "offloading": offloading,
    "batching": batching,
    "bandwidth": bandwidth,
    "dynamic": dynamic,
}
"""The figures by name, in the survey's order."""

"""LLM-Viewer's arithmetic: every figure of every operator in the tables that the tool itself made, to the digit."""

import json
import lzma
import re
from pathlib import Path

import pytest

from jaxinfer import InputError
from jaxinfer.analysis import hardware
from jaxinfer.analysis.roofline import Setting, analyze
from jaxinfer.analysis.roofline.shapes import config_of

pytestmark = pytest.mark.quick

FILE = Path(__file__).parents[1] / "golden" / "llm_viewer.json.xz"  # made by commit 472f71f, as it says
MODELS = {"meta-llama/Llama-2-7b-hf": "llama-2-7b", "meta-llama/Llama-3-8B": "llama-3-8b"}
DEVICES = {"nvidia_A6000": "a6000", "nvidia_H100": "h100-sxm"}
FIELDS = {
    "OPs": "ops",
    "memory_access": "bytes",
    "arithmetic_intensity": "intensity",
    "performance": "rate",
    "load_weight": "weights",
    "load_act": "read",
    "store_act": "written",
    "load_kv_cache": "kv_read",
    "store_kv_cache": "kv_written",
    "inference_time": "seconds",
}
MEMORY = {"": "total", "_tmp_act": "activations", "_weight": "weights", "_kv_cache": "kv"}


def table():
    return json.loads(lzma.decompress(FILE.read_bytes()))


def close(one, other):
    return one == pytest.approx(other, rel=1e-9, abs=0)


@pytest.mark.parametrize("model", MODELS)
def test_every_figure(model):
    found = {key: value for key, value in table()["results"].items() if key.startswith(model)}
    assert len(found) == 48
    for key, expected in found.items():
        _, device, batch, length, bits = key.split("|")
        weights, activations, kv = map(int, re.match(r"w(\d+)a(\d+)kv(\d+)", bits).groups())
        setting = Setting(
            batch=int(batch[2:]),
            prompt=int(length[3:]),
            weights=weights,
            activations=activations,
            kv=kv,
            flash=bits.endswith("flash"),
        )
        ours = analyze(config_of(MODELS[model]), hardware.get(DEVICES[device]), setting, compat="llm-viewer")
        plain = ours.as_dict()
        for stage in ("prefill", "decode"):
            assert plain[stage].keys() == expected[stage].keys()
            for name, figures in expected[stage].items():
                assert plain[stage][name]["bound"] == figures["bound"]
                for theirs, mine in FIELDS.items():
                    assert close(plain[stage][name][mine], figures[theirs]), (key, stage, name, mine)
            sums = expected["total_results"][stage]
            for theirs in FIELDS.keys() - {"arithmetic_intensity", "performance"}:
                assert close(plain["totals"][stage][FIELDS[theirs]], sums[theirs]), (key, stage, theirs)
            for theirs, mine in MEMORY.items():
                assert close(plain["memory"][stage][mine], sums[f"memory_consumption{theirs}"]), (key, stage, mine)


def test_the_devices_constants_are_that_tools():
    for name, figures in table()["hardware"].items():
        known = {"nvidia_A100_80G": "a100-80gb"} | DEVICES
        ours = analyze(config_of("llama-2-7b"), hardware.get(known[name]), Setting(), compat="llm-viewer").hardware
        assert (ours.bandwidth, ours.on_chip) == (figures["bandwidth"], figures["onchip_buffer"])
        assert (ours.peak(16), ours.peak(8)) == (figures["FP16"], figures["INT8"])


@pytest.mark.parametrize(
    ("model", "changes", "words"),
    [
        ("llama-2-7b", {"tensor": 2}, "tensor=2 must be 1"),
        ("llama-2-7b", {"kv_budget": 64}, "no kv_budget"),
        ("mixtral-8x7b", {}, "Llama's layers"),
        ("opt-125m", {}, "Llama's layers"),
    ],
)
def test_what_that_tool_does_not_know(model, changes, words):
    with pytest.raises(InputError, match=re.escape(words)):
        analyze(config_of(model), hardware.get("a6000"), Setting(**changes), compat="llm-viewer")
    with pytest.raises(InputError, match="must be 'llm-viewer'"):
        analyze(config_of(model), hardware.get("a6000"), Setting(), compat="other")

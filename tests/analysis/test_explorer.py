"""The page's arithmetic beside the analyzer's, its data, its links, and the drawings for notebooks."""

import base64
import json
import math
import random
import re
import shutil
import subprocess
import threading
import urllib.error
import urllib.request
import xml.etree.ElementTree as ET
import zlib

import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxinfer.analysis import hardware
from jaxinfer.analysis.explorer import Page, figure, page, roofline_svg
from jaxinfer.analysis.explorer.catalog import KV, WEIGHTS, catalog
from jaxinfer.analysis.explorer.document import script
from jaxinfer.analysis.explorer.serve import export, handler, listen, serve
from jaxinfer.analysis.hardware import measuring
from jaxinfer.analysis.roofline import Setting, analyze
from jaxinfer.analysis.roofline.formats import kv_storage, weight_storage
from jaxinfer.checkpoint.presets import SHAPES
from jaxinfer.config import MLA, SSM, LayerKind, MoE, Rope, Segment
from jaxinfer.errors import InputError

pytestmark = pytest.mark.quick
LLAMA = SHAPES["llama-3-8b"]
LOCAL = LayerKind("local", Rope(10_000.0), window=1024)
MODELS = {
    "llama": LLAMA,
    "windows": LLAMA.replace(
        family="gemma3", segments=(Segment((LOCAL,) * 5 + (LayerKind(),), 4), Segment((LOCAL,) * 2, 1)),
        qk_norm="head", post_norms=True, tie_embeddings=True, activation="gelu_tanh",
    ),
    "experts": LLAMA.replace(segments=(Segment((LayerKind(moe=MoE(8, 2, 14336, shared_d_ff=512)),), 32),)),
    "latent": LLAMA.replace(
        n_kv_heads=32, head_dim=192, mla=MLA(512, 128, 64, 128, q_rank=1536),
        segments=(Segment((LayerKind("dense"),), 2), Segment((LayerKind("moe", moe=MoE(64, 6, 1408)),), 30)),
    ),
    "state": LLAMA.replace(segments=(Segment((LayerKind(mixer=SSM(2, 8192, 128, heads=64, groups=8)),), 32),)),
}  # fmt: skip
DEVICES = [hardware.get(name) for name in ("a6000", "a100-80gb", "h100-sxm", "tpu-v5e", "groq-lpu")]
HARNESS = """
const { catalog, states } = JSON.parse(require("fs").readFileSync(0, "utf8"));
const answers = states.map((given) => {
  const state = { ...DEFAULTS, ...given };
  const problems = problemsOf(catalog, state);
  if (problems.length) return { problems };
  const one = new Analysis(catalog, catalog.models[state.model], deviceOf(catalog, state), settingOf(catalog, state));
  return {
    operators: Object.fromEntries(STAGES.map((stage) => [stage, one.operators(stage)])),
    totals: Object.fromEntries(STAGES.map((stage) => [stage, one.totals(stage)])),
    memory: Object.fromEntries(STAGES.map((stage) => [stage, one.memory(stage)])),
    whole: figuresOf(one, "generation").whole,
    generation: one.generation(), step: one.stepSeconds(state.prompt * 2), fits: one.fits,
    batch: one.largestBatch(), prompt: one.longestPrompt(),
  };
});
console.log(JSON.stringify(answers));
"""


def in_node(code, given):
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    scripts = script(("format.js", "roofline.js", "state.js", "panels.js"))
    done = subprocess.run(
        ["node", "-e", scripts + code], input=json.dumps(given), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def random_state(draw):
    model, compat = draw.choice([*MODELS]), draw.random() < 0.2
    data = draw.choice([1, 1, 2, 3])
    state = {
        "model": "llama" if compat else model, "hardware": draw.choice(DEVICES[:-2]).name,
        "mode": "llm-viewer" if compat else "default", "batch": data * draw.randint(1, 70),
        "prompt": draw.randint(1, 9000), "generate": draw.choice([1, 7, 300, 5000]), "weights": draw.choice([*WEIGHTS]),
        "activations": draw.choice([8, 16, 32]), "kv": draw.choice([*KV]), "attention": draw.choice(["flash", "plain"]),
        "method": draw.choice(["greedy", "guesses"]), "width": draw.randint(1, 9), "data": data,
        "acceptance": draw.choice([0, 0.3, 0.83, 1]), "draft": draw.choice([0, 0.15]),
        "budget": draw.choice(["", 1, 512, 4096]), "tensor": draw.choice([1, 2, 4, 16]),
        "pipeline": draw.choice([1, 2, 4]), "expert": draw.choice([1, 2, 4]) if model in ("experts", "latent") else 1,
    }  # fmt: skip
    if model == "windows":
        state["pipeline"] = draw.choice([1, 2, 13])
    return {key: str(value) for key, value in state.items()}


def setting_of(state):
    """Make the analyzer's setting of what the controls say."""
    weights, kv = weight_storage(state["weights"]), kv_storage(state["kv"])
    whole = {name: int(state[name]) for name in ("batch", "prompt", "generate", "activations")}
    flash = state["attention"] == "flash"
    if state["mode"] == "llm-viewer":
        return Setting(**whole, weights=weights.bits, kv=kv.bits, flash=flash)
    whole |= {name: int(state[name]) for name in ("tensor", "pipeline", "data", "expert")}
    if state["method"] != "greedy":
        width, share = int(state["width"]), float(state["acceptance"])
        whole |= {"width": width, "draft_cost": float(state["draft"])}
        whole["tokens_per_step"] = sum(share**i for i in range(width))
    budget = int(state["budget"]) if state["budget"] else None
    return Setting(**whole, weights=weights, kv=kv, flash=flash, kv_budget=budget)


def analyzed(state):
    device = next(one for one in DEVICES if one.name == state["hardware"])
    compat = "llm-viewer" if state["mode"] == "llm-viewer" else None
    return analyze(MODELS[state["model"]], device, setting_of(state), compat)


def close(found, wanted):
    """Hold all figures of `wanted` to 1e-9; pytest's own comparison would take most of the test's time."""
    return all(math.isclose(found[name], value, rel_tol=1e-9) for name, value in wanted.items())


def test_the_page_computes_what_the_analyzer_does():
    draw = random.Random(20)
    states = [random_state(draw) for _ in range(120)]
    answers = in_node(HARNESS, {"catalog": catalog(MODELS, DEVICES), "states": states})
    compared = 0
    for state, answer in zip(states, answers, strict=True):
        try:
            wanted = analyzed(state)
            wanted.stages  # noqa: B018  (which needs the links of the device)
        except InputError:
            assert answer["problems"], state
            continue
        assert "problems" not in answer, (state, answer["problems"])
        compared += 1
        for stage in ("prefill", "decode"):
            made = answer["operators"][stage]
            assert [one["name"] for one in made] == [one.operator.name for one in wanted.stages[stage]]
            for one, other in zip(made, wanted.stages[stage], strict=True):
                figures = other.as_dict()
                assert (one["kind"], one["bound"]) == (figures["kind"], figures["bound"]), (state, one)
                numbers = {key: value for key, value in figures.items() if isinstance(value, (int, float))}
                assert close(one, numbers), (state, one, numbers)
                assert close(one, {"total": other.total})
            assert close(answer["totals"][stage], wanted.totals(stage))
            memory = wanted.memory(stage)
            memory = memory if isinstance(memory, dict) else memory.as_dict()
            assert close(answer["memory"][stage], memory)
        assert close(answer["generation"], wanted.generation)
        step = wanted.step_seconds(2 * int(state["prompt"]))
        assert close(answer, {"step": step, "whole": wanted.generation["seconds"]})
        assert answer["fits"] == wanted.fits
        if compared % 12 == 0:  # which takes the analyzer hundreds of analyses
            assert answer["batch"] == wanted.largest_batch()
            assert answer["prompt"] == wanted.longest_prompt()
    assert compared >= 100


LINKS = """
const given = JSON.parse(require("fs").readFileSync(0, "utf8"));
const defaults = { ...DEFAULTS, model: "llama", hardware: "a6000" };
console.log(JSON.stringify(given.map(([a, b]) => {
  const link = toHash({ ...defaults, ...a }, b && { ...defaults, ...b }, defaults);
  return [link, ...fromHash("#" + link, defaults), { ...defaults, ...a }, b && { ...defaults, ...b }];
})));
"""


def test_a_link_holds_the_state():
    a, b = {"batch": "8", "budget": "512", "weights": "int4"}, {"batch": "8", "hardware": "h100-sxm"}
    odd = {"model": "a/b&c=d #1 ü"}
    links = in_node(LINKS, [[{}, None], [a, None], [a, b], [a, a], [odd, None]])
    assert [one[0] for one in links[:2]] == ["", "batch=8&weights=int4&budget=512"]
    for _, read_a, read_b, wanted_a, wanted_b in links:
        assert (read_a, read_b) == (wanted_a, wanted_b)


BAD = {
    "batch": ("0", "-1", "1.5", "", "x", "1e99"),
    "acceptance": ("2", "-0.1", ""),
    "draft": ("-1", ""),
    "budget": ("0", "half"),
    "tensor": ("3", "0"),
    "pipeline": ("5",),
    "expert": ("2",),
    "model": ("llama-9", "toString"),
    "weights": ("int5",),
    "bandwidth": ("-1", "0"),
    "data": ("2",),
}


def test_bad_values_are_named_and_compute_nothing():
    states = [
        {"model": "llama", "hardware": "a6000", "method": "guesses", key: value}
        for key, values in BAD.items()
        for value in values
    ]
    states += [
        {"model": "experts", "hardware": "a6000", "expert": "3"},
        {"model": "experts", "hardware": "a6000", "mode": "llm-viewer"},
        {"model": "llama", "hardware": "l4", "tensor": "2"},
    ]
    devices = [*DEVICES, hardware.get("l4")]
    answers = in_node(HARNESS, {"catalog": catalog(MODELS, devices), "states": states})
    assert all(answer.get("problems") for answer in answers), [
        state for state, answer in zip(states, answers, strict=True) if not answer.get("problems")
    ]
    assert answers[-1]["problems"] == [["tensor", "NVIDIA L4 24 GB has no links to other devices"]]


def test_numbers_are_written_with_units():
    code = """
    const given = JSON.parse(require("fs").readFileSync(0, "utf8"));
    console.log(JSON.stringify(given.map(([unit, x]) => units[unit](x))));
    """
    given = {
        ("seconds", 0.0048312): "4.83 ms", ("seconds", 0.99999): "1 s", ("seconds", 4e-9): "4 ns",
        ("seconds", 600): "10 min", ("percent", 1e-5): "< 0.1 %",
        ("bytes", 16_060_522_496): "16.1 GB", ("bytes", 0.5): "0.5 B", ("bytes", 999_999): "1 MB", ("bytes", 0): "0 B",
        ("rate", 989.5e12): "990 TFLOP/s", ("tokens", 206.99): "207 tok/s", ("count", 2**41): "no limit",
        ("count", 1_048_576): "1,048,576", ("percent", 1): "100 %", ("percent", 0.12345): "12.3 %",
    }  # fmt: skip
    assert in_node(code, list(given)) == list(given.values())


def test_the_page_is_one_small_file_that_asks_for_nothing():
    made = page(models=MODELS, devices=DEVICES, device="a6000").html
    assert made.count("<script") == 2
    assert "default-src 'none'" in made  # a browser keeps it to that
    assert not re.search(r"""(src|href)=(?!["']?(data:|#))""", made)
    assert not re.search(r"/\*(STYLE|SCRIPT|DATA)\*/", made)
    data = re.search(r'id="data">([A-Za-z0-9+/=]+)<', made)[1]
    assert json.loads(zlib.decompress(base64.b64decode(data)))["start"] == {"model": "llama", "hardware": "a6000"}
    assert len(made) < 200_000
    assert 'srcdoc="&lt;!doctype html&gt;' in page(models=MODELS, devices=DEVICES)._repr_html_()


def test_this_machine_is_on_the_page_once_it_has_been_measured(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXINFER_CACHE", str(tmp_path))
    assert "this-machine" not in opens_with(page(models=MODELS))["hardware"]
    kept = measuring.kept_file()
    kept.parent.mkdir()
    plain = {"name": "this-machine", "title": "Mine", "kind": "cpu", "bandwidth": 2e10, "flops": {"float32": 1e11}}
    kept.write_text(
        json.dumps({**plain, "memory": 8e9, "on_chip": 3e7, "link": None, "host_link": None, "power": None})
    )
    assert opens_with(page(models=MODELS))["hardware"]["this-machine"]["title"] == "Mine"


def test_all_known_shapes_fit_into_a_small_page():
    assert len(page().html) < 1_000_000


def opens_with(made):
    data = re.search(r'id="data">([A-Za-z0-9+/=]+)<', made.html)[1]
    return json.loads(zlib.decompress(base64.b64decode(data)))


def test_a_model_of_a_checkpoint_is_added(tmp_path):
    fields = {
        "model_type": "llama", "vocab_size": 1000, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
    }  # fmt: skip
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(fields))
    norms = {f"model.layers.{i}.input_layernorm.weight": np.ones(64, np.float32) for i in range(3)}
    save_file(norms, folder / "model.safetensors")
    data = opens_with(page(str(folder), models=MODELS, devices=DEVICES))
    assert data["start"] == {"model": "mine", "hardware": "h100-sxm"}
    assert data["models"]["mine"]["layers"] == 3
    assert [*opens_with(page("llama-3-8b", models=MODELS, devices=DEVICES))["models"]] == [*MODELS]


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"model": "llama-3-9b"}, "nearest: 'llama-3-8b'"),
        ({"device": "h101"}, "nearest: 'h100"),
        ({"model": "/no"}, "/no"),
    ],
)
def test_unknown_names_are_refused(given, line):
    with pytest.raises(InputError, match=re.escape(line)):
        page(**given)


def test_the_drawing_has_a_point_for_each_operator_at_its_place():
    found = analyze(LLAMA, hardware.get("a6000"), Setting(prompt=512, weights=8))
    root = ET.fromstring(roofline_svg(found, ["decode"]))
    space = "{http://www.w3.org/2000/svg}"
    points = root.findall(f"{space}circle")
    wanted = [one for one in found.stages["decode"] if one.operator.ops and one.operator.bytes]
    assert len(points) == len(wanted)
    for point, one in zip(points, wanted, strict=True):
        assert point.find(f"{space}title").text.startswith(f"{one.operator.name} (decode), {one.bound}-bound")
        assert one.bound in point.get("class").split()
    # points of the slope lie on a line of 45 degrees in decades: as far right as up
    (x0, y0), (x1, y1) = [(float(p.get("cx")), float(p.get("cy"))) for p in (points[0], points[1])]
    decades = [math.log10(wanted[1].operator.intensity / wanted[0].operator.intensity)]
    decades.append(math.log10(wanted[1].rate / wanted[0].rate))
    assert decades[0] == pytest.approx(decades[1])
    texts = " ".join(text.text for text in root.iter(f"{space}text"))
    ticks = {
        text.text: float(text.get("x")) for text in root.iter(f"{space}text") if text.get("text-anchor") == "middle"
    }
    assert (x1 - x0) / decades[0] == pytest.approx(ticks["10"] - ticks["1"], abs=1)
    assert y1 < y0 or decades[0] <= 0
    for roof in ("16 bits: 155 TFLOP/s", "8 bits: 310 TFLOP/s", "float32: 38.7 TFLOP/s"):
        assert roof in texts
    both = figure(found)
    assert both._repr_html_() == str(both) == both.svg
    assert len(ET.fromstring(both.svg).findall(f"{space}circle")) > len(points)


def test_a_port_in_use_is_one_line_and_a_free_one_answers():
    with listen(0) as server:
        taken = server.server_port
        with pytest.raises(InputError, match=f"^--port: {taken} is in use"):
            serve(taken, browser=False)
        server.RequestHandlerClass = handler(Page("<!doctype html>ü"))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{taken}"
        with urllib.request.urlopen(address, timeout=10) as answer:
            assert answer.read().decode() == "<!doctype html>ü"
            assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{address}/etc/passwd", timeout=10)
        server.shutdown()
    for port in (-1, 65536, True, "8050"):
        with pytest.raises(InputError, match="--port: expected a whole number from 0 to 65535"):
            listen(port)


def test_export_writes_one_file_or_none(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxinfer.analysis.explorer.document.SHAPES", MODELS)
    file = export(tmp_path / "explorer.html")
    assert file.read_text(encoding="utf-8").startswith("<!doctype html>")
    with pytest.raises(InputError, match="is a folder"):
        export(tmp_path)
    with pytest.raises(InputError, match="there is no folder"):
        export(tmp_path / "no" / "explorer.html")
    with pytest.raises(InputError, match="is no known shape"):
        export(tmp_path / "other.html", model="llama-9")
    assert [one.name for one in tmp_path.iterdir()] == ["explorer.html"]

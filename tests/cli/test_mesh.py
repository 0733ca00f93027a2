"""Meshes as users write them: on the command line and in configs."""

import os
import sys
from pathlib import Path

import jax
import pytest
import yaml
from until_done import run_until_done

import jaxinfer
from jaxinfer import InputError
from jaxinfer.cli.__main__ import main
from jaxinfer.experiment import kinds, load_config
from jaxinfer.experiment.spread import Spread

ROOT = Path(__file__).parents[2]
CONFIG = {
    "name": "trial",
    "model": "smollm2-135m",
    "prompts": {"source": ["abcdef", "uvwxyz"], "chat": False},
    "decoding": {"max_new_tokens": 4, "repeats": 1},
    "rows": [{"name": "greedy", "method": "greedy"}],
}


@pytest.fixture
def file(tmp_path):
    """A file with the config under some changes."""

    def write(**changes):
        path = tmp_path / "trial.yaml"
        path.write_text(yaml.safe_dump({**CONFIG, "output": str(tmp_path / "runs"), **changes}))
        return path

    return write


BAD = [
    (["--mesh", "tensor"], "--mesh: mesh 'tensor': 'tensor' must be axis=devices, as in data=2,tensor=4"),
    (["--mesh", ""], "must be axis=devices"),
    (["--mesh", "tnsor=4"], "--mesh: a mesh has no axis 'tnsor'; nearest: 'tensor'"),
    (["--mesh", "tensor=0"], "--mesh: mesh axis tensor=0 must be a whole number of devices, 1 or above"),
    (["--mesh", "tensor=two"], "mesh axis tensor='two' must be a whole number of devices"),
    (["--mesh", "tensor=2,tensor=2"], "names an axis twice"),
    (["--mesh", "data=512,tensor=4"], "--mesh: mesh data=512,tensor=4 takes 2048 devices, and there are "),
    (["--pad-heads"], "--pad-heads: goes with --mesh"),
]


@pytest.mark.quick
@pytest.mark.parametrize("command", [["generate", "a"], ["chat"], ["eval", "--text", "README.md"]], ids=" ".join)
@pytest.mark.parametrize(("options", "named"), BAD, ids=str)
def test_a_mesh_that_cannot_be_is_one_line_before_anything_is_loaded(monkeypatch, capsys, command, options, named):
    jax.devices()  # JAX has begun: it stays with the devices that it has
    monkeypatch.setattr(jaxinfer, "load", lambda *_: pytest.fail("the model was loaded"))
    monkeypatch.setattr(sys, "argv", ["jaxinfer", *command, *options])
    with pytest.raises(SystemExit) as stop:
        raise SystemExit(main())
    err = capsys.readouterr().err
    assert (stop.value.code, err.count("\n")) == (2, 1), err
    assert named in err


@pytest.mark.quick
def test_every_form_of_a_mesh_is_the_same(file):
    wanted = {"data": 2, "tensor": 4, "pad_heads": True}
    assert Spread.of("data=2, tensor=4", True).as_data() == wanted
    assert Spread.of(wanted) == Spread.of("data=2,tensor=4", True)
    for changes in (
        {"mesh": "data=2,tensor=4", "pad_heads": True},
        {"mesh": wanted},
        {"model": {"source": "smollm2-135m", "mesh": "data=2,tensor=4", "pad_heads": True}},
    ):
        config = load_config(file(**changes))
        assert Spread.of_model(config.model).as_data() == wanted
    assert load_config(file(), ["mesh=data=2,tensor=4", "pad_heads=true"]).model.mesh == wanted
    names = ("data", "fsdp", "tensor", "expert", "context", "pipeline")
    meshes = [None, *(f"{name}=2" for name in names), {"tensor": 4, "pad_heads": True}]
    grid = load_config(file(axes={"mesh": meshes}))
    assert [entry["name"] for entry in grid.axes["mesh"]] == [
        "one device",
        *(f"{name}=2" for name in names),
        "tensor=4,pad_heads",
    ]
    assert grid.axes["mesh"][-1]["mesh"] == {"tensor": 4, "pad_heads": True}
    assert load_config(file(axes={"policy": ["dense"]}, mesh="tensor=2")).axes["mesh"][0]["mesh"] == {"tensor": 2}


@pytest.mark.quick
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"mesh": "tnsor=4"}, "mesh: a mesh has no axis 'tnsor'; nearest: 'tensor'"),
        ({"mesh": {"tensor": 0}}, "mesh axis tensor=0 must be a whole number of devices, 1 or above"),
        ({"mesh": 4}, "mesh: mesh=4 must be written as data=2,tensor=4"),
        ({"pad_heads": True}, "pad_heads: goes with 'mesh'"),
        ({"mesh": "tensor=2", "pad_heads": "yes"}, "pad_heads: must be true or false"),
        ({"mesh": {"tensor": 2, "pad_heads": 1}}, "pad_heads=1 must be true or false"),
        ({"mesh": "tensor=2", "axes": {"mesh": [None]}}, "mesh: axes.mesh gives it already"),
        ({"mesh": "tensor=2", "model": {"source": "a", "mesh": "data=2"}}, "mesh: model.mesh gives it already"),
        ({"model": {"source": "a", "mesh": "data"}}, "model.mesh: mesh 'data': 'data' must be axis=devices"),
        ({"model": {"source": "a", "pad_heads": True}}, "model.pad_heads: goes with model.mesh"),
        ({"axes": {"mesh": ["tensor=-1"]}}, "axes.mesh.0: mesh axis tensor='-1' must be a whole number"),
        ({"axes": {"mesh": ["data=2048"]}}, "axes.mesh.0: mesh data=2048 takes 2048 devices, and there are "),
    ],
    ids=str,
)
def test_a_mesh_that_a_config_cannot_have_is_one_line(file, changes, named):
    jax.devices()
    with pytest.raises(InputError) as error:
        kinds.read(str(file(**changes)))
    assert named in str(error.value)
    assert "\n" not in str(error.value)


ON_VIRTUAL_DEVICES = """
import sys
from pathlib import Path
from types import SimpleNamespace
import jaxinfer
from jaxinfer import LayerKind, Model, ModelConfig, Segment
from jaxinfer.experiment import command, results

class Letters:
    has_chat, strips_first_space, stop_ids = False, False, ()
    encode = staticmethod(lambda text: [ord(letter) % 96 for letter in text])
    decode = staticmethod(lambda ids, **_: " ".join(map(str, ids)))

def load(source, dtype=None, weights=None, tokenizer=None, mesh=None, rules=None):
    cfg = ModelConfig("llama", 96, 48, 64, 9, 3, 16, (Segment((LayerKind(),), 2),), 256)
    import dataclasses
    model = dataclasses.replace(Model.random(cfg), tokenizer=Letters())
    return model if mesh is None else model.shard(mesh, rules)

jaxinfer.load = load
for file in sys.argv[1:]:
    assert command.run_config(file, []) == 0
import jax
assert len(jax.devices()) == 4, "as many as the largest mesh takes"
runs = {path.name.split("-")[0]: path for path in Path(sys.argv[1]).parent.glob("runs/*")}
one, spread = results.read_rows(runs["grid"])
assert "mesh" not in one and spread["mesh"] == "tensor=4" and spread["axes"]["mesh"] == "tensor=4,pad_heads"
assert [p["tokens"] for p in one["prompts"]] == [p["tokens"] for p in spread["prompts"]]
assert spread["device_weight_bytes"] < spread["weight_bytes"] / 2
assert spread["device_cache_bytes"] < spread["cache_bytes"] / 3
assert "Bytes on each device" in (runs["grid"] / "report.html").read_text()
assert "tensor=4" in (runs["grid"] / "table.md").read_text()
(plain,) = results.read_rows(runs["plain"])
assert plain["mesh"] == "data=2"
assert "over the mesh data=2" in (runs["plain"] / "report.html").read_text()
assert '"mesh": "data=2"' in (runs["plain"] / "results.jsonl").read_text()
"""


def environment():
    """One CPU that nobody has made several devices of."""
    flags = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    return flags | {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}


def test_configs_of_meshes_run_on_virtual_devices(file, tmp_path):
    files = []
    for name, changes in (
        ("grid", {"rows": [], "axes": {"mesh": [None, {"tensor": 4, "pad_heads": True}]}}),
        ("plain", {"mesh": "data=2", "decoding": {**CONFIG["decoding"], "batch": 2}}),
    ):
        path = file(name=name, **changes)
        files.append(str(path.rename(tmp_path / f"{name}.yaml")))
    code = [sys.executable, "-c", ON_VIRTUAL_DEVICES, *files]
    done = run_until_done(code, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def test_generate_over_a_mesh_prints_what_one_device_prints(smollm2):
    text = "The capital of France is"
    options = ["--no-chat", "--max-new-tokens", "6", "--mesh", "tensor=4", "--pad-heads"]
    command = [sys.executable, "-m", "jaxinfer.cli", "generate", text, *options]
    done = run_until_done(command, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == smollm2.generate([text], max_new_tokens=6).texts[0] + "\n"
    assert "mesh tensor=4: 4 virtual devices of one CPU\n" in done.stderr
    assert "9 heads and 3 KV heads are held as 12 and 4, 3 of the heads zeros for tensor=4\n" in done.stderr
    assert "mesh tensor=4: " in done.stderr.splitlines()[-1]
    assert "of weights and " in done.stderr.splitlines()[-1]

"""The script that times decode steps by the format of the weights."""

import json

import pytest
import scripts

from jaxinfer.checkpoint import presets
from jaxinfer.errors import InputError

SMALL = presets.SHAPES["llama-2-7b"].replace(vocab_size=131, d_model=64, d_ff=128, n_heads=2, n_kv_heads=1, head_dim=32)


@pytest.fixture
def step_time(monkeypatch):
    module = scripts.load("step_time")
    monkeypatch.setitem(presets.SHAPES, "small", SMALL)
    monkeypatch.setattr(module, "read_bandwidth", lambda: 1e9)
    return module


def config(folder, **values):
    file = folder / "step_time.yaml"
    base = {"name": "step_time", "model": "random:small", "rounds": 1, "steps": 2, "output": str(folder / "runs")}
    file.write_text(json.dumps(base | values))
    return str(file)


def test_each_format_is_a_row_with_the_bytes_that_it_reads(step_time, tmp_path):
    scripts.run("step_time", config(tmp_path, weights=[None, "bfloat16", "int8"], widths=[1, 3], live=[5]))
    (folder,) = (tmp_path / "runs").iterdir()
    rows = json.loads((folder / "results.json").read_text())["rows"]
    assert [(row["weights"], row["width"]) for row in rows] == [
        (name, width) for name in ("float32", "bfloat16", "int8") for width in (1, 3)
    ]
    read = {row["weights"]: row["bytes"] for row in rows}
    assert 0.45 < read["bfloat16"] / read["float32"] < 0.55
    assert 0.2 < read["int8"] / read["float32"] < 0.35
    assert rows[0]["ratio"] == 1
    assert all(row["seconds"] > 0 for row in rows)


def test_an_unknown_format_is_named(step_time, tmp_path):
    with pytest.raises(InputError, match="weights"):
        scripts.run("step_time", config(tmp_path, weights=["int3"]))
    assert not (tmp_path / "runs").exists()

"""The script that measures ledgers."""

import json

import pytest
import scripts

from jaxinfer.analysis.hardware import Hardware
from jaxinfer.checkpoint import presets
from jaxinfer.errors import InputError

SMALL = presets.SHAPES["llama-2-7b"].replace(vocab_size=131, d_model=64, d_ff=128, n_heads=2, n_kv_heads=1, head_dim=32)
DEVICE = Hardware("test", "A test", "cpu", 1e9, {"float32": 1e11}, 1e10, 1e6, None, None, None, {})


@pytest.fixture
def kind(monkeypatch):
    module = scripts.load("ledger")
    monkeypatch.setitem(presets.SHAPES, "small", SMALL)
    monkeypatch.setattr(module.hardware, "get", lambda name, **options: DEVICE)
    return module


def config(folder, **values):
    file = folder / "ledger.yaml"
    base = {"name": "ledger", "models": ["random:small"], "rounds": 1, "steps": 2, "output": str(folder / "runs")}
    file.write_text(json.dumps(base | values))
    return str(file)


def test_each_setting_is_a_row_with_its_ledger(kind, tmp_path):
    scripts.run("ledger", config(tmp_path, weights=[None, "int8"], contexts=[9]))
    (folder,) = (tmp_path / "runs").iterdir()
    lines = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    rows = [row for line in lines for row in line["rows"]]
    assert [row["weights"] for row in rows] == ["float32", "int8"]
    for row in rows:
        stage = row["ledger"]["stages"]["decode"]
        lost = sum(loss["milliseconds"] for loss in stage["losses"])
        assert lost == pytest.approx(1e3 * (stage["clock"]["seconds"] - stage["physics"]["seconds"]))
    read = [row["ledger"]["stages"]["decode"]["physics"]["bytes"] for row in rows]
    assert 0.2 < read[1] / read[0] < 0.4
    results = json.loads((folder / "results.json").read_text())
    assert len(results["decode"]) == len(results["prefill"]) == len(results["ledgers"]) == 2
    shown = (folder / "table.md").read_text()
    assert "of the bound" in shown
    assert results["decode"][0]["losses"][0] in shown


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"weights": ["int3"]}, "int3"),
        ({"models": []}, "models"),
        ({"contexts": [0]}, "contexts"),
        ({"steps": 0}, "steps"),
    ],
)
def test_bad_values_are_named(kind, tmp_path, values, message):
    with pytest.raises(InputError, match=message):
        scripts.run("ledger", config(tmp_path, **values))

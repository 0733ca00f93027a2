"""The script that runs the others: a part that fails or takes too long is named, and the rest is kept."""

import json

import pytest
import scripts

from jaxinfer import InputError

pytestmark = pytest.mark.quick


@pytest.fixture
def accelerator(tmp_path, monkeypatch):
    module = scripts.load("accelerator")
    for name, code in {
        "good": "import sys; print('measured', *sys.argv[1:])",
        "bad": "import os; print('begun', flush=True); os.abort()",
        "slow": "import time; print('begun', flush=True); time.sleep(60)",
    }.items():
        (tmp_path / f"{name}.py").write_text(code)
    (tmp_path / "part.yaml").write_text("name: part\n")
    monkeypatch.setattr(module, "HERE", tmp_path)
    return module


def config(folder, parts):
    file = folder / "all.yaml"
    rows = [{"config": str(folder / "part.yaml")} | part for part in parts]
    file.write_text(json.dumps({"name": "all", "parts": rows, "output": str(folder / "runs")}))
    return str(file)


def test_every_part_runs_whatever_became_of_the_one_before(accelerator, tmp_path, capfd):
    parts = [{"script": "bad"}, {"script": "slow", "minutes": 0.01}, {"script": "good", "overrides": ["a=1"]}]
    assert scripts.run("accelerator", config(tmp_path, parts)) == 1
    (folder,) = (tmp_path / "runs").iterdir()
    found = json.loads((folder / "results.json").read_text())
    assert [one["code"] for one in found] == [-6, None, 0]
    assert [one["printed"] for one in found[:2]] == ["begun\n"] * 2
    assert found[2]["printed"] == f"measured {tmp_path / 'part.yaml'} a=1 output={folder}\n"
    assert found[2]["printed"] in capfd.readouterr().out
    summary = (folder / "table.md").read_text()
    assert all(words in summary for words in ("failed (-6)", "took too long", "done"))
    assert scripts.run("accelerator", config(tmp_path, parts[2:])) == 0


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"script": "godo"}, "parts.0.script: 'godo' is none of bad, good, slow"),
        ({"script": "good", "config": "none.yaml"}, "parts.0.config: none.yaml: no such file"),
        ({"script": "good", "minutes": 0}, "parts.0.minutes: 0.0 must be above 0"),
    ],
)
def test_a_part_that_cannot_start_is_refused_before_any_runs(accelerator, tmp_path, part, words):
    with pytest.raises(InputError, match=words):
        scripts.run("accelerator", config(tmp_path, [part]))
    assert not (tmp_path / "runs").exists()

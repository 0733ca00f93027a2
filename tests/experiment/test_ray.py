"""A grid on a Ray cluster of this machine, where Ray is installed: the rows of this machine, and a worker that dies."""

import json
import os
from pathlib import Path

import pytest
import yaml
from test_executors import GRID, NAMES

from jaxinfer.experiment import command

ray = pytest.importorskip("ray")

PLUGIN = """
import os, pathlib, sys
sys.path.append({tests!r})
import jaxinfer
from fakes import FakeModel
class Dying(FakeModel):
    def generate(self, prompts, *, method, **options):
        mark = pathlib.Path({mark!r})
        if self.weights == "int8" and not mark.exists():
            mark.touch()
            os._exit(1)
        return super().generate(prompts, method=method, **options)
def load(source, dtype=None, weights=None, tokenizer=None):
    return Dying(weights=weights)
if os.getpid() != {driver}:
    jaxinfer.load = load
"""


def test_a_grid_on_a_cluster_of_this_machine(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    plugin, mark = tmp_path / "plugin.py", tmp_path / "died"
    plugin.write_text(PLUGIN.format(tests=str(Path(__file__).parent), mark=str(mark), driver=os.getpid()))
    file = tmp_path / "grid.yaml"
    file.write_text(yaml.safe_dump({**GRID, "output": str(tmp_path / "runs"), "plugins": [str(plugin)]}))
    assert command.run_config(str(file), [], on="ray") == 0
    assert mark.exists()
    [folder] = (tmp_path / "runs").iterdir()
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert [line["name"] for line in lines] == NAMES
    assert {line["status"] for line in lines} == {"done"}
    assert not ray.is_initialized()
    out, err = capfd.readouterr()
    assert "died" in err
    assert "try 2 of 3" in err
    assert "Traceback" not in out + err

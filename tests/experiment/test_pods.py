"""Pods: what fits on which slice, scaling, charts, proofs apart from predictions, and bad input."""

import json
import xml.etree.ElementTree as ET

import pytest
import scripts

from jaxinfer.analysis.planning import Proof
from jaxinfer.errors import InputError

pytestmark = pytest.mark.quick

CONFIG = str(scripts.ROOT / "configs" / "pods.yaml")
SMALL = ("models=[llama-3-8b, mixtral-8x22b]", "targets=[v5e, h200]", "weights=[bfloat16, int4]")
LOAD = ("prompt=512", "generate=128", "context=1024")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("pods")
    assert scripts.run("pods", CONFIG, *SMALL, *LOAD, f"output={where}/runs") == 0
    (run,) = (where / "runs").iterdir()
    return run


def rows_of(folder, **where):
    rows = json.loads((folder / "pods.json").read_text())
    return [row for row in rows if all(row[key] == value for key, value in where.items())]


def test_the_smallest_slices_hold_the_weights_and_smaller_ones_do_not(folder):
    found = {(row["model"], row["family"], row["weights"]): row for row in rows_of(folder, kind="smallest")}
    assert len(found) == 2 * 2 * 2
    # 16 GB of weights in 16 bits do not go into one chip of 16 GB, and those of 281 GB take more than two H200.
    assert found["llama-3-8b", "v5e", "bfloat16"]["target"] == "v5e:2x2"
    assert found["llama-3-8b", "v5e", "int4"]["target"] == "v5e:1x1"
    assert found["mixtral-8x22b", "h200", "bfloat16"]["target"] == "h200:1x1x4"
    assert found["mixtral-8x22b", "h200", "int4"]["chips"] < found["mixtral-8x22b", "h200", "bfloat16"]["chips"]
    for row in found.values():
        capacity = {"v5e": 2**34, "h200": 151397597184}[row["family"]]
        assert row["predicted_bytes"] <= 0.95 * capacity
        assert row["predicted_weights_bytes"] + row["predicted_cache_bytes"] < row["predicted_bytes"]
        assert row["proved_fits"] is None
        assert (row["predicted_sent_a_token"] > 0) == (row["chips"] > 1)


def test_the_same_load_gets_faster_with_more_chips_and_more_load_does_not_slow_a_chip_to_nothing(folder):
    strong = rows_of(folder, kind="strong", model="llama-3-8b", family="h200", weights="bfloat16")
    assert [row["chips"] for row in strong] == [1, 2, 4, 8]
    assert {row["batch"] for row in strong} == {16}
    times = [row["predicted_tpot"] for row in strong]
    assert times == sorted(times, reverse=True)
    assert times[0] / times[-1] < 8  # collectives take their share
    weak = rows_of(folder, kind="weak", model="llama-3-8b", family="v5e", weights="int4")
    assert [row["batch"] for row in weak] == [row["chips"] for row in weak]
    assert {row["chips"] for row in weak} >= {1, 4, 8, 16, 32, 64, 128, 256}


def test_tables_and_charts_say_that_they_are_predicted(folder):
    text = (folder / "table.md").read_text()
    assert "predicted smallest slice" in text
    assert "| proved" in text.replace("  ", " ")
    assert "nothing is compiled, and nothing is measured" in text
    for name in ("strong-v5e", "weak-v5e", "strong-h200", "weak-h200"):
        chart = (folder / f"{name}.svg").read_text()
        assert ET.fromstring(chart).tag.endswith("svg")
        assert "predicted" in chart
        assert "llama-3-8b, bfloat16" in chart


def test_what_is_compiled_stands_in_columns_of_its_own(tmp_path, monkeypatch):
    asked = []

    def prover(config, option, goal):
        asked.append((option.target, goal.slots))
        return Proof(True, {"weights": 2.0**33, "cache": 2.0**30}, 2.0**34)

    monkeypatch.setattr(scripts.load("pods"), "PROVER", prover)
    options = ("models=[llama-3-8b]", "targets=[v5e]", "weights=[int8]", "compiled=true", f"output={tmp_path}/runs")
    assert scripts.run("pods", CONFIG, *LOAD, *options) == 0
    (run,) = (tmp_path / "runs").iterdir()
    (row,) = rows_of(run, kind="smallest")
    assert asked == [(row["target"], 1024)]
    assert (row["proved_fits"], row["proved_bytes"], row["proved_limit"]) == (True, 9 * 2**30, 2**34)
    assert row["predicted_bytes"] != row["proved_bytes"]
    assert "9.0" in (run / "table.md").read_text()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("models=[llama-3-9b]", "llama-3-9b: is no known shape"),
        ("models=[]", "there is nothing to measure|models: give at least one"),
        ("targets=[v5x]", "target v5x: is none of"),
        ("weights=[int5]", "weights='int5' must be"),
        ("kv=int7", "kv='int7' must be"),
        ("batch=0", "batch=0 must be a whole number from 1"),
        ("rows_a_chip=0", "rows_a_chip=0 must be"),
        ("context=10", "context=10 must be at least prompt"),
        ("context=100000", "context=100000 is more than the 8192 positions of llama-3-8b"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_written(tmp_path, override, message):
    with pytest.raises(InputError, match=message) as caught:
        scripts.run("pods", CONFIG, override, f"output={tmp_path}/runs")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()

"""experiments/moe_capacity.py on shapes that take seconds: what it finds, and what it refuses."""

import json

import numpy as np
import pytest
import scripts

from jaxinfer.errors import InputError
from jaxinfer.experiment import kinds

pytestmark = pytest.mark.quick

CONFIG = str(scripts.ROOT / "configs" / "moe_capacity.yaml")


@pytest.fixture(scope="module")
def script():
    return scripts.load("moe_capacity")


def small(tmp_path, *more):
    sizes = ("tokens=64", "d_model=16", "d_ff=8", "experts=[4]", "top_k=[2]", "rounds=1", "skews=[0.0,2.0]")
    return (CONFIG, "model=null", *sizes, f"output={tmp_path}", *more)


def test_what_is_dropped_is_what_does_not_fit(script, tmp_path):
    scripts.run("moe_capacity", *small(tmp_path, "capacity_factors=[1.0,2.0]", "routers=[softmax,expert_choice]"))
    (folder,) = tmp_path.iterdir()
    found = json.loads((folder / "results.json").read_text())
    rows = {(row["router"], row["skew"], row["factor"]): row for row in found["dropped"]}
    assert len(rows) == 8
    assert all(rows[key]["dropped"] == 0 for key in rows if key[2] == 2.0 and key[0] == "softmax")  # room for all
    skewed = rows["softmax", 2.0, 1.0]
    config = kinds.read(CONFIG, small(tmp_path)[1:]).config
    logits = script.router_logits(config, config.mixtures()[0], 2.0)
    load = np.bincount(np.argsort(-logits, axis=1)[:, :2].ravel(), minlength=4)
    assert skewed["dropped"] == pytest.approx(np.maximum(load - 32, 0).sum() / 128)
    assert skewed["fullest"] == pytest.approx(load.max() / 32)
    assert (skewed["kept_load"], skewed["computed"]) == (1.0, 1.0)
    assert len(found["dispatches"]) == 2
    assert {file.suffix for file in folder.iterdir()} >= {".json", ".md", ".html", ".svg"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("capacity_factors=[1.0,0.0]", "capacity_factor=0.0 must be a finite number above zero"),
        ("top_k=[5]", "top_k=5 must be between 1 and the number of experts, 4"),
        ("top_k=[1,2]", "top_k has 2 values for 1 numbers of experts"),
        ("active=0.0", "active=0 must be above 0, and at most 1"),
        ("rounds=0", "rounds=0 must be at least 1"),
        ("routers=[]", r"routers=\[\] must name at least one"),
    ],
)
def test_a_config_that_makes_no_sense(script, tmp_path, override, message):
    with pytest.raises(InputError, match=message):
        scripts.run("moe_capacity", *small(tmp_path, override))
    assert not list(tmp_path.iterdir())

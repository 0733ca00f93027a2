"""What a process of a larger machine reads and holds, as the experiment measures it, on a small shape."""

import json

import pytest
import scripts

from jaxinfer import InputError

CONFIG = str(scripts.ROOT / "configs" / "sharded_loading.yaml")


def test_a_device_of_eight_holds_an_eighth_of_the_files(tmp_path):
    options = ("shape=smollm2-135m", "layers=3", "mesh=[fsdp=8]", "devices=2", f"output={tmp_path}/runs")
    assert scripts.run("sharded_loading", CONFIG, *options) == 0
    (run,) = (tmp_path / "runs").iterdir()
    plain, rounded = json.loads((run / "sharded_loading.json").read_text())["rows"]
    assert (plain["weights"], rounded["weights"]) == ("bfloat16", "int8")
    assert plain["held_gb"] == pytest.approx(plain["files_gb"] / 4, abs=0.001)
    assert rounded["held_gb"] < 0.55 * plain["held_gb"]
    assert plain["on_disk_mb"] < 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("devices=65", "devices=65 must be 1 to the 64 of mesh fsdp=8,tensor=8"),
        ("layers=0", "layers=0 must be 1 or above"),
        ("shape=llama-3-71b", "is no known shape"),
        ("weights=[int9]", "int9"),
    ],
)
def test_what_cannot_be_measured_is_named(tmp_path, override, message):
    with pytest.raises(InputError, match=message):
        scripts.run("sharded_loading", CONFIG, override, f"output={tmp_path}/runs")
    assert not (tmp_path / "runs").exists()

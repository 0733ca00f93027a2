"""The kind that compares compilers of schemas, on a suite of one schema."""

import json

import pytest
import scripts

from jaxinfer import InputError

pytestmark = pytest.mark.quick

CONFIG = str(scripts.ROOT / "configs" / "constraints.yaml")


@pytest.fixture
def suite(tmp_path):
    tests = [{"data": 7, "valid": True}, {"data": "x", "valid": False}]
    for draft in scripts.load("constraints").DRAFTS:
        (tmp_path / "suite" / "tests" / draft).mkdir(parents=True)
        file = tmp_path / "suite" / "tests" / draft / "type.json"
        file.write_text(json.dumps([{"description": "d", "schema": {"type": "integer"}, "tests": tests}]))
    return tmp_path / "suite"


def test_what_a_compiler_lets_a_model_write_is_counted(suite, tmp_path):
    options = ("compilers=[jaxinfer]", "models=[]", f"output={tmp_path}/runs")
    assert scripts.run("constraints", CONFIG, f"suite={suite}", *options) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    found = json.loads((folder / "constraints.json").read_text())
    (row,) = found["rows"]
    assert row.pop("seconds") >= 0
    counts = {"schemas": 3, "taken": 3, "valid": 3, "valid_written": 3, "invalid": 3, "invalid_written": 0}
    assert row == {"compiler": "jaxinfer"} | counts
    assert (found["masks"], set(found["versions"])) == ([], {"jax", "jaxinfer"})
    assert "3 of 3" in (folder / "table.md").read_text()


def test_a_folder_that_is_no_suite_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"suite: .*: is no checkout of JSON-Schema-Test-Suite"):
        scripts.run("constraints", CONFIG, f"suite={tmp_path}", f"output={tmp_path}/runs")
    assert not (tmp_path / "runs").exists()

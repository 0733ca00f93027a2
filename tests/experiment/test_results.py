import json
from pathlib import Path

import pytest
import yaml

from jaxinfer.errors import InputError
from jaxinfer.experiment import results

ROW = {"name": "greedy", "prompts": [{"prompt": "abc"}]}


def test_two_runs_of_the_same_second_have_two_folders_and_the_newest_is_found(make, monkeypatch):
    config = make()
    monkeypatch.setattr(results.time, "strftime", lambda _: "20260102-030405")
    folders = [results.new_run(config) for _ in range(11)]
    assert len(set(folders)) == 11
    assert results.newest_run(config) == folders[-1]
    monkeypatch.setattr(results.time, "strftime", lambda _: "20260102-030406")
    assert results.newest_run(config) != results.new_run(config) == results.newest_run(config)


def test_the_newest_run_is_one_of_this_name(make):
    results.new_run(make("name=trial-two"))
    with pytest.raises(InputError, match="--resume: no run of 'trial' below"):
        results.newest_run(make())


def test_rows_come_back_as_they_were_appended(tmp_path):
    assert results.read_rows(tmp_path) == []
    results.append_row(tmp_path, ROW)
    results.append_row(tmp_path, {**ROW, "name": "zwei\u2028\n"})
    assert [row["name"] for row in results.read_rows(tmp_path)] == ["greedy", "zwei\u2028\n"]
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_resuming_refuses_what_differs_and_names_the_first_key(make):
    run = results.new_run(make())
    results.append_row(run, ROW)
    results.check_same(run, make(), ["abc"])
    with pytest.raises(InputError, match=r"another config: decoding\.seed was 0, is 3$"):
        results.check_same(run, make("decoding.seed=3"), ["abc"])
    with pytest.raises(InputError, match=r"another config: rows.2.method.width was 8, is 4$"):
        results.check_same(run, make("rows.2.method.width=4"), ["abc"])
    with pytest.raises(InputError, match="has other prompts"):
        results.check_same(run, make(), ["abd"])
    versions = json.loads((run / "versions.json").read_text())
    (run / "versions.json").write_text(json.dumps({**versions, "jax": "0.0.1", "commit": "old"}))
    with pytest.raises(InputError, match=r"another versions: jax was '0.0.1', is"):
        results.check_same(run, make(), ["abc"])
    with pytest.raises(InputError, match="is not a run folder"):
        results.check_same(run.parent, make(), ["abc"])


def test_an_output_that_cannot_be_written_is_one_line_and_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file" / "runs", tmp_path / "file"):
        with pytest.raises(InputError, match=r"^output: cannot write below '.*file.*': .*; set another folder$"):
            results.check_writable(str(output))
    results.check_writable(str(tmp_path / "a" / "b"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_results_name_no_home_folder(make, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    run = results.new_run(make(f"model={tmp_path}/checkpoints/mine"))
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["source"] == "~/checkpoints/mine"
    everything = "".join(path.read_text() for path in run.iterdir())
    assert str(Path.home()) not in everything

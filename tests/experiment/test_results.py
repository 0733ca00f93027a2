import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxinfer.errors import InputError
from jaxinfer.experiment import compare, results, table
from jaxinfer.host import files

pytestmark = pytest.mark.quick

PROMPT = {"family": "a", "prompt": "abc", "output": "d", "tokens": [1], "steps": 1, "emitted": 1}
RATES = {key: [1.0, 2.0] for key in ("decode_rates", "baseline_rates", "prefill_rates", "bandwidths")}
ROW = {
    "name": "greedy",
    "method": {"name": "greedy"},
    "policy": None,
    "sampling": None,
    "prompts": [PROMPT],
    "dtype": "float32",
    **RATES,
    "tokens_per_step": 1.0,
    "compile_seconds": 1.0,
    "weight_bytes": 1,
    "cache_bytes": 1,
    "temp_bytes": 1,
    "peak_rss_bytes": None,
}


def new_run(config):
    """The folder of a run that has begun, and ended before its first row."""
    with results.opened(config) as folder:
        return folder


def test_two_runs_of_the_same_second_have_two_folders_and_the_newest_is_found(make, monkeypatch):
    config = make()
    monkeypatch.setattr(results.time, "strftime", lambda _: "20260102-030405")
    folders = [new_run(config) for _ in range(11)]
    assert len(set(folders)) == 11
    assert results.newest_run(config) == folders[-1]
    monkeypatch.setattr(results.time, "strftime", lambda _: "20260102-030406")
    assert results.newest_run(config) != new_run(config) == results.newest_run(config)


def test_the_newest_run_is_one_of_this_name(make):
    new_run(make("name=trial-two"))
    with pytest.raises(InputError, match="--resume: no run of 'trial' below"):
        results.newest_run(make())


def test_rows_come_back_as_they_were_appended(tmp_path):
    assert results.read_rows(tmp_path) == []
    results.append_row(tmp_path, ROW)
    results.append_row(tmp_path, {**ROW, "name": "zwei\u2028\n"})
    assert [row["name"] for row in results.read_rows(tmp_path)] == ["greedy", "zwei\u2028\n"]
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_resuming_refuses_what_differs_and_names_the_first_key(make):
    run = new_run(make())
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
    run = new_run(make(f"model={tmp_path}/checkpoints/mine"))
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["source"] == "~/checkpoints/mine"
    everything = "".join(path.read_text() for path in run.iterdir())
    assert str(Path.home()) not in everything


def test_a_run_that_is_ended_while_its_folder_is_made_leaves_none(make, monkeypatch, tmp_path):
    monkeypatch.setattr(results, "versions", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        new_run(make())
    assert list((tmp_path / "runs").iterdir()) == []


def test_what_killed_processes_left_is_no_run_and_is_removed(make, tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    runs = tmp_path / "runs"
    left = runs / f".trial-20990101-000000.{files._HOST}-{ended.pid}.tmp"
    left.mkdir(parents=True)
    (left / "config.yaml").write_text("name: trial\n")
    for foreign in (
        "trial-20990101-000000",
        "trial-2099",
        "trial-20990101-000001-x",
        "trial-20990101-000002-" + "9" * 5000,
    ):
        if len(foreign) < 255:
            (runs / foreign).mkdir()
    (runs / "trial-20990101-000000" / "config.yaml").write_text("name: trial\n")  # without versions.json
    (runs / "trial-20990101-000003").write_text("a file")
    with pytest.raises(InputError, match="no run of 'trial' below"):
        results.newest_run(make())
    run = new_run(make())
    assert results.newest_run(make()) == run
    assert not left.exists()


def test_a_folder_is_held_by_one_at_a_time_and_its_lock_goes(make):
    with results.opened(make()) as run:
        assert lock_of(run) == f"{os.getpid()}\n"
        with pytest.raises(InputError, match=rf"{run}: another run is writing it \(process {os.getpid()}\)"):
            results.check_same(run, make(), [])
        with pytest.raises(InputError, match="another run is writing it"), results.opened(make(), run):
            pytest.fail("both hold it")
    assert sorted(path.name for path in run.iterdir()) == ["config.yaml", "versions.json"]
    (run / ".lock").write_text("99999999\n")  # of a process that was killed
    with results.opened(make(), run) as again:
        assert again == run


def lock_of(run):
    return (run / ".lock").read_text()


def damaged(key, value):
    return json.dumps({**ROW, key: value})


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("\x01\x02", "is not valid JSON"),
        ("{", "is not valid JSON"),
        ("3", "is no finished row: 3"),
        ("{}", "is no finished row: name is missing"),
        (damaged("name", 3), "name is 3"),
        (damaged("method", {}), "method.name must be text"),
        (damaged("prompts", [3]), "prompts.0 is 3"),
        (damaged("prompts", []), "prompts is empty"),
        (damaged("prompts", [{"prompt": "abc"}]), "prompts.0.family is missing"),
        (damaged("prompts", [{**PROMPT, "tokens": "x"}]), "prompts.0.tokens is 'x'"),
        (damaged("prompts", [PROMPT] * 2), "has 2 prompts, and the first row 1"),
        (damaged("decode_rates", []), "decode_rates must be a list of numbers, got []"),
        (damaged("decode_rates", [True, 1.0]), "decode_rates must be a list of numbers"),
        (damaged("baseline_rates", [1.0]), "baseline_rates and decode_rates have different lengths"),
        (damaged("bandwidths", [1.0, "x"]), "bandwidths must be a list of numbers"),
        (damaged("tokens_per_step", float("nan")), "NaN is not a number of JSON"),
        (damaged("compile_seconds", True), "compile_seconds is True"),
        (damaged("sampling", {"temperature": "hot"}), "sampling.temperature is 'hot'"),
        (damaged("sampling", 3), "sampling is 3"),
        (damaged("temp_bytes", 10**400), "temp_bytes is 1000"),
        (damaged("tokens_per_step", 1.0).replace('"tokens_per_step": 1.0', '"tokens_per_step": 1e999'), "step is inf"),
        (json.dumps(ROW), "row 'greedy' is there twice"),
        ("[" * 200_000, "is nested too deep"),
        ('{"name": ' + "9" * 10_000 + "}", "is not valid JSON"),
    ],
)
def test_a_damaged_row_is_one_line_with_its_number(make, line, problem):
    run = new_run(make())
    (run / "rows.jsonl").write_text(f"{json.dumps(ROW)}\n{line}\n")
    with pytest.raises(InputError) as caught:
        results.check_same(run, make(), ["abc"])
    message = str(caught.value)
    assert message.startswith(f"{run}/rows.jsonl:2: ")
    assert problem in message
    assert "\n" not in message
    assert len(message) < 500


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("config.yaml", b"name: [", "config.yaml:1: not valid YAML"),
        ("config.yaml", b"\xff\xfe", "config.yaml: is not UTF-8 text"),
        ("config.yaml", b"a: &a [*a]", "config.yaml:1: not valid YAML: the anchor 'a' holds itself"),
        ("config.yaml", b"3", "has another config:  was 3"),
        ("config.yaml", b"", "has another config:  was null"),
        ("versions.json", b"[]", "versions.json: must hold a JSON object, not []"),
        ("versions.json", b"{", "versions.json: is not valid JSON"),
        ("versions.json", b"\xff", "versions.json: is not UTF-8 text"),
        ("rows.jsonl", b"\xff\n", "rows.jsonl: is not UTF-8 text"),
    ],
)
def test_a_damaged_run_folder_is_one_line_that_names_the_file(make, file, content, problem):
    run = new_run(make())
    (run / file).write_bytes(content)
    with pytest.raises(InputError) as caught:
        results.check_same(run, make(), ["abc"])
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_run_folder_is_said(make, tmp_path):
    (tmp_path / "file").write_text("")
    run = new_run(make())
    (run / "versions.json").unlink()
    os.mkfifo(run / "versions.json")
    for folder, problem in (
        (tmp_path / "file", "is a file"),
        (tmp_path / "nowhere", "there is no such folder"),
        (tmp_path, "is not a run folder: it has no config.yaml"),
        (run, "is a pipe or a device"),
    ):
        with pytest.raises(InputError, match=problem):
            results.check_same(folder, make(), ["abc"])


@settings(derandomize=True, max_examples=300, deadline=None, database=None)
@given(st.data())
def test_any_damage_to_the_rows_is_refused_or_can_be_reported(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "damaged"
    folder.mkdir(exist_ok=True)
    text = f"{json.dumps(ROW)}\n{json.dumps({**ROW, 'name': 'b'})}\n".encode()
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text)))
        wide = data.draw(st.integers(0, 30))
        new = data.draw(
            st.sampled_from([b"", b"[]", b"{}", b"null", b"-1", b'"', b"\n", b"\xff", b"1e999", b"true", b","])
        )
        text = text[:at] + new + text[at + wide :]
    (folder / "rows.jsonl").write_bytes(text)
    try:
        rows = results.read_rows(folder)
    except InputError as error:
        refused = str(error)
        assert f"{folder}/rows.jsonl" in refused
        return
    markdown = table.markdown(compare.summarize(rows)) if rows else ""
    assert all(row["name"][:10] in markdown or "|" in row["name"] or "\n" in row["name"] for row in rows)

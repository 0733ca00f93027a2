"""Grids on the stand-in model: what is walked, loaded, compared, kept of failures, and written flat."""

import itertools
import json
import re

import jax
import pytest
import yaml
from fakes import FakeModel

import jaxinfer
from jaxinfer.cli.__main__ import main
from jaxinfer.errors import InputError
from jaxinfer.experiment import command, flat, grid, load_config, results

pytestmark = pytest.mark.quick

GRID = {
    "name": "trial",
    "model": "smollm2-135m",
    "prompts": {"source": ["abcdef", "uvwxyz"], "chat": False},
    "decoding": {"max_new_tokens": 4, "repeats": 1},
    "axes": {
        "weights": [None, "int8"],
        "policy": ["dense", {"name": "short", "policy": {"name": "window", "capacity": 512}}],
        "method": ["greedy", {"name": "looked up", "method": {"name": "lookup", "width": 4}}],
        "batch": [1, 2],
    },
}


class Loads:
    """Stands in for `jaxinfer.load`: it notes what is loaded, and its models fail where `fails` says so."""

    def __init__(self):
        self.made, self.fails, self.models = [], lambda *_: None, []

    def __call__(self, source, dtype=None, weights=None, tokenizer=None):
        loads = self

        class Failing(FakeModel):
            def generate(self, prompts, *, method, policy, **options):
                loads.fails(weights, method, policy)
                return super().generate(prompts, method=method, policy=policy, **options)

        self.made.append((source, weights))
        self.models.append(Failing(weights=weights))
        return self.models[-1]


@pytest.fixture
def loads(monkeypatch):
    made = Loads()
    monkeypatch.setattr(jaxinfer, "load", made)
    return made


@pytest.fixture
def file(tmp_path):
    """A file with the grid under some changes."""

    def write(**changes):
        path = tmp_path / "grid.yaml"
        path.write_text(yaml.safe_dump({**GRID, "output": str(tmp_path / "runs"), **changes}))
        return path

    return write


def folder_of(tmp_path):
    [folder] = (tmp_path / "runs").iterdir()
    return folder


def test_every_combination_is_measured_and_each_model_is_loaded_once(file, loads, tmp_path):
    assert command.run_config(str(file()), []) == 0
    folder = folder_of(tmp_path)
    names = [row["name"] for row in results.read_rows(folder)]
    expected = itertools.product(["full", "int8"], ["dense", "short"], [1, 2], ["greedy", "looked up"])
    assert names == [f"{w} / {p} / {m} / batch {b}" for w, p, b, m in expected]
    assert loads.made == [("smollm2-135m", None), ("smollm2-135m", "int8")]
    header = next(line for line in (folder / "table.md").read_text().splitlines() if line.startswith("|"))
    assert [cell.strip() for cell in header.split("|")[1:5]] == ["weights", "policy", "method", "batch"]


def test_flat_results_have_every_column_and_scalars_only(file, loads, tmp_path):
    command.run_config(str(file()), [])
    rows = flat.read(folder_of(tmp_path) / "results.jsonl")
    assert len(rows) == 16
    for row in rows:
        assert set(row) == set(flat.COLUMNS)
        assert all(value is None or isinstance(value, str | int | float) for value in row.values())
    one = next(row for row in rows if row["name"] == "int8 / short / looked up / batch 2")
    assert (one["weights"], one["policy"], one["method"], one["batch"]) == ("int8", "short", "looked up", 2)
    assert json.loads(one["method_settings"])["width"] == 4
    assert (one["speedup"], one["of_reference"], one["identical"], one["prompts"]) == (2.0, 2.0, 2, 2)
    assert (one["jax"], one["jaxinfer"], one["model"]) == (jax.__version__, jaxinfer.__version__, "smollm2-135m")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", one["date"])


def test_pandas_and_duckdb_read_flat_results(file, loads, tmp_path):
    command.run_config(str(file()), [])
    path = folder_of(tmp_path) / "results.jsonl"
    pandas = pytest.importorskip("pandas")
    assert pandas.read_json(path, lines=True).groupby("method")["speedup"].median()["looked up"] == 2.0


def test_rows_without_axes_are_written_flat_too(config_file, loads, tmp_path):
    assert command.run_config(str(config_file), []) == 0
    rows = flat.read(folder_of(tmp_path) / "results.jsonl")
    assert [(row["name"], row["method"], row["batch"]) for row in rows] == [
        ("greedy", "greedy", 1),
        ("sampling", "sample", 1),
        ("lookup <8>", "lookup", 1),
    ]
    assert all(set(row) == set(flat.COLUMNS) for row in rows)


def test_a_row_that_fails_leaves_the_others_and_resuming_tries_it_again(file, loads, tmp_path, capsys):
    def fails(weights, method, policy):
        if weights == "int8" and isinstance(policy, jaxinfer.Window) and isinstance(method, jaxinfer.Lookup):
            raise RuntimeError("RESOURCE_EXHAUSTED: no room\nfor 3 GB")

    loads.fails = fails
    config = str(file())
    assert command.run_config(config, []) == 1
    folder = folder_of(tmp_path)
    err = capsys.readouterr().err
    assert "2 of 16 rows failed; --resume tries them again: " in err
    lines = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    failed = [line for line in lines if "error" in line]
    assert len(lines) == 16
    assert [line["name"] for line in failed] == [f"int8 / short / looked up / batch {b}" for b in (1, 2)]
    assert {line["error"] for line in failed} == {"RuntimeError: RESOURCE_EXHAUSTED: no room for 3 GB"}
    text = (folder / "table.md").read_text()
    assert text.count("| failed |") or text.count(" failed |") >= 2
    assert text.count("RuntimeError: RESOURCE_EXHAUSTED: no room for 3 GB") == 2
    told = [row for row in flat.read(folder / "results.jsonl") if row["status"] == "failed"]
    assert [(row["weights"], row["method"], row["decode"]) for row in told] == [("int8", "looked up", None)] * 2

    loads.fails, loads.made = (lambda *_: None), []
    assert command.run_config(config, [str(folder)], resume=True) == 0
    assert loads.made == [("smollm2-135m", "int8")]
    calls = sum(len(model.calls) for model in loads.models[2:])
    assert calls == 2 * 4 + 1 * 4  # two batches, then one: of row and baseline, and each again after compiling
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == 16
    assert not any("error" in row for row in rows)
    assert "failed" not in (folder / "table.md").read_text()


def test_a_combination_that_cannot_be_fails_alone(file, loads, tmp_path):
    axes = {"method": ["greedy", "sample"], "sampling": [None, {"name": "hot", "temperature": 1.5}]}
    assert command.run_config(str(file(axes=axes)), []) == 1
    folder = folder_of(tmp_path)
    rows = {row["name"]: row for row in flat.read(folder / "results.jsonl")}
    assert rows["greedy / hot"]["status"] == "failed"
    assert "sampl" in rows["greedy / hot"]["error"]
    done = [name for name, row in rows.items() if row["status"] == "done"]
    assert done == ["greedy / default", "sample / default", "sample / hot"]


def test_ctrl_c_ends_the_grid_and_resuming_goes_on(file, loads, tmp_path):
    def fails(weights, *_):
        if weights == "int8":
            raise KeyboardInterrupt

    loads.fails = fails
    with pytest.raises(KeyboardInterrupt, match="8 of 16 rows are done"):
        command.run_config(str(file()), [])
    loads.fails = lambda *_: None
    folder = folder_of(tmp_path)
    path = folder / "results.jsonl"
    path.write_text(path.read_text()[:-30])
    last = len(path.read_text().splitlines())
    with pytest.raises(InputError, match=f"results.jsonl:{last}: is not valid JSON"):
        flat.read(path)
    assert command.run_config(str(file()), [str(folder)], resume=True) == 0
    assert len(flat.read(path)) == 16


def test_include_and_exclude_choose_rows_and_a_reference_is_added(file):
    config = load_config(file(include=[{"weights": "int8"}], exclude=[{"method": "greedy", "batch": [2]}]))
    found = grid.points(config)
    assert [point.name for point in found][:4] == [
        "int8 / dense / greedy / batch 1",
        "int8 / dense / looked up / batch 1",
        "int8 / dense / greedy (reference) / batch 2",
        "int8 / dense / looked up / batch 2",
    ]
    assert len(found) == 8
    assert grid.baseline(found[3], found) is found[2]
    assert grid.reference(found[7], found) is found[2]  # of the same batch: the first policy


def test_rows_are_an_axis_and_models_have_references_of_their_own(file):
    rows = [{"name": "plain", "method": "greedy"}, {"name": "quick", "method": "lookup"}]
    axes = {"model": ["smollm2-135m", {"name": "half", "source": "smollm2-135m", "dtype": "bfloat16"}]}
    axes["policy"] = ["dense", "window"]
    found = grid.points(load_config(file(rows=rows, axes=axes)))
    assert [point.name for point in found][-2:] == ["half / window / plain", "half / window / quick"]
    assert grid.baseline(found[-1], found).name == "half / window / plain"
    assert grid.reference(found[-1], found).name == "half / dense / plain"
    assert (found[-1].model.dtype, found[0].model.dtype) == ("bfloat16", None)


def test_a_resolved_grid_is_a_config_and_resolves_to_itself(file, tmp_path):
    config = load_config(file(exclude=[{"batch": 2}]))
    again = tmp_path / "again.yaml"
    again.write_text(yaml.safe_dump(results.mapping_of(config)))
    assert results.mapping_of(load_config(again)) == results.mapping_of(config)


def test_synthetic_prompts_have_exactly_their_lengths(file, loads, tmp_path):
    axes = {
        "workload": [{"name": "own", "source": ["abcdef"]}, {"synthetic": {"prompt": 7, "generate": 3, "count": 5}}]
    }
    assert command.run_config(str(file(axes=axes)), []) == 0
    own, made = results.read_rows(folder_of(tmp_path))
    assert [p["prompt_tokens"] for p in made["prompts"]] == [7] * 5
    assert [p["emitted"] for p in made["prompts"]] == [3] * 5
    assert len({tuple(p["tokens"]) for p in made["prompts"]}) == 5
    assert made["name"] == "5 x 7+3 / greedy"[: len(made["name"])]
    assert len(own["prompts"]) == 1


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"axes": {"wieghts": [None]}}, "axes.wieghts: unknown axis; nearest: 'weights'"),
        ({"axes": {"weights": []}}, "axes.weights: is empty; write at least one value, or leave the axis out"),
        ({"axes": {"weights": "int8"}}, "axes.weights: expected a list, got 'int8'"),
        ({"axes": {"weights": ["int9"]}}, "nearest: 'int8'"),
        ({"axes": {"policy": ["dnse"]}}, "axes.policy.0: unknown policy 'dnse'; nearest: 'dense'"),
        ({"axes": {"method": [{"name": "lookup", "widht": 3}]}}, "axes.method.0.widht: method 'lookup' has no such"),
        ({"axes": {"method": ["speculative"]}}, "axes.method.0.method: speculative needs draft: write"),
        ({"axes": {"batch": [0]}}, "axes.batch.0: expected a whole number from 1, got 0"),
        ({"axes": {"batch": [1, 1]}}, "axes.batch.1: the name '1' is taken by axes.batch.0; write {name: another, "),
        ({"axes": {"mesh": ["data=2,tnsor=1"]}}, "a mesh has no axis 'tnsor'; nearest: 'tensor'"),
        ({"axes": {"mesh": ["data=512"]}}, "axes.mesh.0: mesh data=512 takes 512 devices, and there "),
        ({"axes": {"model": ["smollm2-135n"]}}, "axes.model.0: smollm2-135n: no such file or model"),
        ({"axes": {"compress": [{"keep_layer": [1]}]}}, "unknown compressor; nearest: 'keep_layers'"),
        ({"axes": {"workload": ["quickstrt"]}}, "'quickstrt' is no .jsonl file and no bundled set"),
        ({"axes": {"workload": [{"synthetic": {"prompt": 0, "generate": 1}}]}}, "synthetic.prompt: expected a whole "),
        ({"axes": {"sampling": [{"temprature": 1}]}}, "sampling has no such parameter; nearest: 'temperature'"),
        ({"axes": {"batch": [{"name": " ", "batch": 1}]}}, "axes.batch.0.name: expected a text of 1 to 60"),
        ({"exclude": [{"batch": 3}]}, "exclude.0.batch: 3 is no name on this axis"),
        ({"include": [{"polcy": "dense"}]}, "include.0.polcy: is no axis of this config; nearest: 'policy'"),
        ({"exclude": [{"batch": [1, 2]}]}, "include, exclude: leave no row of the grid"),
        ({"rows": [{"name": "a", "method": "greedy"}]}, "axes.method: 'rows' gives the methods already"),
        ({"quality": {"perplexity": {"text": "none.txt"}}}, "quality.perplexity.text: 'none.txt': no such file"),
        ({"quality": {"last_word": {"file": "grid.yaml"}}}, "quality.last_word.file: "),
        ({"kind": "side_by_side"}, "axes: only experiments of the kind 'rows' have this; leave it out"),
    ],
)
def test_a_bad_grid_is_one_line_before_anything_is_loaded(
    file, loads, tmp_path, capsys, changes, expected, monkeypatch
):
    monkeypatch.setattr("sys.argv", ["jaxinfer", "run", str(file(**changes))])
    with pytest.raises(SystemExit) as stop:
        raise SystemExit(main())
    err = capsys.readouterr().err
    assert (stop.value.code, err.count("\n")) == (2, 1), err
    assert expected in err
    assert loads.made == []
    assert not (tmp_path / "runs").exists()

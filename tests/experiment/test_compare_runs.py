"""Finished runs side by side: what is matched, what is more than noise, and what is no run."""

import copy
import json

import invented
import pytest

from jaxinfer.cli.compare import show
from jaxinfer.errors import InputError
from jaxinfer.experiment import noise
from jaxinfer.experiment.compare_runs import compare

pytestmark = pytest.mark.quick
ROWS = [row for row in invented.grid(passes=3) if row["axes"]["batch"] == "1" and row["axes"]["weights"] == "int8"]


@pytest.fixture
def make(tmp_path):
    """Writes the folder of a run."""

    def made(name, rows=ROWS, config=None, versions=None, ending=""):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.yaml").write_text(json.dumps({"name": "trial", "decoding": {"repeats": 3}} | (config or {})))
        (folder / "versions.json").write_text(json.dumps({"jax": "0.10.2", "cpus": 2} | (versions or {})))
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + ending)
        return folder

    return made


def changed(speed=1.0, name="lookup", **more):
    """The rows, one of which has another speed."""
    rows = copy.deepcopy(ROWS)
    row = next(row for row in rows if f" {name} " in row["name"])
    row["decode_rates"] = [rate * speed for rate in row["decode_rates"]]
    row.update(more)
    return rows


def line(found, row, figure):
    return next(x for x in found.lines if f" {row} " in x.row and x.figure == figure)


def test_a_run_beside_itself_has_not_changed(make):
    found = compare([make("one"), make("two")])
    assert {cell.change.ratio for x in found.lines for cell in x.cells[1:]} == {1.0}
    assert not any(x.changed for x in found.lines)
    assert (found.only, found.differences, found.texts) == ({}, (), {})
    assert found.sentences == (
        "two: no row is faster or slower than in one by more than noise.",
        "Where a figure has one timed pass, nothing can be said of noise.",
    )
    clocks = {"decode tokens/s", "speedup", "prefill tokens/s"}
    ledgers = {f"{stage}, {figure}" for stage in ("prefill", "decode") for figure in ("clock", "of the bound")}
    assert {x.figure for x in found.lines} == clocks | ledgers  # none without a clock


@pytest.mark.parametrize(("speed", "mark"), [(1.5, "faster"), (1 / 1.5, "slower"), (1.005, ""), (1.0, "")])
def test_what_is_more_than_noise_is_marked(make, speed, mark):
    found = compare([make("one"), make("two", changed(speed))])
    for figure in ("decode tokens/s", "speedup"):
        cell = line(found, "lookup", figure).cells[1]
        assert cell.change.ratio == pytest.approx(speed)
        assert cell.mark == mark
    assert not line(found, "eagle", "speedup").changed
    assert ("int8 / lookup / batch 1" in " ".join(found.sentences)) == bool(mark)


def test_the_interval_is_that_of_all_passes():
    change = noise.between([10.0, 11.0, 12.0], [12.5, 14.0, 13.0])
    assert (change.ratio, change.low, change.high) == (13 / 11, 12.5 / 12, 14 / 10)
    assert change.beyond
    assert not noise.between([10.0, 11.0, 12.0], [11.9, 14.0, 13.0]).beyond
    assert not noise.between([10.0], [20.0]).beyond  # one pass says nothing
    assert noise.between([0.0], [20.0]) is None


def test_sizes_and_texts_are_shown_where_they_differ(make):
    rows = copy.deepcopy(ROWS)
    rows[1]["temp_bytes"] *= 2
    rows[1]["prompts"][0]["tokens"][3] = 99
    found = compare([make("one"), make("two", rows)])
    cell = line(found, "lookup", "temporaries").cells[1]
    assert (cell.change.ratio, cell.mark) == (2.0, "worse")
    assert dict(found.texts) == {"int8 / lookup / batch 1": ("6/6", "5/6")}
    assert "2.00x, worse" in found.markdown()


def test_rows_that_only_one_run_has_and_what_may_explain_a_change(make):
    config = {"name": "other", "decoding": {"repeats": 5}}
    failures = [{"name": "int8 / mtp / batch 1", "error": "no modules"}]
    runs = [make("one"), make("two", [*ROWS[:2], *failures], config, {"jax": "0.11.0"}), make("three", ROWS[1:])]
    found = compare(runs)
    assert dict(found.only) == {
        ROWS[0]["name"]: ("one", "two"),
        ROWS[2]["name"]: ("one", "three"),
        ROWS[3]["name"]: ("one", "three"),
    }
    assert [(x.what, x.key, x.values) for x in found.differences] == [
        ("config", "decoding.repeats", ("3", "5", "3")),
        ("versions", "jax", ('"0.10.2"', '"0.11.0"', '"0.10.2"')),
    ]
    assert found.notes == ("two: int8 / mtp / batch 1 failed: no modules",)
    assert found.table().columns == ("row", "figure", "one", "two", "ratio", "three", "ratio")


def test_rows_of_one_name_and_other_axes_are_not_matched(make):
    rows = copy.deepcopy(ROWS)
    rows[0]["axes"]["weights"] = "nf4"
    found = compare([make("one"), make("two", rows)])
    assert ROWS[0]["name"] in found.only
    assert not any(x.row == ROWS[0]["name"] for x in found.lines)


def test_another_kind_is_compared_by_its_numbers(make):
    def lines(ms, passes, steps):
        return [{"item": "64", "rows": [{"tokens": 64, "ms": ms, "passes": passes, "steps": steps, "note": "x"}]}]

    config = {"kind": "forward_time"}
    found = compare([make("one", lines(3.0, [1.0, 1.1], 5), config), make("two", lines(4.5, [2.0, 2.1], 6), config)])
    assert [(x.row, x.figure, x.cells[1].mark) for x in found.lines] == [
        ("64", "ms", ""),  # one pass
        ("64", "passes", "changed"),
        ("64", "steps", "changed"),
    ]


def test_results_jsonl_is_read_too(tmp_path):
    usual = {"status": "done", "error": None, "method": "lookup", "prefill": 9.0, "tokens_per_step": 2.0}
    for name, speed in (("one", 1), ("two", 2)):
        rates = {"decode": 10.0 * speed, "decode_min": 9.0 * speed, "decode_max": 11.0 * speed}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"name": "lookup", **usual, **rates}) + "\n")
    found = compare([tmp_path / "one.jsonl", tmp_path / "two.jsonl"])
    marks = [(x.figure, x.cells[1].mark) for x in found.lines]
    assert marks == [("decode tokens/s", "faster"), ("prefill tokens/s", "")]


def test_a_last_line_that_was_cut_off_is_left_out_and_named(make):
    found = compare([make("one"), make("two", ROWS[:2], ending=json.dumps(ROWS[2])[:90])])
    path = found.runs[1].path
    assert found.notes == (f"{path}:3: the last line is broken, cut off while it was written; it is left out",)
    assert len(found.runs[1].rows) == 2


def test_what_is_no_run_is_said_in_one_line(make, tmp_path):
    one, broken = make("one"), make("broken", ROWS[:2], ending='{"name": \n')
    middle = make("middle", [])
    (middle / "rows.jsonl").write_text("{]\n" + json.dumps(ROWS[0]) + "\n")
    (tmp_path / "empty").mkdir()
    wrong = {
        tmp_path / "nowhere": "there is no such run",
        tmp_path / "empty": "is no run folder, it has no config.yaml",
        broken: "rows.jsonl:3: is not valid JSON",
        middle: "rows.jsonl:1: is not valid JSON",
        make("bare", []): "has no finished row",
        make("kind", [{"item": "a", "rows": [{"ms": 1}]}], {"kind": "step_time"}): "kind 'step_time'",
        make("lacks", [{"name": "x"}]): "rows.jsonl:1: is no finished row: method is missing",
        make("twice", [ROWS[0], ROWS[0]]): "is there twice",
    }
    for folder, message in wrong.items():
        with pytest.raises(InputError) as error:
            compare([one, folder])
        assert message in str(error.value)
        assert "\n" not in str(error.value)
    for paths in ([one], [], one):
        with pytest.raises(InputError, match="two runs or more"):
            compare(paths)


def test_the_command_prints_a_table_a_page_or_json(make, tmp_path, capsys):
    runs = [str(make("one")), str(make("two", changed(1.5)))]
    show(runs, html=str(tmp_path / "page.html"))
    out = capsys.readouterr().out
    assert "| 1.50x, faster |" in out
    assert "Beyond noise: every pass" in out
    assert "1.50x, faster" in (tmp_path / "page.html").read_text()
    show(runs, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert [run["label"] for run in found["runs"]] == ["one", "two"]
    marked = [x for x in found["lines"] if x["runs"][1]["mark"]]
    assert [(x["row"], x["figure"]) for x in marked] == [
        ("int8 / lookup / batch 1", "decode tokens/s"),
        ("int8 / lookup / batch 1", "speedup"),
    ]
    with pytest.raises(InputError, match="a folder that exists"):
        show(runs, html=str(tmp_path / "no" / "page.html"))
    assert "1.50x, faster" in compare(runs)._repr_html_()

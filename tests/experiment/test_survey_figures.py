"""The figures of the survey: rows, charts, pages, and bad input."""

import json
import re
import xml.etree.ElementTree as ET

import pytest
import scripts

from jaxinfer.analysis.survey import FIGURES
from jaxinfer.checkpoint.presets import SHAPES
from jaxinfer.errors import InputError
from jaxinfer.experiment.curves import Dot, Line, chart, shares
from jaxinfer.network.counting import parameters

pytestmark = pytest.mark.quick

CONFIG = str(scripts.ROOT / "configs" / "survey_figures.yaml")
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("survey")
    assert scripts.run("survey_figures", CONFIG, f"output={where}/runs") == 0
    (run,) = (where / "runs").iterdir()
    return run


def test_every_figure_is_rows_a_chart_and_a_sentence(folder):
    found = json.loads((folder / "results.json").read_text())
    assert list(found) == list(FIGURES)
    for name, figure in found.items():
        assert len(figure["rows"]) >= 10
        assert figure["shows"].endswith(".")
        assert "nan" not in figure["shows"]
        assert ET.fromstring((folder / f"{name}.svg").read_text()).tag == f"{SVG}svg"
    lines = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    assert [line["item"] for line in lines] == list(FIGURES)


def test_figures_say_what_the_survey_says(folder):
    found = {name: figure["rows"] for name, figure in json.loads((folder / "results.json").read_text()).items()}

    def one(figure, **where):
        (row,) = [row for row in found[figure] if all(row[key] == value for key, value in where.items())]
        return row

    assert {row["bound"] for row in found["rooflines"] if row["stage"] == "decode"} == {"memory"}
    assert one("rooflines", format="W8A8KV8", stage="prefill", operator="up_proj")["rate"] == 309.7e12
    assert one("memory", batch=1, length=1024, format="W4")["share"] < 0.3
    assert one("decode_time", format="W16", batch=1)["seconds"] == pytest.approx(0.0357, rel=0.01)
    assert one("cache_memory", bits=16, length=200_000)["kv"] == pytest.approx(200_001 * 819_200)
    assert {row["length"] for row in found["cache_memory"]} == {10_000 * i for i in range(1, 21)}
    fused = [row for row in found["fusion"] if row["stage"] == "prefill"]
    assert {row["group"]: row["bound"] for row in fused} == {
        "q, k, v": "compute",
        "attention": "memory",
        "out": "compute",
        "down": "compute",
        "gate, up": "compute",
    }
    assert all(row["fused_bytes"] < row["bytes"] and row["fused_seconds"] < row["seconds"] for row in found["fusion"])
    hbm, pcie = (
        one("offloading", tier=tier, of="weights", stage="decode", batch=1)
        for tier in ("device memory", "host memory over PCIe")
    )
    assert pcie["seconds"] / hbm["seconds"] == pytest.approx(768 / 32)
    assert [row["batch"] for row in found["batching"] if row["fits"]] == [1, 2, 4, 8, 16]
    assert one("bandwidth", device="groq-lpu", batch=1)["chips"] == 65
    dense, mixture = (
        one("dynamic", variant=name, stage="decode", batch=1)
        for name in ("dense, of the mixture's size", "mixture, 2 of 8 experts")
    )
    assert dense["seconds"] > 3.5 * mixture["seconds"]
    assert dense["bytes"] == pytest.approx(2 * parameters(SHAPES["mixtral-8x7b"]), rel=0.01)


def test_fusion_keeps_what_comes_in_and_what_goes_out(folder):
    """The MLP's first half by hand, 2048 tokens, two bytes: the residual in, two matrices and a norm, neurons out."""
    rows = json.loads((folder / "results.json").read_text())["fusion"]["rows"]
    row = next(row for row in rows if (row["stage"], row["group"]) == ("prefill", "gate, up"))
    x, w, y = 2048 * 4096 * 2, 2 * 4096 * 11008 * 2 + 4 * 4096, 2048 * 11008 * 2
    assert row["fused_bytes"] == 32 * (x + w + y)
    assert row["bytes"] == 32 * (x + w + y + (x + 2 * x) + 2 * (y + y))


def test_the_pages_hold_everything_and_load_nothing(folder):
    html, text = ((folder / name).read_text() for name in ("report.html", "table.md"))
    assert html.count("<svg") == text.count("\n## ") == len(FIGURES)
    assert not re.search(r"(src|href)=|url\(|@import|https?://(?!www.w3.org)", html)
    for figure in json.loads((folder / "results.json").read_text()).values():
        assert figure["shows"] in text
    assert "31,778 tokens in 16 bits" in html


def test_a_part_is_drawn_on_another_device_and_resumed(tmp_path):
    options = ("hardware=h100-sxm", "figures=[rooflines, batching]", f"output={tmp_path}/runs")
    assert scripts.run("survey_figures", CONFIG, *options) == 0
    (run,) = (tmp_path / "runs").iterdir()
    before = (run / "rows.jsonl").read_text()
    (run / "rows.jsonl").write_text(before.splitlines(keepends=True)[0])
    assert scripts.run("survey_figures", CONFIG, *options, "--resume") == 0
    assert (run / "rows.jsonl").read_text() == before
    assert "bends at 295" in (run / "table.md").read_text()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("hardware=a600", "nearest: 'a6000'"),
        ("others=[h1000]", "h1000: is no known hardware"),
        ("small=llama-2-7", "small: .*nearest: 'llama-2-7"),
        ("small=mixtral-8x7b", "small=mixtral-8x7b must have the layers of Llama"),
        ("large=opt-13b", "large=opt-13b must have the layers of Llama"),
        ("mixture=llama-2-7b", "mixture=llama-2-7b must have experts"),
        ("figures=[roofline]", "figures: there is no 'roofline'.*nearest: 'rooflines'"),
        ("figures=[]", "there is nothing to measure in it"),
        ("batches=[]", "batches: give at least one value"),
        ("batches=[1, 0]", "batches: 0 must be a whole number from 1"),
        ("cases=[[1, -5]]", "cases: -5 must be a whole number from 1"),
        ("cases=[[1]]", "must be pairs: a batch and tokens"),
        ("length=0", "length: 0 must be a whole number from 1"),
        ("longest=7", "longest=7 must be at least 20"),
        ("disk=0", "disk=0"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_written(tmp_path, override, message):
    with pytest.raises(InputError, match=message) as caught:
        scripts.run("survey_figures", CONFIG, override, f"output={tmp_path}/runs")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()


def numbers(path):
    return [[float(x) for x in point.split()] for point in path.lstrip("M").split("L")]


def test_a_chart_places_points_by_their_logarithms():
    line = Line("a <b>", [(1, 10), (10, 100), (100, 1000)], 0)
    drawn = chart("t & t", "x", "y", [line], [Dot(10, 100, 1, "here", "name")], [("dots", 1, False)], (True, True))
    tree = ET.fromstring(drawn)
    first = next(one for one in tree.iter(f"{SVG}path") if one.find(f"{SVG}title") is not None)
    (ax, ay), (bx, by), (cx, cy) = numbers(first.get("d"))
    assert bx - ax == pytest.approx(cx - bx, abs=0.2)
    assert ay - by == pytest.approx(by - cy, abs=0.2)
    assert ay > by > cy
    circle = next(one for one in tree.iter(f"{SVG}circle"))
    assert (float(circle.get("cx")), float(circle.get("cy"))) == (bx, by)
    texts = [one.text for one in tree.iter(f"{SVG}text")]
    assert {"a <b>", "dots", "name", "x", "y", "10", "100", "1,000"} <= set(texts)


@pytest.mark.parametrize("points", [[(5, 5)], [(0, 0), (3, 0)], [(0, 0), (199_999, 163.8)], [(1, -2), (2, 4)]])
def test_a_linear_chart_holds_its_points(points):
    tree = ET.fromstring(chart("t", "x", "y", [Line("", points, 7)]))
    *_, path = tree.iter(f"{SVG}path")
    for x, y in numbers(path.get("d")):
        assert 74 <= x <= 720 - 34
        assert 16 <= y <= 420 - 52


def test_bars_are_as_long_as_their_shares():
    drawn = shares("a & b", ["one", "two"], {"x": [(100, "all"), (25, "part")], "y": [(50, "half"), (0, "none")]})
    tree = ET.fromstring(drawn)
    lengths = {
        group.find(f"{SVG}title").text: float(group.find(f"{SVG}rect").get("width")) for group in tree.iter(f"{SVG}g")
    }
    assert lengths["part"] / lengths["all"] == pytest.approx(0.25, abs=1e-3)
    assert lengths["half"] / lengths["all"] == pytest.approx(0.5, abs=1e-3)
    assert lengths["none"] == 1  # can be seen, and pointed at
    texts = [one.text for one in tree.iter(f"{SVG}text")]
    assert {"x", "y", "one", "two", "a & b", "100", "25", "50", "0"} == set(texts)

"""The tables and charts of the documents are what the data files give."""

import datetime
import importlib.util
import json
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parent.parent
DATA = sorted((ROOT / "docs" / "benchmarks").glob("*.json"))
ANCHORED = re.compile(r"\]\(([^)#\s]+\.md)?#([^)]+)\)")


@pytest.fixture(scope="module")
def render():
    spec = importlib.util.spec_from_file_location("render", ROOT / "docs" / "benchmarks" / "render.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_rendering_changes_nothing(render):
    made = render.rendered()
    assert {path.suffix for path in made} == {".md", ".svg"}
    assert [path.name for path, text in made.items() if path.read_text() != text] == []


def test_every_result_and_chart_is_shown(render):
    pages = "".join(path.read_text() for path in render.rendered() if path.suffix == ".md")
    shown = {name for _, name, _, _ in render.BLOCK.findall(pages)} | {one.result for one in render.CHARTS.values()}
    assert shown == {path.stem for path in DATA}
    assert set(re.findall(r"\]\((\w+)\.svg\)", pages)) == set(render.CHARTS)
    assert {path.stem for path in (ROOT / "docs" / "benchmarks").glob("*.svg")} == set(render.CHARTS)


@pytest.mark.parametrize("path", DATA, ids=lambda path: path.stem)
def test_result_says_where_it_is_from(render, path):
    found = json.loads(path.read_text())
    assert set(render.FIELDS) <= set(found)
    assert found["rows"]
    assert all(row.keys() == found["rows"][0].keys() for row in found["rows"])
    missing = [name for name in ("machine", "versions", "date", "command") if found[name] is None]
    assert all(name in found.get("note", "") for name in missing)
    datetime.date.fromisoformat(found["date"])


def test_empty_cells_stand_for_missing_fields(render):
    row = {"ms": 1.25, "low": None, "counts": [3, 4]}
    assert render.filled("{ms:.1f} ms", row) == "1.2 ms"
    assert render.filled("{low:.1f} ms", row) == ""
    assert render.filled("{absent}", row) == ""
    assert render.filled("{ms}[[ of {low}]]", row) == "1.25"
    assert render.filled("{ms}[[ of {counts[1]}]]", row) == "1.25 of 4"


def anchors(path):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_to_headings_lead_somewhere():
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    links = [(page, page.parent / name if name else page, to) for page in pages for name, to in anchored(page)]
    assert links
    assert [(page.name, to) for page, of, to in links if not of.exists() or to not in anchors(of)] == []


def anchored(page):
    """The page (empty for this one) and the anchor of each link to a heading."""
    return ANCHORED.findall(page.read_text())


def test_the_guide_is_short():
    assert len((ROOT / "docs" / "cpu.md").read_text().splitlines()) <= 80

import re
from html.parser import HTMLParser

import pytest
from fakes import FakeModel
from rich.console import Console

from jaxinfer.experiment import load_prompts, results, run, table

VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """Text and attributes of a page; fails where tags do not match."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text, self.attributes = [], [], "", []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def folder(make):
    config = make("prompts.source=['abc </p><script>alert(1)</script>', 'uvw']", "decoding.max_new_tokens=40")
    return run(config, FakeModel(wrong_under_lookup="w"), load_prompts(config.prompts), None, Console(quiet=True))


def test_the_page_is_well_formed_escaped_and_loads_nothing(folder):
    text = (folder / "report.html").read_text()
    page = Page(text)
    assert "script" not in page.tags
    assert not {"img", "link", "iframe", "object"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name in ("src", "href", "srcset") or name.startswith("on")]
    assert not re.search(r"https?://|@import|url\(", text)
    assert "abc </p><script>alert(1)</script>" in page.text
    assert len(text) < 60_000


def test_the_page_shows_every_row_the_charts_and_the_outputs(folder):
    page = Page((folder / "report.html").read_text())
    for shown in ("greedy", "sampling", "lookup <8>", "Decode speed, tokens/s", "Tokens per step by family", "1/2"):
        assert shown in page.text
    assert page.tags.count("svg") == page.tags.count("desc") == 2
    assert page.tags.count("mark") == 1  # where lookup leaves greedy's text; sampling does not, in this model
    assert "max_new_tokens: 40" in page.text


def test_the_markdown_table_has_a_line_for_each_row(folder):
    lines = [line for line in (folder / "table.md").read_text().splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 3
    assert len({len(line) for line in lines}) == 1
    assert len({line.count("|") for line in lines}) == 1


@pytest.mark.parametrize(("weights", "shown"), [(None, "float32"), ("int8", "int8")])
def test_the_format_of_the_weights_stands_beside_their_size(make, weights, shown):
    config = make("prompts.source=[abc]", "model.weights=null" if weights is None else f"model.weights={weights}")
    folder = run(config, FakeModel(weights=weights), load_prompts(config.prompts), None, Console(quiet=True))
    header, *rows = [line for line in (folder / "table.md").read_text().splitlines() if line.startswith("|")]
    column = [cell.strip() for cell in header.split("|")].index("weights")
    assert {row.split("|")[column].strip() for row in rows[1:]} == {f"{shown}, 1 kB"}
    page = (folder / "report.html").read_text()
    assert f"<td>{shown}, 1 kB</td>" in page
    assert f"in float32 (weights {shown}, 1 kB): 1 prompt" in page
    assert {row["weights"] for row in results.read_rows(folder)} == {shown}


@pytest.mark.parametrize(
    ("count", "text"),
    [(None, "-"), (0, "0 B"), (999, "999 B"), (999_600, "1 MB"), (538e6, "538 MB"), (2.5e12, "2.5 TB")],
)
def test_sizes(count, text):
    assert table.size(count) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.0314, "0.0314"), (2.0, "2.00"), (9.876, "9.88"), (15.0, "15.0"), (1234.5, "1234")],
)
def test_rates(value, text):
    assert table.rate(value) == text

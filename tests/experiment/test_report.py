import re
import statistics
from html.parser import HTMLParser

import invented
import pytest
from fakes import FakeModel
from rich.console import Console

from jaxinfer.experiment import (
    ledger_section,
    load_prompts,
    noise,
    plots,
    report,
    results,
    roofline_plot,
    run,
    table,
)

pytestmark = pytest.mark.quick

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


@pytest.fixture
def grid_page(make, folder):
    return report.html(make(), invented.grid(), folder, invented.FAILURES)


def test_the_page_is_well_formed_escaped_and_loads_nothing(folder):
    text = (folder / "report.html").read_text()
    page = Page(text)
    assert page.tags.count("script") == 1  # the page's own, not the prompt's
    assert not {"img", "link", "iframe", "object"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name in ("src", "srcset") or name.startswith("on")]
    assert all(value.startswith("#") for name, value in page.attributes if name == "href")
    assert not re.search(r"https?://|@import|url\(", text)
    assert "abc </p><script>alert(1)</script>" in page.text
    assert len(text) < 60_000


def test_the_page_shows_every_row_the_charts_and_the_outputs(folder):
    page = Page((folder / "report.html").read_text())
    for shown in ("greedy", "sampling", "lookup <8>", "Decode speed, tokens/s", "Tokens per step by family", "1/2"):
        assert shown in page.text
    bars = [value for name, value in page.attributes if name == "class" and value.startswith("fill ")]
    assert len(bars) == 3 + 1  # a bar a row, and lookup's tokens a step
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


def test_a_grid_is_told_in_words_and_its_failures_with_it(grid_page):
    page = Page(grid_page)
    assert "2 of 26 rows failed" in page.text
    for one in invented.FAILURES:
        assert one["name"] in page.text
        assert one["error"] in page.text
    assert page.tags.count("svg") == 1 + ledger_section.PLOTS  # speed against quality, and rooflines
    assert len(grid_page) < 300_000
    assert "Fastest of all: int4 / eagle" in page.text
    assert "KL 0.061, 50% of outputs identical, weights 103 MB" in page.text


def test_each_ledger_has_its_three_times_and_its_losses(grid_page):
    page = Page(grid_page)
    for row in invented.grid():
        for name, stage in row["ledger"]["stages"].items():
            share = stage["physics"]["seconds"] / stage["clock"]["seconds"]
            assert f"{name} at {share:.0%} of the bound" in page.text
            worst = max(stage["losses"], key=lambda loss: loss["milliseconds"])
            assert f"{worst['name']} {ledger_section.milliseconds(worst['milliseconds'] / 1e3)}" in page.text


def test_the_roofs_of_a_ledger_are_those_it_was_held_to():
    for row in invented.grid():
        for stage in row["ledger"]["stages"].values():
            roofs = roofline_plot.device(stage)
            assert roofs.bandwidth == pytest.approx(invented.BANDWIDTH)
            assert roofs.peak == pytest.approx(invented.PEAK)
            compiled = max(stage["compiler"]["bytes"] / invented.BANDWIDTH, stage["compiler"]["ops"] / invented.PEAK)
            assert ledger_section.compiled_seconds(stage) == pytest.approx(compiled)


def test_roofs_follow_from_operators_where_no_share_is_given():
    stage = invented.grid()[0]["ledger"]["stages"]["decode"]
    without = {**stage, "clock": {"seconds": stage["clock"]["seconds"], "operators": []}}
    roofs = roofline_plot.device(without)
    assert roofs.bandwidth == pytest.approx(invented.BANDWIDTH)
    assert roofs.peak is None  # no operator of this step is bound by it
    assert "<svg" in roofline_plot.roofline_plot("title", {"decode": roofs}, roofline_plot.seen("decode", without))


def test_a_stage_that_met_another_machine_has_a_roof_of_its_own():
    stages = invented.grid()[0]["ledger"]["stages"]
    operators = [one for name, stage in stages.items() for one in roofline_plot.seen(name, stage)]
    roofs = {name: roofline_plot.device(stage) for name, stage in stages.items()}
    assert roofline_plot.roofline_plot("title", roofs, operators).count('class="roof') == 1
    roofs["prefill"] = roofline_plot.Device(invented.BANDWIDTH / 2, invented.PEAK / 2)
    assert roofline_plot.roofline_plot("title", roofs, operators).count('class="roof') == 2


def test_an_operator_is_drawn_where_its_figures_say():
    stage = invented.grid()[0]["ledger"]["stages"]["decode"]
    one = next(x for x in roofline_plot.seen("decode", stage) if x.name == "q_proj")
    operator = next(x for x in stage["physics"]["operators"] if x["name"] == "q_proj")
    clock = next(x for x in stage["clock"]["operators"] if x["name"] == "q_proj")
    assert one.measured == pytest.approx(operator["ops"] * invented.LAYERS / clock["seconds"])
    assert one.attainable == pytest.approx(min(invented.PEAK, operator["intensity"] * invented.BANDWIDTH))
    assert one.measured < one.attainable
    plot = plots.Plot(plots.Axis("x", 0.1, 1000, log=True), plots.Axis("y", 1, 100))
    left, bottom = plot.at(0.1, 1)
    right, top = plot.at(1000, 100)
    assert plot.at(10, 50.5) == (pytest.approx((left + right) / 2), pytest.approx((bottom + top) / 2))


def test_rows_without_quality_or_ledger_have_no_such_sections(folder):
    text = (folder / "report.html").read_text()
    assert 'id="ledger"' not in text
    assert 'id="quality"' not in text


def test_a_ledger_that_lacks_a_part_is_left_out():
    rows = invented.grid()[:2]
    del rows[0]["ledger"]["stages"]["decode"]["clock"]
    rows[1]["ledger"] = None
    assert list(ledger_section.stages(rows[0])) == ["prefill"]
    assert rows[0]["name"] in ledger_section.section(rows)
    assert rows[1]["name"] not in ledger_section.section(rows)


@pytest.mark.parametrize(
    ("rates", "base", "beyond"),
    [
        ([12, 11, 13], [10, 10, 10], True),
        ([12, 9, 13], [10, 10, 10], False),
        ([12], [10], False),  # one pass
        ([10.05, 10.04, 10.06], [10, 10, 10], False),  # too little to matter
        ([8, 9, 9.5], [10, 10, 10], True),
    ],
)
def test_noise(rates, base, beyond):
    change = noise.over_baseline({"decode_rates": rates, "baseline_rates": base})
    assert change.beyond == beyond
    assert change.ratio == pytest.approx(statistics.median(rates) / 10)

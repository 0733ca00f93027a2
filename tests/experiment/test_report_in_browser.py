"""Reports in a real browser: tables sort and filter, marks tell their figures, and nothing is fetched."""

import json

import invented
import pytest
from browser import browser, page  # noqa: F401

from jaxinfer.experiment import load_config, report
from jaxinfer.experiment.compare_runs import compare

pytestmark = pytest.mark.quick


@pytest.fixture
def grid_file(tmp_path, config_file):
    """The report of a grid, as a file."""
    (tmp_path / "config.yaml").write_text("name: trial\n")
    (tmp_path / "versions.json").write_text("{}")
    file = tmp_path / "report.html"
    file.write_text(report.html(load_config(config_file), invented.grid(), tmp_path, invented.FAILURES))
    return file


def column(page, header):  # noqa: F811
    """The texts of a column of the first table, from above, without hidden rows."""
    return page.evaluate(
        """header => {
            const table = document.querySelector("#rows table");
            const index = [...table.tHead.rows[0].cells].findIndex(cell => cell.textContent.trim() === header);
            return [...table.tBodies[0].rows].filter(row => !row.hidden).map(row => row.cells[index].textContent);
        }""",
        header,
    )


def test_columns_sort_by_click_and_by_key(page, grid_file):  # noqa: F811
    page.goto(grid_file.as_uri())
    rates = column(page, "decode tokens/s")
    head = page.locator("#rows thead th", has_text="decode tokens/s")
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    found = column(page, "decode tokens/s")
    numbers = [float(rate) for rate in found if rate != "failed"]
    assert numbers == sorted(numbers, reverse=True)
    assert sorted(found) == sorted(rates)
    page.keyboard.press("Enter")  # the button still has the focus
    assert head.get_attribute("aria-sort") == "ascending"
    found = [rate for rate in column(page, "decode tokens/s") if rate != "failed"]
    assert [float(rate) for rate in found] == sorted(numbers)
    page.locator("#rows thead th", has_text="cache").get_by_role("button").click()
    assert column(page, "cache")[0] == "94.4 MB"  # by size, whatever the unit
    assert page.locator("#rows thead [aria-sort]").count() == 1


def test_rows_are_filtered_as_one_writes(page, grid_file):  # noqa: F811
    page.goto(grid_file.as_uri())
    page.locator("section#rows input").fill("INT8 lookup")
    assert set(column(page, "weights")) >= {"int8"}
    assert set(column(page, "method")) == {"lookup"}
    assert page.locator("section#rows output").text_content() == "2 of 26"
    page.locator("section#rows input").fill("")
    assert len(column(page, "method")) == 26


def test_marks_tell_their_figures_to_pointer_and_keyboard(page, grid_file):  # noqa: F811
    page.goto(grid_file.as_uri())
    figure = page.locator("#ledger .plot").first
    mark = figure.locator("[aria-label^='lm_head, decode']")
    mark.focus()
    line = page.locator("#ledger figure:has(.plot) .readout").first
    assert line.text_content().startswith("lm_head, decode: ")
    assert "measured" in line.text_content()
    page.locator("#ledger .stacked i").nth(1).hover()
    assert " ms" in page.locator("#ledger figure:has(.stacked) .readout").first.text_content()


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits_and_fetches_nothing(page, grid_file, width):  # noqa: F811
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(grid_file.as_uri())
    for panel in page.locator("details").all():
        panel.evaluate("one => one.open = true")
    assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
    assert page.evaluate("document.querySelector('#rows .scroll').scrollWidth > innerWidth * (innerWidth < 500)")
    assert page.seen.requests == [grid_file.as_uri()]
    assert page.seen.errors == []


def test_without_scripts_the_table_can_be_read(browser, grid_file):  # noqa: F811
    context = browser.new_context(java_script_enabled=False)
    opened = context.new_page()
    opened.goto(grid_file.as_uri())
    assert opened.locator("#rows tbody tr").count() == 26
    assert "decode tokens/s" in opened.locator("#rows thead").inner_text()
    assert opened.locator("button, input").count() == 0
    context.close()


def test_a_comparison_is_such_a_page_too(page, tmp_path):  # noqa: F811
    for name, speed in (("one", 1.0), ("two", 2.0)):
        rows = invented.grid()[:3]
        for row in rows:
            row["decode_rates"] = [rate * speed for rate in row["decode_rates"]]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = tmp_path / "compare.html"
    file.write_text(compare([tmp_path / "one.jsonl", tmp_path / "two.jsonl"]).html())
    page.set_viewport_size({"width": 390, "height": 800})
    page.goto(file.as_uri())
    assert page.locator("#rows td.up").first.text_content() == "2.00x, faster"
    assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
    assert page.seen.requests == [file.as_uri()]
    assert page.seen.errors == []

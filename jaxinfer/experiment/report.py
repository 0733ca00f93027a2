"""The pages that a run of rows leaves for readers: table.md, and report.html with charts and the texts themselves."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from jaxinfer.experiment import brief, compare, grid, ledger_section, page, sections, sheet, table
from jaxinfer.experiment.mesh_table import mesh_table
from jaxinfer.experiment.schema import DecodingSpec, Experiment
from jaxinfer.experiment.sections import plural as plural
from jaxinfer.experiment.sheet import Table

AXIS_PLURALS = {"weights": "weight formats", "compress": "compressions", "mesh": "meshes", "policy": "policies"}
AXIS_PLURALS |= {"batch": "batches"}

Row = Mapping[str, Any]


def pages(run: Any, tables: Sequence[Table], files: Mapping[str, str], summary: str | None) -> dict[str, str]:
    """Make table.md and report.html of the rows that are finished."""
    failed = [sheet.markdown(table).rstrip() for table in tables if table.columns[:1] == ("failed",)]
    return {
        "table.md": markdown(run.config, run.rows, run.failures, failed),
        "report.html": html(run.config, run.rows, run.folder, run.failures),
    }


def sentence(config: Experiment, rows: Sequence[Row]) -> str:
    """Say what was measured, in one sentence."""
    decoding = config.decoding
    repeats = passes(decoding)
    wanted = [row.name for row in (grid.points(config) if config.axes else config.rows)]
    done = sum(row["name"] in wanted for row in rows)
    count = f"{done} of {len(wanted)} rows" if done < len(wanted) else plural(done, "row")
    if config.axes:
        axes = ", ".join(plural(len(entries), axis, AXIS_PLURALS.get(axis)) for axis, entries in config.axes.items())
        return f"{count} of a grid of {axes}: {_plain(config.model.source)}, median of {repeats}."
    prompts = plural(len(rows[0]["prompts"]), "prompt") if rows else "prompts"
    source = config.prompts.source if isinstance(config.prompts.source, str) else "of the config"
    dtype = rows[0]["dtype"] if rows else config.model.dtype or "its default type"
    weights = f" (weights {config.model.weights})" if config.model.weights else ""
    if rows:
        own = min(rows, key=lambda row: row["weight_bytes"])  # without draft models
        weights = f" (weights {own.get('weights', dtype)}, {table.size(own['weight_bytes'])})"
    context = config.model.context
    mesh = f" over the mesh {rows[0]['mesh']}" if rows and rows[0].get("mesh") else ""
    longer = f" with {context.factor:g} times its context ({context.kind} positions)" if context else ""
    return (
        f"{count} on {_plain(config.model.source)}{longer}{mesh} in {dtype}{weights}: {prompts} "
        f"({_plain(source)}), up to {decoding.max_new_tokens} new tokens each, batch {decoding.batch}, "
        f"median of {repeats}."
    )


def passes(decoding: DecodingSpec) -> str:
    """Say how many timed passes a row has."""
    most = plural(decoding.repeats, "timed pass", "timed passes")
    return f"at most {most} (two that agree to {decoding.agree:.0%} are enough)" if decoding.agree else most


def markdown(config: Experiment, rows: Sequence[Row], failures: Sequence[Row] = (), more: Sequence[str] = ()) -> str:
    """Make table.md. failures: the rows that failed; more: texts below the table, such as why they did."""
    summaries = compare.summarize(rows)
    body = table.markdown(summaries, failures) if rows else "No row is finished yet.\n"
    found = brief.sentences(rows, summaries, failures)
    spread = mesh_table(rows)
    more = [*more, *([sheet.markdown(spread).rstrip()] if spread else [])]
    parts = [f"# {config.name}", sentence(config, rows), body.rstrip(), *more, *found, table.meaning(summaries)]
    return "\n\n".join(filter(None, parts)) + "\n"


def html(config: Experiment, rows: Sequence[Row], folder: Path, failures: Sequence[Row] = ()) -> str:
    """Make report.html: one page, styles, charts and script inline, all text escaped."""
    summaries = compare.summarize(rows)
    found = brief.sentences(rows, summaries, failures)
    items = "".join(f"<li>{escape(one)}</li>" for one in found)
    head = [
        f"<h1>{escape(config.name)}</h1><p class=lead>{escape(sentence(config, rows))}</p>",
        f'<section id="brief" class=brief><h2>In brief</h2><ul>{items}</ul></section>' if found else "",
    ]
    failed = sections.failed(failures)
    if not rows:
        return page.html(config.name, [*head, "<p>No row is finished yet.</p>", failed], folder)
    spread = mesh_table(rows)
    shown = page.table_html(table.table(summaries, failures), table.meaning(summaries))
    body = [
        f'<section id="rows"><h2>Rows</h2>{shown}</section>',
        f'<section id="meshes">{page.table_html(spread)}</section>' if spread else "",
        failed,
        sections.speeds(rows, summaries),
        sections.trade(rows, summaries),
        ledger_section.section(rows),
        sections.families(rows),
        sections.outputs(rows),
    ]
    return page.html(config.name, [*head, *body], folder)


def _plain(source: str) -> str:
    """Give a path's last part: readers of a report do not know our folders."""
    return Path(source).name or source

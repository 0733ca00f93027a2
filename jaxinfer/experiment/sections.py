"""The sections of a report of rows: speed, speed against quality, tokens a step, outputs, failures."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from jaxinfer.experiment import brief, compare
from jaxinfer.experiment.compare import Summary
from jaxinfer.experiment.ledger_section import READOUT
from jaxinfer.experiment.meters import Meter, meters
from jaxinfer.experiment.page import table_html
from jaxinfer.experiment.plots import Axis, Plot, Point
from jaxinfer.experiment.sheet import Table
from jaxinfer.experiment.table import rate

COLORS = 6  # the page's style names .color0 to .color5, and .baseline for greedy
SAMPLES_PER_FAMILY = 3
MOST_BARS = 60
MOST_TEXT = 120_000  # characters of outputs in a page
SIDE_BY_SIDE = 6  # rows up to which every output is shown, those equal to greedy's too
Row = Mapping[str, Any]


def failed(failures: Sequence[Row]) -> str:
    """Show the rows that failed, each with the line that says why."""
    if not failures:
        return ""
    lines = tuple((str(one.get("name", one.get("item", "-"))), str(one["error"])) for one in failures)
    return f'<section id="failed" class=failed>{table_html(Table(("failed", "why"), lines, "What failed"))}</section>'


def speeds(rows: Sequence[Row], summaries: Sequence[Summary]) -> str:
    """Draw a bar a row: the median of its passes, and their spread."""
    shades = colors(rows)
    shown = sorted(summaries, key=lambda one: -one.decode)[:MOST_BARS] if len(summaries) > MOST_BARS else summaries
    bars = [
        Meter(
            one.name,
            one.decode,
            rate(one.decode),
            shades[one.name],
            one.decode_low,
            one.decode_high,
            "" if one.speedup is None or shades[one.name] == "baseline" else f"{one.speedup:.2f}x greedy",
        )
        for one in shown
    ]
    more = f" The {MOST_BARS} fastest rows; the table has all." if len(summaries) > MOST_BARS else ""
    return (
        f'<section id="speed"><h2>Decode speed, tokens/s</h2><figure>{meters(bars)}'
        f"<figcaption>Median of the passes; whiskers reach from min to max.{more}</figcaption></figure></section>"
    )


def trade(rows: Sequence[Row], summaries: Sequence[Summary]) -> str:
    """Draw speed against quality, where rows tell of quality: divergence, perplexity, or the share of equal outputs."""
    by_name = {row["name"]: row for row in rows}
    key = next((key for key in brief.KNOWN if any(key in brief.quality(row) for row in rows)), None)
    found: list[tuple[Summary, float, float]] = []
    for one in summaries:
        row, gain = by_name[one.name], brief.gained(one)
        first = compare.reference(row, rows)
        value = brief.quality(row).get(key) if key else brief.identical_share(row, first)
        if key and brief.KNOWN[key] is brief.DIVERGENCE and value is None and row is first:
            value = 0.0
        if gain and value is not None:
            found.append((one, gain, value))
    if len(found) < 3 or (not key and all(value == 1 for *_, value in found)):
        return ""
    name = brief.KNOWN[key] if key else "share of outputs identical to the reference"
    plot = Plot(
        _axis(
            "speed, times the reference" if any(map(brief.axes, rows)) else "speed, times greedy",
            [x for _, x, _ in found],
        ),
        _axis(name, [y for *_, y in found]),
    )
    shades, front = colors(rows), _front([(x, y if key else -y) for _, x, y in found])
    points = [
        Point(
            x,
            y,
            shades[one.name],
            f"{one.name}: {x:.2f} times as fast, {name} {y:.3g}",
            one.name if at in front else "",
        )
        for at, (one, x, y) in enumerate(found)
    ]
    keys = {_shade(by_name[one.name]): shades[one.name] for one, *_ in found}
    legend = "".join(f'<li><i class="{shade}"></i>{escape(key)}</li>' for key, shade in keys.items())
    better = "lower" if key else "higher"
    drawn = plot.draw("Speed against quality", f"A point a row; {better} and further right is better.", points)
    return (
        f'<section id="quality"><h2>Speed against quality</h2><figure><ul class=legend>{legend}</ul>'
        f"<div class=plot>{drawn}</div>{READOUT}"
        f"<figcaption>A point a row; {better} and further right is better. Named are those that no other row beats in "
        "both.</figcaption></figure></section>"
    )


def families(rows: Sequence[Row]) -> str:
    """Draw the tokens a step by family of prompts, for the rows that ever emit more than one."""
    several = {row["name"]: per for row in rows if max((per := compare.per_family(row)).values()) > 1.0}
    title = '<section id="steps"><h2>Tokens per step by family</h2>'
    if not several:
        return f"{title}<p>Every row emits one token a step.</p></section>"
    shades = colors(rows)
    kept = dict(list(several.items())[:MOST_BARS])
    names = dict.fromkeys(family for per in kept.values() for family in per)
    top = max(value for per in kept.values() for value in per.values())
    groups = "".join(
        f"<h3>{escape(family)}</h3>"
        + meters(
            [
                Meter(name, per[family], f"{per[family]:.2f}", shades[name])
                for name, per in kept.items()
                if family in per
            ],
            reference=1.0,
            top=top,
        )
        for family in names
    )
    return (
        f"{title}<figure>{groups}<figcaption>The line: one token a step, as in greedy decoding; rows that never emit "
        "more are left out.</figcaption></figure></section>"
    )


def outputs(rows: Sequence[Row]) -> str:
    """Show outputs side by side, a few prompts of each family, and mark where they leave greedy's."""
    workloads: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        workloads.setdefault(tuple(prompt["prompt"] for prompt in row["prompts"]), []).append(row)
    items: list[str] = []
    left = MOST_TEXT
    for alike in workloads.values():
        shown: dict[str, list[int]] = {}
        for index, prompt in enumerate(alike[0]["prompts"]):
            indices = shown.setdefault(prompt["family"], [])
            if len(indices) < SAMPLES_PER_FAMILY:
                indices.append(index)
        for index in (index for indices in shown.values() for index in indices):
            item = _sample(alike, index)
            left -= len(item)
            if left > 0 or not items:
                items.append(item)
    note = "Marked: where a row leaves greedy's text."
    if left < 0:
        note += " The texts of all prompts are in rows.jsonl."
    return f'<section id="outputs"><h2>Outputs</h2><p class=note>{note}</p>{"".join(items)}</section>'


def _sample(rows: Sequence[Row], index: int) -> str:
    prompt = rows[0]["prompts"][index]
    columns, equal = "", []
    for row in rows:
        one = row["prompts"][index]
        base = compare.baseline(row, rows)
        text = escape(one["output"])
        if base and base is not row:
            before = base["prompts"][index]["output"]
            if len(rows) > SIDE_BY_SIDE and before == one["output"]:
                equal.append(row["name"])
                continue
            same = _common(one["output"], before)
            changed = escape(one["output"][same:])
            text = escape(one["output"][:same]) + (f"<mark>{changed}</mark>" if changed else "")
        facts = f"{plural(len(one['tokens']), 'token')}, {plural(one['steps'], 'step')}"
        columns += f"<div><h3>{escape(row['name'])}<small>{facts}</small></h3><p class=output>{text}</p></div>"
    also = f"<p class=note>As greedy: {escape(', '.join(equal))}.</p>" if equal else ""
    return (
        f"<details><summary><b>{escape(prompt['family'])}</b> {escape(_short(prompt['prompt']))}</summary>"
        f"<p class=prompt>{escape(prompt['prompt'])}</p><div class=columns>{columns}</div>{also}</details>"
    )


def colors(rows: Sequence[Row]) -> dict[str, str]:
    """Give a CSS class for each row: grey for greedy, then the palette in order; rows of a grid by their methods."""
    found: dict[str, str] = {}
    keys: dict[str, int] = {}
    for row in rows:
        if compare.is_baseline(row) and not brief.axes(row):
            found[row["name"]] = "baseline"
            continue
        is_grey = compare.is_baseline(row) and "method" in brief.axes(row)
        number = 0 if is_grey else keys.setdefault(_shade(row), len(keys))
        found[row["name"]] = "baseline" if is_grey else f"color{number % COLORS}"
    return found


def _shade(row: Row) -> str:
    """Give what rows of one color have in common: in a grid the method, or else the weights."""
    labels = brief.axes(row)
    return labels.get("method") or labels.get("rows") or labels.get("weights") or row["name"]


def plural(count: int, word: str, words: str | None = None) -> str:
    """Give a count and its word: "1 row", "2 rows", and "2 passes" where `words` says so."""
    return f"{count} {word if count == 1 else words or word + 's'}"


def _axis(name: str, values: Sequence[float]) -> Axis:
    low, high = min(values), max(values)
    room = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    return Axis(name, low - room, high + room)


def _front(points: Sequence[tuple[float, float]]) -> set[int]:
    """Find the points that no other is both further right and lower than, counted from 0."""
    return {
        at for at, (x, y) in enumerate(points) if not any(a >= x and b <= y and (a, b) != (x, y) for a, b in points)
    }


def _common(one: str, other: str) -> int:
    """Count the characters that two texts share at their beginning."""
    shortest = min(len(one), len(other))
    return next((i for i in range(shortest) if one[i] != other[i]), shortest)


def _short(text: str, width: int = 90) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"

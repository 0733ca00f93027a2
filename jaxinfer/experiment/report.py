"""What a run leaves for readers: table.md, and report.html, which loads nothing from anywhere.

Both are rewritten after every row, so they are there whenever a run stops.
"""

from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from jaxinfer.caching import write_atomic
from jaxinfer.experiment import charts, compare, table
from jaxinfer.experiment.compare import Summary
from jaxinfer.experiment.schema import Experiment

COLORS = 6  # the page's style names .color0 to .color5, and .baseline for greedy
SAMPLES_PER_FAMILY = 3

Row = Mapping[str, Any]


def write(folder: Path, config: Experiment, rows: Sequence[Row]) -> None:
    """Write table.md and report.html for the rows that are finished."""
    config_text = (folder / "config.yaml").read_text(encoding="utf-8")
    versions_text = (folder / "versions.json").read_text(encoding="utf-8")
    write_atomic(folder / "table.md", markdown(config, rows))
    write_atomic(folder / "report.html", html(config, rows, config_text, versions_text))


def sentence(config: Experiment, rows: Sequence[Row]) -> str:
    """What was measured, in one sentence."""
    decoding = config.decoding
    wanted = [row.name for row in config.rows]
    done = sum(row["name"] in wanted for row in rows)
    count = f"{done} of {len(wanted)} rows" if done < len(wanted) else _plural(done, "row")
    prompts = _plural(len(rows[0]["prompts"]), "prompt") if rows else "prompts"
    source = config.prompts.source if isinstance(config.prompts.source, str) else "of the config"
    dtype = rows[0]["dtype"] if rows else config.model.dtype or "its default type"
    weights = f" (weights {config.model.weights})" if config.model.weights else ""
    if rows:
        own = min(rows, key=lambda row: row["weight_bytes"])  # without draft models
        weights = f" (weights {own.get('weights', dtype)}, {table.size(own['weight_bytes'])})"
    context = config.model.context
    longer = f" with {context.factor:g} times its context ({context.kind} positions)" if context else ""
    return (
        f"{count} on {_plain(config.model.source)}{longer} in {dtype}{weights}: {prompts} "
        f"({_plain(source)}), up to {decoding.max_new_tokens} new tokens each, batch {decoding.batch}, "
        f"median of {_plural(decoding.repeats, 'timed pass', 'timed passes')}."
    )


def headline(summaries: list[Summary]) -> str | None:
    """The fastest row whose outputs all equal greedy's, if it is faster than greedy by more than noise."""
    exact = {s.name: s.speedup for s in summaries if s.speedup and s.speedup > 1.05 and _all_identical(s.identical)}
    if not exact:
        return None
    name, speedup = max(exact.items(), key=lambda item: item[1])
    return f"Fastest with output identical to greedy: {name}, {speedup:.2f} times greedy's speed."


def markdown(config: Experiment, rows: Sequence[Row]) -> str:
    """table.md."""
    summaries = compare.summarize(rows)
    body = table.markdown(summaries) if rows else "No row is finished yet.\n"
    parts = [f"# {config.name}", sentence(config, rows), body.rstrip(), headline(summaries), table.MEANING]
    return "\n\n".join(filter(None, parts)) + "\n"


def html(config: Experiment, rows: Sequence[Row], config_text: str, versions_text: str) -> str:
    """report.html: one page, styles and charts inline, all text escaped."""
    summaries = compare.summarize(rows)
    style = (resources.files("jaxinfer") / "experiment" / "report.css").read_text(encoding="utf-8")
    best = headline(summaries)
    sections = [
        f"<h1>{escape(config.name)}</h1><p class=lead>{escape(sentence(config, rows))}</p>",
        f"<p class=headline>{escape(best)}</p>" if best else "",
    ]
    if rows:
        sections += [_table(summaries), _speeds(rows, summaries), _families(rows), _samples(rows)]
    else:
        sections.append("<p>No row is finished yet.</p>")
    sections += [
        f"<h2>How it was run</h2><details><summary>Config</summary><pre>{escape(config_text)}</pre></details>",
        f"<details><summary>Versions and machine</summary><pre>{escape(versions_text)}</pre></details>",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" '
        f'content="light dark"><title>{escape(config.name)}</title>\n<style>\n{style}</style></head>\n<body><main>\n'
        + "\n".join(filter(None, sections))
        + "\n</main></body></html>\n"
    )


def _table(summaries: list[Summary]) -> str:
    head = "".join(f"<th scope=col>{escape(header)}</th>" for header, _ in table.COLUMNS)
    body = ""
    for first, *rest in table.cells(summaries):
        figures = "".join(f"<td>{escape(cell)}</td>" for cell in rest)
        body += f"<tr><th scope=row>{escape(first)}</th>{figures}</tr>"
    return (
        f"<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        f"<p class=note>{escape(table.MEANING)}</p>"
    )


def _speeds(rows: Sequence[Row], summaries: list[Summary]) -> str:
    colors = _colors(rows)
    entries = [
        charts.Bar(
            label=one.name,
            value=one.decode,
            color=colors[one.name],
            low=one.decode_low,
            high=one.decode_high,
            tip=f"{one.name}: median {one.decode:.1f} tokens/s, {one.decode_low:.1f} to {one.decode_high:.1f}",
        )
        for one in summaries
    ]
    title = "Decode speed, tokens/s"
    chart = charts.bars(title, "One bar a row: the median of the timed passes; whiskers from least to most.", entries)
    return f"<h2>{title}</h2><figure>{chart}<figcaption>Median; whiskers reach from min to max.</figcaption></figure>"


def _families(rows: Sequence[Row]) -> str:
    title = "Tokens per step by family"
    several = {row["name"]: per for row in rows if max((per := compare.per_family(row)).values()) > 1.0}
    if not several:
        return f"<h2>{title}</h2><p>Every row emits one token a step.</p>"
    colors = _colors(rows)
    groups = [
        (
            family,
            [
                charts.Bar(name, per[family], colors[name], f"{name}, {family}: {per[family]:.2f} tokens/step")
                for name, per in several.items()
            ],
        )
        for family in next(iter(several.values()))
    ]
    description = "For each family of prompts, tokens emitted in one forward pass of the model."
    chart = charts.grouped(title, description, groups, reference=1.0)
    keys = "".join(f'<li><i class="{colors[name]}"></i>{escape(name)}</li>' for name in several)
    return (
        f"<h2>{title}</h2><figure><ul class=legend>{keys}</ul>{chart}"
        "<figcaption>Dashed: one token a step, as in greedy decoding; rows that never emit more are left out."
        "</figcaption></figure>"
    )


def _samples(rows: Sequence[Row]) -> str:
    shown: dict[str, list[int]] = {}
    for index, prompt in enumerate(rows[0]["prompts"]):
        indices = shown.setdefault(prompt["family"], [])
        if len(indices) < SAMPLES_PER_FAMILY:
            indices.append(index)
    items = "".join(_sample(rows, index) for indices in shown.values() for index in indices)
    return f"<h2>Outputs</h2><p class=note>Marked: where a row leaves greedy's text.</p>{items}"


def _sample(rows: Sequence[Row], index: int) -> str:
    prompt = rows[0]["prompts"][index]
    columns = ""
    for row in rows:
        one = row["prompts"][index]
        base = compare.baseline(row, rows)
        text = escape(one["output"])
        if base and base is not row:
            same = _common(one["output"], base["prompts"][index]["output"])
            changed = escape(one["output"][same:])
            text = escape(one["output"][:same]) + (f"<mark>{changed}</mark>" if changed else "")
        facts = f"{_plural(len(one['tokens']), 'token')}, {_plural(one['steps'], 'step')}"
        columns += f"<div><h3>{escape(row['name'])}<small>{facts}</small></h3><p class=output>{text}</p></div>"
    return (
        f"<details><summary><b>{escape(prompt['family'])}</b> {escape(_short(prompt['prompt']))}</summary>"
        f"<p class=prompt>{escape(prompt['prompt'])}</p><div class=columns>{columns}</div></details>"
    )


def _colors(rows: Sequence[Row]) -> dict[str, str]:
    """A CSS class for each row: grey for greedy, then the palette in order."""
    others = [row["name"] for row in rows if not compare.is_baseline(row)]
    return {row["name"]: "baseline" for row in rows} | {name: f"color{i % COLORS}" for i, name in enumerate(others)}


def _common(one: str, other: str) -> int:
    """How many characters two texts share at their beginning."""
    shortest = min(len(one), len(other))
    return next((i for i in range(shortest) if one[i] != other[i]), shortest)


def _all_identical(text: str) -> bool:
    same, _, total = text.partition("/")
    return bool(total) and same == total


def _plain(source: str) -> str:
    """A path's last part: readers of a report do not know our folders."""
    return Path(source).name or source


def _short(text: str, width: int = 90) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"


def _plural(count: int, word: str, plural: str | None = None) -> str:
    return f"{count} {word if count == 1 else plural or word + 's'}"

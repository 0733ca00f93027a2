"""A report in a few sentences: what won and by how much, what that cost, how far it is from its bound, what failed."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxinfer.experiment import compare, ledger_section, noise, table
from jaxinfer.experiment.compare import Summary

Row = Mapping[str, Any]
WORTH = 1.05  # a row is called faster from here on
DIVERGENCE, PERPLEXITY = "divergence from the reference (KL, nats a token)", "perplexity"
KNOWN = {"kl": DIVERGENCE, "perplexity": PERPLEXITY}
"""The figures of quality that a report plots, by their keys in a row, the most telling first."""


def sentences(rows: Sequence[Row], summaries: Sequence[Summary], failures: Sequence[Row] = ()) -> list[str]:
    """Say what the finished rows come to, the most important first."""
    found = [exact(rows, summaries), fastest(rows, summaries), undecided(rows), near_the_bound(rows)]
    if failures:
        verb = "row" if len(failures) == 1 else "rows"
        found.append(f"{len(failures)} of {len(rows) + len(failures)} {verb} failed, and why is said below.")
    return [one for one in found if one]


def exact(rows: Sequence[Row], summaries: Sequence[Summary]) -> str | None:
    """Name the fastest row whose outputs all equal greedy's, if it is faster than greedy by more than noise."""
    by_name = {row["name"]: row for row in rows}
    found = {s.name: s.speedup for s in summaries if s.speedup and s.speedup > WORTH and all_identical(s.identical)}
    if not found:
        return None
    name, speedup = max(found.items(), key=lambda item: item[1])
    text = f"Fastest with output identical to greedy: {name}, {speedup:.2f} times greedy's speed"
    return f"{text}{_spread(by_name[name])}."


def fastest(rows: Sequence[Row], summaries: Sequence[Summary]) -> str | None:
    """Name the row that is fastest of all, against the reference of its grid or its baseline, and what it costs."""
    gains = {s.name: gain for s in summaries if (gain := gained(s)) and gain > WORTH}
    if not gains:
        return "No row is faster than greedy by 5 % or more." if len(rows) > 1 else None
    name, gain = max(gains.items(), key=lambda item: item[1])
    one = next(s for s in summaries if s.name == name)
    row = next(row for row in rows if row["name"] == name)
    if all_identical(one.identical) and not axes(row):
        return None  # said already
    first = compare.reference(row, rows)
    than = "the reference" if axes(row) else "greedy"
    return f"Fastest of all: {name}, {gain:.2f} times {than}; {cost(one, row, first)}."


def cost(one: Summary, row: Row, first: Row | None) -> str:
    """Say what a row costs in quality and memory."""
    parts = []
    for key, value in quality(row).items():
        before = quality(first).get(key) if first else None
        words = "KL" if KNOWN[key] is DIVERGENCE else PERPLEXITY
        parts.append(f"{words} {value:.3g}" + (f" (reference {before:.3g})" if words is PERPLEXITY and before else ""))
    same = identical_share(row, first)
    if same is not None:
        parts.append(f"{same:.0%} of outputs identical")
    elif one.identical == "n/a":
        parts.append("outputs are sampled")
    held = f"weights {table.size(row['weight_bytes'])}, cache {table.size(row['cache_bytes'])}"
    if first and first is not row:
        held += f" (reference {table.size(first['weight_bytes'])} and {table.size(first['cache_bytes'])})"
    return ", ".join([*parts, held])


def undecided(rows: Sequence[Row]) -> str | None:
    """Name rows of which the passes do not tell that they differ from their baselines."""
    changes = [(row["name"], noise.over_baseline(row)) for row in rows if not compare.is_baseline(row)]
    names = [name for name, change in changes if change and change.passes > 1 and not change.beyond]
    if names:
        listed = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        return f"Within noise of greedy: {listed}: some of its passes are faster and some slower."
    if any(change and change.passes == 1 for _, change in changes):
        return "Each row has one timed pass, which says nothing of noise: set decoding.repeats to 3 or more."
    return None


def near_the_bound(rows: Sequence[Row]) -> str | None:
    """Say how much of the device's bound a decode step reaches at best, and what takes most of the rest."""
    found = [(row["name"], stage) for row in rows if (stage := ledger_section.stages(row).get("decode"))]
    if not found:
        return None
    name, stage = max(found, key=lambda pair: ledger_section.share(pair[1]))
    worst, reached = ledger_section.largest(stage), ledger_section.share(stage)
    text = f"A decode step comes nearest to its bound in {name}: {reached:.0%} of what the device allows"
    return text + (f"; most of the rest is {worst['name']}, {worst['milliseconds']:.3g} ms." if worst else ".")


def axes(row: Row) -> Mapping[str, str]:
    """Give the labels of a row of a grid, by axis."""
    return row.get("axes") or {}


def gained(one: Summary) -> float | None:
    """Give a row's speed over the reference of its grid, or else over its baseline."""
    return (one.of_reference if one.axes else None) or one.speedup


def quality(row: Row | None) -> dict[str, float]:
    """Give the figures of a row's quality that a report plots."""
    found = (row or {}).get("quality") or {}
    return {key: float(found[key]) for key in KNOWN if found.get(key) is not None}


def identical_share(row: Row, first: Row | None) -> float | None:
    """Give the share of prompts with equal token ids; None for sampled outputs, and without any to compare with."""
    if first is None or compare.is_sampled(row) or len(first["prompts"]) != len(row["prompts"]):
        return None
    return compare.identical(row, first) / len(row["prompts"])


def all_identical(text: str) -> bool:
    """Tell whether a count such as 3/3 is of all."""
    same, _, total = text.partition("/")
    return bool(total) and same == total


def _spread(row: Row) -> str:
    change = noise.over_baseline(row)
    if change is None or change.passes < 2:
        return ""
    side = "faster in each" if change.low > 1 else "not faster in each"
    return f" ({change.low:.2f} to {change.high:.2f} over {change.passes} passes: {side})"

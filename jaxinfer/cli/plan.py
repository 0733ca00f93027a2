"""`jaxinfer plan`: options of a service as tables, JSON or a page, what is predicted apart from what is proved."""

import json
import sys
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from rich.console import Console

from jaxinfer.analysis.planning import Goal, Option, Plan, Prover, plan
from jaxinfer.analysis.planning.proving import compiled
from jaxinfer.errors import InputError, shown, shown_text
from jaxinfer.experiment import page, sheet
from jaxinfer.experiment.curves import Dot, Line, chart
from jaxinfer.experiment.progress import stderr
from jaxinfer.experiment.sheet import Table
from jaxinfer.host.files import path_of, write_atomic

GIB = 2**30
LIMITS = ("ttft", "tpot")  # which the command takes in ms


def show(options: Mapping[str, Any], prover: Prover | None = None) -> None:
    """Print the plan that the options of the command ask for, and write its page. Raises InputError, OSError."""
    file = None if options["html"] is None else path_of(options["html"], "--html")
    if file is not None and (file.is_dir() or not file.parent.is_dir()):
        raise InputError(f"--html: {shown_text(str(file))}: give a file in a folder that exists")
    if options["top"] < 1:
        raise InputError(f"--top: {shown(options['top'])} must be a whole number from 1")
    found = plan(
        options["model"],
        options["target"],
        goal_of(options),
        weights=names(options["weights"]),
        kv=names(options["kv"]),
        price=options["price"],
        prove=options["prove"],
        prover=prover or compiled,
        say=lambda text: stderr.print(text, markup=False, soft_wrap=True),
    )
    if file is not None:
        write_atomic(file, html(found, options["top"]))
        stderr.print(f"page: {file}", markup=False, soft_wrap=True)
    if options["json"]:
        print(json.dumps(found.as_dict(), indent=1))
        return
    made = tables(found, options["top"])
    if not sys.stdout.isatty():
        print("\n".join(map(sheet.markdown, made)))
    else:
        console = Console(highlight=False)
        for table in made:
            console.print(sheet.terminal(table), "", sep="\n")
    for line in sentences(found):
        print(line)


def goal_of(options: Mapping[str, Any]) -> Goal:
    """Make the goal of the command's options. Raises InputError."""
    given = {name: options[name] for name in ("prompt", "output", "context", "batch", "rate")}
    limits = {name: options[name] and options[name] / 1e3 for name in LIMITS}
    for name, value in limits.items():
        if options[name] is not None and not (value or 0) > 0:
            raise InputError(f"--{name}: {shown(options[name])} must be a number of ms above 0")
    return Goal(**given, **limits)


def names(text: str) -> list[str]:
    """Split a list of names with commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def tables(found: Plan, top: int) -> list[Table]:
    """Tabulate the cheapest options and the fastest."""
    return [
        tabulated(found.by_cost[:top], "By cost"),
        tabulated(found.by_latency[:top], "By time a token"),
    ]


def tabulated(options: Sequence[Option], title: str) -> Table:
    """Tabulate options: where and how, what is predicted, and what is proved."""
    columns = {
        "target": lambda one: one.target + (f" x {one.copies}" if one.copies > 1 else ""),
        "mesh": lambda one: str(one.mesh) + (f" /{one.microbatches}" if one.microbatches > 1 else ""),
        "weights": lambda one: one.weights,
        "kv": lambda one: one.kv,
        "batch": lambda one: f"{one.batch:,}",
        "predicted $/M tokens": lambda one: f"{one.cost:.3g}",
        "predicted TPOT ms": lambda one: f"{one.tpot * 1e3:.3g}",
        "predicted TTFT ms": lambda one: f"{one.ttft * 1e3:.4g}",
        "predicted tokens/s": lambda one: f"{one.rate:,.0f}",
        "predicted GiB": lambda one: f"{one.total / GIB:.2f}",
        "proved": fits,
        "proved GiB": lambda one: _gib(one.proof.total if one.proof else None),
    }
    rows = tuple(tuple(write(one) for write in columns.values()) for one in options)
    return Table(tuple(columns), rows, title)


def fits(one: Option) -> str:
    """Say what the compiler proved of an option; nothing where it was not asked."""
    if one.proof is None:
        return ""
    if one.proof.fits is None:
        return "not compiled"
    return "fits" if one.proof.fits else "does not fit"


def tip(one: Option) -> str:
    """Write an option in a line."""
    where = f"{one.target}, {one.mesh}, {one.weights}, kv {one.kv}, batch {one.batch}"
    times = f"{one.tpot * 1e3:.3g} ms a token, {one.ttft * 1e3:.4g} ms until the first"
    return f"{where}: ${one.cost:.3g} a million tokens, {times}" + (f"; {fits(one)}" if one.proof else "")


def _gib(size: float | None) -> str:
    return "" if size is None else f"{size / GIB:.2f}"


def sentences(found: Plan) -> list[str]:
    """Say what the tables are of."""
    goal = found.goal
    asked = [f"{name} {getattr(goal, name) * 1e3:g} ms" for name in LIMITS if getattr(goal, name)]
    asked += [f"{goal.rate:g} tokens/s"] if goal.rate else []
    best = f"{len(found.options)} are beaten by none"
    lines = [
        f"{found.model} on {found.family}: {goal.prompt} + {goal.output} tokens a request, {goal.slots} cache slots"
        + (f"; {', '.join(asked)}" if asked else ""),
        f"{found.points:,} combinations in {found.seconds:.1f} s: {found.fitting:,} fit in {found.usable:.0%} of "
        f"{found.memory / GIB:.1f} GiB a device, {found.meeting:,} meet the goal, {best}",
        f"predicted: bounds by the roofline, at ${found.price:g} a chip and hour ({found.source}); "
        "proved: compiled for the target; nothing is measured",
    ]
    reasons = dict.fromkeys(one.proof.why for one in found.options if one.proof and one.proof.why)
    return lines + [f"not compiled: {shown_text(why)}" for why in reasons]


def html(found: Plan, top: int) -> str:
    """Make a page that loads nothing: cost over time a token, and the tables."""
    title = f"{found.model} on {found.family}"
    lead = "".join(f"<p class=lead>{escape(line)}</p>" for line in sentences(found))
    drawn = pareto(found)
    parts = [
        f"<h1>{escape(title)}</h1>{lead}",
        f'<section id="pareto"><h2>Cost over latency, predicted</h2><figure style="overflow-x:auto;padding:16px 10px">'
        f"{drawn}</figure></section>",
        *(page.table_html(table) for table in (*tables(found, top), tabulated(found.by_cost, "All of them"))),
    ]
    return page.document(title, parts)


def pareto(found: Plan) -> str:
    """Draw cost over time a token: a point an option, a line where no option of the same formats is below and left."""
    formats = list(dict.fromkeys((one.weights, one.kv) for one in found.by_cost))
    colors = {pair: number for number, pair in enumerate(formats)}
    lines = []
    for pair in formats:
        front: list[tuple[float, float]] = []
        for one in found.by_latency:
            if (one.weights, one.kv) == pair and (not front or one.cost < front[-1][1]):
                front.append((one.tpot * 1e3, one.cost))
        lines.append(Line(f"weights {pair[0]}, kv {pair[1]}", front, colors[pair], colors[pair] >= 6))
    dots = [
        Dot(
            one.tpot * 1e3,
            one.cost,
            colors[one.weights, one.kv],
            tip(one),
            label=fits(one) if one.proof and one.proof.fits is not None else "",
            hollow=not (one.proof and one.proof.fits),
        )
        for one in found.options
    ]
    kinds = [("proved to fit", 0, False), ("predicted alone", 0, True)]
    axes = ("ms a token", "dollars a million new tokens")
    return chart(f"{found.model} on {found.family}", *axes, lines, dots, kinds, log=(True, True))

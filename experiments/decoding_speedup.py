"""Measure what each decode method buys: Spec-Bench's protocol on one model, beside what the step times predict.

    jaxinfer run configs/decoding_speedup.yaml
    jaxinfer run configs/decoding_speedup.yaml prompts=spec_bench.jsonl prompts.per_family=10

The config is that of the kind `rows`, which measures them: tokens a step (mean accepted tokens), the ratio of tokens
a second to greedy decoding in the same engine, and whether the text is the same. After each pass of a row the time of
a step is measured by its width, and the time that its method spends on the guesses of a step, each time on other
prompts: there, because a machine's speed drifts. They say what the speedup should be: emitted tokens over the time of
the steps, wide ones with their guesses and narrow ones.
"""

import dataclasses
import itertools
import json
import statistics
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

import jaxinfer
from jaxinfer.analysis import step_cost
from jaxinfer.analysis.step_cost import propose_seconds, step_seconds
from jaxinfer.errors import InputError
from jaxinfer.experiment import KINDS, Run, Table, compare, finished, heading, lines, registry, rows, schema, script
from jaxinfer.experiment.kind import Row
from jaxinfer.experiment.merge import Origin
from jaxinfer.experiment.schema import RowSpec
from jaxinfer.experiment.sheet import markdown


def method_of(row: dict[str, Any]) -> Any:
    """Give the method of a row that makes the guesses: of an adaptive one, the one within."""
    method = registry.method(row["method"], ("method",), Origin("row"))
    return method.method if isinstance(method, jaxinfer.Adaptive) else method


def widths_of(row: dict[str, Any]) -> tuple[int, int]:
    """Count the tokens in a step with guesses, and in one with fewer: see `step_cost.widths_of`."""
    return step_cost.widths_of(method_of(row))


def predicted(row: dict[str, Any]) -> list[float]:
    """Predict the speedup over greedy from tokens a step, the time of a step by its width, and that of its guesses.

    One for each pass, by the times of a step after it; of the guesses' times, which depend on the prompt, the mean.
    """
    guessing = statistics.mean(one["guessing_seconds"] for one in row["beside"])
    return [_predicted(row, one["step_seconds"], guessing) for one in row["beside"]]


def _predicted(row: dict[str, Any], step_seconds: dict[str, float], guessing: float) -> float:
    seconds = {int(width): value for width, value in step_seconds.items()}
    counts = ("emitted", "steps", "guessed", "proposed")
    emitted, steps, guessed, proposed = (sum(p[key] for p in row["prompts"]) for key in counts)
    width, narrow = widths_of(row)
    wide = guessed if narrow == width else (proposed - guessed * (narrow - 1)) / (width - narrow)
    taken = wide * seconds[width] + (guessed - wide) * seconds[narrow] + guessed * guessing
    return emitted * seconds[1] / (taken + (steps - guessed) * seconds[1])


def of_predicted(row: dict[str, Any]) -> float | None:
    """Give the speedup over the predicted one, pass by pass: the median. None where a pass had nothing to decode."""
    rates = zip(row["decode_rates"], row["baseline_rates"], predicted(row), strict=True)
    ratios = [rate / greedy / expected for rate, greedy, expected in rates if rate and greedy]
    return statistics.median(ratios) if len(ratios) == len(row["beside"]) else None


def accepted_by_position(row: dict[str, Any]) -> list[tuple[float, float]]:
    """Give the share of the steps with guesses in which the i-th guess was accepted, for i from 1."""
    runs = [sum(column) for column in zip(*(p["runs"] for p in row["prompts"]), strict=True)]
    guessed = sum(p["guessed"] for p in row["prompts"])
    return [(i, sum(runs[i + 1 :]) / guessed) for i in range(1, len(runs) - 1)] if guessed else []


def live_tokens(row: dict[str, Any]) -> int:
    """Count tokens in the cache, by the mean of the row's steps: what a step takes grows by as much for each."""
    lives = [p["prompt_tokens"] + p["emitted"] / 2 for p in row["prompts"]]
    return round(np.average(lives, weights=[max(1, p["steps"]) for p in row["prompts"]]))


def costs(model: jaxinfer.Model, row: dict[str, Any], batches: list[list[list[int]]], batch: int) -> dict[str, Any]:
    """Measure a step of `batch` texts by its width, as text, and the row's guesses in a step, in seconds.

    `batches`, of token ids, are some of those of the row: on them the guesses are timed. For an adaptive method they
    are those of the one within: switched off, it spends nothing.
    """
    alone = dataclasses.replace(model, extras={})
    seconds = step_seconds(alone, sorted({1, *widths_of(row)}), batch, live_tokens(row))
    policy = row["policy"] and registry.policy(row["policy"], ("policy",), Origin("row"))
    made = any(p["guessed"] for p in row["prompts"])
    guessing = propose_seconds(model, method_of(row), batches, policy=policy) if made else 0.0
    return {"step_seconds": {str(width): value for width, value in seconds.items()}, "guessing_seconds": guessing}


def dealt(tokens: list[list[int]], batch: int, passes: int, most: int = 12) -> list[list[list[list[int]]]]:
    """Deal each pass some batches of the prompts, so that together they get all; of more than `most`, so many at most.

    How long guesses take depends on the prompt: timed on a few of six, they were wrong by a tenth.
    """
    batches = [tokens[at : at + batch] for at in range(0, len(tokens), batch)]
    chosen = batches[:: -(-len(batches) // most)]
    return [chosen[first % len(chosen) :: passes] for first in range(passes)]


def measure(row: RowSpec, run: Run) -> Row:
    """Measure the row, with its costs after each pass: every row gets the same prompts in turn."""
    decoding = run.config.decoding
    texts = dealt(run.ready.tokens, decoding.batch, decoding.repeats)
    turn, batch = itertools.cycle(texts), len(texts[0][0])  # the first batch is a whole one
    return rows.measure_row(row, run, lambda found: costs(run.model, found, next(turn), batch))


def finished_row(line: Any, where: str, before: list[Row]) -> Row:
    """Check a finished row with the times of steps beside it. Raises InputError if it is none."""
    row = finished.check(line, where, before)
    if not isinstance(row.get("beside"), list):
        raise InputError(f"{where}: holds no times of steps, so the run cannot go on: leave out --resume")
    return row


def figures(done: Sequence[Row]) -> list[Row]:
    """Give what the table and speedup.json show of each row."""
    return [
        {
            "name": row["name"],
            "tokens_per_step": summary.tokens_per_step,
            "by_family": compare.per_family(row),
            "speedup": summary.speedup,
            "predicted": statistics.median(predicted(row)),
            "of_predicted": of_predicted(row),
            "passes": row["beside"],
            "guessing_seconds": statistics.mean(one["guessing_seconds"] for one in row["beside"]),
            "identical": summary.identical,
            "accepted_by_position": accepted_by_position(row),
        }
        for row, summary in zip(done, compare.summarize(done), strict=True)
    ]


def table(done: Sequence[Row]) -> Table:
    """Tabulate a row for each method: tokens a step, in all and by family, the speedup beside the predicted one."""
    found = figures(done)
    families = list(found[0]["by_family"])
    columns = ("method", "tokens a step", *families, "speedup", "predicted", "over that", "guesses ms", "identical")
    shown = []
    for row in found:
        by_family, speedup, expected = row["by_family"], row["speedup"], row["predicted"]
        measured = ("-", f"{expected:.2f}", "-")
        if speedup is not None and row["of_predicted"] is not None:
            measured = (f"{speedup:.2f}", f"{expected:.2f}", f"{row['of_predicted'] - 1:+.0%}")
        cells = (f"{row['tokens_per_step']:.2f}", *(f"{by_family[family]:.2f}" for family in families), *measured)
        shown.append((row["name"], *cells, f"{1e3 * row['guessing_seconds']:.1f}", row["identical"]))
    return Table(columns, tuple(shown))


def files(run: Run) -> dict[str, str]:
    """Give speedup.json and speedup.md beside what `rows` writes; accepted.svg where a method guessed."""
    found = figures(run.rows)
    made = {"speedup.json": json.dumps({"rows": found}, indent=2) + "\n", "speedup.md": markdown(table(run.rows))}
    curves = {row["name"]: row["accepted_by_position"] for row in found if row["accepted_by_position"]}
    if curves:
        title = f"{run.model.name}: how often the i-th guess is accepted"
        made["accepted.svg"] = lines.chart(title, "guess", "share of steps with guesses", curves)
    return made


KINDS.add(
    "decoding_speedup",
    dataclasses.replace(
        rows.ROWS,
        read=partial(schema.validate, also=heading.KEYS),
        measure=measure,
        table=table,
        files=files,
        finished=finished_row,
    ),
)

if __name__ == "__main__":
    script.run("decoding_speedup", __doc__)

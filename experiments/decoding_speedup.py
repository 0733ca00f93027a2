"""What does each decode method buy? Spec-Bench's protocol on one model, beside what the step times predict.

    python experiments/decoding_speedup.py configs/decoding_speedup.yaml
    python experiments/decoding_speedup.py configs/decoding_speedup.yaml prompts=spec_bench.jsonl prompts.per_family=10

With --resume the newest run of that name goes on behind its last row.

The config is that of `jaxinfer run`, which measures the rows: tokens a step (mean accepted tokens), the ratio of tokens
a second to greedy decoding in the same engine, and whether the text is the same. Behind each pass of a row the time of
a step is measured by its width, and the time that its method spends on the guesses of a step, each time on other
prompts: there, because a machine's speed drifts. They say what the speedup should be: emitted tokens over the time of
the steps, wide ones with their guesses and narrow ones.
"""

import dataclasses
import itertools
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import jaxinfer
from jaxinfer.analysis import step_cost
from jaxinfer.analysis.step_cost import propose_seconds, step_seconds
from jaxinfer.caching import write_atomic
from jaxinfer.errors import InputError
from jaxinfer.experiment import compare, extras, lines, load_config, load_prompts, registry, results, runner, script
from jaxinfer.experiment.merge import Origin


def method_of(row: dict[str, Any]) -> Any:
    """The method of a row that makes the guesses: of an adaptive one, the one within."""
    method = registry.method(row["method"], ("method",), Origin("row"))
    return method.method if isinstance(method, jaxinfer.Adaptive) else method


def widths_of(row: dict[str, Any]) -> tuple[int, int]:
    """Tokens in a step with guesses, and in one where the method makes fewer: see `step_cost.widths_of`."""
    return step_cost.widths_of(method_of(row))


def predicted(row: dict[str, Any]) -> list[float]:
    """The speedup over greedy that tokens a step, the time of a step by its width, and that of its guesses give.

    One for each pass, by the times of a step behind it; of the guesses' times, which depend on the prompt, the mean.
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
    """The speedup over the predicted one, pass by pass: the median. None where a pass had nothing to decode."""
    rates = zip(row["decode_rates"], row["baseline_rates"], predicted(row), strict=True)
    ratios = [rate / greedy / expected for rate, greedy, expected in rates if rate and greedy]
    return statistics.median(ratios) if len(ratios) == len(row["beside"]) else None


def accepted_by_position(row: dict[str, Any]) -> list[tuple[float, float]]:
    """Of the steps with guesses, the share in which the i-th guess was accepted, for i from 1."""
    runs = [sum(column) for column in zip(*(p["runs"] for p in row["prompts"]), strict=True)]
    guessed = sum(p["guessed"] for p in row["prompts"])
    return [(i, sum(runs[i + 1 :]) / guessed) for i in range(1, len(runs) - 1)] if guessed else []


def live_tokens(row: dict[str, Any]) -> int:
    """Tokens in the cache, by the mean of the row's steps: what a step takes grows by as much for each."""
    lives = [p["prompt_tokens"] + p["emitted"] / 2 for p in row["prompts"]]
    return round(np.average(lives, weights=[max(1, p["steps"]) for p in row["prompts"]]))


def costs(model: jaxinfer.Model, row: dict[str, Any], batches: list[list[list[int]]], batch: int) -> dict[str, Any]:
    """Seconds of a step of `batch` texts by its width, as text, and those that the row's method spends on its guesses.

    `batches`, of token ids, are some of those of the row: on them the guesses are timed. Of an adaptive method those of
    the one within: switched off, it spends nothing.
    """
    alone = dataclasses.replace(model, extras={})
    seconds = step_seconds(alone, sorted({1, *widths_of(row)}), batch, live_tokens(row))
    policy = row["policy"] and registry.policy(row["policy"], ("policy",), Origin("row"))
    made = any(p["guessed"] for p in row["prompts"])
    guessing = propose_seconds(model, method_of(row), batches, policy=policy) if made else 0.0
    return {"step_seconds": {str(width): value for width, value in seconds.items()}, "guessing_seconds": guessing}


def dealt(tokens: list[list[int]], batch: int, passes: int, most: int = 12) -> list[list[list[list[int]]]]:
    """For each pass some batches of the prompts, so that together they get all; of more than `most`, so many at most.

    How long guesses take depends on the prompt: timed on a few of six, they were wrong by a tenth.
    """
    batches = [tokens[at : at + batch] for at in range(0, len(tokens), batch)]
    chosen = batches[:: -(-len(batches) // most)]
    return [chosen[first % len(chosen) :: passes] for first in range(passes)]


def table(found: list[dict[str, Any]]) -> Table:
    """A row for each method: tokens a step, over all and by family, and the speedup beside the predicted one."""
    families = list(found[0]["by_family"])
    columns = ("method", "tokens a step", *families, "speedup", "predicted", "over that", "guesses ms", "identical")
    shown = Table(*columns, box=None)
    for row in found:
        by_family, speedup, expected = row["by_family"], row["speedup"], row["predicted"]
        measured = ("-", f"{expected:.2f}", "-")
        if speedup is not None and row["of_predicted"] is not None:
            measured = (f"{speedup:.2f}", f"{expected:.2f}", f"{row['of_predicted'] - 1:+.0%}")
        cells = (f"{row['tokens_per_step']:.2f}", *(f"{by_family[family]:.2f}" for family in families), *measured)
        shown.add_row(row["name"], *cells, f"{1e3 * row['guessing_seconds']:.1f}", row["identical"])
    return shown


def main(path: str, *overrides: str) -> None:
    """Run the experiment: what `jaxinfer run` writes, and speedup.json, speedup.txt and accepted.svg beside it."""
    resume = "--resume" in overrides
    config = load_config(path, [override for override in overrides if override != "--resume"])
    prompts = load_prompts(config.prompts, Path(path).parent)
    results.check_writable(config.output)
    before = results.newest_run(config) if resume else None
    if before:
        results.check_same(before, config, [prompt.text for prompt in prompts])
        if any(not isinstance(row.get("beside"), list) for row in results.read_rows(before)):
            raise InputError(f"{before}: its rows hold no times of steps, so it cannot go on: leave out --resume")
    console = Console(stderr=True)
    with console.status(f"loading {config.model.source}"):
        model = jaxinfer.load(config.model.source, config.model.dtype, config.model.weights)
        model = extras.attach(model, config.model.source, config.extras)
    seen = runner.extended(model, config.model)  # as the run has it
    texts = dealt(runner.encode(seen, prompts, config), config.decoding.batch, config.decoding.repeats)
    turn, batch = itertools.cycle(texts), len(texts[0][0])  # every row gets the same; the first batch is a whole one
    folder = runner.run(config, model, prompts, before, console, beside=lambda row: costs(seen, row, next(turn), batch))
    rows = results.read_rows(folder)
    summaries = compare.summarize(rows)
    found = [
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
        for row, summary in zip(rows, summaries, strict=True)
    ]
    write_atomic(folder / "speedup.json", json.dumps({"rows": found}, indent=2) + "\n")
    curves = {row["name"]: row["accepted_by_position"] for row in found if row["accepted_by_position"]}
    if curves:
        title = f"{model.name}: how often the i-th guess is accepted"
        write_atomic(folder / "accepted.svg", lines.chart(title, "guess", "share of steps with guesses", curves))
    script.show(folder / "speedup.txt", table(found), width=160)


if __name__ == "__main__":
    script.run(main, __doc__)

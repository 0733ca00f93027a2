"""What does each decode method buy? Spec-Bench's protocol on one model, beside what the step times predict.

    python experiments/decoding_speedup.py configs/decoding_speedup.yaml
    python experiments/decoding_speedup.py configs/decoding_speedup.yaml prompts=spec_bench.jsonl prompts.per_family=10

The config is that of `jaxinfer run`, which measures the rows: tokens a step (mean accepted tokens), the ratio of tokens
a second to greedy decoding in the same engine, and whether the text is the same. Then the time of a step is measured by
its width, and says what the speedup should be: emitted tokens over the time of the steps, wide ones and narrow ones.
What a method spends on its guesses is not in that prediction, and is the difference between the two.
"""

import dataclasses
import json
import statistics
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import jaxinfer
from jaxinfer.analysis.step_cost import step_seconds
from jaxinfer.caching import write_atomic
from jaxinfer.experiment import compare, extras, lines, load_config, load_prompts, registry, results, runner, script
from jaxinfer.experiment.merge import Origin


def width_of(row: dict[str, Any]) -> int:
    """Tokens in a step with guesses."""
    return registry.method(row["method"], ("method",), Origin("row")).width


def predicted(row: dict[str, Any], seconds: dict[int, float]) -> float:
    """The speedup over greedy that tokens a step and the time of a step by its width give."""
    emitted, steps, guessed = (sum(p[key] for p in row["prompts"]) for key in ("emitted", "steps", "guessed"))
    return emitted * seconds[1] / (guessed * seconds[width_of(row)] + (steps - guessed) * seconds[1])


def accepted_by_position(row: dict[str, Any]) -> list[tuple[float, float]]:
    """Of the steps with guesses, the share in which the i-th guess was accepted, for i from 1."""
    runs = [sum(column) for column in zip(*(p["runs"] for p in row["prompts"]), strict=True)]
    guessed = sum(p["guessed"] for p in row["prompts"])
    return [(i, sum(runs[i + 1 :]) / guessed) for i in range(1, len(runs) - 1)] if guessed else []


def table(rows: list[dict[str, Any]], summaries: list[compare.Summary], seconds: dict[int, float]) -> Table:
    """A row for each method: tokens a step, over all and by family, and the speedup beside the predicted one."""
    families = list(compare.per_family(rows[0]))
    shown = Table("method", "tokens a step", *families, "speedup", "predicted", "identical", box=None)
    for row, summary in zip(rows, summaries, strict=True):
        by_family = compare.per_family(row)
        speedup = "-" if summary.speedup is None else f"{summary.speedup:.2f}"
        cells = (f"{summary.tokens_per_step:.2f}", *(f"{by_family[family]:.2f}" for family in families), speedup)
        shown.add_row(row["name"], *cells, f"{predicted(row, seconds):.2f}", summary.identical)
    return shown


def main(path: str, *overrides: str) -> None:
    """Run the experiment: what `jaxinfer run` writes, and speedup.json, speedup.txt and accepted.svg beside it."""
    config = load_config(path, overrides)
    prompts = load_prompts(config.prompts, Path(path).parent)
    results.check_writable(config.output)
    console = Console(stderr=True)
    with console.status(f"loading {config.model.source}"):
        model = jaxinfer.load(config.model.source, config.model.dtype, config.model.weights)
        model = extras.attach(model, config.model.source, config.extras)
    folder = runner.run(config, model, prompts, console=console)
    rows = results.read_rows(folder)
    live = int(statistics.median(p["prompt_tokens"] + p["emitted"] / 2 for p in rows[0]["prompts"]))
    with console.status("the time of a step by its width"):
        widths = sorted({1, *map(width_of, rows)})
        seconds = step_seconds(dataclasses.replace(model, extras={}), widths, config.decoding.batch, live)
    summaries = compare.summarize(rows)
    found = [
        {
            "name": row["name"],
            "tokens_per_step": summary.tokens_per_step,
            "by_family": compare.per_family(row),
            "speedup": summary.speedup,
            "predicted": predicted(row, seconds),
            "identical": summary.identical,
            "accepted_by_position": accepted_by_position(row),
        }
        for row, summary in zip(rows, summaries, strict=True)
    ]
    data = {"step_seconds": seconds, "live": live, "rows": found}
    write_atomic(folder / "speedup.json", json.dumps(data, indent=2) + "\n")
    curves = {row["name"]: row["accepted_by_position"] for row in found if row["accepted_by_position"]}
    if curves:
        title = f"{model.name}: how often the i-th guess is accepted"
        write_atomic(folder / "accepted.svg", lines.chart(title, "guess", "share of steps with guesses", curves))
    with Console(record=True, highlight=False) as shown:
        shown.print(table(rows, summaries, seconds))
        shown.print(f"{folder}")
    write_atomic(folder / "speedup.txt", shown.export_text())


if __name__ == "__main__":
    script.run(main, __doc__)

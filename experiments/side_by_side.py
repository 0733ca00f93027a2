"""Is a method slower than greedy decoding where its guesses do not pay? Both on one text, a few steps in turn.

    python experiments/side_by_side.py configs/side_by_side.yaml
    python experiments/side_by_side.py configs/side_by_side.yaml prompts=spec_bench.jsonl prompts.per_family=1

Passes over whole sets of prompts differ by a tenth on a shared machine, and what a switch costs is a hundredth. Here
greedy decoding and a row's method write the same text at the same time, `STEPS` steps of the one and then as many of
the other, so that both meet the machine as it is. The config is that of `jaxinfer run`; its greedy rows are left out.
"""

import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

import jaxinfer
from jaxinfer.caching import write_atomic
from jaxinfer.errors import InputError
from jaxinfer.experiment import Experiment, extras, load_config, load_prompts, registry, results, runner, script
from jaxinfer.experiment.merge import Origin

STEPS = 8  # of one before it is the other's turn


def check(config: Experiment) -> None:
    """Raises InputError for what has no greedy decoding to be compared with, prompt by prompt."""
    if config.decoding.batch != 1:
        raise InputError(f"decoding.batch={config.decoding.batch}: must be 1, a text at a time")
    for at, row in enumerate(config.rows):
        for key in ("sampling", "constraint"):
            if getattr(row, key) is not None:
                raise InputError(f"rows.{at}.{key}: must be left out: {row.name!r} is compared with greedy decoding")
    if not _compared(config):
        raise InputError("rows: hold no method to compare with greedy decoding")


def _compared(config: Experiment) -> list[Any]:
    return [row for row in config.rows if row.method["name"] != "greedy"]


def in_turn(start: Callable[[Any], jaxinfer.Stream], method: Any, first: int) -> list[jaxinfer.Stream]:
    """Greedy decoding and `method` to the end of their texts, in turn; `first` is odd if the method begins."""
    streams = [start(jaxinfer.Greedy()), start(method)]
    turns = streams[::-1] if first % 2 else streams
    while [stream for stream in turns if next(stream, None)]:  # a turn for both, whichever has ended
        pass
    return streams


def of_prompt(model: jaxinfer.Model, row: Any, prompt: Sequence[int], config: Experiment) -> dict[str, Any]:
    """Seconds of greedy decoding and of the row on one prompt, one of each a repeat, behind one that compiles."""
    origin = Origin("row")
    options = {
        "steps_per_piece": STEPS,
        "max_new_tokens": config.decoding.max_new_tokens,
        "policy": row.policy and registry.policy(row.policy, ("policy",), origin),
    }
    method = registry.method(row.method, ("method",), origin)
    passes = [
        in_turn(lambda method: model.stream(prompt, method=method, **options), method, i)
        for i in range(config.decoding.repeats + 1)
    ]
    greedy, other = passes[0]
    seconds = [[stream.stats.seconds["decode"] for stream in streams] for streams in passes[1:]]
    stats = other.stats
    counts = {"steps": stats.steps[0], "guessed": stats.guessed[0], "emitted": stats.emitted[0]}
    return counts | {"seconds": seconds, "identical": greedy.tokens == other.tokens}


def summary(name: str, found: list[dict[str, Any]]) -> dict[str, Any]:
    """A row of the table: greedy's seconds over the row's, all prompts of a pass together; by prompt, of all passes."""
    passes = [[sum(one) for one in zip(*seconds, strict=True)] for seconds in zip(*_seconds(found), strict=True)]
    by_prompt = [[sum(one) for one in zip(*seconds, strict=True)] for seconds in _seconds(found)]
    steps, guessed, emitted = (sum(one[key] for one in found) for key in ("steps", "guessed", "emitted"))
    return {
        "name": name,
        "guessed": guessed,
        "steps": steps,
        "tokens_per_step": emitted / steps,
        "speedup": statistics.median(greedy / other for greedy, other in passes),
        "passes": [greedy / other for greedy, other in passes],
        "by_prompt": [greedy / other for greedy, other in by_prompt],
        "identical": sum(one["identical"] for one in found),
        "prompts": len(found),
    }


def _seconds(found: list[dict[str, Any]]) -> list[list[list[float]]]:
    return [one["seconds"] for one in found]


def table(found: list[dict[str, Any]]) -> Table:
    """A row for each method: how often it guessed, and how much faster than greedy decoding it was."""
    columns = ("method", "steps with guesses", "tokens a step", "speedup", "passes", "prompts", "identical")
    shown = Table(*columns, box=None)
    for row in found:
        spans = (f"{min(row[key]):.3f} to {max(row[key]):.3f}" for key in ("passes", "by_prompt"))
        counts = (f"{row['guessed']} of {row['steps']}", f"{row['tokens_per_step']:.2f}", f"{row['speedup']:.3f}")
        shown.add_row(row["name"], *counts, *spans, f"{row['identical']}/{row['prompts']}")
    return shown


def main(path: str, *overrides: str) -> None:
    """Run the experiment: a table on the terminal and in table.txt, results.json with the seconds of every prompt."""
    config = load_config(path, overrides)
    check(config)
    prompts = load_prompts(config.prompts, Path(path).parent)
    results.check_writable(config.output)
    console = Console(stderr=True)
    with console.status(f"loading {config.model.source}"):
        model = jaxinfer.load(config.model.source, config.model.dtype, config.model.weights)
        model = extras.attach(runner.extended(model, config.model), config.model.source, config.extras)
    tokens = runner.encode(model, prompts, config)
    raw = {
        row.name: [of_prompt(model, row, prompt, config) for prompt in track(tokens, row.name, console=console)]
        for row in _compared(config)
    }
    found = [summary(name, one) for name, one in raw.items()]
    folder = results.new_run(config)
    write_atomic(folder / "results.json", json.dumps({"rows": found, "prompts": raw}, indent=2) + "\n")
    script.show(folder / "table.txt", table(found))


if __name__ == "__main__":
    script.run(main, __doc__)

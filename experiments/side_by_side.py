"""Measure whether a method is slower than greedy decoding where its guesses do not pay: both on one text, in turn.

    jaxinfer run configs/side_by_side.yaml
    jaxinfer run configs/side_by_side.yaml prompts=spec_bench.jsonl prompts.per_family=1

Passes over whole sets of prompts differ by a tenth on a shared machine, and what a switch costs is a hundredth. Here
greedy decoding and a row's method write the same text at the same time, `STEPS` steps of the one and then as many of
the other, so that both meet the machine as it is. The config is that of the kind `rows`; its greedy rows are
left out.
"""

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jaxinfer
from jaxinfer.analysis.clock import take_turns
from jaxinfer.errors import InputError
from jaxinfer.experiment import KINDS, Experiment, Kind, Run, Table, heading, rows, schema, script
from jaxinfer.experiment.kind import Prompts, Row
from jaxinfer.experiment.prepare import Ready, prepare

STEPS = 8  # of one before it is the other's turn


def check(config: Experiment) -> None:
    """Raise InputError for what has no greedy decoding to be compared with, prompt by prompt."""
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
    """Run greedy decoding and `method` to the end of their texts, in turn; `first` is odd if the method begins."""
    streams = [start(jaxinfer.Greedy()), start(method)]
    take_turns(streams, first)
    return streams


@dataclass(frozen=True)
class Prepared:
    """Token ids of the prompts, and the compared rows as the engine takes them, by name."""

    tokens: list[list[int]]
    rows: dict[str, Ready]


def prepared(config: Experiment, model: jaxinfer.Model, prompts: Prompts) -> Prepared:
    """Resolve every row once. Raises InputError for one that cannot be decoded on this model."""
    tokens = rows.encode(model, prompts, config)
    return Prepared(tokens, {row.name: prepare(model, row, tokens, config.decoding) for row in _compared(config)})


def of_prompt(model: jaxinfer.Model, ready: Ready, prompt: Sequence[int], config: Experiment) -> dict[str, Any]:
    """Time greedy decoding and the row on one prompt, in seconds, one of each a repeat, after one that compiles."""
    method, options = ready.options["method"], {"steps_per_piece": STEPS, "policy": ready.options["policy"]}
    options["max_new_tokens"] = config.decoding.max_new_tokens
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
    """Make a row of the table: greedy's seconds over the row's, all prompts of a pass together; by prompt too."""
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


def measure(name: str, run: Run) -> Row:
    """Measure a row of the table, with what each prompt gave."""
    run.expect(len(run.ready.tokens))
    found = []
    for prompt in run.ready.tokens:
        found.append(of_prompt(run.model, run.ready.rows[name], prompt, run.config))
        run.tick()
    return summary(name, found) | {"of_prompts": found}


def table(found: Sequence[Row]) -> Table:
    """Tabulate a row for each method: how often it guessed, and how much faster than greedy decoding it was."""

    def span(key: str) -> Callable[[Row], str]:
        return lambda row: f"{min(row[key]):.3f} to {max(row[key]):.3f}"

    columns = {
        "method": "{name}",
        "steps with guesses": "{guessed} of {steps}",
        "tokens a step": "{tokens_per_step:.2f}",
        "speedup": "{speedup:.3f}",
        "passes": span("passes"),
        "prompts": span("by_prompt"),
        "identical": "{identical}/{prompts}",
    }
    return Table.of(found, columns)


def files(run: Run) -> dict[str, str]:
    """Give results.json: the rows, and the seconds of every prompt."""
    plain = [{key: value for key, value in row.items() if key != "of_prompts"} for row in run.rows]
    data = {"rows": plain, "prompts": {row["name"]: row["of_prompts"] for row in run.rows}}
    return {"results.json": json.dumps(data, indent=2) + "\n"}


KINDS.add(
    "side_by_side",
    Kind(
        Experiment,
        items=lambda config, prompts: {row.name: row.name for row in _compared(config)},
        measure=measure,
        table=table,
        check=check,
        read=partial(schema.validate, also=heading.KEYS),
        prepare=prepared,
        files=files,
        unit="row",
    ),
)

if __name__ == "__main__":
    script.run("side_by_side", __doc__)

"""Measure how far beyond its trained length a model reads, with and without scaled positions.

    jaxinfer run configs/context_extension.yaml text=FILE [KEY=VALUE]...

One long text goes through the model under each way of scaling its rotary positions. The cross-entropy of every token is
kept by position: perplexity in blocks along the text says where a variant stops reading.
"""

import dataclasses
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

import jaxinfer
from jaxinfer.analysis.quality import token_nll
from jaxinfer.compress import context
from jaxinfer.errors import InputError
from jaxinfer.experiment import KINDS, Kind, Run, Table, lines, script
from jaxinfer.experiment.kind import Prompts, Row
from jaxinfer.experiment.prompts import read_text
from jaxinfer.experiment.schema import ModelSpec
from jaxinfer.host.values import FORBID_UNKNOWN_KEYS


@dataclass(frozen=True)
class Config:
    """The options of this experiment: see configs/context_extension.yaml."""

    name: str
    model: ModelSpec
    text: str
    factor: float = 4.0
    tokens: int | None = None
    block: int = 1024
    variants: tuple[context.Kind, ...] = context.KINDS
    output: str = "runs"

    __pydantic_config__ = FORBID_UNKNOWN_KEYS

    def check(self) -> None:
        """Raise InputError for what cannot be measured."""
        if self.model.context:
            raise InputError("model.context: each of `variants` extends it; leave it out")
        read_text(self.text, "text")


def first_tokens(config: Config, model: jaxinfer.Model, length: int) -> np.ndarray:
    """Read int32[1, length] of the text. Raises InputError if it cannot be read or is too short."""
    text = read_text(config.text, "text")
    if model.tokenizer is None:
        raise InputError(f"model.source: {config.model.source!r} has no tokenizer")
    ids = model.tokenizer.encode(text)
    if len(ids) < length:
        raise InputError(f"text: {config.text} has {len(ids)} tokens, and {length} are needed; give a longer one")
    return np.array([ids[:length]], np.int32)


def blocks(nll: np.ndarray, size: int) -> list[tuple[int, float]]:
    """Compute the perplexity of each whole block of tokens along the text, with the position of its end."""
    ends = range(size, len(nll) + 1, size)
    return [(end, math.exp(float(nll[end - size : end].mean()))) for end in ends]


@dataclass(frozen=True)
class Ready:
    """The text, int32[1, tokens], and the model with its positions scaled in every way."""

    ids: np.ndarray
    variants: dict[str, jaxinfer.Model]
    trained: int


def model_of(config: Config) -> ModelSpec:
    """Load the model as it was trained, in float32 unless the config says otherwise."""
    return dataclasses.replace(config.model, dtype=config.model.dtype or "float32")


def prepare(config: Config, model: jaxinfer.Model, prompts: Prompts) -> Ready:
    """Read the text and scale the positions. Raises InputError where either cannot be done."""
    trained = model.config.max_positions
    ids = first_tokens(config, model, config.tokens or int(trained * config.factor))
    return Ready(ids, {name: context.extend_context(model, name, config.factor) for name in config.variants}, trained)


def measure(name: str, run: Run) -> Row:
    """Measure the seconds that a variant takes to read the text, and its perplexity: by block, and in three parts."""
    ids, trained = run.ready.ids, run.ready.trained
    run.expect(ids.shape[1] - 1)
    read = 0

    def progress(done: int, _: int) -> None:
        nonlocal read
        run.tick(done - read)
        read = done

    start = time.perf_counter()
    nll = token_nll(run.ready.variants[name], ids, progress)[0]
    seconds = time.perf_counter() - start
    parts = {"within": nll[:trained], "beyond": nll[trained:], "all": nll}
    means = {key: math.exp(float(part.mean())) if len(part) else None for key, part in parts.items()}
    row: Row = {"variant": name, "trained": trained, "tokens": ids.shape[1], "seconds": seconds}
    return row | means | {"perplexity": blocks(nll, run.config.block)}


def table(rows: Sequence[Row]) -> Table:
    """Tabulate perplexity within the trained length, beyond it, and of the whole text."""

    def shown(key: str):
        return lambda row: "-" if row[key] is None else f"{row[key]:.2f}"

    within = f"up to {rows[0]['trained']}"
    columns = {"positions": "{variant}", within: shown("within"), "beyond": shown("beyond"), "all": shown("all")}
    return Table.of(rows, columns)


def files(run: Run) -> dict[str, str]:
    """Give results.json, and perplexity.svg: perplexity along the text."""
    by_block = {row["variant"]: row["perplexity"] for row in run.rows}
    trained, length = run.rows[0]["trained"], run.rows[0]["tokens"]
    seconds = {row["variant"]: row["seconds"] for row in run.rows}
    data = {"trained": trained, "tokens": length, "seconds": seconds, "perplexity": by_block}
    title = f"{run.model.name}: perplexity along a text of {length} tokens, trained on {trained}"
    chart = lines.chart(title, "position", "perplexity of a block", by_block, log_y=True)
    return {"results.json": json.dumps(data, indent=2) + "\n", "perplexity.svg": chart}


KINDS.add(
    "context_extension",
    Kind(
        Config,
        items=lambda config, prompts: {name: name for name in config.variants},
        measure=measure,
        table=table,
        check=Config.check,
        model=model_of,
        prepare=prepare,
        files=files,
    ),
)

if __name__ == "__main__":
    script.run("context_extension", __doc__)

"""How far beyond its trained length does a model read, with and without scaled positions?

    python experiments/context_extension.py configs/context_extension.yaml text=FILE [KEY=VALUE]...

One long text goes through the model under each way of scaling its rotary positions. The cross-entropy of every token is
kept by position: perplexity in blocks along the text says where a variant stops reading.
"""

import dataclasses
import io
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import jaxinfer
from jaxinfer.analysis.quality import token_nll
from jaxinfer.caching import write_atomic
from jaxinfer.errors import InputError
from jaxinfer.experiment import lines, results, script
from jaxinfer.experiment.schema import FORBID_UNKNOWN_KEYS, ModelSpec, read_as
from jaxinfer.transform.context import KINDS, Kind, extend_context


@dataclass(frozen=True)
class Config:
    """What is measured: see configs/context_extension.yaml."""

    name: str
    model: ModelSpec
    text: str
    factor: float = 4.0
    tokens: int | None = None
    block: int = 1024
    variants: tuple[Kind, ...] = KINDS
    output: str = "runs"

    __pydantic_config__ = FORBID_UNKNOWN_KEYS

    def to_mapping(self) -> dict[str, Any]:
        """Plain data, for the run folder."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


def first_tokens(config: Config, model: jaxinfer.Model, length: int) -> np.ndarray:
    """int32[1, length] of the text. Raises InputError if it cannot be read or is too short."""
    text = script.read_text(config.text, "text")
    if model.tokenizer is None:
        raise InputError(f"model.source: {config.model.source!r} has no tokenizer")
    ids = model.tokenizer.encode(text)
    if len(ids) < length:
        raise InputError(f"text: {config.text} has {len(ids)} tokens, and {length} are needed; give a longer one")
    return np.array([ids[:length]], np.int32)


def blocks(nll: np.ndarray, size: int) -> list[tuple[int, float]]:
    """Perplexity of each whole block of tokens along the text, with the position of its end."""
    ends = range(size, len(nll) + 1, size)
    return [(end, math.exp(float(nll[end - size : end].mean()))) for end in ends]


def table(found: dict[str, np.ndarray], trained: int) -> Table:
    """Perplexity within the trained length, beyond it, and of the whole text."""
    shown = Table("positions", f"up to {trained}", "beyond", "all", box=None)
    for name, nll in found.items():
        parts = (nll[:trained], nll[trained:], nll)
        shown.add_row(name, *(f"{math.exp(float(part.mean())):.2f}" if len(part) else "-" for part in parts))
    return shown


def main(path: str, *overrides: str) -> None:
    """Run the experiment: a table on the terminal, and in the run folder, after each variant, what `write` says."""
    config = read_as(Config, path, overrides)
    if config.model.context:
        raise InputError("model.context: each of `variants` extends it; leave it out")
    results.check_writable(config.output)
    model = jaxinfer.load(config.model.source, dtype=config.model.dtype or "float32", weights=config.model.weights)
    trained = model.config.max_positions
    length = config.tokens or int(trained * config.factor)
    ids = first_tokens(config, model, length)
    variants = {name: extend_context(model, name, config.factor) for name in config.variants}
    folder = results.new_run(config)
    found: dict[str, np.ndarray] = {}
    seconds: dict[str, float] = {}
    with Progress(console=Console(stderr=True)) as progress:
        for name, variant in variants.items():
            task = progress.add_task(name, total=length - 1)
            start = time.perf_counter()
            found[name] = token_nll(variant, ids, lambda done, _, task=task: progress.update(task, completed=done))[0]
            seconds[name] = time.perf_counter() - start
            write(folder, config, model.name, trained, found, seconds)
    with Console(highlight=False) as console:
        console.print(table(found, trained))
        console.print(f"{folder}")


def write(
    folder: Path, config: Config, name: str, trained: int, found: dict[str, np.ndarray], seconds: dict[str, float]
) -> None:
    """What is known so far: results.json, perplexity.svg, table.txt. A variant takes long, so each is kept."""
    by_block = {variant: blocks(nll, config.block) for variant, nll in found.items()}
    length = 1 + max(map(len, found.values()))
    data = {"trained": trained, "tokens": length, "seconds": seconds, "perplexity": by_block}
    write_atomic(folder / "results.json", json.dumps(data, indent=2) + "\n")
    title = f"{name}: perplexity along a text of {length} tokens, trained on {trained}"
    chart = lines.chart(title, "position", "perplexity of a block", by_block, log_y=True)
    write_atomic(folder / "perplexity.svg", chart)
    with Console(record=True, highlight=False, file=io.StringIO()) as console:
        console.print(table(found, trained))
    write_atomic(folder / "table.txt", console.export_text())


if __name__ == "__main__":
    script.run(main, __doc__)

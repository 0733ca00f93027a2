"""Does every lossless method write what greedy decoding writes, on real models, under every exact cache policy?

    python experiments/lossless_matrix.py configs/lossless_matrix.yaml [KEY=VALUE]... [--resume]

Every method, policy and batch size writes the continuations of all prompts, and each row of each batch is compared
with what Greedy writes for that prompt alone. Batch "ragged" holds the beginnings of prompts, of very different
lengths, and each of its rows ends at another limit. Where a row differs, the table says how far apart the two best
logits were at the first token that does: below about 1e-4 it is float32 that differs and not the method. Exit code 1 if
any row differs.

`results.jsonl` gets a line behind each cell; with --resume the newest run of that name goes on behind its last.
"""

import dataclasses
import io
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.table import Table

import jaxinfer
from jaxinfer.caching import write_atomic
from jaxinfer.errors import InputError
from jaxinfer.experiment import load_prompts, registry, results, script
from jaxinfer.experiment.merge import Origin
from jaxinfer.experiment.prompts import Prompt
from jaxinfer.experiment.schema import FORBID_UNKNOWN_KEYS, PromptSpec, read_as
from jaxinfer.transform import keep_layers

LENGTHS = (1, 2, 5, 16, 17, 40, 64, 100)  # tokens of the prompts in a ragged batch
LIMITS = (128, 3, 64, 1, 100, 31, 17, 128)  # new tokens of its rows, at most

KEYS = ("model", "policy", "method", "batch")  # of a cell

Row = tuple[list[int], int]  # a prompt, and how many new tokens


@dataclass(frozen=True)
class Config:
    """What is compared: see configs/lossless_matrix.yaml."""

    name: str
    models: tuple[str, ...]
    prompts: PromptSpec = field(default_factory=PromptSpec)
    policies: tuple[str, ...] = ("dense", "window")
    batches: tuple[int | Literal["ragged"], ...] = (1, 3, 8, "ragged")
    methods: tuple[str | dict[str, Any], ...] | None = None  # null: all of the registry that it can run
    max_new_tokens: int = 128
    drop: int = 3  # the draft model is the model without every so-manieth of its layers
    output: str = "runs"

    __pydantic_config__ = FORBID_UNKNOWN_KEYS

    def to_mapping(self) -> dict[str, Any]:
        """What config.yaml of a run holds."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    def check(self) -> None:
        """Raises InputError for what cannot be compared."""
        for key in ("models", "policies", "batches"):
            if not getattr(self, key):
                raise InputError(f"{key}: is empty")
        for policy in self.policies:
            if policy not in jaxinfer.POLICIES:
                raise InputError(f"policies: {policy!r} is no policy; valid: {', '.join(jaxinfer.POLICIES)}")
        for batch in self.batches:
            if batch != "ragged" and batch < 1:
                raise InputError(f"batches: {batch} must be a whole number from 1, or 'ragged'")
        for key, least in (("max_new_tokens", 1), ("drop", 2)):
            if getattr(self, key) < least:
                raise InputError(f"{key}={getattr(self, key)} must be at least {least}")


def methods_of(config: Config) -> dict[str, Any]:
    """Methods by what they are called here: those of the config, or all lossless ones that need no trained heads.

    Raises InputError for a method that is lossy, or needs what this script does not attach.
    """
    if config.methods is None:
        made = {name: method() for name, method in jaxinfer.METHODS.items()}
        return {name: m for name, m in made.items() if getattr(m, "lossless", True) and "heads" not in m.needs}
    found = {}
    for i, spec in enumerate(config.methods):
        method = registry.method(spec, ("methods", i), Origin("config"))
        if not getattr(method, "lossless", True) or "heads" in method.needs:
            raise InputError(f"methods.{i}: {json.dumps(spec)} is lossy, or needs heads")
        found[spec if isinstance(spec, str) else json.dumps(spec)] = method
    return found


def batches_of(batch: int | str, prompts: list[list[int]], limit: int) -> list[list[Row]]:
    """The batches that hold all prompts; the last one is filled up with the first prompts."""
    if batch == "ragged":
        rows = zip(LENGTHS, LIMITS, strict=True)
        return [[(prompts[i % len(prompts)][:length], min(most, limit)) for i, (length, most) in enumerate(rows)]]
    size = int(batch)
    return [
        [(prompts[(start + i) % len(prompts)], limit) for i in range(size)] for start in range(0, len(prompts), size)
    ]


def expected(model: jaxinfer.Model, rows: list[Row], known: dict[str, list[int]]) -> Iterator[tuple[str, list[int]]]:
    """What Greedy writes for each prompt alone, where that is not known yet."""
    for prompt, limit in rows:
        key = json.dumps(prompt)
        if len(known.get(key, ())) < limit and not (known.get(key) and known[key][-1] in model.tokenizer.stop_ids):
            found = model.generate([prompt], max_new_tokens=limit, method=jaxinfer.Greedy(), policy=jaxinfer.Dense())
            known[key] = found.tokens[0]
            yield key, found.tokens[0]


def equip(model: jaxinfer.Model, documents: list[list[int]], drop: int) -> jaxinfer.Model:
    """The model with all that methods may need: itself without some layers, and the texts as documents."""
    n = model.config.n_layers

    def without(model: jaxinfer.Model, every: int) -> jaxinfer.Model:
        return keep_layers(model, [layer for layer in range(n) if layer % every != 1 or layer == 1])

    draft = without(model, drop).attach(draft=without(model, 2))
    store, texts = jaxinfer.Datastore.build(documents), jaxinfer.references(documents)
    return model.attach(draft=draft, datastore=store, references=texts)


def compare(model: jaxinfer.Model, rows: list[Row], found: list[list[int]], known: dict[str, list[int]]) -> list[dict]:
    """Of each row that is not what Greedy writes: where it differs, and how close the two best logits were there."""
    wrong = []
    for (prompt, limit), tokens in zip(rows, found, strict=True):
        right = known[json.dumps(prompt)][:limit]
        if tokens == right:
            continue
        same = next((i for i, (a, b) in enumerate(zip(tokens, right, strict=False)) if a != b), len(tokens))
        best = np.sort(np.asarray(model.logits([[*prompt, *right[:same]]]))[0, -1])[-2:]
        wrong.append({"prompt": prompt[:8], "length": len(prompt), "at": same, "margin": float(best[1] - best[0])})
    return wrong


def one_cell(
    model: jaxinfer.Model, method: Any, policy: str, batches: list[list[Row]], known: dict[str, list[int]]
) -> dict[str, Any]:
    """All batches under a method and a policy: rows, those that differ, and tokens a step."""
    wrong, rows, emitted, steps, start = [], 0, 0, 0, time.perf_counter()
    for batch in batches:
        prompts, limits = [prompt for prompt, _ in batch], [limit for _, limit in batch]
        options: dict[str, Any] = {"sampling": jaxinfer.Sampling(temperature=0.0)} if method.samples else {}
        result = model.generate(
            prompts, max_new_tokens=limits, method=method, policy=jaxinfer.POLICIES[policy](), **options
        )
        wrong += compare(model, batch, result.tokens, known)
        rows, emitted, steps = rows + len(batch), emitted + sum(result.stats.emitted), steps + sum(result.stats.steps)
    seconds = round(time.perf_counter() - start, 1)
    return {"rows": rows, "wrong": wrong, "tokens_per_step": emitted / steps, "seconds": seconds}


def run_model(
    config: Config, source: str, prompts: tuple[Prompt, ...], done: list[dict[str, Any]], keep: Callable[[dict], None]
) -> None:
    """The cells of one model that are not done yet, and before them what Greedy writes."""
    methods = methods_of(config)
    cells = [
        {"model": source, "policy": policy, "method": name, "batch": batch}
        for batch in config.batches
        for policy in config.policies
        for name in methods
    ]
    before = [{key: line.get(key) for key in KEYS} for line in done]
    cells = [cell for cell in cells if cell not in before]
    if not cells:
        return
    model = jaxinfer.load(source, dtype="float32")
    if model.tokenizer is None:
        raise InputError(f"models: {source!r} has no tokenizer")
    texts = [_encode(model, prompt, config.prompts.chat) for prompt in prompts]
    known = {line["greedy"]: line["tokens"] for line in done if line["model"] == source and "greedy" in line}
    by_batch = {batch: batches_of(batch, texts, config.max_new_tokens) for batch in config.batches}
    for batch in config.batches:
        for rows in by_batch[batch]:
            for key, tokens in expected(model, rows, known):
                keep({"model": source, "greedy": key, "tokens": tokens})
    documents = [[*json.loads(prompt), *tokens] for prompt, tokens in known.items()]
    equipped = equip(model, documents, config.drop)
    for cell in cells:
        keep(cell | one_cell(equipped, methods[cell["method"]], cell["policy"], by_batch[cell["batch"]], known))


def _encode(model: jaxinfer.Model, prompt: Prompt, chat: bool) -> list[int]:
    if chat and model.tokenizer.has_chat:
        return model.tokenizer.chat([{"role": "user", "content": prompt.text}])
    return model.tokenizer.encode(prompt.text)


def table(lines: list[dict[str, Any]]) -> Table:
    """A row for each model, policy and method; under each batch size how many rows are greedy's, and tokens a step."""
    cells = {tuple(line[key] for key in KEYS): line for line in lines if "method" in line}
    batches = list(dict.fromkeys(key[-1] for key in cells))
    shown = Table("model", "policy", "method", *(f"batch {batch}" for batch in batches), box=None)
    for row in dict.fromkeys(key[:-1] for key in cells):
        found = [cells.get((*row, batch)) for batch in batches]
        shown.add_row(*row, *("-" if line is None else _cell(line) for line in found))
    return shown


def _cell(line: dict[str, Any]) -> str:
    same, margins = line["rows"] - len(line["wrong"]), [wrong["margin"] for wrong in line["wrong"]]
    apart = f" margin {max(margins):.0e}" if margins else ""
    return f"{same}/{line['rows']}{apart} ({line['tokens_per_step']:.2f})"


def main(path: str, *overrides: str) -> int:
    """Run the matrix: a table on the terminal and in table.txt, results.jsonl behind every cell; 1 if a row differs."""
    resume = "--resume" in overrides
    config = read_as(Config, path, tuple(o for o in overrides if o != "--resume"))
    config.check()
    methods_of(config)
    prompts = load_prompts(config.prompts, Path(path).parent)
    results.check_writable(config.output)
    folder = results.newest_run(config) if resume else results.new_run(config)
    if resume:
        results.check_same(folder, config, [])
    file = folder / "results.jsonl"
    done = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    console = Console(stderr=True, highlight=False)

    def keep(line: dict[str, Any]) -> None:
        done.append(line)
        write_atomic(file, "".join(json.dumps(one) + "\n" for one in done))
        if "method" in line:
            where = f"{line['model']}, {line['policy']}, batch {line['batch']}, {line['method']}"
            console.print(f"{where}: {_cell(line)} in {line['seconds']} s")
        with Console(record=True, highlight=False, file=io.StringIO(), width=160) as shown:
            shown.print(table(done))
        write_atomic(folder / "table.txt", shown.export_text())

    for source in config.models:
        run_model(config, source, prompts, done, keep)
    with Console(highlight=False) as shown:
        shown.print(table(done))
        shown.print(f"{folder}")
    return int(any(line["wrong"] for line in done if "method" in line))


if __name__ == "__main__":
    script.run(lambda *args: sys.exit(main(*args)), __doc__)

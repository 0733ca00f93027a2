"""Does every lossless method write what greedy decoding writes, on real models, under every exact cache policy?

    python experiments/lossless_matrix.py configs/lossless_matrix.yaml [KEY=VALUE]... [--resume]

What Greedy writes for a prompt alone, under Dense, is found once. Every method, policy and batch size then continues
prompts of every family, and each row of each batch is compared with that. Batch "ragged" holds the beginnings of
prompts, of very different lengths, and each of its rows ends at another limit. Where a row differs, the table says how
far above the token that it has the logit of greedy's is: below about 1e-4 nats it is float32 that differs and not the
method. Exit code 1 if any row differs.

What methods need is made here: the draft model is the model without some layers in its middle, and has one itself;
heads are fitted in closed form to greedy's texts, and multi-token-prediction modules are random.

`results.jsonl` gets a line behind each text and each cell; with --resume the newest run of that name goes on behind its
last.
"""

import dataclasses
import io
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

import jaxinfer
from jaxinfer import heads, programs, scoring
from jaxinfer.caching import write_atomic
from jaxinfer.errors import InputError
from jaxinfer.experiment import load_prompts, registry, results, script
from jaxinfer.experiment.merge import Origin
from jaxinfer.experiment.prompts import Prompt, token_ids
from jaxinfer.experiment.schema import FORBID_UNKNOWN_KEYS, PromptSpec, read_as
from jaxinfer.heads import data, mtp, start
from jaxinfer.heads.heads import frequent
from jaxinfer.transform import keep_layers

LENGTHS = (1, 2, 300, 5, 17, 250, 64, 40)  # tokens of the prompts in a ragged batch
LIMITS = (64, 3, 48, 1, 33, 64, 17, 31)  # new tokens of its rows, at most

KEYS = ("model", "policy", "method", "batch")  # of a cell
HEADS = {jaxinfer.Medusa: ("medusa", "hydra"), jaxinfer.Eagle: ("eagle",), jaxinfer.MTP: ("mtp",)}
WINDOW = 256  # tokens: what heads are fitted to is cut into so many

Row = tuple[list[int], int]  # a prompt, and how many new tokens
Methods = dict[str, tuple[Any, str | None]]  # by name: the method, and the kind of heads that it drafts with


@dataclass(frozen=True)
class Config:
    """What is compared: see configs/lossless_matrix.yaml."""

    name: str
    models: tuple[str, ...]
    methods: dict[str, str | dict[str, Any]]
    prompts: PromptSpec = field(default_factory=PromptSpec)
    policies: tuple[str, ...] = ("dense", "window")
    batches: tuple[int | Literal["ragged"], ...] = (1, 3, 8, "ragged")
    texts: int | None = None  # a cell has as many batches as so many texts take; null: as all prompts take
    longest: int | None = None  # tokens of a prompt in a batch of 8 rows or more
    max_new_tokens: int = 128
    output: str = "runs"

    __pydantic_config__ = FORBID_UNKNOWN_KEYS

    def to_mapping(self) -> dict[str, Any]:
        """What config.yaml of a run holds."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    def check(self) -> None:
        """Raises InputError for what cannot be compared."""
        for key in ("models", "methods", "policies", "batches"):
            if not getattr(self, key):
                raise InputError(f"{key}: is empty")
        for policy in self.policies:
            if policy not in jaxinfer.POLICIES:
                raise InputError(f"policies: {policy!r} is no policy; valid: {', '.join(jaxinfer.POLICIES)}")
            if not getattr(jaxinfer.POLICIES[policy](), "exact", True):
                raise InputError(f"policies: {policy!r} rounds keys and values: its texts are not greedy's under dense")
        for batch in self.batches:
            if batch != "ragged" and batch < 1:
                raise InputError(f"batches: {batch} must be a whole number from 1, or 'ragged'")
        for key in ("texts", "longest", "max_new_tokens"):
            if getattr(self, key) is not None and getattr(self, key) < 1:
                raise InputError(f"{key}={getattr(self, key)} must be at least 1")


def methods_of(config: Config) -> Methods:
    """The methods of the config; one that takes several kinds of heads once for each.

    Raises InputError for a method that is lossy, or that needs heads for a method within.
    """
    found: Methods = {}
    for name, spec in config.methods.items():
        method = registry.method(spec, ("methods", name), Origin("config"))
        if not getattr(method, "lossless", True):
            raise InputError(f"methods.{name}: {json.dumps(spec)} is lossy")
        if "heads" not in method.needs:
            found[name] = (method, None)
            continue
        if type(method) not in HEADS:
            raise InputError(f"methods.{name}: {json.dumps(spec)} needs heads within; name that method by itself")
        kinds = HEADS[type(method)]
        found |= {name if len(kinds) == 1 else f"{name}, {kind} heads": (method, kind) for kind in kinds}
    return found


def in_turn(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The first of every family, then the second: so that a few in a row are of different ones."""
    families: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        families.setdefault(prompt.family, []).append(prompt)
    return [prompt for column in zip_longest(*families.values()) for prompt in column if prompt is not None]


def batches_of(config: Config, batch: int | str, prompts: list[list[int]], first: int = 0) -> list[list[Row]]:
    """The batches of a cell, from prompt number `first` on; behind the last comes the first again."""
    limit = config.max_new_tokens
    if batch == "ragged":
        rows = zip(LENGTHS, LIMITS, strict=True)
        return [[(prompts[i % len(prompts)][:length], min(most, limit)) for i, (length, most) in enumerate(rows)]]
    size = int(batch)
    cut = config.longest if size >= len(LENGTHS) else None
    texts = len(prompts) if config.texts is None else config.texts
    return [
        [(prompts[(first + at + i) % len(prompts)][:cut], limit) for i in range(size)] for at in range(0, texts, size)
    ]


def expected(model: jaxinfer.Model, rows: list[Row], known: dict[str, list[int]]) -> Iterator[tuple[str, list[int]]]:
    """What Greedy writes for each prompt alone, where that is not known yet."""
    for prompt, limit in rows:
        key = json.dumps(prompt)
        if len(known.get(key, ())) < limit and not (known.get(key) and known[key][-1] in model.tokenizer.stop_ids):
            found = model.generate([prompt], max_new_tokens=limit, method=jaxinfer.Greedy(), policy=jaxinfer.Dense())
            known[key] = found.tokens[0]
            yield key, found.tokens[0]


class Equipment:
    """A model with all that methods may need, made of texts that it writes."""

    def __init__(self, model: jaxinfer.Model, texts: list[list[int]]):
        n = model.config.n_layers
        self.gone = tuple(range(n // 2, n // 2 + max(1, n // 10)))
        draft = keep_layers(model, [layer for layer in range(n) if layer not in self.gone])
        third = keep_layers(model, sorted({0, *range(n - max(1, n // 5), n)}))
        store, references = jaxinfer.Datastore.build(texts), jaxinfer.references(texts)
        self.model = model.attach(draft=draft.attach(draft=third), datastore=store, references=references)
        self.texts, self.heads = texts, dict[str, Any]()

    def of(self, method: Any, kind: str | None) -> tuple[jaxinfer.Model, Any]:
        """The model for a method, and the method for the model."""
        if isinstance(method, jaxinfer.SelfSpeculative) and not method.skip and method.exit is None:
            method = dataclasses.replace(method, skip=self.gone)
        if kind is None:
            return self.model, method
        if kind not in self.heads:
            random = kind == "mtp"
            self.heads[kind] = mtp.random(self.model, method.width - 1) if random else fit(self.model, kind, self.texts)
        return self.model.attach(heads=self.heads[kind]), method


def fit(model: jaxinfer.Model, kind: Any, texts: list[list[int]], draft_vocab: int = 4096) -> heads.Heads:
    """Heads as training begins with: linear guesses in closed form, which know these texts."""
    tokens = np.concatenate([np.asarray(text, np.int32) for text in texts])
    rows = tokens[: max(1, len(tokens) // WINDOW) * WINDOW].reshape(-1, min(WINDOW, len(tokens)))
    hidden = np.concatenate([scoring.features(model.target, model.default_policy(), row[None]) for row in rows])
    corpus = data.join([(row, 0, x.astype(np.float16)) for row, x in zip(rows, hidden, strict=True)])
    cfg = heads.HeadsConfig.of(kind, model.name, model.config, min(draft_vocab, model.config.vocab_size))
    params = start.begin(cfg, model.params, corpus, np.arange(len(corpus)), seed=0)
    return heads.Heads(params, jnp.asarray(frequent(tokens, cfg.vocab_size, cfg.draft_vocab)), cfg)


def compare(model: jaxinfer.Model, rows: list[Row], found: list[list[int]], known: dict[str, list[int]]) -> list[dict]:
    """Of each row that is not what Greedy writes: where it differs, and by how many nats greedy's token is better."""
    wrong = []
    for (prompt, limit), tokens in zip(rows, found, strict=True):
        right = known[json.dumps(prompt)][:limit]
        if tokens == right:
            continue
        same = next((i for i, (a, b) in enumerate(zip(tokens, right, strict=False)) if a != b), None)
        margin = float("inf")  # one ends where the other goes on
        if same is not None:
            logits = np.asarray(model.logits([[*prompt, *right[:same]]]))[0, -1]
            margin = float(logits[right[same]] - logits[tokens[same]])
        wrong.append({"prompt": prompt[:8], "length": len(prompt), "at": same, "margin": margin})
    return wrong


def one_cell(
    model: jaxinfer.Model, method: Any, policy: str, batches: list[list[Row]], known: dict[str, list[int]]
) -> dict[str, Any]:
    """All batches under a method and a policy: rows, those that differ, and tokens a step."""
    wrong, rows, emitted, steps, begin = [], 0, 0, 0, time.perf_counter()
    for batch in batches:
        prompts, limits = [prompt for prompt, _ in batch], [limit for _, limit in batch]
        options: dict[str, Any] = {"sampling": jaxinfer.Sampling(temperature=0.0)} if method.samples else {}
        result = model.generate(
            prompts, max_new_tokens=limits, method=method, policy=jaxinfer.POLICIES[policy](), **options
        )
        wrong += compare(model, batch, result.tokens, known)
        rows, emitted, steps = rows + len(batch), emitted + sum(result.stats.emitted), steps + sum(result.stats.steps)
    seconds = round(time.perf_counter() - begin, 1)
    return {"rows": rows, "wrong": wrong, "tokens_per_step": emitted / steps, "seconds": seconds}


def run_model(
    config: Config, source: str, prompts: Sequence[Prompt], done: list[dict[str, Any]], keep: Callable[[dict], None]
) -> None:
    """The cells of one model that are not done yet, and before them what Greedy writes."""
    methods, before = methods_of(config), [{key: line.get(key) for key in KEYS} for line in done]
    cells = [
        {"model": source, "policy": policy, "method": name, "batch": batch}
        for policy in config.policies
        for name in methods
        for batch in config.batches
    ]
    cells = [cell for cell in cells if cell not in before]
    if not cells:
        return
    model = jaxinfer.load(source, dtype="float32")
    if model.tokenizer is None:
        raise InputError(f"models: {source!r} has no tokenizer")
    texts = [token_ids(model, prompt, config.prompts.chat) for prompt in in_turn(prompts)]
    known = {line["greedy"]: line["tokens"] for line in done if line["model"] == source and "greedy" in line}
    by_cell = {
        (name, batch): batches_of(config, batch, texts, first)
        for first, name in enumerate(methods)
        for batch in config.batches
    }
    for rows in (rows for batches in by_cell.values() for rows in batches):
        for key, tokens in expected(model, rows, known):
            keep({"model": source, "greedy": key, "tokens": tokens})
    equipment = Equipment(model, [[*json.loads(prompt), *tokens] for prompt, tokens in known.items()])
    last = None
    for cell in cells:
        if last not in (None, cell["method"]):
            programs.clear()  # each takes memory, and no other method runs them
        last = cell["method"]
        equipped, method = equipment.of(*methods[last])
        keep(cell | one_cell(equipped, method, cell["policy"], by_cell[last, cell["batch"]], known))


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
    found = [line for line in done if "method" in line]
    differ = sum(len(line["wrong"]) for line in found)
    with Console(highlight=False) as shown:
        shown.print(table(done))
        shown.print(f"{sum(line['rows'] for line in found)} texts in {len(found)} cells, {differ} differ from greedy's")
        shown.print(f"{folder}")
    return int(differ > 0)


if __name__ == "__main__":
    script.run(lambda *args: sys.exit(main(*args)), __doc__)

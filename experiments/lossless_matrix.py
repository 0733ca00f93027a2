"""Check that every lossless method writes what greedy decoding writes, on real models, under every exact policy.

    jaxinfer run configs/lossless_matrix.yaml [KEY=VALUE]... [--resume]

What Greedy writes for a prompt alone, under Dense on one device, is found once. Every method, policy, mesh and batch
size then continues prompts of every family, and each row of each batch is compared with that. Batch "ragged" holds the
beginnings of prompts, of very different lengths, and each of its rows ends at another limit. Where a row differs, the
table says how far above the token that it has the logit of greedy's is: below about 1e-4 nats it is float32 that
differs and not the method. Exit code 1 if any row differs.

What methods need is made here: the draft model is the model without some layers in its middle, and has one itself;
heads are fitted in closed form to greedy's texts, and multi-token-prediction modules are random.

An item is a text that Greedy writes, or a cell: with --resume a run goes on after its last.
"""

import dataclasses
import itertools
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

import jaxinfer
from jaxinfer import heads
from jaxinfer.compress import keep_layers
from jaxinfer.errors import InputError
from jaxinfer.experiment import KINDS, Kind, Run, Table, registry, script
from jaxinfer.experiment import kind as kinds
from jaxinfer.experiment.merge import Origin
from jaxinfer.experiment.prompts import Prompt, token_ids
from jaxinfer.experiment.schema import PromptSpec
from jaxinfer.experiment.spread import Spread
from jaxinfer.heads import data, mtp, start
from jaxinfer.host.values import FORBID_UNKNOWN_KEYS
from jaxinfer.network.heads import frequent
from jaxinfer.runtime import compiled, scoring

LENGTHS = (1, 2, 300, 5, 17, 250, 64, 40)  # tokens of the prompts in a ragged batch
LIMITS = (64, 3, 48, 1, 33, 64, 17, 31)  # new tokens of its rows, at most

KEYS = ("model", "mesh", "policy", "method", "batch")  # of a cell
HEADS = {jaxinfer.Medusa: ("medusa", "hydra"), jaxinfer.Eagle: ("eagle",), jaxinfer.MTP: ("mtp",)}
ALONE = "one device"
WINDOW = 256  # tokens: what heads are fitted to is cut into so many

Row = tuple[list[int], int]  # a prompt, and how many new tokens
Place = tuple[int, int | None]  # the number of a prompt, and how many of its tokens are read, None: all
Methods = dict[str, tuple[Any, str | None]]  # by name: the method, and the kind of heads that it drafts with


@dataclass(frozen=True)
class Config:
    """The options of this experiment: see configs/lossless_matrix.yaml."""

    name: str
    models: tuple[str, ...]
    methods: dict[str, str | dict[str, Any]]
    prompts: PromptSpec = field(default_factory=PromptSpec)
    policies: tuple[str, ...] = ("dense", "window")
    meshes: tuple[str | dict[str, int | bool] | None, ...] = (None,)  # null: one device
    batches: tuple[int | Literal["ragged"], ...] = (1, 3, 8, "ragged")
    texts: int | None = None  # a cell has as many batches as so many texts take; null: as all prompts take
    longest: int | None = None  # tokens of a prompt in a batch of 8 rows or more
    max_new_tokens: int = 128
    output: str = "runs"

    __pydantic_config__ = FORBID_UNKNOWN_KEYS

    def check(self) -> None:
        """Raise InputError for what cannot be compared."""
        for key in ("models", "methods", "policies", "meshes", "batches"):
            if not getattr(self, key):
                raise InputError(f"{key}: is empty")
        for policy in self.policies:
            if policy not in jaxinfer.POLICIES:
                raise InputError(f"policies: {policy!r} is no policy; valid: {', '.join(jaxinfer.POLICIES)}")
            if not jaxinfer.POLICIES[policy]().exact:
                raise InputError(f"policies: {policy!r} rounds keys and values: its texts are not greedy's under dense")
        for batch in self.batches:
            if batch != "ragged" and batch < 1:
                raise InputError(f"batches: {batch} must be a whole number from 1, or 'ragged'")
        for key in ("texts", "longest", "max_new_tokens"):
            if getattr(self, key) is not None and getattr(self, key) < 1:
                raise InputError(f"{key}={getattr(self, key)} must be at least 1")
        for one in self.spreads.values():
            if one is not None:
                one.mesh()
        methods_of(self)

    @property
    def spreads(self) -> dict[str, Spread | None]:
        """Give the meshes by name. Raises InputError for one that cannot be."""
        found: dict[str, Spread | None] = {}
        for number, given in enumerate(self.meshes):
            try:
                one = None if given is None else Spread.of(given)
            except InputError as error:
                raise InputError(f"meshes.{number}: {error}") from None
            found[ALONE if one is None else str(one)] = one
        return found


def methods_of(config: Config) -> Methods:
    """List the methods of the config; one that takes several kinds of heads once for each.

    Raises InputError for a method that is lossy, or that needs heads for a method within.
    """
    found: Methods = {}
    for name, spec in config.methods.items():
        method = registry.method(spec, ("methods", name), Origin("config"))
        if not method.lossless:
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
    """Take the first of every family, then the second: so that a few in a row are of different ones."""
    families: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        families.setdefault(prompt.family, []).append(prompt)
    return [prompt for column in zip_longest(*families.values()) for prompt in column if prompt is not None]


def places_of(config: Config, batch: int | str, count: int, first: int = 0) -> list[list[tuple[Place, int]]]:
    """Make the batches of a cell, of `count` prompts from number `first` on: which prompt, and how many new tokens.

    After the last comes the first again.
    """
    limit = config.max_new_tokens
    if batch == "ragged":
        rows = zip(LENGTHS, LIMITS, strict=True)
        return [[((i % count, length), min(most, limit)) for i, (length, most) in enumerate(rows)]]
    size = int(batch)
    cut = config.longest if size >= len(LENGTHS) else None
    texts = count if config.texts is None else config.texts
    return [[(((first + at + i) % count, cut), limit) for i in range(size)] for at in range(0, texts, size)]


def batches_of(config: Config, batch: int | str, prompts: list[list[int]], first: int = 0) -> list[list[Row]]:
    """Make the same, with the prompts themselves."""
    places = places_of(config, batch, len(prompts), first)
    return [[(prompts[number][:cut], limit) for (number, cut), limit in row] for row in places]


@dataclass(frozen=True)
class Text:
    """A prompt that Greedy continues alone, under Dense, with up to `limit` tokens: the most that a cell asks for."""

    model: str
    place: Place
    limit: int


@dataclass(frozen=True)
class Cell:
    """A method under a policy on a mesh, in batches of one size. first: the prompt that they begin with."""

    model: str
    mesh: str
    policy: str
    method: str
    batch: int | str
    first: int


def items(config: Config, prompts: Sequence[Prompt]) -> dict[str, Text | Cell]:
    """List the texts of Greedy for each model, then the cells."""
    methods = methods_of(config)
    limits: dict[Place, int] = {}
    for first, _ in enumerate(methods):
        for batch in config.batches:
            for place, limit in (row for rows in places_of(config, batch, len(prompts), first) for row in rows):
                limits[place] = max(limit, limits.get(place, 0))
    found: dict[str, Text | Cell] = {}
    for model in config.models:
        for (number, cut), limit in limits.items():
            part = "" if cut is None else f", {cut} tokens of it"
            found[f"{model}: greedy's text of prompt {number}{part}"] = Text(model, (number, cut), limit)
        for mesh, policy in itertools.product(config.spreads, config.policies):
            where = policy if mesh == ALONE else f"{mesh}, {policy}"
            for first, name in enumerate(methods):
                for batch in config.batches:
                    found[f"{model}, {where}, batch {batch}, {name}"] = Cell(model, mesh, policy, name, batch, first)
    return found


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
        """Give the model for a method, and the method for the model."""
        if isinstance(method, jaxinfer.SelfSpeculative) and not method.skip and method.exit is None:
            method = dataclasses.replace(method, skip=self.gone)
        if kind is None:
            return self.model, method
        if kind not in self.heads:
            random = kind == "mtp"
            self.heads[kind] = mtp.random(self.model, method.width - 1) if random else fit(self.model, kind, self.texts)
        return self.model.attach(heads=self.heads[kind]), method


def fit(model: jaxinfer.Model, kind: Any, texts: list[list[int]], draft_vocab: int = 4096) -> heads.Heads:
    """Fit heads as training begins with them: linear guesses in closed form, which know these texts."""
    tokens = np.concatenate([np.asarray(text, np.int32) for text in texts])
    rows = tokens[: max(1, len(tokens) // WINDOW) * WINDOW].reshape(-1, min(WINDOW, len(tokens)))
    hidden = np.concatenate([scoring.features(model.placed, model.default_policy(), row[None]) for row in rows])
    corpus = data.join([(row, 0, x.astype(np.float16)) for row, x in zip(rows, hidden, strict=True)])
    cfg = heads.HeadsConfig.of(kind, model.name, model.config, min(draft_vocab, model.config.vocab_size))
    params = start.begin(cfg, model.params, corpus, np.arange(len(corpus)), seed=0)
    return heads.Heads(params, jnp.asarray(frequent(tokens, cfg.vocab_size, cfg.draft_vocab)), cfg)


def compare(model: jaxinfer.Model, rows: list[Row], found: list[list[int]], known: dict[str, list[int]]) -> list[dict]:
    """Find each row that is not what Greedy writes: where it differs, and by how many nats greedy's token is better.

    None where one ends and the other goes on.
    """
    wrong = []
    for (prompt, limit), tokens in zip(rows, found, strict=True):
        right = known[json.dumps(prompt)][:limit]
        if tokens == right:
            continue
        same = next((i for i, (a, b) in enumerate(zip(tokens, right, strict=False)) if a != b), None)
        margin = None
        if same is not None:
            logits = np.asarray(model.logits([[*prompt, *right[:same]]]))[0, -1]
            margin = float(logits[right[same]] - logits[tokens[same]])
        wrong.append({"prompt": prompt[:8], "length": len(prompt), "at": same, "margin": margin})
    return wrong


def one_cell(
    model: jaxinfer.Model, method: Any, policy: str, batches: list[list[Row]], known: dict[str, list[int]]
) -> dict[str, Any]:
    """Run all batches under a method and a policy: rows, those that differ, and tokens a step."""
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


class Bench:
    """The model under way, its prompts, and what it needs for the methods."""

    def __init__(self, config: Config, prompts: Sequence[Prompt]):
        self.config, self.prompts, self.methods = config, in_turn(prompts), methods_of(config)
        self.source, self.method = "", ("", "")
        self.equipment: Equipment | None = None

    def load(self, source: str) -> None:
        """Take a model in place of the last. Raises InputError for one without a tokenizer."""
        if source == self.source:
            return
        self.model = jaxinfer.load(source, dtype="float32")
        if self.model.tokenizer is None:
            raise InputError(f"models: {source!r} has no tokenizer")
        self.source, self.method, self.equipment = source, ("", ""), None
        self.texts = [token_ids(self.model, prompt, self.config.prompts.chat) for prompt in self.prompts]

    def equipped(self, name: str, mesh: str, known: dict[str, list[int]]) -> tuple[jaxinfer.Model, Any]:
        """Give the model for a method on a mesh, and the method for the model, made of the texts that are known."""
        if self.equipment is None:
            texts = [[*json.loads(prompt), *tokens] for prompt, tokens in known.items()]
            self.equipment = Equipment(self.model, texts)
        if self.method != (name, mesh):
            compiled.clear()  # each takes memory, and no other method runs them
            self.method = name, mesh
            model, method = self.equipment.of(*self.methods[name])
            over = self.config.spreads[mesh]
            self.ready = (model if over is None else over.over(model)), method
        return self.ready


def measure(item: Text | Cell, run: Run) -> kinds.Row:
    """Measure what Greedy writes, or how far a cell is from that."""
    bench: Bench = run.ready
    bench.load(item.model)
    known = {row["greedy"]: row["tokens"] for row in run.rows if row["model"] == item.model and "greedy" in row}
    if isinstance(item, Text):
        number, cut = item.place
        prompt = bench.texts[number][:cut]
        return {"model": item.model, "greedy": json.dumps(prompt), "tokens": greedy(bench.model, prompt, item, known)}
    batches = batches_of(run.config, item.batch, bench.texts, item.first)
    model, method = bench.equipped(item.method, item.mesh, known)
    cell = {"model": item.model, "mesh": item.mesh, "policy": item.policy, "method": item.method, "batch": item.batch}
    found = cell | one_cell(model, method, item.policy, batches, known)
    run.say(f"{shown(found)} in {found['seconds']} s")
    return found


def greedy(model: jaxinfer.Model, prompt: list[int], text: Text, known: dict[str, list[int]]) -> list[int]:
    """Give what Greedy writes for a prompt alone; as it is known, where it is long enough or has ended."""
    tokens = known.get(json.dumps(prompt), [])
    if len(tokens) >= text.limit or (tokens and tokens[-1] in model.tokenizer.stop_ids):
        return tokens
    method, policy = jaxinfer.Greedy(), jaxinfer.Dense()
    return model.generate([prompt], max_new_tokens=text.limit, method=method, policy=policy).tokens[0]


def cells_of(rows: Sequence[kinds.Row]) -> list[kinds.Row]:
    """Take the rows that are cells."""
    return [row for row in rows if "method" in row]


def table(rows: Sequence[kinds.Row]) -> Table:
    """Tabulate for each model, mesh, policy and method, by batch size, the rows that are greedy's, tokens a step."""
    cells = {tuple(row[key] for key in KEYS): row for row in cells_of(rows)}
    batches = list(dict.fromkeys(key[-1] for key in cells))
    lines = []
    for row in dict.fromkeys(key[:-1] for key in cells):
        found = [cells.get((*row, batch)) for batch in batches]
        lines.append((*row, *("-" if cell is None else shown(cell) for cell in found)))
    return Table((*KEYS[:-1], *(f"batch {batch}" for batch in batches)), tuple(lines))


def shown(cell: kinds.Row) -> str:
    """Show a cell, as the table has it."""
    margins = [math.inf if wrong["margin"] is None else wrong["margin"] for wrong in cell["wrong"]]
    same, apart = cell["rows"] - len(margins), f" margin {max(margins):.0e}" if margins else ""
    return f"{same}/{cell['rows']}{apart} ({cell['tokens_per_step']:.2f})"


def differ(rows: Sequence[kinds.Row]) -> int:
    """Count the texts that are not greedy's."""
    return sum(len(cell["wrong"]) for cell in cells_of(rows))


def summary(run: Run) -> str:
    """Say what was compared, in one sentence."""
    cells = cells_of(run.rows)
    return f"{sum(cell['rows'] for cell in cells)} texts in {len(cells)} cells, {differ(cells)} differ from greedy's"


KINDS.add(
    "lossless_matrix",
    Kind(
        Config,
        items,
        measure,
        table,
        check=Config.check,
        prepare=lambda config, model, prompts: Bench(config, prompts),
        summary=summary,
        failed=lambda rows: differ(rows) > 0,
    ),
)

if __name__ == "__main__":
    script.run("lossless_matrix", __doc__)

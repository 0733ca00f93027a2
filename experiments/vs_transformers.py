"""Measure how fast the engine is beside Hugging Face transformers.

    jaxinfer run configs/vs_transformers.yaml [KEY=VALUE]...
    jaxinfer run configs/vs_transformers.yaml model=random:llama3-8b static_cache=true

Both engines hold the same weights in the same dtype, in one process, and use all cores, or one GPU. They are measured
in turn, and compared within each round (`jaxinfer.analysis.measure`). Compiling is no part of any figure. In the same
way, a large cache is set against a small one with the same tokens in it. Where a model is a shape alone, each engine
has random weights of its own.
"""

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

import jaxinfer
from jaxinfer.analysis.measure import Comparison, Measure, alternate
from jaxinfer.checkpoint.families import by_name
from jaxinfer.checkpoint.presets import shape_of
from jaxinfer.checkpoint.sources import locate
from jaxinfer.errors import InputError
from jaxinfer.experiment import KINDS, Kind, Run, Table, load_prompts, script
from jaxinfer.experiment.kind import Prompts, Row
from jaxinfer.experiment.schema import ModelSpec, PromptSpec
from jaxinfer.host.optional import require
from jaxinfer.host.values import FORBID_UNKNOWN_KEYS
from jaxinfer.runtime.generation import Generation

ENGINES = ("jaxinfer", "transformers")
WARM_UP = 4  # decode steps at the start of each measurement that are not timed


@dataclass(frozen=True)
class Config:
    """The options of this experiment: see configs/vs_transformers.yaml."""

    name: str
    model: ModelSpec
    rounds: int = 9
    steps: int = 32
    prompt_tokens: int = 64
    batch: int = 8
    prefill_tokens: int = 512
    prefill_batch: int = 8
    prefill_batch_tokens: int = 100
    live_tokens: int = 100
    slots: tuple[int, int] = (256, 4096)
    static_cache: bool = False
    output: str = "runs"

    __pydantic_config__ = FORBID_UNKNOWN_KEYS

    def check(self) -> None:
        """Raise InputError for what cannot be compared."""
        if self.model.context:
            raise InputError("model.context: both read the model as it is; leave it out")
        for key in ("prefill_tokens", "prefill_batch", "prefill_batch_tokens"):
            if getattr(self, key) < 1:
                raise InputError(f"{key}: expected a whole number from 1, got {getattr(self, key)}")


class Ours:
    """This engine. Prompts are int32[B, T]."""

    def __init__(self, model: jaxinfer.Model):
        self.placed = model.placed

    def start(self, prompts: np.ndarray, new_tokens: int, capacity: int | None = None) -> Generation:
        """Start a generation that has taken in all but the last token of each prompt."""
        rows, zeros, limits = prompts.tolist(), [0] * len(prompts), [new_tokens] * len(prompts)
        policy, sampling = jaxinfer.Dense(capacity), jaxinfer.Sampling(temperature=0.0)
        method = jaxinfer.Greedy()
        return Generation.begin(self.placed, rows, limits, method, policy, sampling, zeros, stop=(), logprobs=False)

    def generate(self, prompts: np.ndarray, new_tokens: int) -> list[list[int]]:
        """Generate the new tokens of each row."""
        generation = self.start(prompts, new_tokens)
        generation.run()
        return generation.rows()

    def decode(self, prompts: np.ndarray, steps: int, capacity: int | None = None) -> float:
        """Time a decode step, in seconds."""
        generation = self.start(prompts, WARM_UP + steps, capacity)
        generation.advance(WARM_UP)
        before = generation.seconds["decode"]
        generation.advance(steps)
        return (generation.seconds["decode"] - before) / steps

    def prefill(self, prompts: np.ndarray) -> float:
        """Time taking prompts in, in seconds: all of their tokens, because one more stands after them."""
        return self.start(np.pad(prompts, ((0, 0), (0, 1))), new_tokens=1).seconds["prefill"]


class Theirs:
    """Transformers, as `generate` runs by default, with SDPA attention. Prompts are int32[B, T].

    On a GPU if JAX is on one. With a static cache, `generate` compiles its step there.
    """

    def __init__(self, source: str, dtype: str, static_cache: bool):
        os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}  # the weights are here: no network, no bars
        self.torch = require("torch", "to compare with transformers")
        transformers = require("transformers", "to compare with it")
        self.torch.set_num_threads(os.cpu_count() or 1)
        self.device = "cuda" if jax.default_backend() == "gpu" and self.torch.cuda.is_available() else "cpu"
        options: dict[str, Any] = {"dtype": getattr(self.torch, dtype), "attn_implementation": "sdpa"}
        shape = shape_of(source)
        if shape:
            family = by_name(shape.family)
            config = transformers.AutoConfig.for_model(family.hf_types[0], **family.hf_fields(shape))
            with self.torch.device(self.device):
                model = transformers.AutoModelForCausalLM.from_config(config, **options)
        else:
            path, _ = locate(source)
            folder, options["gguf_file"] = (path.parent, path.name) if path.is_file() else (path, None)
            model = transformers.AutoModelForCausalLM.from_pretrained(folder, **options)
        self.model = model.eval().to(self.device)
        self.model.generation_config.eos_token_id = None  # every row runs to its limit
        self.cache = {"cache_implementation": "static"} if static_cache else {}

    def now(self) -> float:
        """Give the time when all that has been asked for is done."""
        if self.device == "cuda":
            self.torch.cuda.synchronize()
        return time.perf_counter()

    def timed(self, prompts: np.ndarray, new_tokens: int) -> tuple[list[list[int]], list[float]]:
        """Give the new tokens of each row, and the time at the end of each step."""
        clock = []

        def tick(ids, scores, **_):
            clock.append(self.now())
            return self.torch.zeros(len(ids), dtype=self.torch.bool, device=self.device)

        ids = self.torch.tensor(prompts, dtype=self.torch.long, device=self.device)
        options = {"attention_mask": self.torch.ones_like(ids), "stopping_criteria": [tick], "do_sample": False}
        with self.torch.inference_mode():
            out = self.model.generate(ids, max_new_tokens=new_tokens, **options, **self.cache)
        return out[:, prompts.shape[1] :].tolist(), clock

    def decode(self, prompts: np.ndarray, steps: int) -> float:
        """Time a decode step, in seconds."""
        _, clock = self.timed(prompts, WARM_UP + steps)
        return (clock[-1] - clock[-1 - steps]) / steps

    def prefill(self, prompts: np.ndarray) -> float:
        """Time one forward that fills a cache and gives the logits of the last token, in seconds."""
        ids = self.torch.tensor(prompts, dtype=self.torch.long, device=self.device)
        start = self.now()
        with self.torch.inference_mode():
            self.model(ids, use_cache=True, logits_to_keep=1)
        return self.now() - start


@dataclass(frozen=True)
class Ready:
    """Both engines, and the token ids that prompts are cut from."""

    ours: Ours
    theirs: Theirs
    text: list[int]


def model_of(config: Config) -> ModelSpec:
    """Load the model in float32 on a CPU and in bfloat16 elsewhere, unless the config says otherwise."""
    dtype = config.model.dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    return dataclasses.replace(config.model, dtype=dtype)


def prepare(config: Config, model: jaxinfer.Model, prompts: Prompts) -> Ready:
    """Load both engines. Raises InputError where torch or transformers is missing."""
    if model.tokenizer:
        text = [id for prompt in load_prompts(PromptSpec()) for id in model.encode(prompt.text)]
    else:
        size = max(config.prefill_tokens, config.prefill_batch * config.prefill_batch_tokens)
        text = np.random.default_rng(0).integers(0, model.config.vocab_size, size).tolist()
    return Ready(Ours(model), Theirs(config.model.source, model.dtype, config.static_cache), text)


def agreement(run: Run) -> Row:
    """Count the rows of a batch that get the same tokens from both; None where the weights are not the same."""
    config, ready = run.config, run.ready
    if shape_of(config.model.source) or run.model.weights:
        return {"agree": None, "of": config.batch}
    prompts = np.resize(ready.text, (config.batch, config.prompt_tokens))
    found = ready.ours.generate(prompts, config.steps), ready.theirs.timed(prompts, config.steps)[0]
    return {"agree": sum(mine == other for mine, other in zip(*found, strict=True)), "of": config.batch}


def decode(run: Run, title: str, batch: int) -> Row:
    """Measure a decode step of both, in turn."""
    config, ready = run.config, run.ready
    rows = np.resize(ready.text, (batch, config.prompt_tokens))
    pair = partial(ready.ours.decode, rows, config.steps), partial(ready.theirs.decode, rows, config.steps)
    return compared(run, title, ENGINES, *pair)


def prefill(run: Run, title: str, batch: int, tokens: int) -> Row:
    """Measure prompts that both take in, in turn."""
    ready, prompts = run.ready, np.resize(run.ready.text, (batch, tokens))
    return compared(run, title, ENGINES, partial(ready.ours.prefill, prompts), partial(ready.theirs.prefill, prompts))


def capacity(run: Run, title: str) -> Row:
    """Measure a decode step over a small and a large cache with the same tokens, in turn."""
    config, ours = run.config, run.ready.ours
    live = np.resize(run.ready.text, (1, config.live_tokens - config.steps // 2))
    names = (f"{config.slots[0]} slots", f"{config.slots[1]} slots")
    pair = [partial(ours.decode, live, config.steps, slots) for slots in config.slots]
    return compared(run, title, names, *pair)


def compared(run: Run, title: str, names: tuple[str, str], first: Measure, second: Measure) -> Row:
    """Give the seconds of both, a value a round."""
    one = alternate(title, names, first, second, run.config.rounds)
    run.say(f"{title}: {one.ratio:.2f}")
    return dataclasses.asdict(one)


def starts(run: Run) -> Row:
    """Time the command to its first text, in seconds, twice; None without a tokenizer."""
    return {"starts": [first_token(run.config.model) for _ in range(2)] if run.model.tokenizer else None}


def items(config: Config, prompts: Prompts) -> dict[str, Callable[[Run], Row]]:
    """List what is compared, by its title: the same tokens, then times."""
    found: dict[str, Callable[[Run], Row]] = {"greedy tokens": agreement}
    for batch in (1, config.batch):
        title = f"decode step, batch {batch}"
        found[title] = partial(decode, title=title, batch=batch)
    title = f"prefill of {config.prefill_tokens} tokens"
    found[title] = partial(prefill, title=title, batch=1, tokens=config.prefill_tokens)
    title = f"prefill of {config.prefill_batch} prompts of {config.prefill_batch_tokens} tokens"
    found[title] = partial(prefill, title=title, batch=config.prefill_batch, tokens=config.prefill_batch_tokens)
    title = f"decode step, {config.live_tokens} tokens in the cache"
    found[title] = partial(capacity, title=title)
    return found | {"first text of `jaxinfer generate`": starts}


def first_token(model: ModelSpec) -> float:
    """Time `jaxinfer generate` from its start to the first piece of its text, in seconds."""
    command = [sys.executable, "-m", "jaxinfer.cli", "generate", "Say hello.", "--model", model.source]
    start = time.perf_counter()
    with subprocess.Popen([*command, "--max-new-tokens", "16"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        return time.perf_counter() - start


def comparisons(rows: Sequence[Row]) -> list[Comparison]:
    """Take the rows that hold the times of two."""
    return [
        Comparison(row["title"], tuple(row["names"]), row["first"], row["second"]) for row in rows if "title" in row
    ]


def table(rows: Sequence[Row]) -> Table:
    """Tabulate medians, and the spread of the ratios."""
    shown = []
    for one in comparisons(rows):
        times = zip(one.names, (one.first, one.second), strict=True)
        cells = [f"{name} {1e3 * statistics.median(seconds):.1f} ms" for name, seconds in times]
        shown.append((one.title, *cells, f"{one.ratio:.2f}", f"{min(one.ratios):.2f} to {max(one.ratios):.2f}"))
    return Table(("compared", "first", "second", "ratio", "min to max"), tuple(shown))


def of_rows(rows: Sequence[Row], key: str) -> Any:
    """Find the figure of that name, where it is known by now."""
    return next((row[key] for row in rows if key in row), None)


def files(run: Run) -> dict[str, str]:
    """Give results.json: all seconds."""
    record = {
        "rows that agree": of_rows(run.rows, "agree"),
        "comparisons": [dataclasses.asdict(one) for one in comparisons(run.rows)],
        "starts": of_rows(run.rows, "starts"),
    }
    return {"results.json": json.dumps(record, indent=2) + "\n"}


def summary(run: Run) -> str | None:
    """Say how far the tokens agree, and how long the command takes to its first text."""
    agree, begun = of_rows(run.rows, "agree"), of_rows(run.rows, "starts")
    said = [] if agree is None else [f"greedy tokens agree: {agree} of {run.config.batch} rows"]
    if begun:
        said.append(f"first text of `jaxinfer generate`: {begun[0]:.1f} s, and {begun[1]:.1f} s the second time")
    return "; ".join(said) or None


KINDS.add(
    "vs_transformers",
    Kind(
        Config,
        items,
        measure=lambda item, run: item(run),
        table=table,
        check=Config.check,
        model=model_of,
        prepare=prepare,
        files=files,
        summary=summary,
    ),
)

if __name__ == "__main__":
    script.run("vs_transformers", __doc__)

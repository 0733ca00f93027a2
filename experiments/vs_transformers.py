"""How fast is the engine beside Hugging Face transformers?

    python experiments/vs_transformers.py configs/vs_transformers.yaml [KEY=VALUE]...
    python experiments/vs_transformers.py configs/vs_transformers.yaml model=random:llama3-8b static_cache=true

Both engines hold the same weights in the same dtype, in one process, and use all cores, or one GPU. They are measured
in turn, and compared within each round (`jaxinfer.analysis.measure`). Compiling is no part of any figure. In the same
way, a large cache is set against a small one with the same tokens in it. Of a model that is a shape alone, each engine
has random weights of its own.
"""

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

import jaxinfer
from jaxinfer.analysis.measure import Comparison, alternate
from jaxinfer.caching import write_atomic
from jaxinfer.checkpoint.families import by_name
from jaxinfer.checkpoint.imports import require
from jaxinfer.checkpoint.sources import locate
from jaxinfer.errors import InputError
from jaxinfer.experiment import load_prompts, results, script
from jaxinfer.experiment.schema import FORBID_UNKNOWN_KEYS, ModelSpec, PromptSpec, read_as
from jaxinfer.generation import Generation
from jaxinfer.shapes import shape_of

WARM_UP = 4  # decode steps at the start of each measurement that are not timed


@dataclass(frozen=True)
class Config:
    """What is measured: see configs/vs_transformers.yaml."""

    name: str
    model: ModelSpec
    rounds: int = 9
    steps: int = 32
    prompt_tokens: int = 64
    batch: int = 8
    prefill_tokens: int = 512
    live_tokens: int = 100
    slots: tuple[int, int] = (256, 4096)
    static_cache: bool = False
    output: str = "runs"

    __pydantic_config__ = FORBID_UNKNOWN_KEYS

    def to_mapping(self) -> dict[str, Any]:
        """Plain data, for the run folder."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


class Ours:
    """This engine. Prompts are int32[B, T]."""

    def __init__(self, model: jaxinfer.Model):
        self.target = model.target

    def start(self, prompts: np.ndarray, new_tokens: int, capacity: int | None = None) -> Generation:
        """A generation that has taken in all but the last token of each prompt."""
        rows, zeros, limits = prompts.tolist(), [0] * len(prompts), [new_tokens] * len(prompts)
        policy, sampling = jaxinfer.Dense(capacity), jaxinfer.Sampling(temperature=0.0)
        method = jaxinfer.Greedy()
        return Generation(self.target, rows, limits, method, policy, sampling, zeros, stop=(), logprobs=False)

    def generate(self, prompts: np.ndarray, new_tokens: int) -> list[list[int]]:
        """The new tokens of each row."""
        generation = self.start(prompts, new_tokens)
        generation.run()
        return generation.rows()

    def decode(self, prompts: np.ndarray, steps: int, capacity: int | None = None) -> float:
        """Seconds of a decode step."""
        generation = self.start(prompts, WARM_UP + steps, capacity)
        generation.advance(WARM_UP)
        before = generation.seconds["decode"]
        generation.advance(steps)
        return (generation.seconds["decode"] - before) / steps

    def prefill(self, prompts: np.ndarray) -> float:
        """Seconds to take prompts in: all of their tokens, because one more stands behind."""
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
        """The time when all that has been asked for is done."""
        if self.device == "cuda":
            self.torch.cuda.synchronize()
        return time.perf_counter()

    def timed(self, prompts: np.ndarray, new_tokens: int) -> tuple[list[list[int]], list[float]]:
        """The new tokens of each row, and the time at the end of each step."""
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
        """Seconds of a decode step."""
        _, clock = self.timed(prompts, WARM_UP + steps)
        return (clock[-1] - clock[-1 - steps]) / steps

    def prefill(self, prompts: np.ndarray) -> float:
        """Seconds of one forward that fills a cache and gives the logits of the last token."""
        ids = self.torch.tensor(prompts, dtype=self.torch.long, device=self.device)
        start = self.now()
        with self.torch.inference_mode():
            self.model(ids, use_cache=True, logits_to_keep=1)
        return self.now() - start


def comparisons(config: Config, ours: Ours, theirs: Theirs, text: list[int]) -> Iterator[Comparison]:
    """Every comparison in turn, on prompts cut from `text`."""
    engines, steps, rounds = ("jaxinfer", "transformers"), config.steps, config.rounds
    for batch in (1, config.batch):
        rows = np.resize(text, (batch, config.prompt_tokens))
        pair = partial(ours.decode, rows, steps), partial(theirs.decode, rows, steps)
        yield alternate(f"decode step, batch {batch}", engines, *pair, rounds)
    prompt = np.resize(text, (1, config.prefill_tokens))
    pair = partial(ours.prefill, prompt), partial(theirs.prefill, prompt)
    yield alternate(f"prefill of {config.prefill_tokens} tokens", engines, *pair, rounds)
    live = np.resize(text, (1, config.live_tokens - steps // 2))
    small, large = config.slots
    pair = partial(ours.decode, live, steps, small), partial(ours.decode, live, steps, large)
    title = f"decode step, {config.live_tokens} tokens in the cache"
    yield alternate(title, (f"{small} slots", f"{large} slots"), *pair, rounds)


def first_token(model: ModelSpec) -> float:
    """Seconds from starting `jaxinfer generate` to the first piece of its text."""
    command = [sys.executable, "-m", "jaxinfer.cli", "generate", "Say hello.", "--model", model.source]
    start = time.perf_counter()
    with subprocess.Popen([*command, "--max-new-tokens", "16"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        return time.perf_counter() - start


def table(found: list[Comparison]) -> Table:
    """Medians, and the spread of the ratios."""
    shown = Table("", "first", "second", "ratio", "min to max", box=None, pad_edge=False)
    for one in found:
        times = zip(one.names, (one.first, one.second), strict=True)
        cells = [f"{name} {1e3 * statistics.median(seconds):.1f} ms" for name, seconds in times]
        shown.add_row(one.title, *cells, f"{one.ratio:.2f}", f"{min(one.ratios):.2f} to {max(one.ratios):.2f}")
    return shown


def main(path: str, *overrides: str) -> None:
    """Run the experiment: a table on the terminal, results.json and table.txt in the run folder."""
    config = read_as(Config, path, overrides)
    if config.model.context:
        raise InputError("model.context: both read the model as it is; leave it out")
    results.check_writable(config.output)
    dtype = config.model.dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    model = jaxinfer.load(config.model.source, dtype, config.model.weights)
    if model.tokenizer:
        text = [id for prompt in load_prompts(PromptSpec()) for id in model.encode(prompt.text)]
    else:
        text = np.random.default_rng(0).integers(0, model.config.vocab_size, config.prefill_tokens).tolist()
    ours, theirs = Ours(model), Theirs(config.model.source, dtype, config.static_cache)
    agree = None
    if not shape_of(config.model.source) and not model.weights:
        prompts = np.resize(text, (config.batch, config.prompt_tokens))
        pairs = zip(ours.generate(prompts, config.steps), theirs.timed(prompts, config.steps)[0], strict=True)
        agree = sum(mine == other for mine, other in pairs)
    found = []
    with Console(stderr=True).status("measuring") as status:
        for one in comparisons(config, ours, theirs, text):
            found.append(one)
            status.console.print(f"{one.title}: {one.ratio:.2f}")
    starts = [first_token(config.model) for _ in range(2)] if model.tokenizer else None

    folder = results.new_run(config)
    record = {"rows that agree": agree, "comparisons": [dataclasses.asdict(one) for one in found], "starts": starts}
    write_atomic(folder / "results.json", json.dumps(record, indent=2) + "\n")
    with Console(record=True, highlight=False) as console:
        console.print(table(found))
        if agree is not None:
            console.print(f"greedy tokens agree: {agree} of {config.batch} rows")
        if starts:
            console.print(
                f"first text of `jaxinfer generate`: {starts[0]:.1f} s, and {starts[1]:.1f} s the second time"
            )
    write_atomic(folder / "table.txt", console.export_text())


if __name__ == "__main__":
    script.run(main, __doc__)

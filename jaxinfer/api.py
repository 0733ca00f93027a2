"""The public face: load a model, generate, stream, score."""

import dataclasses
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinfer import scoring
from jaxinfer.cache import CachePolicy, Dense, Window
from jaxinfer.config import ModelConfig
from jaxinfer.decoding import Constraint, DecodeMethod, Greedy, Sample, Sampling
from jaxinfer.decoding.checks import check_needs
from jaxinfer.errors import InputError
from jaxinfer.generation import Generation
from jaxinfer.layers.moe import RouterStats
from jaxinfer.layers.qtensor import format_of, is_quantized
from jaxinfer.layers.stacked import MOST_SEPARATED, for_cpu
from jaxinfer.model import Transformer, init_params, param_axes
from jaxinfer.programs import enable_compilation_cache
from jaxinfer.shapes import shape_of
from jaxinfer.sharding import DATA_TENSOR, Rules, Sharding
from jaxinfer.stats import Stats
from jaxinfer.streaming import Stream, before_stop
from jaxinfer.target import Target

Prompt = str | Sequence[int]

STEPS_BETWEEN_STOP_CHECKS = 8  # stop strings are looked for on the host
NEIGHBOURS = (
    "what this mixture of experts does with a token of a prompt depends on the tokens beside it, those of other rows "
    "too; decode steps route each token alone, unless its in_decode is 'same'"
)


@dataclass(frozen=True)
class Result:
    """New tokens only, a list of ids a row; texts without special tokens, None if the model has no tokenizer."""

    tokens: list[list[int]]
    texts: list[str] | None
    logprobs: list[list[float]] | None  # of each new token, under the model's own distribution; if asked for
    stats: Stats
    beams: list[list[tuple[list[int], float]]] | None = None  # of a search: each prompt's texts and scores, best first


@dataclass(frozen=True)
class Model:
    """Configuration, parameters and tokenizer: everything that generates."""

    config: ModelConfig
    params: dict[str, Any]
    tokenizer: Any = None
    name: str = "model"
    dtype: str = "float32"
    layout: Sharding | None = None
    extras: dict[str, Any] = field(default_factory=dict)
    separate_layers: bool | None = None  # on a CPU: see `layers.stacked.for_cpu`. None: in stacks of up to 32 layers

    @classmethod
    def random(cls, config: ModelConfig, seed: int = 0, dtype: str = "float32") -> "Model":
        """A model with random weights and no tokenizer, for tests and for shapes that have no checkpoint."""
        return cls(config, init_params(config, jnp.dtype(dtype), jax.random.key(seed)), name="random", dtype=dtype)

    @cached_property
    def network(self) -> Transformer:
        return Transformer(self.config, jnp.dtype(self.dtype))

    @property
    def weights(self) -> str | None:
        """The format of quantized weights; None: they are arrays of `dtype`."""
        return format_of(self.params)

    def attach(self, **extras: Any) -> "Model":
        """The same model with what its decode methods may use besides: a draft model, heads, a datastore, by name."""
        return dataclasses.replace(self, extras={**self.extras, **extras})

    @cached_property
    def target(self) -> Target:
        on_cpu = self.layout is None and jax.default_backend() == "cpu"
        most = {None: MOST_SEPARATED, True: sys.maxsize, False: 0}[self.separate_layers]
        params = for_cpu(self.params, most) if on_cpu else self.params
        extras = {name: extra.target if isinstance(extra, Model) else extra for name, extra in self.extras.items()}
        return Target(self.network, params, self.layout, extras)

    def shard(self, mesh: jax.sharding.Mesh, rules: Rules = DATA_TENSOR) -> "Model":
        """The same model spread over a mesh. A mesh axis that does not divide a dimension leaves it whole."""
        layout = Sharding(mesh, rules)
        is_axes = lambda x: isinstance(x, tuple)  # noqa: E731

        def place(axes: Any, weight: Any) -> Any:
            return jax.tree.map(layout.place, weight, weight.axes(axes) if is_quantized(weight) else axes)

        placed = jax.tree.map(place, param_axes(self.config), self.params, is_leaf=is_axes)
        return dataclasses.replace(self, params=placed, layout=layout)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        max_new_tokens: int | Sequence[int] = 64,
        method: DecodeMethod | None = None,
        policy: CachePolicy | None = None,
        sampling: Sampling | None = None,
        seed: int | Sequence[int] = 0,
        stop: str | Sequence[str] = (),
        logprobs: bool = False,
        constraint: Constraint | Sequence[Constraint | None] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Result:
        """Continue each prompt: a text, or a list of token ids.

        method: default Greedy, or Sample if `sampling` is given. policy: default Window, which is exact, and Dense for
        a model without windows. A row draws from its own seed; an int means that row i draws from seed + i. A row ends
        behind max_new_tokens, at a stop token of the model, or before a stop string (a search: its best text is cut
        there). constraint: what the new text has to be, for all rows or one a row. `progress(done, total)` is called
        now and then with the number of new tokens. Raises InputError for anything that cannot be done.
        """
        rows = [prompts] if isinstance(prompts, str) else list(prompts)
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        generation = self._start(rows, max_new_tokens, method, policy, sampling, seed, logprobs, constraint)
        total = int(np.sum(np.broadcast_to(max_new_tokens, len(rows))))

        def between(generation: Generation) -> None:
            new = generation.rows()
            for row, tokens in enumerate(new):
                if stops and self._find_stop(tokens, stops) is not None:
                    generation.finish(row)
            if progress:
                progress(sum(map(len, new)), total)

        if stops:
            self._need_tokenizer("stop strings")
            generation.run(STEPS_BETWEEN_STOP_CHECKS, between)
        elif progress:
            generation.run(after=between)
        else:
            generation.run()
        return self._result(generation, stops)

    def stream(self, prompt: Prompt, *, steps_per_piece: int = 1, stop: str | Sequence[str] = (), **options) -> Stream:
        """Continue one prompt, text piece by piece. Takes the options of `generate`."""
        self._need_tokenizer("stream")
        defaults: dict[str, Any] = {"max_new_tokens": 64, "method": None, "policy": None, "sampling": None}
        defaults |= {"seed": 0, "logprobs": False, "constraint": None}
        unknown = set(options) - set(defaults)
        if unknown:
            raise InputError(f"stream has no option {sorted(unknown)[0]!r}: it takes {', '.join(defaults)}, stop")
        generation = self._start([prompt], **{**defaults, **options})
        return Stream(self.tokenizer, generation, (stop,) if isinstance(stop, str) else tuple(stop), steps_per_piece)

    def logits(self, tokens: Any) -> jax.Array:
        """tokens int[B, T] -> float32[B, T, V]: column t speaks about the token at t + 1."""
        return scoring.logits(self.target, self.default_policy(), self._batch(tokens))

    def routing(self, tokens: Any) -> dict[str, RouterStats]:
        """tokens int[B, T] -> by layer kind, what the routers of its layers do with them: arrays [L, ...]."""
        if not any(kind.moe for kind in self.config.kinds):
            raise InputError(f"{self.name} has no mixture of experts")
        return scoring.routing(self.target, self.default_policy(), self._batch(tokens))

    def _batch(self, tokens: Any) -> np.ndarray:
        tokens = scoring.check_batch(tokens)
        for row in tokens:
            self._check_ids(row, "tokens")
        return tokens

    def encode(self, prompt: Prompt, name: str = "prompt") -> list[int]:
        """A prompt as token ids. Raises InputError if it is empty or longer than the model's context."""
        if isinstance(prompt, str):
            self._need_tokenizer("a text prompt")
            ids = self.tokenizer.encode(prompt) if prompt else []
        else:
            ids = [int(i) for i in prompt]
        if not ids:
            raise InputError(f"{name} is empty: give at least one token")
        self._check_ids(ids, name)
        if len(ids) > self.config.max_positions:
            limit = self.config.max_positions
            raise InputError(f"{name} has {len(ids)} tokens, and the context of {self.name} is {limit} tokens")
        return ids

    def _start(self, prompts, max_new_tokens, method, policy, sampling, seed, logprobs, constraint) -> Generation:
        if not prompts:
            raise InputError("no prompts: give at least one")
        ids = [self.encode(p, f"prompt {i}" if len(prompts) > 1 else "prompt") for i, p in enumerate(prompts)]
        if any(kind.moe and kind.moe.looks_around for kind in self.config.kinds):
            warnings.warn(NEIGHBOURS, stacklevel=3)
        limits = _per_row(max_new_tokens, len(ids), "max_new_tokens", least=1)
        seeds = _per_row(seed, len(ids), "seed", least=0)
        if isinstance(seed, int):
            seeds = [seed + row for row in range(len(ids))]
        policy, method = self.default_policy(policy), method or (Greedy() if sampling is None else Sample())
        check_needs(method, self)
        if hasattr(method, "check"):
            method.check(self, policy)
        if sampling is not None and not method.samples and sampling != Sampling(temperature=0.0):
            raise InputError(f"method {type(method).__name__} takes no sampling: use Sample, or leave sampling out")
        default = Sampling() if isinstance(method, Sample) else Sampling(temperature=0.0)
        stop = self.tokenizer.stop_ids if self.tokenizer else ()
        sampling = sampling or default
        return Generation(self.target, ids, limits, method, policy, sampling, seeds, stop, logprobs, constraint)

    def default_policy(self, policy: CachePolicy | None = None) -> CachePolicy:
        """`policy`, or the exact one that suits the model: Window, and Dense where no layer has a window."""
        windowed = any(kind.window for kind in self.config.kinds)
        return policy or (Window() if windowed else Dense())

    def _result(self, generation: Generation, stops: tuple[str, ...]) -> Result:
        tokens, logprobs, texts = generation.rows(), generation.logprobs(), None
        if self.tokenizer is not None:
            for row, ids in enumerate(tokens):
                cut = self._find_stop(ids, stops)
                if cut is not None:
                    tokens[row] = ids[:cut]
                    if logprobs:
                        logprobs[row] = logprobs[row][:cut]
            texts = [before_stop(self.tokenizer.decode(ids), stops) for ids in tokens]
        return Result(tokens, texts, logprobs, generation.stats(), generation.hypotheses())

    def _find_stop(self, ids: list[int], stops: tuple[str, ...]) -> int | None:
        """How many tokens it takes until the text holds a stop string; None if it never does."""
        if not any(s in self.tokenizer.decode(ids) for s in stops):
            return None
        low, high = 1, len(ids)
        while low < high:
            middle = (low + high) // 2
            text = self.tokenizer.decode(ids[:middle])
            low, high = (low, middle) if any(s in text for s in stops) else (middle + 1, high)
        return low

    def _need_tokenizer(self, what: str) -> None:
        if self.tokenizer is None:
            raise InputError(f"{what} needs a tokenizer, and model {self.name} has none: give lists of token ids")

    def _check_ids(self, ids: Sequence[int], name: str) -> None:
        low, high = min(ids), max(ids)
        if low < 0 or high >= self.config.vocab_size:
            wrong = low if low < 0 else high
            raise InputError(f"{name} holds token id {wrong}: ids go from 0 to {self.config.vocab_size - 1}")


def load(source: str, dtype: str | None = None, weights: str | None = None) -> Model:
    """A model from a built-in name, a GGUF file, a Hugging Face folder or hub id, or an Orbax checkpoint of ours.

    `random:llama3-8b` has that model's shape (`shapes.SHAPES`), random weights, and no tokenizer.

    dtype: "float32" or "bfloat16", of the weights and activations; None: float32 on a CPU, bfloat16 elsewhere. weights:
    "int8", "int4" and the other formats of `transform.quantize`, into which they are rounded one by one while they are
    read. Raises InputError if there is nothing to load, or something is wrong with it.
    """
    from jaxinfer.checkpoint import load_checkpoint
    from jaxinfer.transform.quantize import check_format, quantize_in_place

    if weights is not None:
        check_format(weights)
    if dtype is None:
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    if dtype not in ("float32", "bfloat16"):
        raise InputError(f"dtype={dtype!r} must be 'float32' or 'bfloat16'")
    enable_compilation_cache()
    if shape := shape_of(source):
        model = dataclasses.replace(Model.random(shape, dtype=dtype), name=source)
        return model if weights is None else dataclasses.replace(model, params=quantize_in_place(model.params, weights))
    found = load_checkpoint(source, dtype, weights=weights)
    return Model(found.config, found.params, found.tokenizer, found.name, dtype)


def _per_row(value: Any, batch: int, name: str, least: int) -> list[int]:
    """One whole number a row. Raises InputError for anything else."""
    values = [value] * batch if isinstance(value, (int, np.integer)) else list(value)
    if len(values) != batch:
        raise InputError(f"{name} has {len(values)} values for {batch} prompts: give one number, or one a prompt")
    for x in values:
        if isinstance(x, bool) or not isinstance(x, (int, np.integer)) or x < least:
            raise InputError(f"{name}={x!r} must be a whole number, {least} or above")
    return [int(x) for x in values]

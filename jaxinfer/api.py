"""The public face: load a model, generate, stream, score."""

import dataclasses
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinfer.cache import CachePolicy
from jaxinfer.checkpoint.loading import load_checkpoint, load_sharded
from jaxinfer.checkpoint.override import check_fits, tokenizer_at
from jaxinfer.checkpoint.presets import shape_of
from jaxinfer.config import ModelConfig
from jaxinfer.errors import InputError, shown
from jaxinfer.host.token_ids import batch_of, checked_text, token_ids
from jaxinfer.host.values import whole
from jaxinfer.layers.moe import RouterStats
from jaxinfer.network import stages
from jaxinfer.network.spreading import bytes_by_device, spread
from jaxinfer.network.transformer import Transformer, init_params
from jaxinfer.runtime import scoring
from jaxinfer.runtime.compiled import enable_compilation_cache
from jaxinfer.runtime.detokenizer import Text
from jaxinfer.runtime.generation import Generation
from jaxinfer.runtime.placed import PlacedModel
from jaxinfer.runtime.request import Call, Options, default_policy, signed
from jaxinfer.runtime.stats import Stats
from jaxinfer.runtime.streaming import Stream
from jaxinfer.sharding import Rules, Sharding, across, choices, rules_of, settled
from jaxinfer.weights.formats import FORMATS
from jaxinfer.weights.layer_stack import MOST_VIEWS, for_cpu
from jaxinfer.weights.quantize import format_of, quantize_in_place

Prompt = str | Sequence[int]

DTYPES = ("float32", "bfloat16")

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
    likeliest: list[list[list[tuple[int, float]]]] | None = None  # `logprobs=5`: of each new token's place, the 5 best
    prompt_logprobs: list[list[float]] | None = None  # of each token of the prompt but the first, if asked for
    prompt_likeliest: list[list[list[tuple[int, float]]]] | None = None


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
    separate_layers: bool | None = None  # on a CPU: see `layer_stack.for_cpu`. None: in stacks of up to 32 layers
    layout_notes: tuple[str, ...] = ()  # of `shard`, a line each: how heads are grouped, and what stays whole

    @classmethod
    def random(cls, config: ModelConfig, seed: int = 0, dtype: str = "float32") -> "Model":
        """Make a model with random weights and no tokenizer, for tests and for shapes that have no checkpoint.

        Raises InputError for what is no configuration, no dtype, or no seed of 32 bits.
        """
        if not isinstance(config, ModelConfig):
            raise InputError(f"config={shown(config)} must be a jaxinfer.ModelConfig")
        check_dtype(dtype)
        seed = whole(seed, "seed", 0, 2**32 - 1)
        return cls(config, init_params(config, jnp.dtype(dtype), jax.random.key(seed)), name="random", dtype=dtype)

    @cached_property
    def network(self) -> Transformer:
        return Transformer(self.config, jnp.dtype(self.dtype))

    @property
    def weights(self) -> str | None:
        """Name the format of quantized weights; None: they are arrays of `dtype`."""
        return format_of(self.params)

    def attach(self, **extras: Any) -> "Model":
        """Give the same model with what decode methods may use besides, by name: a draft model, heads, a datastore."""
        if not isinstance(extras.get("draft", self), Model):
            raise InputError(
                f"attach(draft={shown(extras['draft'])}): must be a model, such as jaxinfer.load(...) gives"
            )
        extras = {name: self._beside(extra) for name, extra in extras.items()}
        return dataclasses.replace(self, extras={**self.extras, **extras})

    @cached_property
    def placed(self) -> PlacedModel:
        in_views = self.layout is None and choices.LAYER_VIEWS.here()
        most = {None: MOST_VIEWS, True: sys.maxsize, False: 0}[self.separate_layers]
        params = for_cpu(self.params, most) if in_views else self.params
        extras = {name: extra.placed if isinstance(extra, Model) else extra for name, extra in self.extras.items()}
        if self.layout is not None:
            extras = across.spread(extras, self.layout.mesh)
        return PlacedModel(self.network, params, self.layout, extras)

    def shard(self, mesh: jax.sharding.Mesh, rules: Rules | None = None) -> "Model":
        """Spread the model over a mesh, as `jax.make_mesh` or `jax.sharding.Mesh` gives it, with the models attached.

        rules: default, those that the names of the mesh's axes stand for (`sharding.RULES`). KV heads that a mesh axis
        does not divide are replicated in groups, and heads padded where `rules.pad_heads` says so: the result computes
        the same, and its configuration says how (`network.head_groups`). What else an axis does not divide stays whole:
        see `layout_notes`. Raises InputError for a mesh of devices that this process has not, and where mesh and rules
        do not know each other's axes.
        """
        if rules is None:
            rules = rules_of(getattr(mesh, "axis_names", ()))
        layout = Sharding(settled(mesh, rules), rules)
        stages.check(self.config, layout)
        config, params, notes = spread(self.config, self.params, layout)
        made = dataclasses.replace(self, config=config, params=params, layout=layout, layout_notes=notes, extras={})
        return made.attach(**{name: made._beside(extra, self) for name, extra in self.extras.items()})

    def _beside(self, extra: Any, whole: "Model | None" = None) -> Any:
        """Give an extra as a spread model takes it: a model on the same mesh. whole: the model that was spread."""
        if not isinstance(extra, Model) or self.layout is None or extra.layout is not None:
            return extra
        if whole is None or extra.params is not whole.params:
            return extra.shard(self.layout.mesh, self.layout.rules)
        config = extra.config.replace(n_heads=self.config.n_heads, n_kv_heads=self.config.n_kv_heads)
        shared = dataclasses.replace(extra, config=config, params=self.params, layout=self.layout, extras={})
        return shared.attach(**extra.extras)

    def bytes_by_device(self) -> dict[jax.Device, int]:
        """Count the bytes of the weights on each device of this process; see `Result.stats` for those of a cache."""
        return bytes_by_device(self.params)

    @signed
    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        progress: Callable[[int, int], None] | None = None,
        **options: Any,
    ) -> Result:
        """Continue each prompt: a text, or a list of token ids.

        method: default Greedy, or Sample if `sampling` is given. policy: default Window, which is exact, and Dense for
        a model without windows. A list of max_new_tokens, min_new_tokens, seed or constraint has one value a prompt.

        A row ends after max_new_tokens, or where the model's context ends; at a stop token of the model (unless
        ignore_eos) or one of stop_tokens; or before a stop string (a search: its best text is cut there). Until
        min_new_tokens no stop token may come; stop strings may. Its text ends before what stopped it, its tokens after
        that: include_stop puts it in the text too. Special tokens are no part of texts, unless skip_special is False; a
        stop string that is a special token, or holds one, is found all the same.

        n: samples of each prompt, which are rows of the result one after the other. A row draws from its own seed, of
        64 bits: with one seed, row i of all rows draws from seed + i; with a list, sample i of a prompt from its
        seed + i. logprobs: True, or of how many of the likeliest tokens besides; prompt_logprobs: the same of the
        prompts, under the cache policy that is the default. constraint: what the new text has to be.
        `progress(done, total)` is called now and then with the number of new tokens. Raises InputError for anything
        that cannot be done.
        """
        if progress is not None and not callable(progress):
            raise InputError(f"progress={shown(progress)} must be a function of two numbers, done and total")
        call, ids, generation = self._start("generate", self._rows(prompts), options, "progress")
        total = int(np.sum(generation.ends - generation.lengths))
        texts = [self._text(call, ids[row // call.n]) for row in range(len(generation.lengths))] if call.stops else []
        fed = [0] * len(texts)

        def between(generation: Generation) -> None:
            new = generation.rows()
            for row, text in enumerate(texts):
                if text.feed(new[row][fed[row] :]):
                    generation.finish(row)
                fed[row] = len(new[row])
            if progress:
                progress(sum(map(len, new)), total)

        if call.stops:
            generation.run(STEPS_BETWEEN_STOP_CHECKS, between)
        elif progress:
            generation.run(after=between)
        else:
            generation.run()
        return self._result(call, ids, generation)

    @signed
    def stream(self, prompt: Prompt, *, steps_per_piece: int = 1, **options: Any) -> Stream:
        """Continue one prompt, text piece by piece. Takes the options of `generate`, but for those of several rows."""
        steps = whole(steps_per_piece, "steps_per_piece", 1)
        self._need_tokenizer("stream")
        call, ids, generation = self._start("stream", [prompt], options, "steps_per_piece")
        if call.n > 1 or call.prompt_logprobs is not None:
            name = "n" if call.n > 1 else "prompt_logprobs"
            raise InputError(f"stream gives the pieces of one text: it takes no {name}; generate does")
        return Stream(self._text(call, ids[0]), generation, steps)

    def logits(self, tokens: Any) -> jax.Array:
        """Map tokens int[B, T] -> float32[B, T, V]: column t speaks about the token at t + 1."""
        return scoring.logits(self.placed, self.default_policy(), self._batch(tokens))

    def routing(self, tokens: Any) -> dict[str, RouterStats]:
        """Map tokens int[B, T] -> by layer kind, what the routers of its layers do with them: arrays [L, ...]."""
        if not any(kind.moe for kind in self.config.kinds):
            raise InputError(f"{self.name} has no mixture of experts")
        return scoring.routing(self.placed, self.default_policy(), self._batch(tokens))

    def _batch(self, tokens: Any) -> np.ndarray:
        return batch_of(tokens, self.config.vocab_size, self.config.max_positions)

    def encode(self, prompt: Prompt, name: str = "prompt") -> list[int]:
        """Give a prompt as token ids. Raises InputError if it is none, is empty, or longer than the model's context."""
        if isinstance(prompt, str):
            self._need_tokenizer("a text prompt")
            ids = self.tokenizer.encode(checked_text(prompt, name)) if prompt else []
        else:
            ids = token_ids(prompt, name, self.config.vocab_size)
        if not ids:
            raise InputError(f"{name} is empty: give at least one token")
        if max(ids) >= self.config.vocab_size:  # of a tokenizer with more tokens than the model
            raise InputError(f"{name} holds token id {max(ids)}: ids go from 0 to {self.config.vocab_size - 1}")
        if len(ids) > self.config.max_positions:
            limit = self.config.max_positions
            raise InputError(f"{name} has {len(ids)} tokens, and the context of {self.name} is {limit} tokens")
        return ids

    def _rows(self, prompts: Any) -> list[Any]:
        """List the prompts of a call, one by one."""
        if isinstance(prompts, str):
            return [prompts]
        if isinstance(prompts, (bytes, bytearray, Mapping, Set)) or not hasattr(prompts, "__iter__"):
            raise InputError(f"prompts={shown(prompts)} must be a text, or a list of texts and lists of token ids")
        if getattr(prompts, "ndim", 1) == 0:
            raise InputError(f"prompts={shown(prompts)} must be a list: a single prompt of ids stands in one, [[...]]")
        return list(prompts)

    def _start(
        self, caller: str, prompts: list[Any], options: Mapping[str, Any], own: str
    ) -> tuple[Call, list[list[int]], Generation]:
        given = Options.of(caller, options, own)
        if not prompts:
            raise InputError("no prompts: give at least one")
        ids = [self.encode(p, f"prompt {i}" if len(prompts) > 1 else "prompt") for i, p in enumerate(prompts)]
        if any(kind.moe and kind.moe.looks_around for kind in self.config.kinds):
            warnings.warn(NEIGHBOURS, stacklevel=3)
        call = given.checked(self, ids)
        return call, ids, Generation.of(self.placed, ids, call)

    def default_policy(self, policy: CachePolicy | None = None) -> CachePolicy:
        """Give `policy`, or the exact one that suits the model: Window, and Dense where no layer has a window."""
        return default_policy(self.config, policy)

    def _text(self, call: Call, prompt: list[int]) -> Text:
        return Text(self.tokenizer, call.stops, call.stop_ids, call.skip_special, call.include_stop, prompt)

    def _result(self, call: Call, ids: list[list[int]], generation: Generation) -> Result:
        tokens, logprobs, likeliest = generation.rows(), generation.logprobs(), generation.likeliest()
        texts = None
        if self.tokenizer is not None:
            texts = []
            for row, new in enumerate(tokens):
                text, kept = self._decoded(call, new, ids[row // call.n])
                texts.append(text)
                values: Any
                for values in (tokens, logprobs, likeliest):
                    if values is not None:
                        values[row] = values[row][:kept]
        told: Any = (None, None)
        if call.prompt_logprobs is not None:
            told = scoring.prompt_logprobs(self.placed, self.default_policy(), ids, call.prompt_logprobs)
            told = tuple(x and [row for row in x for _ in range(call.n)] for x in told)
        stats, beams = generation.stats(), generation.hypotheses()
        return Result(tokens, texts, logprobs, stats, beams, likeliest, *told)

    def _decoded(self, call: Call, new: list[int], prompt: list[int]) -> tuple[str, int]:
        """Read the text of new tokens after a prompt, and how many of them there are up to what stopped it."""
        if call.stops or call.include_stop or self.tokenizer.strips_first_space:
            text = self._text(call, prompt)
            text.feed(new)
            return text.piece(last=True), text.tokens
        last = len(new) - (len(new) > 0 and new[-1] in call.stop_ids)
        skip = {} if call.skip_special else {"skip_special": False}
        return self.tokenizer.decode(new[:last], **skip), len(new)

    def _need_tokenizer(self, what: str) -> None:
        if self.tokenizer is None:
            raise InputError(f"{what} needs a tokenizer, and model {self.name} has none: give lists of token ids")


def load(
    source: str,
    dtype: str | None = None,
    weights: str | None = None,
    tokenizer: str | Path | None = None,
    *,
    mesh: jax.sharding.Mesh | None = None,
    rules: Rules | None = None,
) -> Model:
    """Load a model from a built-in name, a GGUF file, a Hugging Face folder or hub id, or an Orbax checkpoint of ours.

    `random:llama-3-8b` has that model's shape (`checkpoint.presets.SHAPES`), random weights, and no tokenizer.

    dtype: "float32" or "bfloat16", of the weights and activations; None: float32 on a CPU, bfloat16 elsewhere. weights:
    "int8", "int4" and the other formats of `weights.formats`, into which they are rounded one by one while they are
    read. tokenizer: a folder with a tokenizer.json, a tokenizer.json, or a GGUF file, whose tokenizer is taken in place
    of the model's own. mesh, rules: spread it over a mesh, as `Model.shard` does: each process reads only what its
    devices hold. Raises InputError if there is nothing to load, or something is wrong with it.
    """
    if weights is not None:
        FORMATS.find(weights, "weights")
    if isinstance(source, os.PathLike):
        source = os.fspath(source)
    if not isinstance(source, str) or not source:
        raise InputError(f"load({shown(source)}): give a built-in name, such as 'smollm2-135m', or a path")
    if dtype is None:
        dtype = "float32" if choices.FLOAT32.here() else "bfloat16"
    check_dtype(dtype)
    enable_compilation_cache()
    if mesh is not None:
        found = load_sharded(source, dtype, weights, tokenizer, mesh, rules)
        return Model(found.config, found.params, found.tokenizer, found.name, dtype).shard(mesh, rules)
    if shape := shape_of(source):
        model = dataclasses.replace(Model.random(shape, dtype=dtype), name=source)
        if tokenizer is not None:
            model = dataclasses.replace(model, tokenizer=tokenizer_at(tokenizer))
            check_fits(model.tokenizer, model.config, tokenizer)
        return model if weights is None else dataclasses.replace(model, params=quantize_in_place(model.params, weights))
    found = load_checkpoint(source, dtype, weights=weights, tokenizer=tokenizer)
    return Model(found.config, found.params, found.tokenizer, found.name, dtype)


def check_dtype(dtype: Any) -> None:
    """Raise InputError unless it names a type that models compute in."""
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise InputError(f"dtype={shown(dtype)} must be {' or '.join(map(repr, DTYPES))}")

"""Holds what a call of `generate` or `stream` takes besides its prompts, and the same once it is checked."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxinfer.cache import CachePolicy, Dense, Window
from jaxinfer.decoding.checks import check_method, check_policy
from jaxinfer.decoding.constraints.constraint import Constraint
from jaxinfer.decoding.contract import DecodeMethod
from jaxinfer.decoding.methods.greedy import Greedy
from jaxinfer.decoding.methods.sample import Sample
from jaxinfer.decoding.sampling.settings import Sampling
from jaxinfer.errors import InputError, nearest, shown
from jaxinfer.host.token_ids import checked_text, token_ids
from jaxinfer.host.values import whole

MOST_SEED = 2**64 - 1
MOST_SAMPLES = 4096  # of a prompt: each is a row with a cache of its own


@dataclass(frozen=True)
class Options:
    """Holds what `generate` and `stream` take. A list has one value a prompt."""

    max_new_tokens: int | Sequence[int] = 64  # however large: a text ends with the model's context
    method: DecodeMethod | None = None  # None: Greedy, or Sample if `sampling` is given
    policy: CachePolicy | None = None  # None: Window, which is exact, and Dense for a model without windows
    sampling: Sampling | None = None
    seed: int | Sequence[int] = 0  # 0 to 2^64 - 1
    n: int = 1  # samples of each prompt
    stop: str | Sequence[str] = ()  # strings that end a text
    stop_tokens: int | Sequence[int] = ()  # token ids that end a text besides the model's own
    ignore_eos: bool = False  # the model's own stop tokens end nothing
    min_new_tokens: int | Sequence[int] = 0  # new tokens before which no stop token may come
    include_stop: bool = False  # a text ends with what stopped it, not before
    skip_special: bool = True  # special tokens are left out of texts
    logprobs: bool | int = False  # of each new token; a number: and of so many that were likeliest
    prompt_logprobs: bool | int = False  # the same of each token of the prompt but the first
    constraint: Constraint | Sequence[Constraint | None] | None = None

    @classmethod
    def of(cls, caller: str, given: Mapping[str, Any], *own: str) -> "Options":
        """Take keyword arguments. own: what the caller takes besides. Raises InputError for one that is not there."""
        names = [field.name for field in dataclasses.fields(cls)]
        for name in given:
            if name not in names:
                known = ", ".join([*names, *own])
                raise InputError(f"{caller} has no option {name!r}{nearest(name, names) or f': it takes {known}'}")
        return cls(**given)

    def checked(self, model: Any, ids: Sequence[Sequence[int]]) -> "Call":
        """Check the options for prompts of token ids on a model. Raises InputError for anything that cannot be done."""
        vocab, tokenizer, batch = model.config.vocab_size, model.tokenizer, len(ids)
        for name in ("ignore_eos", "include_stop", "skip_special"):
            if not isinstance(getattr(self, name), (bool, np.bool_)):
                raise InputError(f"{name}={shown(getattr(self, name))} must be True or False")
        n = whole(self.n, "n", 1, MOST_SAMPLES)
        own_stop = tuple(tokenizer.stop_ids) if tokenizer else ()
        more = [self.stop_tokens] if is_scalar(self.stop_tokens) else self.stop_tokens
        more = token_ids(more, "stop_tokens", vocab)
        stop_ids = tuple(dict.fromkeys([*(() if self.ignore_eos else own_stop), *more]))
        context = model.config.max_positions + 1
        limits = [min(x, context) for x in _per_row(self.max_new_tokens, batch, "max_new_tokens", least=1)]
        least = [min(x, context) for x in _per_row(self.min_new_tokens, batch, "min_new_tokens", least=0)]
        for fewest, limit in zip(least, limits, strict=True):
            if fewest > limit:
                raise InputError(f"min_new_tokens={fewest} is more than max_new_tokens={limit}")
        policy = default_policy(model.config, self.policy)
        sampling, method = self._sampling(model, policy, n)
        constraints = self.constraint if isinstance(self.constraint, (list, tuple)) else [self.constraint]
        if not all(one is None or isinstance(one, Constraint) for one in constraints):
            raise InputError(f"constraint={shown(self.constraint)} must be a jaxinfer.Constraint, or one a prompt")
        if None in constraints:
            sampling.check_leaves(vocab)
        if self.ignore_eos and any(constraints):
            raise InputError("ignore_eos: a constraint needs the model's own stop tokens to end a text: leave it out")
        return Call(
            limits=limits,
            method=method,
            policy=policy,
            sampling=sampling,
            seeds=_seeds(self.seed, batch, n),
            n=n,
            stops=self._stops(model),
            stop_ids=stop_ids,
            own_stop=own_stop,
            least=least if stop_ids and any(least) else None,
            logprobs=self._kept("logprobs", vocab, method),
            prompt_logprobs=self._kept("prompt_logprobs", vocab),
            include_stop=bool(self.include_stop),
            skip_special=bool(self.skip_special),
            constraint=self.constraint,
        )

    def _sampling(self, model: Any, policy: CachePolicy, n: int) -> tuple[Sampling, DecodeMethod]:
        sampling = self.sampling
        if sampling is not None and not isinstance(sampling, Sampling):
            raise InputError(f"sampling={shown(sampling)} must be a jaxinfer.Sampling(...)")
        method = self.method if self.method is not None else Greedy() if sampling is None else Sample()
        check_policy(policy, model)
        check_method(method, model, policy)
        name = type(method).__name__
        if sampling is not None and not method.samples and sampling != Sampling(temperature=0.0):
            raise InputError(f"method {name} takes no sampling: use Sample, or leave sampling out")
        if n > 1 and not method.samples:
            raise InputError(f"n={n}: method {name} takes no sampling, so that all of them would be the same text")
        return sampling or (Sampling() if isinstance(method, Sample) else Sampling(temperature=0.0)), method

    def _stops(self, model: Any) -> tuple[str, ...]:
        stops = (self.stop,) if isinstance(self.stop, str) else self.stop
        if not isinstance(stops, (list, tuple, set, frozenset)) or not all(isinstance(stop, str) for stop in stops):
            raise InputError(f"stop={shown(self.stop)} must be a text, or a list of texts")
        for stop in stops:
            if not checked_text(stop, "stop"):
                raise InputError("stop holds an empty text, which would end every text at once: leave it out")
        for given, what in ((stops, "stop strings"), (self.include_stop, "include_stop")):
            if given and model.tokenizer is None:
                raise InputError(f"{what} need a tokenizer, and model {model.name} has none")
        return tuple(stops)

    def _kept(self, name: str, vocab: int, method: DecodeMethod | None = None) -> int | None:
        """Count the likeliest tokens that are asked for besides the token itself; None: not even that."""
        value = getattr(self, name)
        if isinstance(value, (bool, np.bool_)):
            return 0 if value else None
        count = whole(value, name, 0, vocab)
        if count and method is not None and method.hypotheses is not None:
            raise InputError(
                f"{name}={count}: method {type(method).__name__} keeps none but each token's own: {name}=True"
            )
        return count or None


@dataclass(frozen=True)
class Call:
    """`Options` as the engine takes them."""

    limits: list[int]  # new tokens, of each prompt
    method: DecodeMethod
    policy: CachePolicy
    sampling: Sampling
    seeds: list[int]  # of each row: n rows a prompt
    n: int
    stops: tuple[str, ...]
    stop_ids: tuple[int, ...]
    own_stop: tuple[int, ...]  # the model's own: what a constraint ends with
    least: list[int] | None  # new tokens before a stop token, of each prompt; None: no row asks for any
    logprobs: int | None  # how many of the likeliest tokens besides the token itself; None: no log-probabilities
    prompt_logprobs: int | None
    include_stop: bool
    skip_special: bool
    constraint: Any


def signed(method: Callable) -> Callable:
    """Make a method of a model show its `**options` in its signature as what they are."""
    given = inspect.signature(method)
    kept = [p for p in given.parameters.values() if p.kind is not p.VAR_KEYWORD]
    options = inspect.signature(Options).parameters.values()
    parameters = [*kept, *(p.replace(kind=p.KEYWORD_ONLY) for p in options)]
    method.__signature__ = given.replace(parameters=parameters)  # type: ignore[attr-defined]  # read by inspect
    return method


def default_policy(config: Any, policy: CachePolicy | None = None) -> CachePolicy:
    """Give `policy`, or the exact one that suits a model: Window, and Dense where no layer has a window."""
    if policy is not None:
        return policy
    return Window() if any(kind.window for kind in config.kinds) else Dense()


def _seeds(seed: Any, batch: int, n: int) -> list[int]:
    """Give the seed of each row: a prompt's follow its own, and all prompts' one another if there is one seed.

    Raises InputError where the last of them is no 64 bits.
    """
    one = is_scalar(seed)
    firsts = _per_row(seed, batch, "seed", 0, MOST_SEED)
    seeds = [first + (row * n if one else 0) + i for row, first in enumerate(firsts) for i in range(n)]
    if max(seeds) > MOST_SEED:
        raise InputError(
            f"seed={shown(seed)} with {len(seeds)} rows: each row draws from the next seed, up to 2^64 - 1"
        )
    return seeds


def is_scalar(value: Any) -> bool:
    """Tell whether it is one value for all rows: a list has one for each."""
    return hasattr(value, "__index__") and not getattr(value, "ndim", 0)


def _per_row(value: Any, batch: int, name: str, least: int, most: int | None = None) -> list[int]:
    """Give one whole number a prompt. Raises InputError for anything else."""
    if not isinstance(value, (list, tuple, range)) and not getattr(value, "ndim", 0):
        return [whole(value, name, least, most)] * batch
    values = list(value)
    if len(values) != batch:
        raise InputError(f"{name} has {len(values)} values for {batch} prompts: give one number, or one a prompt")
    return [whole(x, name, least, most) for x in values]

"""The clock of generations: latencies as a reader meets them, throughput, shares of what the device can do."""

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import jax
import numpy as np

from jaxinfer.analysis.hardware import Hardware
from jaxinfer.analysis.ledger.physics import physics, setting_of
from jaxinfer.api import Model, Prompt
from jaxinfer.cache import CachePolicy
from jaxinfer.decoding.contract import DecodeMethod
from jaxinfer.decoding.methods import Greedy, Sample
from jaxinfer.decoding.sampling.settings import Sampling
from jaxinfer.errors import InputError
from jaxinfer.host.values import whole
from jaxinfer.runtime.generation import Generation
from jaxinfer.runtime.stats import Stats

PERCENTILES = (50, 90, 99)
STEPS = 8  # of one before it is the other's turn


@dataclass(frozen=True)
class Clock:
    """Seconds of a generation, the time to compile left out. Means are over the rows that have such a time."""

    ttft: float  # time to first token: from the call until a row's first token is there
    tpot: float | None  # time per output token: from the first to the last, over the tokens after the first
    itl: Mapping[str, float]  # inter-token latency, between steps that gave a row tokens: mean, p50, p90, p99
    end_to_end: float
    throughput: float  # new tokens a second of all rows, from the call to the end
    tokens_per_step: float
    accepted_per_step: float  # draft tokens that were accepted, over steps
    peak_bytes: int  # weights, cache and scratch; on a device that tells, its own count
    compile_seconds: float
    mbu: float | None = None  # of decoding: bytes that it has to read a second, over the bandwidth
    mfu: float | None = None  # of decoding: operations a second over the peak

    def as_dict(self) -> dict[str, Any]:
        """Give all of it as plain data."""
        return asdict(self) | {"itl": dict(self.itl)}


@dataclass
class Watch:
    """Notes, after every call of a generation's loop, when it was and how many tokens each row had."""

    start: float = field(default_factory=time.perf_counter)
    seconds: list[float] = field(default_factory=list)  # since the start, the time to compile left out
    tokens: list[list[int]] = field(default_factory=list)  # new ones of each row so far

    def __call__(self, generation: Generation) -> None:
        now = time.perf_counter() - self.start
        self.seconds.append(now - generation.seconds["compile"])
        ends = np.asarray(generation.state.n)[:: generation.copies]
        self.tokens.append((ends - generation.lengths).tolist())


def clock_of(stats: Stats, watch: Watch, mbu: float | None = None, mfu: float | None = None) -> Clock:
    """Compute the figures of a generation from what was noted of it."""
    rows = list(zip(*watch.tokens, strict=True))  # of each row, its tokens at each note
    came = [_arrivals(watch.seconds, tokens) for tokens in rows]
    firsts = [times[0][0] for times in came if times]
    each = [(times[-1][0] - times[0][0]) / (sum(n for _, n in times) - 1) for times in came if _several(times)]
    gaps = [b - a for times in came for (a, _), (b, _) in itertools.pairwise(times)]
    end, steps = watch.seconds[-1] if watch.seconds else 0.0, max(sum(stats.steps), 1)
    return Clock(
        ttft=statistics.fmean(firsts) if firsts else end,
        tpot=statistics.fmean(each) if each else None,
        itl=percentiles(gaps),
        end_to_end=end,
        throughput=sum(stats.emitted) / max(end, 1e-9),
        tokens_per_step=stats.tokens_per_step,
        accepted_per_step=sum(stats.accepted) / steps,
        peak_bytes=_peak(stats),
        compile_seconds=stats.seconds["compile"],
        mbu=mbu,
        mfu=mfu,
    )


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Give mean and percentiles of what was measured; nothing of nothing."""
    if not values:
        return {}
    found = {f"p{q}": float(np.percentile(values, q)) for q in PERCENTILES}
    return {"mean": statistics.fmean(values), **found}


def clocked(
    model: Model,
    prompts: Sequence[Prompt],
    max_new_tokens: int = 64,
    method: DecodeMethod | None = None,
    policy: CachePolicy | None = None,
    sampling: Sampling | None = None,
    hardware: Hardware | None = None,
) -> Clock:
    """Generate, a step a call as a stream does, and give the clock of it. Stop tokens are ignored.

    hardware: the device whose bandwidth and peak `mbu` and `mfu` are shares of. Raises InputError for what generate
    cannot do.
    """
    watch = Watch()
    generation = begun(model, prompts, max_new_tokens, method, policy, sampling)
    generation.run(1, watch)
    return clock_of(generation.stats(), watch, *(() if hardware is None else usage(model, generation, hardware)))


def begun(
    model: Model,
    prompts: Sequence[Prompt],
    max_new_tokens: int = 64,
    method: DecodeMethod | None = None,
    policy: CachePolicy | None = None,
    sampling: Sampling | None = None,
) -> Generation:
    """Begin a generation that ends with max_new_tokens of each prompt. Raises InputError as `Model.generate` does."""
    new = whole(max_new_tokens, "max_new_tokens", 1)
    if isinstance(prompts, str) or not prompts:
        raise InputError("prompts: give a list of at least one")
    rows = [model.encode(prompt, f"prompt {i}") for i, prompt in enumerate(prompts)]
    chosen = method or (Greedy() if sampling is None else Sample())
    limits, seeds, how = [new] * len(rows), list(range(len(rows))), sampling or Sampling()
    return Generation.begin(
        model.placed, rows, limits, chosen, model.default_policy(policy), how, seeds, (), logprobs=False
    )


def usage(model: Model, generation: Generation, hardware: Hardware) -> tuple[float, float]:
    """Give the shares of bandwidth and of peak that the decode steps of a generation reached: MBU and MFU."""
    stats = generation.stats()
    context = [prompt + new / 2 for prompt, new in zip(stats.prompt_tokens, stats.emitted, strict=True)]
    setting = setting_of(model, generation.state.cache, generation.method.width)
    step = physics(model.config, hardware, setting, "decode", context)
    taken = max(stats.seconds["decode"], 1e-9) / max(max(stats.steps, default=0), 1)
    return step.memory_seconds / taken, step.compute_seconds / taken


def take_turns(running: Sequence[Iterator[Any]], first: int = 0) -> None:
    """Run iterators to their ends, one item of each in turn, so that all meet a machine as it is. first: who begins."""
    order = [*running[first % len(running) :], *running[: first % len(running)]]
    nothing = object()
    while [one for one in order if next(one, nothing) is not nothing]:  # a turn for all, whichever has ended
        pass


def compared(
    begin: Mapping[str, Callable[[], Generation]], repeats: int = 3, steps: int = STEPS
) -> dict[str, list[Stats]]:
    """Measure generations that share the machine step by step: `steps` of the one and then as many of the next.

    begin: makes each anew, by name: a row and its baseline. One pass compiles and does not count; who begins changes
    from pass to pass. Gives the stats of each pass, whose seconds may be compared pass by pass.
    """
    found: dict[str, list[Stats]] = {name: [] for name in begin}
    for turn in range(repeats + 1):
        made = {name: start() for name, start in begin.items()}
        take_turns([_advancing(one, steps) for one in made.values()], turn)
        for name, one in made.items():
            found[name] += [one.stats()] if turn else []
    return found


def _advancing(generation: Generation, steps: int) -> Iterator[int]:
    while not generation.done.all():
        generation.advance(steps)
        yield steps


def _arrivals(seconds: Sequence[float], tokens: Sequence[int]) -> list[tuple[float, int]]:
    """Give when new tokens of a row were there, and how many."""
    before = [0, *tokens[:-1]]
    return [(when, now - was) for when, now, was in zip(seconds, tokens, before, strict=True) if now > was]


def _several(times: Sequence[tuple[float, int]]) -> bool:
    return sum(n for _, n in times) > 1


def _peak(stats: Stats) -> int:
    told = [device.memory_stats() or {} for device in jax.local_devices()[:1]]
    return int(told[0].get("peak_bytes_in_use", stats.weight_bytes + stats.cache_bytes + stats.temp_bytes))

"""The timed passes of a row over all prompts, in alternation with those of its baseline."""

import collections
import dataclasses
import datetime
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from jaxinfer.experiment.prepare import Ready, batches, seeds
from jaxinfer.experiment.prompts import Prompt
from jaxinfer.experiment.schema import DecodingSpec
from jaxinfer.host import processes


def measure(
    model,
    row: Ready,
    base: Ready,
    prompts: tuple[Prompt, ...],
    tokens: list[list[int]],
    decoding: DecodingSpec,
    tick: Callable[[], None] = lambda: None,
    beside: Callable[[dict[str, Any]], Any] | None = None,
) -> dict[str, Any]:
    """Measure one row: `decoding.repeats` passes over all prompts, each batch in turn with `base`, unless that is it.

    A machine's speed drifts: what is compared is measured in alternation. Rates are tokens/s, bandwidths bytes/s, one a
    pass. Passes end early once two in a row agree to `decoding.agree`: see `agree`. A batch that had to compile is run
    again and not timed before, for the first call of a program takes up to half a second more: what multiplies prepares
    itself. Every pass has the same seeds, hence the same outputs. `tick` is called after each batch. `beside` measures
    something else after each timed pass, of which then there are always `decoding.repeats`: it is given the row with
    what its prompts gave, and the record keeps a list of what it returns.
    """
    compiling: collections.Counter[str] = collections.Counter()

    def call(row: Ready, batch: range) -> Any:
        once = partial(model.generate, [tokens[index] for index in batch], seed=seeds(decoding, batch))
        output = once(**row.options)
        if seconds := output.stats.seconds["compile"]:
            compiling[row.row.name] += seconds
            output = once(**row.options)
        tick()
        return output

    def one_pass() -> list[list]:
        both = [row] if base.row == row.row else [row, base]
        turns = [[call(one, batch) for one in both] for batch in batches(tokens, decoding.batch)]
        return [list(outputs) for outputs in zip(*turns, strict=True)]

    stats: list[list] = []
    base_rates: list[float] = []
    others: list[Any] = []
    what: dict[str, Any] = {}
    settled = False
    while len(stats) < decoding.repeats and not settled:
        outputs, *beside_it = one_pass()
        stats.append([output.stats for output in outputs])
        what = what or dataclasses.asdict(row.row) | {"prompts": _records(prompts, outputs)}
        greedy = [output.stats for output in (beside_it or [outputs])[0]]
        base_rates.append(_mean(greedy, "decode_rate", _decode_seconds))
        if beside:
            others.append(beside(what))
        else:
            rates = [_mean(one, "decode_rate", _decode_seconds) for one in stats]
            settled = processes.of_first(agree(rates, base_rates, decoding.agree))  # each has a clock of its own
    first = stats[0]
    return (
        {
            **what,
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "dtype": model.dtype,
            "weights": model.weights or model.dtype,
            "decode_rates": [_mean(one, "decode_rate", _decode_seconds) for one in stats],
            "baseline_rates": base_rates,
            "settled": settled,
            "prefill_rates": [_mean(one, "prefill_rate", _prefill_seconds) for one in stats],
            "bandwidths": [_mean(one, "bandwidth", _decode_seconds) for one in stats],
            "tokens_per_step": _mean(first, "tokens_per_step", lambda one: sum(one.steps)),
            "compile_seconds": float(compiling[row.row.name]),
            "weight_bytes": max(one.weight_bytes for one in first),
            "cache_bytes": max(one.cache_bytes for one in first),
            "temp_bytes": max(one.temp_bytes for one in first),
            "peak_rss_bytes": peak_rss(),
        }
        | _on_mesh(first)
        | ({"beside": others} if beside else {})
    )


def _on_mesh(first: list) -> dict[str, Any]:
    """Say what the model is spread over, and the most bytes that a device holds; nothing where it is not."""
    if first[0].mesh is None:
        return {}
    keys = ("device_weight_bytes", "device_cache_bytes")
    return {"mesh": first[0].mesh, **{key: max(getattr(one, key) for one in first) for key in keys}}


def agree(rates: Sequence[float], base_rates: Sequence[float], within: float) -> bool:
    """Tell whether the newest two passes of a row are equally fast beside their baselines, to this share of the less.

    base_rates: of the passes beside them. A baseline is beside itself, so two passes of it are enough. within: 0 is
    never reached, so that every pass is made.
    """
    if len(rates) < 2 or not within or not all(base_rates[-2:]):
        return False
    less, more = sorted(rate / other for rate, other in zip(rates[-2:], base_rates[-2:], strict=True))
    return more <= (1 + within) * less


def peak_rss() -> int | None:
    """Give the most memory this process ever held, in bytes; None where the system does not say."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _records(prompts: tuple[Prompt, ...], outputs: list) -> list[dict[str, Any]]:
    """Give what came of each prompt, for charts by family and for comparing outputs."""
    records: list[dict[str, Any]] = []
    for output in outputs:
        stats = output.stats
        for index, (text, tokens) in enumerate(zip(output.texts, output.tokens, strict=True)):
            prompt = prompts[len(records)]
            records.append(
                {
                    "family": prompt.family,
                    "prompt": prompt.text,
                    "output": text,
                    "tokens": [int(token) for token in tokens],
                    "prompt_tokens": int(stats.prompt_tokens[index]),
                    "steps": int(stats.steps[index]),
                    "guessed": int(stats.guessed[index]),
                    "runs": stats.runs[index],
                    "emitted": int(stats.emitted[index]),
                    "proposed": int(stats.proposed[index]),
                    "accepted": int(stats.accepted[index]),
                }
            )
    return records


def _mean(stats: list, rate: str, weight: Callable) -> float:
    """Give the mean of a rate over the batches of a pass, weighted by what it was divided by."""
    weights = [float(weight(one)) for one in stats]
    total = sum(w * float(getattr(one, rate)) for one, w in zip(stats, weights, strict=True) if w > 0)
    return total / sum(weights) if sum(weights) > 0 else 0.0


def _decode_seconds(stats) -> float:
    return stats.seconds["decode"]


def _prefill_seconds(stats) -> float:
    return stats.seconds["prefill"]

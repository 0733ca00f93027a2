"""From raw measurements to the figures of the table: medians, spreads, and comparison with Greedy."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

REFERENCE = "greedy (reference)"  # the name of a baseline that the config did not ask for
DECODES = ("rows", "method", "sampling")  # the axes that say how to decode
NEUTRAL = {  # what changes greedy's output, and the value that does not
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "no_repeat_ngram": 0,
    "logit_bias": [],
    "bad_words": [],
}


@dataclass(frozen=True)
class Summary:
    """One row of the table. Rates in tokens/s, sizes in bytes, bandwidth in bytes/s; None where there is no figure."""

    name: str
    decode: float
    decode_low: float
    decode_high: float
    prefill: float
    speedup: float | None
    tokens_per_step: float
    identical: str
    compile_seconds: float
    weights: str  # their format
    weight_bytes: int
    cache_bytes: int
    temp_bytes: int
    peak_rss_bytes: int | None
    bandwidth: float
    axes: Mapping[str, str] = field(default_factory=dict)  # of a grid: the label of each
    of_reference: float | None = None  # its rate over the reference's
    quality: Mapping[str, Any] = field(default_factory=dict)


def summarize(rows: Sequence[Mapping[str, Any]]) -> list[Summary]:
    """Compare each finished row with the greedy row of the same policy (and penalties), where there is one."""
    return [_summary(row, baseline(row, rows), reference(row, rows)) for row in rows]


def baseline(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Give the greedy row that `row` is to be compared with."""
    key = baseline_key(row)
    return next((other for other in rows if is_baseline(other) and baseline_key(other) == key), None)


def baseline_key(row: Mapping[str, Any]) -> str:
    """Give a key that rows with one baseline share: the same policy, constraint and, unless they sample, penalties.

    Of a grid: the same entry of every axis but those that say how to decode, too.
    """
    setting = {axis: label for axis, label in row.get("axes", {}).items() if axis not in DECODES}
    key = [row["policy"], {} if is_sampled(row) else penalties(row), row.get("constraint"), setting]
    return json.dumps(key, sort_keys=True)


def reference(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Give the greedy row that the quality of `row` is measured against; None where there is none.

    In a grid it is the first of the same model, workload and batch, that is, of the first entries of the other axes;
    elsewhere the first greedy row of all. Constraints and, unless it samples, penalties are the row's own.
    """

    def key(one: Mapping[str, Any], like: Mapping[str, Any]) -> Any:
        same = {axis: label for axis, label in one.get("axes", {}).items() if axis in ("model", "workload", "batch")}
        return json.dumps([{} if is_sampled(like) else penalties(one), one.get("constraint"), same], sort_keys=True)

    return next((other for other in rows if is_baseline(other) and key(other, row) == key(row, row)), None)


def is_baseline(row: Mapping[str, Any]) -> bool:
    """Tell whether a row takes the likeliest token, one a step: Greedy, or Sample at temperature 0 (with penalties)."""
    return row["method"]["name"] in ("greedy", "sample") and not is_sampled(row)


def is_sampled(row: Mapping[str, Any]) -> bool:
    """Tell whether outputs are drawn at random, so that equality with Greedy is not to be expected."""
    default = 1.0 if row["method"]["name"] == "sample" else 0.0  # what the engine takes where no sampling is given
    return (row["sampling"] or {}).get("temperature", default) > 0


def penalties(row: Mapping[str, Any]) -> dict[str, Any]:
    """Give the penalties of a row that are not neutral: they change what greedy decoding emits."""
    given = {key: list(x) if isinstance(x, tuple) else x for key, x in (row["sampling"] or {}).items()}
    return {key: value for key, value in given.items() if value != NEUTRAL.get(key, value)}


def identical(row: Mapping[str, Any], other: Mapping[str, Any]) -> int:
    """Count the prompts that have the same token ids in both rows."""
    pairs = zip(row["prompts"], other["prompts"], strict=True)
    return sum(one["tokens"] == two["tokens"] for one, two in pairs)


def per_family(row: Mapping[str, Any]) -> dict[str, float]:
    """Count the tokens emitted a step of the model, over the prompts of each family."""
    families = dict.fromkeys(prompt["family"] for prompt in row["prompts"])
    return {family: _tokens_per_step([p for p in row["prompts"] if p["family"] == family]) for family in families}


def _tokens_per_step(prompts: Sequence[Mapping[str, Any]]) -> float:
    steps = sum(prompt["steps"] for prompt in prompts)
    return sum(prompt["emitted"] for prompt in prompts) / steps if steps else 0.0


def of_reference(row: Mapping[str, Any], other: Mapping[str, Any] | None) -> float | None:
    """Give a row's median rate over that of its reference; None where there is no such figure."""
    rate = statistics.median(other["decode_rates"]) if other else 0.0
    return statistics.median(row["decode_rates"]) / rate if rate else None


def divergences(row: Mapping[str, Any], other: Mapping[str, Any]) -> list[int | None]:
    """Give the place of the first token of each prompt that is not the other's, counted from 0; None where all are."""
    found: list[int | None] = []
    for one, two in zip(row["prompts"], other["prompts"], strict=True):
        ours, theirs = one["tokens"], two["tokens"]
        places = (at for at, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1])
        found.append(None if ours == theirs else next(places, min(len(ours), len(theirs))))
    return found


def quality(row: Mapping[str, Any], first: Mapping[str, Any] | None) -> dict[str, Any]:
    """Give the figures of a row's quality, by name: those that were measured, and how its outputs differ."""
    if "quality" not in row:
        return {}
    found: dict[str, Any] = dict(row["quality"])
    if first and not is_sampled(row):
        places = [place for place in divergences(row, first) if place is not None]
        found["identical_to_reference"] = len(row["prompts"]) - len(places)
        found["first_divergence_mean"] = statistics.mean(places) if places else None
        found["first_divergence_median"] = statistics.median(places) if places else None
    return found


def _summary(row: Mapping[str, Any], base: Mapping[str, Any] | None, first: Mapping[str, Any] | None = None) -> Summary:
    decode = statistics.median(row["decode_rates"])
    speedups = [rate / other for rate, other in zip(row["decode_rates"], row["baseline_rates"], strict=True) if other]
    same = f"{identical(row, base)}/{len(row['prompts'])}" if base else "-"
    return Summary(
        name=row["name"],
        decode=decode,
        decode_low=min(row["decode_rates"]),
        decode_high=max(row["decode_rates"]),
        prefill=statistics.median(row["prefill_rates"]),
        speedup=statistics.median(speedups) if speedups else None,
        tokens_per_step=row["tokens_per_step"],
        identical="n/a" if is_sampled(row) else same,
        compile_seconds=row["compile_seconds"],
        weights=row.get("weights", row["dtype"]),  # rows of older runs say no more
        weight_bytes=row["weight_bytes"],
        cache_bytes=row["cache_bytes"],
        temp_bytes=row["temp_bytes"],
        peak_rss_bytes=row["peak_rss_bytes"],
        bandwidth=statistics.median(row["bandwidths"]),
        axes=row.get("axes", {}),
        of_reference=of_reference(row, first),
        quality=quality(row, first),
    )

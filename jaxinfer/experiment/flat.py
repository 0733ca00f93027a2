"""The results of a run as flat objects, one a row: results.jsonl, which pandas and DuckDB read at once.

    pandas.read_json("runs/grid-20260101-120000/results.jsonl", lines=True)
    duckdb.sql("select method, weights, median(speedup) from 'runs/*/results.jsonl' group by all")

Every column holds texts, numbers or nothing, and every row has every column of `COLUMNS`. Rates are tokens/s, sizes
bytes, times seconds.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxinfer.errors import InputError
from jaxinfer.experiment import axes, compare
from jaxinfer.experiment.finished import MOST_BYTES
from jaxinfer.experiment.specs import Experiment
from jaxinfer.experiment.spread import Spread
from jaxinfer.host.files import parse_json, read_text

NAME = "results.jsonl"
QUALITY = (
    *("identical_to_reference", "first_divergence_mean", "first_divergence_median", "kl", "agreement", "kl_tokens"),
    *("perplexity", "perplexity_tokens", "acc", "acc_norm", "acc_bytes", "choice_items"),
    *("last_word_acc", "last_word_perplexity", "last_word_items"),
)
FIGURES = (
    *("decode", "decode_min", "decode_max", "prefill", "speedup", "of_reference", "tokens_per_step"),
    *("identical", "prompts", "prompt_tokens", "new_tokens", "compile_seconds", "weight_bytes", "cache_bytes"),
    *("device_weight_bytes", "device_cache_bytes", "temp_bytes", "peak_rss_bytes", "bandwidth", *QUALITY),
)
AXES = ("model", "weights", "compress", "mesh", "policy", "workload", "batch", "rows", "method", "sampling")
MACHINE = ("jaxinfer", "commit", "jax", "jaxlib", "python", "platform", "cpus", "devices")
SETTINGS = ("method_settings", "policy_settings", "sampling_settings", "dtype", "weight_format")
COLUMNS = ("experiment", "name", "status", "error", *AXES, *SETTINGS, *FIGURES, "date", *MACHINE)


def text(config: Experiment, rows: Sequence[Mapping[str, Any]], failures: Sequence[Any], folder: Path) -> str:
    """Write results.jsonl: the finished rows, then those that failed."""
    made = parse_json(read_text(folder / "versions.json"), str(folder / "versions.json"))
    machine = {key: made.get(key) for key in MACHINE} | {"devices": ", ".join(made.get("devices", []))}
    found = [_row(config, row, summary) for row, summary in zip(rows, compare.summarize(rows), strict=True)] + [
        {**_settings(config, one), "status": "failed", "error": one["error"]} for one in failures
    ]
    usual = dict.fromkeys(COLUMNS)
    lines = [usual | {"experiment": config.name} | row | machine for row in found]
    return "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)


def read(path: Path) -> list[dict[str, Any]]:
    """Read results.jsonl. Raises InputError, which names the file and the line, for one that is broken."""
    found = []
    for number, line in enumerate(read_text(path, most=MOST_BYTES).split("\n"), start=1):
        if not line.strip():
            continue
        row = parse_json(line, f"{path}:{number}")
        if not isinstance(row, dict) or not isinstance(row.get("name"), str):
            raise InputError(f"{path}:{number}: is no row of results: expected an object with a name")
        found.append(row)
    return found


def _settings(config: Experiment, row: Mapping[str, Any]) -> dict[str, Any]:
    """Give the column of each axis: its label, or what the config has for all rows."""
    labels = {
        "model": axes.of_model(config.model),
        "weights": config.model.weights or axes.NONE["weights"],
        "compress": axes.NONE["compress"],
        "mesh": str(spread) if (spread := Spread.of_model(config.model)) else axes.NONE["mesh"],
        "workload": axes.of_prompts(config.prompts),
        "batch": str(config.decoding.batch),
    }
    labels |= {key: (row.get(key) or {}).get("name", axes.NONE["policy"]) for key in ("method", "policy")}
    labels["sampling"] = _json(row.get("sampling")) or axes.NONE["sampling"]
    labels |= row.get("axes", {})
    batch = labels["batch"]
    return {"name": row["name"], **labels, "batch": int(batch) if batch.isdecimal() else batch}


def _row(config: Experiment, row: Mapping[str, Any], summary: compare.Summary) -> dict[str, Any]:
    same, _, _ = summary.identical.partition("/")
    prompts = row["prompts"]
    return _settings(config, row) | {
        "status": "done",
        "method_settings": _json(row["method"]),
        "policy_settings": _json(row["policy"]),
        "sampling_settings": _json(row["sampling"]),
        "dtype": row["dtype"],
        "weight_format": row.get("weights"),
        "decode": summary.decode,
        "decode_min": summary.decode_low,
        "decode_max": summary.decode_high,
        "prefill": summary.prefill,
        "speedup": summary.speedup,
        "of_reference": summary.of_reference,
        "tokens_per_step": summary.tokens_per_step,
        "identical": int(same) if same.isdecimal() else None,
        "prompts": len(prompts),
        "prompt_tokens": statistics.mean(one.get("prompt_tokens", 0) for one in prompts),
        "new_tokens": statistics.mean(one["emitted"] for one in prompts),
        "compile_seconds": summary.compile_seconds,
        "weight_bytes": summary.weight_bytes,
        "cache_bytes": summary.cache_bytes,
        "device_weight_bytes": row.get("device_weight_bytes"),
        "device_cache_bytes": row.get("device_cache_bytes"),
        "temp_bytes": summary.temp_bytes,
        "peak_rss_bytes": summary.peak_rss_bytes,
        "bandwidth": summary.bandwidth,
        **summary.quality,
        "date": row.get("date"),
    }


def _json(value: Any) -> str | None:
    return None if value is None else json.dumps(value, sort_keys=True)

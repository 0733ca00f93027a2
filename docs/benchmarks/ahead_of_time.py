"""Compile the shapes of docs/scaling.md for machines that are not here, and keep the figures as data.

    python docs/benchmarks/ahead_of_time.py   # in an environment with jaxinfer[tpu], and in one with jaxinfer[cuda]

Rows of targets whose compiler is not installed stay as they are in ahead_of_time.json.
"""

import datetime
import json
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from jaxinfer.analysis.ahead_of_time import Account, Ask, study
from jaxinfer.analysis.hardware.system import cores, processor
from jaxinfer.checkpoint.presets import preset
from jaxinfer.sharding import MeshShape, topologies

FILE = Path(__file__).with_suffix(".json")
CASES: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    ("llama-3-8b", "v5e:2x2", "tensor=4", {"batch": 4, "context": 8192, "weights": "int8"}),
    ("llama-3-70b", "v5e:8x8", "data=1,tensor=64", {"batch": 16, "context": 8192}),
    ("llama-3-70b", "v6e:4x4", "data=2,tensor=8", {"batch": 16, "context": 8192}),
    ("llama-3-70b", "v5p:2x2x2", "tensor=8", {"batch": 16, "context": 8192}),
    ("llama-3-70b", "v4:2x2x2", "tensor=8", {"batch": 16, "context": 8192}),
    ("llama-3-70b", "tpu7x:2x2x1", "tensor=8", {"batch": 16, "context": 8192}),
    ("deepseek-v3", "v5e:16x16", "data=1,expert=16,tensor=16", {"batch": 16, "context": 4096}),
    ("llama-3-8b", "a100:1", "tensor=1", {"batch": 4, "context": 8192}),
    ("llama-3-70b", "a100:8", "tensor=8", {"batch": 16, "context": 8192}),
    ("llama-3-70b", "h100:8", "tensor=8", {"batch": 16, "context": 8192}),
    ("llama-3-70b", "h200:8", "tensor=8", {"batch": 16, "context": 8192}),
    ("llama-3-70b", "b200:8", "tensor=8", {"batch": 16, "context": 8192}),
)


def row(model: str, target: str, mesh: str, options: dict[str, Any], found: Account) -> dict[str, Any]:
    """Make a row of an account: GiB of a device, and seconds."""
    gib = {name: round(size / 2**30, 2) for name, size in (*found.bytes.items(), ("total", found.total))}
    predicted = found.predicted or {}
    decode = found.steps["decode"]
    return {
        "model": model,
        "target": target,
        "mesh": mesh,
        "batch": options["batch"],
        "context": options["context"],
        "weights": options.get("weights", "bfloat16"),
        "fits": "yes" if found.fits else "no",
        "weights_gib": gib["weights"],
        "cache_gib": gib["cache"],
        "temporaries_gib": gib["temporaries"],
        "total_gib": gib["total"],
        "limit_gib": round(found.limit / 2**30, 2),
        "predicted_gib": round(predicted["total"] / 2**30, 2) if predicted else None,
        "per_layer": sum(x.per_layer or 0 for x in decode.collectives),
        "seconds": round(sum(step.compile_seconds for step in found.steps.values()), 1),
    }


def main() -> None:
    """Compile what this environment can, and write the file."""
    kept = json.loads(FILE.read_text()) if FILE.exists() else {"rows": [], "versions": {}}
    rows = {(one["model"], one["target"], one["mesh"]): one for one in kept["rows"]}
    versions = dict(kept["versions"], jax=version("jax"))
    for model, target, mesh, options in CASES:
        if topologies.missing(target):
            continue
        print(model, target, mesh, file=sys.stderr, flush=True)
        found = study(Ask(preset(model), target, MeshShape.of(mesh), **options))
        versions |= {name: text for name, text in found.versions.items() if name != "jaxlib"}
        rows[model, target, mesh] = row(model, target, mesh, options, found)
    made = {
        "machine": f"{cores()} cores of {processor()}, no accelerator",
        "versions": versions,
        "date": datetime.date.today().isoformat(),
        "command": "python docs/benchmarks/ahead_of_time.py, once with jaxinfer[tpu] and once with jaxinfer[cuda]",
        "note": "Compiled, not run. A prefill of 512 tokens a row and the loop of decode steps; seconds are of both.",
        "rows": [rows[key] for key in ((m, t, s) for m, t, s, _ in CASES) if key in rows],
    }
    lines = ",\n".join("  " + json.dumps(one) for one in made.pop("rows"))
    head = ",\n".join(f" {json.dumps(name)}: {json.dumps(value)}" for name, value in made.items())
    FILE.write_text(f'{{\n{head},\n "rows": [\n{lines}\n ]\n}}\n')


if __name__ == "__main__":
    main()

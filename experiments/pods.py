"""Models on pods: the smallest slice that fits, the bytes that its collectives move, and scaling with more chips.

    jaxinfer run configs/pods.yaml
    jaxinfer run configs/pods.yaml "models=[llama-3-70b]" "targets=[v5e]" compiled=true

Everything is predicted by the roofline with the links of each slice; with `compiled` the programs of the smallest
slices are compiled for their targets, which proves that they fit. Nothing is measured, and no weight is read.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxinfer.analysis.planning import Goal, Option, Proof, family
from jaxinfer.analysis.planning.proving import compiled
from jaxinfer.analysis.planning.smallest import fastest, smallest
from jaxinfer.analysis.roofline.formats import kv_storage, weight_storage
from jaxinfer.analysis.roofline.shapes import config_of
from jaxinfer.errors import InputError
from jaxinfer.experiment import KINDS, Kind, Run, Table, script
from jaxinfer.experiment.curves import Line, chart
from jaxinfer.experiment.kind import Prompts, Row
from jaxinfer.host.values import FORBID_UNKNOWN_KEYS

GIB = 2**30
PROVER = compiled


@dataclass(frozen=True)
class Config:
    """The options of this experiment: see configs/pods.yaml."""

    name: str
    models: tuple[str, ...]
    targets: tuple[str, ...]
    weights: tuple[str, ...] = ("bfloat16", "int8", "int4")
    kv: str = "bfloat16"
    batch: int = 16
    rows_a_chip: int = 1
    prompt: int = 4096
    generate: int = 512
    context: int | None = None
    compiled: bool = False
    output: str = "runs"

    __pydantic_config__ = FORBID_UNKNOWN_KEYS

    def check(self) -> None:
        """Raise InputError for what is not known, and for sizes that cannot be."""
        for name in ("models", "targets", "weights"):
            if not getattr(self, name):
                raise InputError(f"{name}: give at least one")
        for target in self.targets:
            family(target)
        for weights in self.weights:
            weight_storage(weights)
        kv_storage(self.kv)
        if not 1 <= self.rows_a_chip < 2**20:
            raise InputError(f"rows_a_chip={self.rows_a_chip} must be a whole number from 1")
        goal = self.goal(self.batch)
        for model in self.models:
            positions = config_of(model).max_positions
            if goal.slots > positions:
                raise InputError(f"context={goal.slots} is more than the {positions} positions of {model}")

    def goal(self, batch: int) -> Goal:
        """Give the load with a batch."""
        return Goal(prompt=self.prompt, output=self.generate, context=self.context, batch=batch)


def items(config: Config, prompts: Prompts) -> dict[str, tuple[str, str]]:
    """List the models on the families."""
    return {f"{model} on {target}": (model, target) for model in config.models for target in config.targets}


def measure(item: tuple[str, str], run: Run) -> list[Row]:
    """Predict a model on a family: the smallest slice by format, and every slice with the same and with more load."""
    model, target = item
    config, machines, shape = run.config, family(target), config_of(model)
    goal, rows = config.goal(config.batch), []
    for weights in config.weights:
        found = smallest(shape, machines, goal, weights, config.kv)
        proof = PROVER(shape, found, goal) if found and config.compiled else None
        rows.append(row(item, "smallest", weights, found, proof))
        for slice_ in machines.slices:
            one = fastest(shape, machines, slice_, goal, weights, config.kv)
            more = config.goal(config.rows_a_chip * machines.chips(slice_))
            other = fastest(shape, machines, slice_, more, weights, config.kv)
            rows += [row(item, kind, weights, x, None) for kind, x in (("strong", one), ("weak", other)) if x]
    return rows


def row(item: tuple[str, str], kind: str, weights: str, one: Option | None, proof: Proof | None) -> Row:
    """Write an option as plain data: `predicted_` and `proved_` figures apart. kind: smallest, strong or weak."""
    found: dict[str, Any] = {"kind": kind, "model": item[0], "family": item[1], "weights": weights}
    names = ("target", "chips", "mesh", "batch", "microbatches")
    found |= dict.fromkeys(names)
    figures = ("bytes", "weights_bytes", "cache_bytes", "tpot", "ttft", "rate", "sent_a_token", "waited")
    found |= {f"predicted_{name}": None for name in figures}
    found |= {f"proved_{name}": None for name in ("fits", "bytes", "limit", "why")}
    if one is None:
        return found
    devices = one.mesh.size
    found |= {name: getattr(one, name) for name in names} | {"mesh": str(one.mesh)}
    found |= {f"predicted_{name}": getattr(one, name) for name in ("tpot", "ttft", "rate", "waited")}
    found |= {"predicted_bytes": one.total, "predicted_sent_a_token": one.sent * devices / one.batch}
    found |= {f"predicted_{name}_bytes": one.bytes[name] for name in ("weights", "cache")}
    if proof is not None:
        found |= {"proved_fits": proof.fits, "proved_bytes": proof.total, "proved_limit": proof.limit}
        found["proved_why"] = proof.why
    return found


def table(rows: Sequence[Row]) -> Table:
    """Show the smallest slices."""

    def or_none(name: str, write: str, scale: float = 1.0) -> Any:
        return lambda one: "" if one[name] is None else write.format(one[name] / scale)

    def fits(one: Row) -> str:
        if one["proved_limit"] is None:
            return "not compiled" if one["proved_why"] else ""
        return "fits" if one["proved_fits"] else "does not fit"

    return Table.of(
        [one for one in rows if one["kind"] == "smallest"],
        {
            "model": "{model}",
            "family": "{family}",
            "weights": "{weights}",
            "predicted smallest slice": lambda one: one["target"] or "none",
            "mesh": lambda one: one["mesh"] or "",
            "predicted GiB a device": or_none("predicted_bytes", "{:.1f}", GIB),
            "predicted ms a token": or_none("predicted_tpot", "{:.2f}", 1e-3),
            "predicted MB sent a token": or_none("predicted_sent_a_token", "{:.2f}", 1e6),
            "proved": fits,
            "proved GiB a device": or_none("proved_bytes", "{:.1f}", GIB),
        },
    )


def summary(run: Run) -> str:
    """Say what the figures are of."""
    config, goal = run.config, run.config.goal(run.config.batch)
    proved = "; the smallest slices are compiled for" if config.compiled else "; nothing is compiled"
    return (
        f"{goal.batch} requests of {goal.prompt} + {goal.output} tokens in {goal.slots} cache slots, kv in "
        f"{config.kv}: what the roofline and the links of each slice allow{proved}, and nothing is measured."
    )


def files(run: Run) -> dict[str, str]:
    """Give pods.json, and of each family the charts of strong and of weak scaling."""
    made = {"pods.json": json.dumps(list(run.rows), indent=1) + "\n"}
    for target in run.config.targets:
        for kind, (figure, label, scale) in SCALING.items():
            lines = scaling(run, target, kind, figure, scale)
            if lines:
                title = f"{kind} scaling on {target}, predicted"
                made[f"{kind}-{target.replace(':', '-')}.svg"] = chart(
                    title, "chips", f"{label} ({title})", lines, log=(True, True)
                )
    return made


SCALING = {
    "strong": ("predicted_tpot", "ms a token", lambda row: 1e3),
    "weak": ("predicted_rate", "new tokens a second and chip", lambda row: 1 / row["chips"]),
}
"""By kind: the figure, what it is called, and what it is multiplied by."""


def scaling(run: Run, target: str, kind: str, figure: str, scale: Any) -> list[Line]:
    """Give a line for each model, in the first format of weights of the config."""
    lines = []
    for color, model in enumerate(run.config.models):
        rows = [one for one in run.rows if (one["kind"], one["model"], one["family"]) == (kind, model, target)]
        rows = [one for one in rows if one["weights"] == run.config.weights[0]]
        points = [(one["chips"], one[figure] * scale(one)) for one in rows]
        if points:
            lines.append(Line(f"{model}, {run.config.weights[0]}", points, color))
    return lines


KINDS.add(
    "pods",
    Kind(
        Config,
        items,
        measure,
        table,
        check=Config.check,
        model=lambda config: None,
        summary=summary,
        files=files,
        unit="pair",
    ),
)

if __name__ == "__main__":
    script.run("pods", __doc__)

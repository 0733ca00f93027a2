"""The bytes on each device of a mesh, for the reports of runs."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxinfer.experiment.sheet import Table
from jaxinfer.experiment.table import size

COLUMNS = ("rows", "mesh", "weights", "cache")


def mesh_table(rows: Sequence[Mapping[str, Any]]) -> Table | None:
    """Tabulate the meshes of finished rows, and the most bytes that a device holds; None where no row has one."""
    found: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        if row.get("mesh"):
            sizes = (size(row["device_weight_bytes"]), size(row["device_cache_bytes"]))
            found.setdefault((row["mesh"], *sizes), []).append(row["name"])
    if not found:
        return None
    lines = [(", ".join(names[:3]) + (", ..." if names[3:] else ""), *key) for key, names in found.items()]
    return Table(COLUMNS, tuple(lines), "Bytes on each device")

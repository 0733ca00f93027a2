"""`jaxinfer list`: models, methods, policies and weight formats; from the second time on without JAX."""

import contextlib
import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from rich.table import Table

from jaxinfer.host.files import cache_dir, read_json, write_atomic

Catalog = dict[str, list[list[str]]]
PACKAGE = Path(__file__).parents[1]


def tables(make: Callable[[], Catalog]) -> list[Table]:
    """Draw what `jaxinfer list` prints. make: gives the catalog where none is kept of this very package."""
    kept = cache_dir()
    file = None if kept is None else kept / f"catalog-{_fingerprint()}.json"
    found: Catalog | None = None
    if file is not None and file.exists():
        with contextlib.suppress(ValueError):  # damaged, or half of it: it is made again
            found = read_json(file)
    if found is None:
        found = make()
        if file is not None:
            with contextlib.suppress(OSError):
                file.parent.mkdir(parents=True, exist_ok=True)
                for old in file.parent.glob("catalog-*.json"):
                    old.unlink()
                write_atomic(file, json.dumps(found))
    rows = {title: [tuple(row) for row in rows] for title, rows in found.items()}
    rows["models"] = [
        (name, "installed" if module and find_spec(module) else install, what)
        for name, module, install, what in found["models"]
    ]
    return [_listing(title, rows) for title, rows in rows.items()]


def _fingerprint() -> str:
    """Tell packages apart, without reading them: by the names, sizes and times of their files."""
    files = [(str(file.relative_to(PACKAGE)), file.stat()) for file in sorted(PACKAGE.rglob("*.py"))]
    stamps = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in files]
    return hashlib.sha256(repr((sys.version, str(PACKAGE), stamps)).encode()).hexdigest()[:16]


def _listing(title: str, rows: Sequence[tuple[str, ...]]) -> Table:
    found = Table(title=title, title_justify="left", title_style="bold", box=None, show_header=False, pad_edge=False)
    for index in range(len(rows[0]) if rows else 1):
        found.add_column(no_wrap=index == 0)
    for row in rows:
        found.add_row(*row)
    return found

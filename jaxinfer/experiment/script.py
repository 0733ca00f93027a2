"""What the scripts in experiments/ share: their frame, and the texts they read."""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from jaxinfer.caching import write_atomic
from jaxinfer.errors import InputError

INTERRUPTED = 130  # what a shell expects behind Ctrl-C


def run(main: Callable[..., None], usage: str | None) -> None:
    """Call `main` with the command line; bad input is one line and exit code 2, Ctrl-C is exit code 130."""
    if len(sys.argv) < 2:
        sys.exit(usage)
    try:
        main(*sys.argv[1:])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def table(rows: Sequence[Mapping[str, Any]], **columns: str) -> Table:
    """A line for each row: how each column is written of it. An underscore in a column's name is a space."""
    shown = Table(*(name.replace("_", " ") for name in columns), box=None)
    for row in rows:
        shown.add_row(*(text.format(**row) for text in columns.values()))
    return shown


def show(file: Path, *what: Any, width: int = 120) -> None:
    """Print a run's tables and its folder, and keep what was printed in a file of that folder."""
    with Console(record=True, highlight=False, width=max(Console().width, width)) as console:
        console.print(*what, str(file.parent), sep="\n")
    write_atomic(file, console.export_text())


def read_text(file: str, name: str) -> str:
    """A text file; `name` is the option or key that named it. Raises InputError if it cannot be read or is empty."""
    try:
        text = Path(file).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{name}: {file}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise InputError(f"{name}: {file}: cannot be read: {reason}") from None
    if not text.strip():
        raise InputError(f"{name}: {file}: is empty")
    return text

"""`jaxinfer compare`: finished runs side by side, as a table, a page or JSON."""

import json
import sys
from collections.abc import Sequence

from rich.console import Console

from jaxinfer.errors import InputError, shown_text
from jaxinfer.experiment import noise, sheet
from jaxinfer.experiment.compare_runs import compare
from jaxinfer.experiment.progress import stderr
from jaxinfer.host.files import path_of, write_atomic


def show(runs: Sequence[str], html: str | None = None, as_json: bool = False) -> None:
    """Print runs side by side, and write the page that `html` names. Raises InputError, OSError."""
    page = None if html is None else path_of(html, "--html")
    if page is not None and (page.is_dir() or not page.parent.is_dir()):
        raise InputError(f"--html: {shown_text(str(page))}: give a file in a folder that exists")
    found = compare(runs)
    if page is not None:
        write_atomic(page, found.html())
        stderr.print(f"report: {page}", markup=False, soft_wrap=True)
    for note in found.notes:
        stderr.print(note, markup=False, soft_wrap=True)
    if as_json:
        print(json.dumps(found.as_dict(), indent=1))
    elif sys.stdout.isatty():
        console = Console(highlight=False)
        for table in found.tables():
            console.print(sheet.terminal(table), "", sep="\n")
        for line in (*found.sentences, noise.RULE):
            console.print(line, markup=False)
    else:
        print(found.markdown(), end="")

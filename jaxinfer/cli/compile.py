"""`jaxinfer compile`: what the compiler of a machine that is not here makes of a model, as tables, JSON and a page."""

import json
from collections.abc import Mapping
from html import escape
from typing import Any

from jaxinfer.analysis.ahead_of_time import Account, Ask, saving, tables
from jaxinfer.analysis.ahead_of_time.studying import account, build
from jaxinfer.analysis.hlo.render import rich_tables
from jaxinfer.analysis.roofline.shapes import config_of
from jaxinfer.cli.options import method_of, policy_of
from jaxinfer.errors import InputError
from jaxinfer.experiment.html_table import table_html
from jaxinfer.experiment.page import document
from jaxinfer.experiment.progress import stderr, table_console
from jaxinfer.experiment.sheet import Table
from jaxinfer.host.files import path_of, write_atomic
from jaxinfer.sharding import MeshShape
from jaxinfer.sharding.topologies import slice_of

DOES_NOT_FIT = 1  # the exit code


def run(given: Mapping[str, Any]) -> int:
    """Do what the command's options ask for. Returns the exit code. Raises InputError."""
    ask = asked(given)

    def say(text: str) -> None:
        stderr.print(text, markup=False, soft_wrap=True)

    for name in ("json", "html", "save"):
        if given[name] not in (None, "-") and not path_of(given[name], f"--{name}").absolute().parent.is_dir():
            raise InputError(f"--{name}: {given[name]}: there is no such folder to write in")
    built = build(ask, say)
    found = account(ask, built)
    figures = json.dumps({"model": given["model"], **found.json()}, indent=1)
    if given["json"] == "-":
        print(figures)
    else:
        console = table_console()
        console.print(rich_tables(tables.verdict(found), tables.sections(found)))
        if given["json"]:
            write_atomic(path_of(given["json"], "--json"), figures + "\n")
    if given["html"]:
        write_atomic(path_of(given["html"], "--html"), page(given["model"], found))
    if given["save"] and found.refused is None:
        say(f"executable: {saving.save(given['save'], ask, built, say)}")
    return 0 if found.fits else DOES_NOT_FIT


def asked(given: Mapping[str, Any]) -> Ask:
    """Make an `Ask` of the command's options. Raises InputError."""
    devices = slice_of(given["target"])
    mesh = MeshShape.of(f"tensor={devices.size}" if given["mesh"] is None else given["mesh"])
    names = ("target", "batch", "context", "prompt", "weights", "dtype", "pad_heads")
    steps = tuple(dict.fromkeys(part.strip() for part in given["steps"].split(",") if part.strip()))
    return Ask(
        config=config_of(given["model"]),
        mesh=mesh,
        policy=policy_of(given["policy"]),
        method=method_of(given["method"]),
        steps=steps,
        **{name: given[name] for name in names},
    )


def page(model: str, found: Account) -> str:
    """Write an account as a page that needs nothing else."""
    title = f"{model} on {found.asked['target']}"
    parts = [f"<h1>{escape(title)}</h1><p class=lead>{escape(tables.verdict(found))}</p>", bar(found)]
    for number, (name, headers, rows) in enumerate(tables.sections(found)):
        if rows:
            table = table_html(Table(headers, tuple(rows)))
            parts.append(f'<section id="part{number}"><h2>{escape(name)}</h2>{table}</section>')
    options = ", ".join(f"{name} {value}" for name, value in found.asked.items())
    versions = ", ".join(f"{name} {value}" for name, value in found.versions.items())
    note = "Bytes are those of the compiled programs; times are bounds of the roofline, and none was measured."
    parts.append(f"<p class=note>{escape(f'{note} Asked: {options}. Compiled by {versions}.')}</p>")
    return document(title, parts)


def bar(found: Account) -> str:
    """Draw the bytes of a device as one bar, as long as its memory or as what it would need."""
    whole = max(found.limit, found.total) or 1
    parts = [(kind, size) for kind, size in found.bytes.items() if size]
    pieces = "".join(
        f'<i class=color{i % 6} style="flex:{size / whole:.5f}" title="{escape(kind)}"></i>'
        for i, (kind, size) in enumerate(parts)
    )
    free = f'<i style="flex:{1 - found.total / whole:.5f}"></i>' if found.total < whole else ""
    legend = "".join(
        f"<li><i class=color{i % 6}></i>{escape(kind)} <b>{size / 2**30:.2f} GiB</b></li>"
        for i, (kind, size) in enumerate(parts)
    )
    limit = f"<li>of {found.limit / 2**30:.2f} GiB</li>"
    return f"<figure><div class=stacked>{pieces}{free}</div><ul class=legend>{legend}{limit}</ul></figure>"

"""The pages that a run leaves for readers: table.md, and report.html, which loads nothing from anywhere.

Both are rewritten after every item, so they are there whenever a run stops.
"""

import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from jaxinfer.experiment import ledger_section, sheet
from jaxinfer.experiment.html_table import table_html as table_html
from jaxinfer.experiment.sheet import Table
from jaxinfer.experiment.table import size
from jaxinfer.sharding import MeshShape

NONE_YET = "Nothing is finished yet."


def pages(run: Any, tables: Sequence[Table], files: Mapping[str, str], summary: str | None) -> dict[str, str]:
    """Make table.md and report.html of any kind of experiment: its sentence, its tables and its charts."""
    title, lead = run.config.name, summary or ("" if tables else NONE_YET)
    parts = [f"# {title}", lead, *(sheet.markdown(table).rstrip() for table in tables)]
    on_mesh = _mesh(run.model)
    parts += [on_mesh] if on_mesh else []
    charts = [text for name, text in files.items() if name.endswith(".svg")]
    sections = [
        f"<h1>{escape(title)}</h1><p class=lead>{escape(lead)}</p>",
        f"<p>{escape(on_mesh)}</p>" if on_mesh else "",
        *map(table_html, tables),
        *(f"<figure>{chart}</figure>" for chart in charts),
        ledger_section.section(run.rows),
    ]
    return {"table.md": "\n\n".join(filter(None, parts)) + "\n", "report.html": html(title, sections, run.folder)}


def _mesh(model: Any) -> str | None:
    """Say what a run's model is spread over, and the bytes that a device holds of it."""
    layout = getattr(model, "layout", None)
    if layout is None:
        return None
    most = max(model.bytes_by_device().values(), default=0)
    return f"Spread over the mesh {MeshShape.of(dict(layout.mesh.shape))}: {size(most)} of weights on each device."


def html(title: str, sections: Sequence[str], folder: Path) -> str:
    """Make one page, styles and charts inline, which ends with the config and the versions that a run folder holds.

    `sections` are HTML; the rest is escaped.
    """
    config, versions = (
        escape((folder / name).read_text(encoding="utf-8")) for name in ("config.yaml", "versions.json")
    )
    ending = (
        f'<section id="how"><h2>How it was run</h2><details><summary>Config</summary><pre>{config}</pre></details>'
        f"<details><summary>Versions and machine</summary><pre>{versions}</pre></details></section>"
    )
    return document(title, [*sections, ending])


def document(title: str, sections: Sequence[str]) -> str:
    """Make a page of HTML sections, with its style and its script inline; nothing is loaded from anywhere."""
    style, script = (
        (resources.files("jaxinfer") / "experiment" / name).read_text(encoding="utf-8")
        for name in ("report.css", "report.js")
    )
    named = re.findall(r'<section id="(\w+)"[^>]*>(?:<h2>([^<]+)</h2>)', "\n".join(sections))
    links = "".join(f'<a href="#{name}">{heading}</a>' for name, heading in named)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" '
        f'content="light dark"><title>{escape(title)}</title>\n<style>\n{style}</style></head>\n<body>'
        + (f'<nav aria-label="Sections"><div>{links}</div></nav>' if len(named) > 2 else "")
        + "<main>\n"
        + "\n".join(filter(None, sections))
        + f"\n</main><script>\n{script}</script></body></html>\n"
    )

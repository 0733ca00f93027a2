"""A table as HTML, which a page's script makes sortable; without the script it reads as it stands."""

from collections.abc import Callable
from html import escape

from jaxinfer.experiment.sheet import Table


def table_html(table: Table, note: str = "", style: Callable[[str], str] = lambda text: "") -> str:
    """Write a table as HTML, below its title and above a note. style: gives the CSS class of a cell's text, or none."""
    head = "".join(f"<th scope=col>{escape(header)}</th>" for header in table.columns)
    body = ""
    for first, *rest in table.rows:
        figures = "".join(f"<td{_class(style(cell))}>{escape(cell)}</td>" for cell in rest)
        body += f"<tr><th scope=row>{escape(first)}</th>{figures}</tr>"
    title = f"<h2>{escape(table.title)}</h2>" if table.title else ""
    below = f"<p class=note>{escape(note)}</p>" if note else ""
    box = f'<div class=scroll tabindex=0 role=region aria-label="{escape(table.title or "Table")}">'
    return f"{title}{box}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{below}"


def _class(name: str) -> str:
    return f" class={name}" if name else ""

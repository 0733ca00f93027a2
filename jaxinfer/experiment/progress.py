"""Say what is waited for, on standard error, while a model loads."""

import contextlib
import sys
import threading
from collections.abc import Iterator

from rich.console import Console
from rich.markup import escape

import jaxinfer
from jaxinfer.errors import shown_text
from jaxinfer.experiment import attachments
from jaxinfer.experiment.schema import ExtraSpec
from jaxinfer.experiment.spread import Spread
from jaxinfer.sharding import MeshShape, meshes

SHORT = 1.0  # seconds of waiting that need no line

stderr = Console(stderr=True, highlight=False)
WIDE = 200  # columns of tables in a file or a pipe, where rows stay whole


def table_console() -> Console:
    """Give a console for tables on standard output: as wide as the terminal, or `WIDE` without one."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else WIDE)


def load_model(
    source: str,
    dtype: str | None,
    weights: str | None = None,
    draft: str | None = None,
    tokenizer: str | None = None,
    spread: Spread | None = None,
):
    """Do `jaxinfer.load` with a line on the terminal meanwhile; a draft model is attached, and spread like it."""
    with waiting(f"loading {shown_text(source)}"):
        if spread is not None and draft is None:  # a draft may be layers of the model, which are taken of it whole
            model, spread = (
                jaxinfer.load(source, dtype, weights, tokenizer, mesh=spread.mesh(), rules=spread.rules),
                None,
            )
        else:
            model = jaxinfer.load(source, dtype, weights, tokenizer)
        model = attachments.attach(model, source, {"draft": ExtraSpec(draft)} if draft else {})
        model = model if spread is None else spread.over(model)
    spread_over(model)
    return model


def spread_over(model) -> None:
    """Say, dimmed, what devices a model lies on where these are virtual, and what of it they could not split."""
    layout = getattr(model, "layout", None)
    if layout is None:
        return
    mesh, lines = layout.mesh, list(model.layout_notes)
    if meshes.virtual(mesh):
        lines.insert(0, f"mesh {MeshShape.of(dict(mesh.shape))}: {mesh.size} virtual devices of one CPU")
    for line in lines:
        stderr.print(line, style="dim", markup=False, soft_wrap=True)


@contextlib.contextmanager
def waiting(what: str) -> Iterator[None]:
    """Say what is waited for: on a terminal at once and until it is there, elsewhere in a line if it takes a while."""
    if stderr.is_terminal:
        with stderr.status(escape(what)):
            yield
        return
    timer = threading.Timer(SHORT, lambda: stderr.print(what, markup=False, soft_wrap=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()

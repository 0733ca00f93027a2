"""Say what is waited for, on standard error, while a model loads."""

import contextlib
import threading
from collections.abc import Iterator

from rich.console import Console
from rich.markup import escape

import jaxinfer
from jaxinfer.errors import shown_text
from jaxinfer.experiment import attachments
from jaxinfer.experiment.schema import ExtraSpec

SHORT = 1.0  # seconds of waiting that need no line

stderr = Console(stderr=True, highlight=False)


def load_model(
    source: str, dtype: str | None, weights: str | None = None, draft: str | None = None, tokenizer: str | None = None
):
    """Do `jaxinfer.load` with a line on the terminal meanwhile; a draft model is attached."""
    with waiting(f"loading {shown_text(source)}"):
        model = jaxinfer.load(source, dtype, weights, tokenizer)
        return attachments.attach(model, source, {"draft": ExtraSpec(draft)} if draft else {})


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

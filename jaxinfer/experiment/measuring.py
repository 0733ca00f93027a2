"""Measuring one item of an experiment: its line of rows.jsonl, or that of its failure."""

import gc
import json
from typing import Any

from jaxinfer.errors import InputError, shown, shown_text
from jaxinfer.experiment.kind import Kind, Run
from jaxinfer.host import processes
from jaxinfer.runtime import compiled

OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "MemoryError")
LONGEST_ERROR = 300  # characters of what is kept of one


def measured(kind: Kind, name: str, item: Any, run: Run) -> dict[str, Any]:
    """Measure an item: its line of rows.jsonl, or that of its failure, where its kind goes on after one."""
    try:
        return _plain(kind.line(name, kind.measure(item, run)), name)
    except Exception as error:
        alone = processes.count() > 1 and not isinstance(error, InputError)  # others wait for what this one left
        if kind.failure is None or alone:
            raise
        problem = _one_line(error)
    if any(word in problem for word in OUT_OF_MEMORY):  # which is not held while the others are measured
        compiled.clear()
        gc.collect()
    return failure(kind, name, item, problem)


def failure(kind: Kind, name: str, item: Any, problem: str) -> dict[str, Any]:
    """Give the line of an item that failed."""
    return {kind.key or "item": name, "error": problem, **(kind.failure(item) if kind.failure else {})}


def _one_line(error: Exception) -> str:
    """Say in one line what went wrong: an InputError is such a line, other exceptions are named too."""
    text = shown_text(" ".join(str(error).split()), LONGEST_ERROR)
    return text if isinstance(error, InputError) else f"{type(error).__name__}: {text}".removesuffix(": ")


def _plain(line: dict[str, Any], name: str) -> dict[str, Any]:
    """Give the line as it will be read again. Raises InputError for a figure that JSON has not."""
    try:
        return json.loads(json.dumps(line, allow_nan=False, default=_scalar))
    except (ValueError, TypeError) as error:
        raise InputError(f"{shown(name)}: what was measured is no plain data: {error}") from None


def _scalar(value: Any) -> Any:
    """Turn a number of numpy or JAX into one of Python."""
    if getattr(value, "ndim", None) == 0:
        return value.item()
    raise TypeError(f"a {type(value).__name__} cannot be written as JSON")

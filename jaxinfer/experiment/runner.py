"""Measuring the items of an experiment, one after the other, whatever its kind.

After each item all files of the run folder are whole on disk, so an interruption (Ctrl-C, TERM, a full disk) costs the
item under way and no more, and what is finished is not measured again when the run goes on.
"""

import dataclasses
import gc
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from jaxinfer.compress import extend_context
from jaxinfer.errors import InputError, shown, shown_text
from jaxinfer.experiment import results
from jaxinfer.experiment.bars import Bars
from jaxinfer.experiment.finished import is_failed, name_of
from jaxinfer.experiment.kind import Kind, Prompts, Run
from jaxinfer.experiment.schema import ModelSpec
from jaxinfer.experiment.spread import Spread
from jaxinfer.host.files import write_atomic
from jaxinfer.runtime import compiled

OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "MemoryError")
LONGEST_ERROR = 300  # characters of what is kept of one


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a run: what is kept, and where."""

    def __init__(self, folder: Path, done: int, total: int, unit: str = "row"):
        super().__init__(f"{done} of {total} {unit}s are done")
        self.folder, self.done, self.total = folder, done, total


class Unwritten(OSError):
    """Something of a run could not be written, such as on a full disk: what is kept, and where."""

    def __init__(self, error: OSError, folder: Path, done: int, total: int, unit: str = "row"):
        super().__init__(error.errno, f"{error.strerror}; {done} of {total} {unit}s are done", str(folder))
        self.folder, self.done, self.total = folder, done, total


def measure(
    kind: Kind,
    config: Any,
    model: Any = None,
    prompts: Prompts = (),
    heading: Mapping[str, Any] | None = None,
    resume: Path | None = None,
    console: Console | None = None,
) -> Run:
    """Measure the items of a config in order, in a new run folder or in `resume`, whose finished items are kept.

    `model` is what the config asks for, with its extras and context. heading: what config.yaml says above the config.
    Raises Interrupted, Unwritten; InputError, before anything is written, for whatever keeps the config from being
    measured on this model, and for a folder that another process writes. Where the kind says so, an exception in an
    item is kept as a line of its own, and the others go on.
    """
    items = kind.items(config, prompts)
    ready = kind.prepare(config, model, prompts)
    with results.opened(config, resume, heading) as folder:
        found = results.read_lines(folder, kind.finished)
        lines, failed = [one for one in found if not is_failed(one)], [one for one in found if is_failed(one)]
        run = Run(config, folder, model, prompts, ready, kind.rows(lines), failed)
        names = {line[kind.key or "item"] for line in lines}
        total = len(items)
        try:
            _write(kind, run, len(lines), total)
            with Bars(console, kind.unit, len(lines), total) as bars:
                run = dataclasses.replace(run, say=bars.say, expect=bars.expect, tick=bars.tick)
                for number, (name, item) in enumerate(items.items(), start=1):
                    if name in names:
                        continue
                    notes = filter(None, (kind.note(item, run), bars.remaining()))
                    bars.begin(name, ": ".join([f"{kind.unit} {number} of {total}: {name}", *notes]))
                    line = _measured(kind, name, item, run)
                    failed = [one for one in failed if name_of(one) != name]
                    _append(kind, folder, line, len(lines), total)
                    (failed if is_failed(line) else lines).append(line)
                    run = dataclasses.replace(run, rows=kind.rows(lines), failures=failed)
                    if is_failed(line):
                        bars.say(f"{name}: failed: {line['error']}")
                    _write(kind, run, len(lines), total)
                    bars.end()
                bars.close()
        except KeyboardInterrupt:
            kept = len(results.read_rows(folder, kind.finished))  # perhaps one more than `lines` knows
            raise Interrupted(folder, kept, total, kind.unit) from None
    return run


def _measured(kind: Kind, name: str, item: Any, run: Run) -> dict[str, Any]:
    """Measure an item: its line of rows.jsonl, or that of its failure, where its kind goes on after one."""
    try:
        return _plain(kind.line(name, kind.measure(item, run)), name)
    except Exception as error:
        if kind.failure is None:
            raise
        kept, problem = kind.failure(item), _one_line(error)
    if any(word in problem for word in OUT_OF_MEMORY):  # which is not held while the others are measured
        compiled.clear()
        gc.collect()
    return {kind.key or "item": name, "error": problem, **kept}


def _one_line(error: Exception) -> str:
    """Say in one line what went wrong: an InputError is such a line, other exceptions are named too."""
    text = shown_text(" ".join(str(error).split()), LONGEST_ERROR)
    return text if isinstance(error, InputError) else f"{type(error).__name__}: {text}".removesuffix(": ")


def extended(model: Any, spec: ModelSpec) -> Any:
    """Give the loaded model the context, and lay it on the mesh, that its spec asks for. Raises InputError."""
    if spec.context is not None:
        try:
            model = extend_context(model, spec.context.kind, spec.context.factor)
        except InputError as error:
            raise InputError(f"model.context: {error}") from None
    wanted = Spread.of_model(spec)
    return model if wanted is None else wanted.over(model)


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


def _append(kind: Kind, folder: Path, line: dict[str, Any], done: int, total: int) -> None:
    try:
        results.append_row(folder, line, kind.finished)
    except OSError as error:
        raise Unwritten(error, folder, done, total, kind.unit) from None


def _write(kind: Kind, run: Run, done: int, total: int) -> None:
    """Write what readers are left: the kind's own files, table.md and report.html."""
    files = dict(kind.files(run) or {}) if run.rows else {}
    summary = kind.summary(run) if run.rows else None
    pages = kind.pages(run, kind.tables(run.rows, run.failures), files, summary)
    try:
        for name, text in (files | dict(pages)).items():
            write_atomic(run.folder / name, text)
    except OSError as error:
        raise Unwritten(error, run.folder, done, total, kind.unit) from None

"""Measuring the items of an experiment, one after the other, whatever its kind.

After each item all files of the run folder are whole on disk, so an interruption (Ctrl-C, TERM, a full disk) costs the
item under way and no more, and what is finished is not measured again when the run goes on.
"""

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from jaxinfer.compress import extend_context
from jaxinfer.errors import InputError
from jaxinfer.experiment import results
from jaxinfer.experiment.bars import Bars
from jaxinfer.experiment.executors import HERE, Executor, Lost, Work
from jaxinfer.experiment.finished import is_failed
from jaxinfer.experiment.kind import Kind, Prompts, Run
from jaxinfer.experiment.schema import ModelSpec
from jaxinfer.experiment.spread import Spread
from jaxinfer.host import processes
from jaxinfer.host.files import write_atomic


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
    executor: Executor = HERE,
) -> Run:
    """Measure the items of a config in order, in a new run folder or in `resume`, whose finished items are kept.

    `model` is what the config asks for, with its extras and context. heading: what config.yaml says above the config.
    executor: what measures them; by default this process. Of a run of several processes each measures them, and process
    0 alone has a folder. Raises Interrupted, Unwritten; InputError, before anything is written, for whatever keeps the
    config from being measured on this model, and for a folder that another process writes. Where the kind says so, an
    exception in an item is kept as a line of its own, and the others go on.
    """
    items = kind.items(config, prompts)
    work = executor.begin(kind, config, model, prompts, heading, items)
    if not processes.is_first():
        return _followed(work, Run(config, Path("another process's"), model, prompts, work.ready))
    with contextlib.ExitStack() as open_:
        open_.callback(work.end)
        folder = open_.enter_context(results.opened(config, resume, heading))
        found = processes.of_first(results.read_lines(folder, kind.finished))
        total = len(items)
        work.take(found, Run(config, folder, model, prompts, work.ready))
        try:
            _write(kind, work.run, len(work.lines), total)
            with Bars(console, kind.unit, len(work.lines), total) as bars:
                work.bars = bars
                work.run = dataclasses.replace(work.run, say=bars.say, expect=bars.expect, tick=bars.tick)
                for name, measured in executor.measured(work):
                    line = processes.of_first(measured)
                    _append(kind, folder, line, len(work.lines), total)
                    work.add(line)
                    if is_failed(line):
                        bars.say(f"{name}: failed: {line['error']}")
                    _write(kind, work.run, len(work.lines), total)
                    bars.end()
                bars.close()
        except KeyboardInterrupt:
            kept = len(results.read_rows(folder, kind.finished))  # perhaps one more than `lines` knows
            raise Interrupted(folder, kept, total, kind.unit) from None
        except Lost as error:
            raise Unwritten(error, folder, len(work.lines), total, kind.unit) from None
    return work.run


def _followed(work: Work, run: Run) -> Run:
    """Measure the same items as process 0, which alone writes."""
    work.take(processes.of_first(None), run)
    for _, line in HERE.measured(work):
        work.add(processes.of_first(line))
    return work.run


def extended(model: Any, spec: ModelSpec) -> Any:
    """Give the loaded model the context, and lay it on the mesh, that its spec asks for. Raises InputError."""
    if spec.context is not None:
        try:
            model = extend_context(model, spec.context.kind, spec.context.factor)
        except InputError as error:
            raise InputError(f"model.context: {error}") from None
    wanted = Spread.of_model(spec)
    return model if wanted is None else wanted.over(model)


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

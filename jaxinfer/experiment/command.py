"""`jaxinfer run`: a config of any kind, from the command line to its table."""

import contextlib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from jaxinfer.errors import InputError, shown_text
from jaxinfer.experiment import attachments, kinds, results, runner, sheet
from jaxinfer.experiment.kind import Kind
from jaxinfer.experiment.progress import load_model, stderr, waiting
from jaxinfer.experiment.prompts import load_prompts
from jaxinfer.experiment.runner import Interrupted, Unwritten
from jaxinfer.host.files import path_of
from jaxinfer.sharding import MeshShape

FAILED = 1  # exit code of a run of which a row failed, or whose kind calls it failed


def run_config(
    config_file: str,
    arguments: Sequence[str],
    resume: bool = False,
    plugin_files: Sequence[str] = (),
    default: str = kinds.DEFAULT,
    command: Sequence[str] = ("jaxinfer", "run"),
    mesh: MeshShape | None = None,
) -> int:
    """Measure a config; everything is checked before the model is loaded. Returns the exit code.

    Arguments are overrides; with `resume`, one of them may be the run folder to go on with. default: the kind of a
    config that names none; command: how this was called, for the line that says how to go on. mesh: over which the
    model is spread; None: over none. Raises InputError, Interrupted, OSError.
    """
    folders = [argument for argument in arguments if resume and _is_folder(argument)]
    overrides = [argument for argument in arguments if argument not in folders]
    asked = kinds.read(config_file, overrides, plugin_files, default)
    kind, config = asked.kind, asked.config
    prompts = load_prompts(config.prompts, Path(config_file).parent) if hasattr(config, "prompts") else ()
    if not kind.items(config, prompts):
        raise InputError(f"{shown_text(config_file)}: there is nothing to measure in it")
    results.check_writable(config.output)
    if len(folders) > 1:
        raise InputError(f"--resume: takes one run folder, got {shown_text(', '.join(folders))}")
    folder = None
    if resume:
        folder = path_of(folders[0], "--resume") if folders else results.newest_run(config)
        results.check_same(folder, config, kind.texts(config, prompts), asked.heading, kind.finished)
    model = _load(kind, config)
    model = model if mesh is None or model is None else model.shard(mesh.on())

    def to_go_on(folder: Path) -> str:
        options = [option for file in plugin_files for option in ("--plugin", file)]
        return shlex.join([*command, config_file, *overrides, *options, "--resume", str(folder)])

    try:
        run = runner.measure(kind, config, model, prompts, asked.heading, folder, stderr)
    except Interrupted as stop:
        message = f"interrupted: {stop}; to go on: {to_go_on(stop.folder)}"
        stderr.print(message, markup=False, soft_wrap=True)
        raise
    except Unwritten as stop:
        raise OSError(stop.errno, f"{stop.strerror}; to go on: {to_go_on(stop.folder)}", stop.filename) from None
    if summary := kind.summary(run):
        stderr.print(summary, markup=False, soft_wrap=True)
    _print(kind.tables(run.rows, run.failures))
    if run.failures:
        count, total = len(run.failures), len(run.failures) + len(run.rows)
        message = f"{count} of {total} {kind.unit}s failed; --resume tries them again: {to_go_on(run.folder)}"
        stderr.print(message, markup=False, soft_wrap=True)
    stderr.print(f"report: {run.folder / 'report.html'}", markup=False, soft_wrap=True)
    return FAILED if run.failures or kind.failed(run.rows) else 0


def _load(kind: Kind, config: Any) -> Any:
    """Load the model that the config asks for, with its extras and its context; None where it asks for none."""
    spec, extras = kind.model(config), getattr(config, "extras", {})
    if spec is None:
        return None
    model = load_model(spec.source, spec.dtype, spec.weights, tokenizer=spec.tokenizer)
    if extras:
        with waiting(f"loading {', '.join(extras)}"):
            model = attachments.attach(model, spec.source, extras)
    return runner.extended(model, spec)


def _print(tables: Sequence[sheet.Table]) -> None:
    if sys.stdout.isatty():
        console = Console(highlight=False)
        for number, table in enumerate(tables):
            console.print(*([""] if number else []), sheet.terminal(table), sep="\n")
    else:
        print("\n".join(map(sheet.markdown, tables)), end="")


def _is_folder(argument: str) -> bool:
    with contextlib.suppress(InputError):
        return "=" not in argument or path_of(argument).is_dir()
    return False

"""`jaxinfer run`: a config of any kind, from the command line to its table."""

import contextlib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from jaxinfer.errors import InputError, shown_text
from jaxinfer.experiment import kinds, loading, results, runner, sheet, spread
from jaxinfer.experiment.executors import HERE
from jaxinfer.experiment.executors.named import named
from jaxinfer.experiment.progress import stderr
from jaxinfer.experiment.prompts import load_prompts
from jaxinfer.experiment.runner import Interrupted, Unwritten
from jaxinfer.host import processes
from jaxinfer.host.files import path_of

FAILED = 1  # exit code of a run of which a row failed, or whose kind calls it failed


def run_config(
    config_file: str,
    arguments: Sequence[str],
    resume: bool = False,
    plugin_files: Sequence[str] = (),
    default: str = kinds.DEFAULT,
    command: Sequence[str] = ("jaxinfer", "run"),
    on: str | None = None,
    spread_over: spread.Spread | None = None,
) -> int:
    """Measure a config; everything is checked before the model is loaded. Returns the exit code.

    Arguments are overrides; with `resume`, one of them may be the run folder to go on with. default: the kind of a
    config that names none; command: how this was called, for the line that says how to go on; on: what measures it, see
    `executors.named`; spread_over: the mesh that the model is put on once it is loaded. Raises InputError, Interrupted,
    OSError.
    """
    executor = named(on)
    here = executor is HERE
    folders = [argument for argument in arguments if resume and _is_folder(argument)]
    overrides = [argument for argument in arguments if argument not in folders]
    asked = kinds.read(config_file, overrides, plugin_files, default, here)
    kind, config = asked.kind, asked.config
    if processes.count() > 1 and (kind.units is None or not here):
        what = "a config of this kind" if here else f"--on {on}"
        raise InputError(f"{what} runs in one process, and this run has {processes.count()}")
    spread.check(kind.model(config))  # before anything asks JAX for its devices
    prompts = load_prompts(config.prompts, Path(config_file).parent) if hasattr(config, "prompts") else ()
    if not kind.items(config, prompts):
        raise InputError(f"{shown_text(config_file)}: there is nothing to measure in it")
    if processes.is_first():
        results.check_writable(config.output)
    if len(folders) > 1:
        raise InputError(f"--resume: takes one run folder, got {shown_text(', '.join(folders))}")
    folder = None
    if resume and processes.is_first():
        folder = path_of(folders[0], "--resume") if folders else results.newest_run(config)
        results.check_same(folder, config, kind.texts(config, prompts), asked.heading, kind.finished)
    model = loading.load(kind, config) if here else None
    if spread_over is not None and model is not None and model.layout is None:
        model = spread_over.over(model)

    def to_go_on(folder: Path) -> str:
        options = [option for file in plugin_files for option in ("--plugin", file)] + (["--on", on] if on else [])
        return shlex.join([*command, config_file, *overrides, *options, "--resume", str(folder)])

    try:
        run = runner.measure(kind, config, model, prompts, asked.heading, folder, stderr, executor)
    except Interrupted as stop:
        message = f"interrupted: {stop}; to go on: {to_go_on(stop.folder)}"
        stderr.print(message, markup=False, soft_wrap=True)
        raise
    except Unwritten as stop:
        raise OSError(stop.errno, f"{stop.strerror}; to go on: {to_go_on(stop.folder)}", stop.filename) from None
    if not processes.is_first():
        return FAILED if run.failures or kind.failed(run.rows) else 0
    if summary := kind.summary(run):
        stderr.print(summary, markup=False, soft_wrap=True)
    _print(kind.tables(run.rows, run.failures))
    if run.failures:
        count, total = len(run.failures), len(run.failures) + len(run.rows)
        message = f"{count} of {total} {kind.unit}s failed; --resume tries them again: {to_go_on(run.folder)}"
        stderr.print(message, markup=False, soft_wrap=True)
    stderr.print(f"report: {run.folder / 'report.html'}", markup=False, soft_wrap=True)
    return FAILED if run.failures or kind.failed(run.rows) else 0


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

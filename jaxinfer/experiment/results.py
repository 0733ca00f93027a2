"""The folder of one run.

    runs/<name>-<YYYYmmdd-HHMMSS>/
      config.yaml     the config with every default filled in
      versions.json   the software and the machine
      rows.jsonl      one line a finished row, or item: the raw measurement (see passes.measure, kind.Kind); one that
                      failed is {"name": ..., "error": ...}
      results.jsonl   of the kind `rows`: the same in one flat object a row (see `flat`)
      table.md, report.html, and what else the kind writes
      .lock           while a process writes here

The folder appears with config.yaml and versions.json in it, and every file is replaced in one step, so that it is whole
whatever happens.
"""

import contextlib
import dataclasses
import errno
import importlib.metadata
import itertools
import json
import os
import platform
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import yaml

import jaxinfer
from jaxinfer.errors import InputError, shown, shown_text
from jaxinfer.experiment import lock
from jaxinfer.experiment.finished import Check, check
from jaxinfer.experiment.finished import append_row as append_row
from jaxinfer.experiment.finished import read_lines as read_lines
from jaxinfer.experiment.finished import read_rows as read_rows
from jaxinfer.experiment.merge import first_difference, show
from jaxinfer.host.files import draft_of, path_of, read_json, read_text, sweep
from jaxinfer.host.yaml_text import parse

FILES = ("config.yaml", "versions.json")  # what makes a run folder one


def check_writable(output: str, name: str = "output") -> None:
    """Make sure that folders can be made below `output`, and leave no trace. `name`: its key. Raises InputError."""
    folder = path_of(output, name)
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".probe-"):
            pass
    except OSError as error:
        raise _unwritable(output, error, name) from None
    finally:
        with contextlib.suppress(OSError):  # the first that was not made, or that another run has begun to use
            for parent in missing:
                parent.rmdir()


class Config(Protocol):
    """The part of a config of any kind that gives its run a folder; a frozen dataclass."""

    @property
    def name(self) -> str:
        """Name the folder."""

    @property
    def output(self) -> str:
        """Give the folder that it is made in."""


def mapping_of(config: Any, heading: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Give the whole config as plain data, below what stands above it, such as its kind."""
    return {**(heading or {}), **json.loads(json.dumps(dataclasses.asdict(config)))}


@contextlib.contextmanager
def opened(config: Config, resume: Path | None = None, heading: Mapping[str, Any] | None = None) -> Iterator[Path]:
    """Open the folder of a run, `resume` or a fresh one, held while it is written: see `lock`.

    heading: see `mapping_of`. A fresh one is there as a whole or not at all. What processes that were killed have left
    is removed. Raises InputError if the folder cannot be made, or another process writes it.
    """
    folder, taken = (resume, lock.take(resume)) if resume else _made(config, heading)
    try:
        sweep(folder)
        yield folder
    finally:
        lock.release(folder, taken)


def _made(config: Config, heading: Mapping[str, Any] | None) -> tuple[Path, int]:
    output = path_of(config.output, "output")
    stem = f"{config.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    draft, taken = draft_of(output / stem), None
    try:
        output.mkdir(parents=True, exist_ok=True)
        sweep(output)
        draft.mkdir()
        taken = lock.take(draft)
        text = yaml.safe_dump(_portable(mapping_of(config, heading)), sort_keys=False, width=120)
        (draft / "config.yaml").write_text(text, encoding="utf-8")
        (draft / "versions.json").write_text(json.dumps(versions(), indent=2) + "\n", encoding="utf-8")
        for attempt in itertools.count(1):
            run = output / (stem if attempt == 1 else f"{stem}-{attempt}")
            if not run.exists():
                with contextlib.suppress(FileExistsError, NotADirectoryError):
                    return _renamed(draft, run), taken
        raise AssertionError
    except BaseException as error:
        if taken is not None:
            lock.release(draft, taken)
        shutil.rmtree(draft, ignore_errors=True)
        if isinstance(error, OSError):
            raise _unwritable(config.output, error) from None
        raise


def _renamed(draft: Path, run: Path) -> Path:
    try:
        return draft.rename(run)
    except OSError as error:
        if error.errno == errno.ENOTEMPTY:  # made by another process meanwhile
            raise FileExistsError from None
        raise


def _unwritable(output: str, error: OSError, name: str = "output") -> InputError:
    return InputError(f"{name}: cannot write below {shown(output, 200)}: {error.strerror}; set another folder")


def newest_run(config: Config) -> Path:
    """Find the run folder of this name that was made last. Raises InputError if there is none."""
    found = []
    for path in path_of(config.output, "output").glob(f"{config.name}-*"):
        stamp = re.fullmatch(re.escape(config.name) + r"-(\d{8}-\d{6})(?:-(\d{1,9}))?", path.name, re.ASCII)
        if stamp and all((path / name).is_file() for name in FILES):
            found.append((stamp[1], int(stamp[2] or 1), path))
    if not found:
        raise InputError(
            f"--resume: no run of {config.name!r} below {shown(config.output, 200)}; start one without --resume"
        )
    return max(found)[-1]


def check_same(
    run: Path,
    config: Config,
    prompts: list[str] | Callable[[dict[str, Any]], list[str]],
    heading: Mapping[str, Any] | None = None,
    finished: Check = check,
) -> None:
    """Make sure that `run` measured this config, these prompts, this software and this machine. Raises InputError.

    prompts: their texts, or what gives those that a row should have. heading: see `mapping_of`; finished: what checks a
    line of rows.jsonl.

    It raises one, too, for what is no run folder, for one that is damaged, and for one that another process writes.
    """
    if not run.is_dir():
        raise InputError(f"--resume: {run}: {'is a file' if run.exists() else 'there is no such folder'}")
    for name in FILES:
        if not (run / name).exists():
            raise InputError(f"--resume: {run} is not a run folder: it has no {name}")
    lock.check_free(run)
    before = parse(read_text(run / "config.yaml"), str(run / "config.yaml"))
    made_with = read_json(run / "versions.json")
    commit = {"commit": None}  # a fix between two sittings is no reason to start over
    for what, then, now in (
        ("config", before, _portable(mapping_of(config, heading))),
        ("versions", made_with | commit, versions() | commit),
    ):
        if found := first_difference(then, now):
            key, old, new = found
            raise InputError(f"--resume: {run} has another {what}: {shown_text(key)} was {show(old)}, is {show(new)}")
    for row in read_rows(run, finished):
        wanted = prompts(row) if callable(prompts) else prompts
        if "prompts" in row and [prompt["prompt"] for prompt in row["prompts"]] != wanted:
            raise InputError(f"--resume: {run} has other prompts: the contents of their file changed")


def versions() -> dict[str, Any]:
    """Name the software and the machine, without names of users or folders."""
    import jax

    return {
        "jaxinfer": jaxinfer.__version__,
        "commit": _commit(),
        "jax": jax.__version__,
        "jaxlib": importlib.metadata.version("jaxlib"),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "devices": [f"{device.platform}: {device.device_kind}" for device in jax.devices()],
    }


def _commit() -> str | None:
    """Give the git commit of the package, with "+" if files changed since; None unless it runs from a checkout."""
    root = Path(jaxinfer.__path__[0]).resolve().parent
    if not (root / ".git").exists():
        return None
    try:
        head, changes = (
            subprocess.run(["git", "-C", root, *command], capture_output=True, text=True, timeout=10, check=True).stdout
            for command in (("rev-parse", "HEAD"), ("status", "--porcelain"))
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return head.strip() + ("+" if changes.strip() else "")


def _portable(value: Any) -> Any:
    """Give plain data in which paths below the home folder start with "~", so that results can be shown to others."""
    if isinstance(value, dict):
        return {key: _portable(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_portable(entry) for entry in value]
    home = str(Path.home())
    if isinstance(value, str) and (value == home or value.startswith(home + os.sep)) and home != os.sep:
        return "~" + value[len(home) :]
    return value

"""The folder of one run.

    runs/<name>-<YYYYmmdd-HHMMSS>/
      config.yaml     the config with every default filled in
      versions.json   the software and the machine
      rows.jsonl      one line a finished row: the raw measurement (see runner.measure)
      table.md, report.html

Every file is replaced in one step, so that it is whole whatever happens.
"""

import contextlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Protocol

import yaml

import jaxinfer
from jaxinfer.caching import write_atomic
from jaxinfer.errors import InputError
from jaxinfer.experiment.merge import first_difference, show


def check_writable(output: str) -> None:
    """Make sure that run folders can be made below `output`, and leave no trace. Raises InputError."""
    folder = Path(output).expanduser()
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".probe-"):
            pass
    except OSError as error:
        raise InputError(f"output: cannot write below {output!r}: {error.strerror}; set another folder") from None
    finally:
        with contextlib.suppress(OSError):  # the first that was not made, or that another run has begun to use
            for parent in missing:
                parent.rmdir()


class Config(Protocol):
    """What a config has to say for a run to get its folder: `Experiment`, and those of the scripts in experiments/."""

    @property
    def name(self) -> str:
        """What the folder is called by."""

    @property
    def output(self) -> str:
        """The folder that it is made in."""

    def to_mapping(self) -> dict[str, Any]:
        """The whole config as plain data."""


def new_run(config: Config) -> Path:
    """A fresh run folder that holds config.yaml and versions.json. Two made in the same second differ by a suffix."""
    output = Path(config.output).expanduser()
    stem = f"{config.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    output.mkdir(parents=True, exist_ok=True)
    attempt = 1
    while True:
        run = output / (stem if attempt == 1 else f"{stem}-{attempt}")
        try:
            run.mkdir()
            break
        except FileExistsError:
            attempt += 1
    write_atomic(run / "config.yaml", yaml.safe_dump(_portable(config.to_mapping()), sort_keys=False, width=120))
    write_atomic(run / "versions.json", json.dumps(versions(), indent=2) + "\n")
    return run


def newest_run(config: Config) -> Path:
    """The run folder of this name that was made last. Raises InputError if there is none."""
    found = []
    for path in Path(config.output).expanduser().glob(f"{config.name}-*"):
        stamp = re.fullmatch(re.escape(config.name) + r"-(\d{8}-\d{6})(?:-(\d+))?", path.name)
        if stamp and (path / "config.yaml").is_file():
            found.append((stamp[1], int(stamp[2] or 1), path))
    if not found:
        raise InputError(f"--resume: no run of {config.name!r} below {config.output!r}; start one without --resume")
    return max(found)[-1]


def check_same(run: Path, config: Config, prompts: list[str]) -> None:
    """Make sure that `run` measured this config, these prompts, this software and this machine. Raises InputError."""
    try:
        before = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        made_with = json.loads((run / "versions.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        raise InputError(f"--resume: {run} is not a run folder: no readable config.yaml and versions.json") from None
    commit = {"commit": None}  # a fix between two sittings is no reason to start over
    for what, then, now in (
        ("config", before, _portable(config.to_mapping())),
        ("versions", made_with | commit, versions() | commit),
    ):
        if found := first_difference(then, now):
            key, old, new = found
            raise InputError(f"--resume: {run} has another {what}: {key} was {show(old)}, is {show(new)}")
    for row in read_rows(run):
        if [prompt["prompt"] for prompt in row["prompts"]] != prompts:
            raise InputError(f"--resume: {run} has other prompts: the contents of their file changed")


def read_rows(run: Path) -> list[dict[str, Any]]:
    """The finished rows. A last line that a crash left incomplete is as good as absent."""
    path = run / "rows.jsonl"
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    rows = []
    for line in filter(None, lines):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def append_row(run: Path, row: dict[str, Any]) -> None:
    """Add one finished row. The file is rewritten, so that a torn line before it is dropped."""
    write_atomic(run / "rows.jsonl", "".join(json.dumps(entry) + "\n" for entry in [*read_rows(run), row]))


def versions() -> dict[str, Any]:
    """The software and the machine, without names of users or folders."""
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
    """The git commit of the package, with "+" if files changed since; None unless it runs from its own checkout."""
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
    """Plain data in which paths below the home folder start with "~", so that results can be shown to others."""
    if isinstance(value, dict):
        return {key: _portable(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_portable(entry) for entry in value]
    home = str(Path.home())
    if isinstance(value, str) and (value == home or value.startswith(home + os.sep)) and home != os.sep:
        return "~" + value[len(home) :]
    return value

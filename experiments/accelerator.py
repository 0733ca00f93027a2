"""Everything that there is to measure on a GPU or TPU, one experiment after the other, in one command.

    python experiments/accelerator.py configs/accelerator.yaml
    python experiments/accelerator.py configs/accelerator.yaml "parts=[{script: kernels, config: configs/kernels.yaml}]"

Each part is a script of this folder in a process of its own: what one leaves on the device, or a kernel that ends its
process, does not reach the next. A part that fails or takes too long is named at the end, and the others are kept.
"""

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from jaxinfer.caching import write_atomic
from jaxinfer.errors import InputError
from jaxinfer.experiment import results, script
from jaxinfer.experiment.schema import FORBID_UNKNOWN_KEYS, read_as

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Part:
    """A script of this folder, its config, changes to that, and the minutes that it may take."""

    script: str
    config: str
    overrides: tuple[str, ...] = ()
    minutes: float = 3.0

    __pydantic_config__ = FORBID_UNKNOWN_KEYS


@dataclass(frozen=True)
class Config:
    """What is run: see configs/accelerator.yaml."""

    name: str
    parts: tuple[Part, ...]
    output: str = "runs"

    __pydantic_config__ = FORBID_UNKNOWN_KEYS

    def to_mapping(self) -> dict[str, Any]:
        """What config.yaml of a run holds."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    def check(self) -> None:
        """Raises InputError for a part that cannot be started."""
        known = sorted(file.stem for file in HERE.glob("*.py") if file != Path(__file__))
        for number, part in enumerate(self.parts):
            if part.script not in known:
                raise InputError(f"parts.{number}.script: {part.script!r} is none of {', '.join(known)}")
            if not Path(part.config).is_file():
                raise InputError(f"parts.{number}.config: {part.config}: no such file")
            if part.minutes <= 0:
                raise InputError(f"parts.{number}.minutes: {part.minutes} must be above 0")


def run(part: Part, folder: Path) -> dict[str, Any]:
    """Its exit code (None: it took too long), its seconds, and what it printed, which goes to the terminal too."""
    command = [sys.executable, str(HERE / f"{part.script}.py"), part.config, *part.overrides, f"output={folder}"]
    # PyTorch, measured beside it, needs memory too.
    environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "COLUMNS": "160"} | os.environ
    start = time.perf_counter()
    lines: list[str] = []
    with subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        timer = threading.Timer(60 * part.minutes, process.kill)
        timer.start()
        try:
            for line in process.stdout or ():
                print(line, end="", flush=True)
                lines.append(line)
            code: int | None = process.wait()
        finally:
            timer.cancel()
    seconds = time.perf_counter() - start
    return {
        "code": None if seconds >= 60 * part.minutes else code,
        "seconds": seconds,
        "printed": "".join(lines),
    }


def main(path: str, *overrides: str) -> None:
    """Run all parts. results.json and summary.txt in the run folder, which holds the folders of the parts too."""
    config = read_as(Config, path, overrides)
    config.check()
    results.check_writable(config.output)
    folder = results.new_run(config)
    found = []
    shown = Table("part", "config", "seconds", "outcome", box=None)
    for part in config.parts:
        print(f"\n# {part.script} {part.config} {' '.join(part.overrides)}", flush=True)
        one = run(part, folder)
        found.append(dataclasses.asdict(part) | one)
        outcome = "done" if one["code"] == 0 else "took too long" if one["code"] is None else f"failed ({one['code']})"
        shown.add_row(part.script, part.config, f"{one['seconds']:.0f}", outcome)
        write_atomic(folder / "results.json", json.dumps(found, indent=2) + "\n")
    with Console(record=True, highlight=False) as console:
        console.print(shown)
        console.print(f"{folder}")
    write_atomic(folder / "summary.txt", console.export_text())
    if any(one["code"] != 0 for one in found):
        sys.exit(1)


if __name__ == "__main__":
    script.run(main, __doc__)

"""Everything to measure on a GPU or TPU, one experiment after the other, in one command.

    jaxinfer run configs/accelerator.yaml
    jaxinfer run configs/accelerator.yaml "parts=[{script: kernels, config: configs/kernels.yaml}]"

Each part is a script of this folder in a process of its own: what one leaves on the device, or a kernel that ends its
process, does not reach the next. A part that fails or takes too long is named at the end, and the others are kept;
the exit code is 1 then.
"""

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxinfer.errors import InputError
from jaxinfer.experiment import KINDS, Kind, Run, Table, script
from jaxinfer.experiment.kind import Prompts, Row
from jaxinfer.host.values import FORBID_UNKNOWN_KEYS

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
    """The options of this experiment: see configs/accelerator.yaml."""

    name: str
    parts: tuple[Part, ...]
    output: str = "runs"

    __pydantic_config__ = FORBID_UNKNOWN_KEYS

    def check(self) -> None:
        """Raise InputError for a part that cannot be started."""
        known = sorted(file.stem for file in HERE.glob("*.py") if file != Path(__file__))
        for number, part in enumerate(self.parts):
            if part.script not in known:
                raise InputError(f"parts.{number}.script: {part.script!r} is none of {', '.join(known)}")
            if not Path(part.config).is_file():
                raise InputError(f"parts.{number}.config: {part.config}: no such file")
            if part.minutes <= 0:
                raise InputError(f"parts.{number}.minutes: {part.minutes} must be above 0")


def run_part(part: Part, folder: Path) -> dict[str, Any]:
    """Run a part: its exit code (None: it took too long), its seconds, and its text, which goes to the terminal too."""
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


def items(config: Config, prompts: Prompts) -> dict[str, Part]:
    """List the parts, by what they run."""
    return {
        " ".join((f"{number}:", part.script, part.config, *part.overrides)): part
        for number, part in enumerate(config.parts, start=1)
    }


def measure(part: Part, run: Run) -> Row:
    """Run a part, whose run folder is made in that of this run, and tell what became of it."""
    return dataclasses.asdict(part) | run_part(part, run.folder)


def table(rows: Sequence[Row]) -> Table:
    """Tell what became of each part."""

    def outcome(row: Row) -> str:
        return {0: "done", None: "took too long"}.get(row["code"], f"failed ({row['code']})")

    columns = {"part": "{script}", "config": "{config}", "seconds": "{seconds:.0f}", "outcome": outcome}
    return Table.of(rows, columns)


def files(run: Run) -> dict[str, str]:
    """Give results.json: also what the parts printed."""
    return {"results.json": json.dumps(list(run.rows), indent=2) + "\n"}


KINDS.add(
    "accelerator",
    Kind(
        Config,
        items,
        measure,
        table,
        check=Config.check,
        files=files,
        failed=lambda rows: any(row["code"] != 0 for row in rows),
        unit="part",
    ),
)

if __name__ == "__main__":
    script.run("accelerator", __doc__)

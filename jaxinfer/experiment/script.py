"""The body of `python experiments/X.py CONFIG`, which does the same as `jaxinfer run CONFIG`."""

import sys

from jaxinfer.errors import InputError
from jaxinfer.experiment import command
from jaxinfer.host import interrupts, process


def run(kind: str, usage: str | None) -> None:
    """Run the config that the command line names, of this kind if it names none.

    Arguments are those of `jaxinfer run`; without any, the usage is shown. Bad input is one line and exit code 2,
    Ctrl-C exit code 130.
    """
    if len(sys.argv) < 2:
        sys.exit(usage)
    interrupts.ready()
    process.guard(lambda: _run(kind, sys.argv[1:]))


def _run(kind: str, arguments: list[str]) -> int:
    resume = "--resume" in arguments
    config, *more = [argument for argument in arguments if argument != "--resume"] or [""]
    if unknown := [argument for argument in more if argument.startswith("--")]:
        raise InputError(f"{unknown[0]}: no such option; --resume is one, and `plugins=[FILE]` loads a file")
    return command.run_config(config, more, resume, default=kind, command=("python", sys.argv[0]))

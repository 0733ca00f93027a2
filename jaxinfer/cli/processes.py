"""The options of a run of several processes, which stand before the command: `jaxinfer --coordinator ... generate`."""

import io
import sys
from typing import Annotated, Any

import typer

from jaxinfer.errors import InputError
from jaxinfer.host import places, processes

Coordinator = Annotated[
    str | None,
    typer.Option(help="HOST:PORT of process 0, where a run of several processes meets; default: as the cluster says."),
]
Process = Annotated[int | None, typer.Option(help="The number of this process, from 0; default: as the cluster says.")]
Processes = Annotated[int | None, typer.Option("--processes", help="How many processes there are; 1: this one alone.")]
JoinTimeout = Annotated[float, typer.Option(min=1, help="Seconds that processes wait for each other to begin.")]

TOGETHER = ("generate", "eval", "run")  # commands that several processes run as one; others are one process's
_GIVEN = {*places.OPTIONS, "--join-timeout"}
_ASKED: dict[str, Any] = {}


def ask(command: str | None, options: dict[str, Any]) -> None:
    """Keep the options of a run of several processes until its command begins. Raises InputError."""
    given = [name for name in ("coordinator", "process", "processes") if options[name] is not None]
    if given and command is not None and command not in TOGETHER:
        raise InputError(f"--{given[0]}: {command} is a command of one process; {', '.join(TOGETHER)} take several")
    _ASKED.clear()
    _ASKED.update(options if command in TOGETHER else {})


def begin() -> None:
    """Join the other processes of the run, if there are any, before JAX is used. Raises InputError."""
    if not _ASKED:
        return
    if processes.start(**_ASKED):
        processes.check_alike(shared(sys.argv[1:]))
        if "-" in sys.argv[1:]:
            text = processes.of_first(sys.stdin.read() if processes.is_first() else None)
            sys.stdin = io.StringIO(text)


def shared(arguments: list[str]) -> list[str]:
    """Leave out of arguments those that each process has for itself."""
    kept, skip = [], False
    for argument in arguments:
        name = argument.partition("=")[0]
        if not skip and name not in _GIVEN:
            kept.append(argument)
        skip = not skip and argument in _GIVEN
    return kept

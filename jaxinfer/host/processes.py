"""A run of several processes, on one machine or many, which share one mesh: `jax.distributed`, and its ends.

Every process runs the same command. Process 0 alone prints and writes; what it alone knows, `of_first` tells the
others. The processes are named (`--coordinator`, `--process`, `--processes`, or the environment), or found where JAX
knows the cluster: SLURM, Open MPI, Kubernetes jobs, TPU pods. On any other machine nothing is started.
"""

import contextlib
import importlib.metadata
import os
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from jaxinfer.errors import InputError, shown, shown_text
from jaxinfer.host import interrupts
from jaxinfer.host import process as ends
from jaxinfer.host.links import ENDS_WITHIN, GRACE, Links
from jaxinfer.host.meeting import join, meet
from jaxinfer.host.places import TIMEOUT, place_of

PATIENCE = 60.0  # seconds without a sign of life after which a process is taken for gone
RUNTIME_ERRORS = ("JaxRuntimeError", "XlaRuntimeError")  # such as a collective that another process has left

_LINKS: list[Links] = []  # of this run, if it has several processes
_STREAMS: dict[str, Any] = {}  # those of this process as they were


def start(
    coordinator: str | None = None,
    process: int | None = None,
    processes: int | None = None,
    timeout: float = TIMEOUT,
    patience: float = PATIENCE,
) -> bool:
    """Join the other processes of a run, before JAX is used; False where there are none: see `place_of`.

    Standard output and error of all but process 0 are closed. Raises InputError for what is incomplete, a coordinator
    that does not answer and processes that do not come within `timeout` seconds, and if JAX is in use already.
    """
    place = place_of(coordinator, process, processes, timeout)
    if place is None:
        return False
    if _LINKS:
        raise InputError("the processes of a run are joined once")
    _STREAMS.update(stdout=sys.stdout, stderr=sys.stderr)
    ends.AT_END.append(leave)
    ends.AT_ERROR.append(settle)
    links = Links(place.process, place.processes, patience, _end)
    _LINKS.append(links)
    meet(place, links, timeout)
    join(place, links)
    _silence(place.process)
    return True


def count() -> int:
    """Count the processes of this run."""
    return _LINKS[0].processes if _LINKS else 1


def index() -> int:
    """Give the number of this process, from 0."""
    return _LINKS[0].process if _LINKS else 0


def is_first() -> bool:
    """Tell whether this process prints and writes for all."""
    return index() == 0


def of_first(value: Any) -> Any:
    """Give on every process the value that process 0 gives: plain data, as JSON has it. All must call it."""
    return _LINKS[0].of_first(value) if _LINKS else value


def barrier() -> None:
    """Wait until every process is here."""
    if _LINKS:
        _LINKS[0].gather()
        _LINKS[0].of_first(None)


def check_alike(arguments: Sequence[str]) -> None:
    """Raise InputError unless all processes were given these arguments and have the software of process 0."""
    if not _LINKS:
        return
    mine = {"arguments": list(arguments), "jax": importlib.metadata.version("jax"), "python": sys.version.split()[0]}
    first = of_first(mine)
    for name, value in first.items():
        if mine[name] != value:
            raise InputError(f"has other {name} than process 0: {shown(mine[name])}, not {shown(value)}")
    barrier()


def leave(code: int, message: str) -> str:
    """End this process with its exit code, together with the others; returns the line to say after a success.

    After a failure the process ends here. Processes that fail alike say so once, and what happens to one alone is said
    with its number.
    """
    if not _LINKS:
        return message
    links = _LINKS[0]
    if code == 0:
        if links.done():
            _LINKS.clear()
            import jax

            with contextlib.suppress(Exception):
                jax.distributed.shutdown()
            return message
        code, message = 1, f"other processes have not ended {ENDS_WITHIN:g} s after process 0"
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    told = links.failed(code, message)
    line = message if links.process == 0 or not message else f"process {links.process}: {message}"
    _end(code, "" if told else line)


def settle(error: BaseException) -> None:
    """Let what happened to another process end this one, where it is the reason for an exception here.

    Otherwise tells the others about it.
    """
    if _LINKS:
        time.sleep(GRACE)
        line = shown_text(f"{type(error).__name__}: {' '.join(str(error).split())}", 300)
        if type(error).__name__ in RUNTIME_ERRORS:
            leave(1, line)
        sys.stderr = _STREAMS["stderr"]
        _LINKS[0].failed(1, line)
        traceback.print_exception(error, file=sys.stderr)
        _end(1, "")


@contextlib.contextmanager
def together(**options: Any) -> Iterator[bool]:
    """Do what is inside on every process of a run: see `start`. For programs other than the `jaxinfer` command."""
    try:
        several = start(**options)
    except InputError as error:
        ends.say(leave(2, str(error)))
        raise SystemExit(2) from None
    try:
        yield several
    except InputError as error:
        if not several:
            raise
        leave(2, str(error))
    except KeyboardInterrupt:
        leave(128 + interrupts.SIGINT, "")
        raise
    except SystemExit as error:
        leave(error.code if isinstance(error.code, int) else int(error.code is not None), "")
        raise
    except Exception as error:
        settle(error)
        raise
    leave(0, "")


def _silence(number: int) -> None:
    """Leave standard output to what process 0 itself prints: gloo prints there too. Others are silent."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    if number:
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115  (it stays open)
        null = os.open(os.devnull, os.O_WRONLY)
    else:
        sys.stdout = ends.renumbered(sys.stdout, os.dup(1))
        null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def _end(code: int, line: str) -> NoReturn:
    """Say a line and end this process at once: its other threads may wait for processes that are gone."""
    sys.stderr = _STREAMS["stderr"]
    ends.say(line)
    os._exit(code)

"""A run of several processes, on one machine or many, which share one mesh: `jax.distributed`, and its ends.

Every process runs the same command. Process 0 alone prints and writes; what it alone knows, `of_first` tells the
others. The processes are named (`--coordinator`, `--process`, `--processes`, or the environment), or found where JAX
knows the cluster: SLURM, Open MPI, Kubernetes jobs, TPU pods. On any other machine nothing is started.
"""

import contextlib
import importlib.metadata
import os
import secrets
import socket
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from jaxinfer.errors import InputError, shown, shown_text
from jaxinfer.host import process as ends
from jaxinfer.host.links import ENDS_WITHIN, GRACE, Link, Links
from jaxinfer.host.values import whole

TIMEOUT = 120.0  # seconds that processes wait for each other at the beginning
PATIENCE = 60.0  # seconds without a sign of life after which a process is taken for gone
HEARTBEAT = 3600  # seconds, JAX's own: `links` is faster, and JAX would abort
VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_PROCESS_ID", "JAX_NUM_PROCESSES")
OPTIONS = ("--coordinator", "--process", "--processes")
KEY = "jaxinfer/links"
RUNTIME_ERRORS = ("JaxRuntimeError", "XlaRuntimeError")  # such as a collective that another process has left

_LINKS: list[Links] = []  # of this run, if it has several processes
_STREAMS: dict[str, Any] = {}  # those of this process as they were


@dataclass(frozen=True)
class Place:
    """A process among those of a run. coordinator: "HOST:PORT", where process 0 listens."""

    coordinator: str
    process: int
    processes: int
    devices: tuple[int, ...] | None = None  # of this machine that are this process's; None: all


def place_of(
    coordinator: str | None = None, process: int | None = None, processes: int | None = None, timeout: float = TIMEOUT
) -> Place | None:
    """Find this process among those of a run: as given, by the environment, or by its cluster; None where it is alone.

    Raises InputError for what is incomplete or cannot be.
    """
    given: list[Any] = [coordinator, process, processes]
    names = list(OPTIONS)
    for index, variable in enumerate(VARIABLES):
        if given[index] is None and os.environ.get(variable):
            given[index], names[index] = os.environ[variable], variable
    if given[0] is None and given[1] is None and given[2] in (None, 1, "1"):
        return _found(timeout) if given[2] is None else None
    detected = _found(timeout) if None in given else None
    if detected is not None:
        known = (detected.coordinator, detected.process, detected.processes)
        given = [mine if mine is not None else theirs for mine, theirs in zip(given, known, strict=True)]
    if None in given:
        missing = ", ".join(name for name, value in zip(OPTIONS, given, strict=True) if value is None)
        raise InputError(f"{missing}: must be given with {_listed(names, given)}: a run of several processes needs all")
    count = whole(_number(given[2]), names[2], 1)
    number = whole(_number(given[1]), names[1], 0)
    if number >= count:
        raise InputError(f"{names[1]}={number} must be below {names[2]}={count}: processes are counted from 0")
    if count == 1:
        return None
    _address(str(given[0]), names[0])
    return Place(str(given[0]), number, count, detected.devices if detected else None)


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
    until = time.monotonic() + timeout
    _reach(place, timeout)
    _STREAMS.update(stdout=sys.stdout, stderr=sys.stderr)
    ends.AT_END.append(leave)
    ends.AT_ERROR.append(settle)
    _join(place, until, timeout)
    links = Links(place.process, place.processes, patience, _end)
    _connect(links, place, until, timeout)
    _LINKS.append(links)
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


def leave(code: int, message: str) -> str:
    """End this process with its exit code, together with the others; returns the line to say after a success.

    After a failure the process ends here. Processes that fail alike say so once, and what happens to one alone is said
    with its number.
    """
    if not _LINKS:
        if code and _STREAMS:  # JAX would wait for processes that have not come
            _end(code, message)
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
        ends.say(str(error))
        raise SystemExit(2) from None
    try:
        yield several
    except InputError as error:
        if not several:
            raise
        leave(2, str(error))
    except BaseException as error:
        settle(error)
        raise
    leave(0, "")


def _found(timeout: float) -> Place | None:
    """Ask JAX for the cluster that this process was started in; None where it is no part of one, or alone."""
    try:
        from jax._src.clusters import ClusterEnv

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            address, number, process, devices = ClusterEnv.auto_detect_unset_distributed_params(
                None, None, None, None, None, int(timeout)
            )[:4]
    except Exception:  # a service that is asked and does not answer: this is no such machine
        return None
    if address is None or number is None or process is None or number < 2:
        return None
    return Place(address, process, number, None if devices is None else tuple(devices))


def _reach(place: Place, timeout: float) -> None:
    """Wait for the coordinator to listen; as process 0 make sure that it can. Raises InputError."""
    host, port = _address(place.coordinator, OPTIONS[0])
    if place.process == 0:
        with socket.socket() as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trial.bind(("", port))
            except OSError as error:
                what = error.strerror or error
                raise InputError(f"coordinator {place.coordinator}: process 0 cannot listen there: {what}") from None
        return
    until = time.monotonic() + timeout
    why = ""
    while time.monotonic() < until:
        try:
            socket.create_connection((host, port), max(0.1, min(5.0, until - time.monotonic()))).close()
            return
        except OSError as error:
            why = error.strerror or str(error)
        time.sleep(0.2)
    raise InputError(
        f"process {place.process}: coordinator {place.coordinator} does not answer within {timeout:g} s ({why}); "
        "start process 0 there, or give another --join-timeout"
    )


def _join(place: Place, until: float, timeout: float) -> None:
    """Initialize `jax.distributed`. Raises InputError."""
    import jax

    names = jax.config.values
    if "jax_cpu_collectives_implementation" in names:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if "jax_enable_recoverability" in names:  # what ends a run is `links`: JAX would abort
        jax.config.update("jax_enable_recoverability", True)
    try:
        jax.distributed.initialize(
            place.coordinator,
            place.processes,
            place.process,
            local_device_ids=place.devices,
            cluster_detection_method="deactivate",
            initialization_timeout=max(1, int(until - time.monotonic())),
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=max(1, int(GRACE)),
        )
    except Exception as error:
        text = shown_text(" ".join(str(error).split()), 160)
        if "before any JAX" in text or "only be called once" in text:
            raise InputError("the processes of a run are joined before JAX is used: call `start` first") from None
        raise InputError(
            f"process {place.process}: coordinator {place.coordinator}: {place.processes} processes have not joined "
            f"within {timeout:g} s: {text}"
        ) from None


def _connect(links: Links, place: Place, until: float, timeout: float) -> None:
    """Connect process 0 with every other. Raises InputError."""
    from jax._src import distributed

    client: Any = distributed.global_state.client
    left = lambda: max(1.0, until - time.monotonic())  # noqa: E731
    host, _ = _address(place.coordinator, OPTIONS[0])
    if place.process == 0:
        secret = secrets.token_hex(16)
        server = _listening()
        client.key_value_set(KEY, f"{server.getsockname()[1]} {secret}")
        threading.Thread(target=_accept, args=(server, secret, links), daemon=True, name="other processes").start()
    else:
        try:
            port, secret = client.blocking_key_value_get(KEY, int(left() * 1000)).split()
            link = Link(socket.create_connection((host, int(port)), left()), links.patience)
        except Exception as error:
            what = shown_text(" ".join(str(error).split()), 160)
            raise InputError(f"process {place.process}: process 0 at {host} cannot be reached: {what}") from None
        link.send(process=place.process, secret=secret)
        links.add(0, link)
    if not links.complete(left()):
        raise InputError(f"coordinator {place.coordinator}: not all {place.processes} processes came in {timeout:g} s")


def _listening() -> socket.socket:
    with contextlib.suppress(OSError, ValueError):  # a machine without IPv6
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


def _accept(server: socket.socket, secret: str, links: Links) -> None:
    """Take the connection of each other process of the run, and of nobody else."""
    there: set[int] = set()
    while len(there) < links.processes - 1:
        link = Link(server.accept()[0], links.patience)
        hello = link.read() or {}
        number = hello.get("process")
        if hello.get("secret") == secret and isinstance(number, int) and 0 < number < links.processes:
            there.add(number)
            links.add(number, link)
    server.close()


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


def _address(text: str, name: str) -> tuple[str, int]:
    """Read "HOST:PORT". Raises InputError."""
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not (port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16):
        raise InputError(f"{name}={shown(text)} must be HOST:PORT, as in 10.0.0.1:8476")
    return host, int(port)


def _number(value: Any) -> Any:
    return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value


def _listed(names: Sequence[str], given: Sequence[Any]) -> str:
    return ", ".join(name for name, value in zip(names, given, strict=True) if value is not None)

"""The beginning of a run of several processes: they meet at process 0, then all join `jax.distributed`.

JAX's coordination service runs in a small process of its own beside process 0. It ends all others by an abort and a
stack trace as soon as it is gone, so it outlives process 0 by the moment in which `links` ends them with one line.
"""

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from jaxinfer.errors import InputError, shown_text
from jaxinfer.host.links import Link, Links
from jaxinfer.host.places import OPTIONS, Place, address_of

HEARTBEAT = 3600  # seconds, JAX's own: `links` is faster
LINGER = 5.0  # seconds that JAX's service outlives process 0
STARTS_WITHIN = 60  # seconds, JAX's service and its clients, once all processes are there
ANSWERS_WITHIN = 5.0  # seconds, a process that listens
SERVICE = f"""
import os, sys, time
from jaxlib import _jax
options = dict(heartbeat_timeout={HEARTBEAT}, shutdown_timeout=1)
try:
    service = _jax.get_distributed_runtime_service(sys.argv[1], int(sys.argv[2]), recoverable=True, **options)
except TypeError:
    service = _jax.get_distributed_runtime_service(sys.argv[1], int(sys.argv[2]), **options)
print("ready", flush=True)
sys.stdin.read()
time.sleep({LINGER})
os._exit(0)
"""


def meet(place: Place, links: Links, timeout: float) -> None:
    """Connect the processes of a run. Raises InputError where process 0 does not answer, or others do not come."""
    until = time.monotonic() + timeout
    if place.process:
        links.add(0, _reached(place, until, timeout, links.patience))
        return
    server = _listening(place)
    threading.Thread(target=_accept, args=(server, links), daemon=True, name="other processes").start()
    if not links.complete(until - time.monotonic()):
        there = set(links.others)
        missing = ", ".join(str(number) for number in range(1, place.processes) if number not in there)
        raise InputError(
            f"coordinator {place.coordinator}: of {place.processes} processes these did not come within "
            f"{timeout:g} s: {missing}"
        )


def join(place: Place, links: Links) -> None:
    """Initialize `jax.distributed` on all processes, before JAX is used. Raises InputError."""
    import jax

    host, _ = address_of(place.coordinator, OPTIONS[0])
    address = None
    if place.process == 0:
        with socket.socket() as trial:
            trial.bind(("", 0))
            port = trial.getsockname()[1]
        address = f"{f'[{host}]' if ':' in host else host}:{port}"
        _serve(port, place.processes)
    address = links.of_first(address)
    if "jax_cpu_collectives_implementation" in jax.config.values:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        with _served_elsewhere() if place.process == 0 else contextlib.nullcontext():
            jax.distributed.initialize(
                address,
                place.processes,
                place.process,
                local_device_ids=place.devices,
                cluster_detection_method="deactivate",
                initialization_timeout=STARTS_WITHIN,
                heartbeat_timeout_seconds=HEARTBEAT,
            )
    except Exception as error:
        text = shown_text(" ".join(str(error).split()), 160)
        if "before any JAX" in text or "only be called once" in text:
            raise InputError("the processes of a run are joined before JAX is used: call `start` first") from None
        raise InputError(f"jax.distributed at {address}: {text}") from None


def _reached(place: Place, until: float, timeout: float, patience: float) -> Link:
    """Connect with process 0, which may start later. Raises InputError."""
    host, port = address_of(place.coordinator, OPTIONS[0])
    why = "nothing listens there"
    while (left := until - time.monotonic()) > 0:
        try:
            link = Link(socket.create_connection((host, port), min(ANSWERS_WITHIN, left)), ANSWERS_WITHIN)
        except OSError as error:
            why = error.strerror or str(error)
            time.sleep(min(0.2, left))
            continue
        link.send(process=place.process, processes=place.processes)
        answer = link.read() or {}
        if "refused" in answer:
            raise InputError(f"coordinator {place.coordinator}: {answer['refused']}")
        if "welcome" in answer:
            link.wait_for(patience)
            return link
        why = "what listens there is no process 0"
        time.sleep(0.2)
    raise InputError(f"coordinator {place.coordinator} does not answer within {timeout:g} s: {why}")


def _listening(place: Place) -> socket.socket:
    _, port = address_of(place.coordinator, OPTIONS[0])
    with contextlib.suppress(OSError, ValueError):  # a machine without IPv6
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    try:
        return socket.create_server(("", port))
    except OSError as error:
        what = error.strerror or error
        raise InputError(f"coordinator {place.coordinator}: process 0 cannot listen there: {what}") from None


def _accept(server: socket.socket, links: Links) -> None:
    """Take the connection of each other process of the run."""
    while len(links.others) < links.processes - 1:
        try:
            link = Link(server.accept()[0], ANSWERS_WITHIN)
        except OSError:
            continue
        hello = link.read() or {}
        number, count = hello.get("process"), hello.get("processes")
        if count != links.processes:
            link.send(refused=f"it has {count} processes here, and {links.processes} there")
        elif not isinstance(number, int) or not 0 < number < links.processes or number in links.others:
            link.send(refused=f"there is a process {number} already")
        else:
            link.send(welcome=True)
            link.wait_for(links.patience)
            links.add(number, link)
    server.close()


def _serve(port: int, processes: int) -> None:
    """Start JAX's coordination service, which ends after this process. Raises InputError."""
    command = [sys.executable, "-c", SERVICE, f"[::]:{port}", str(processes)]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    started = subprocess.Popen(command, start_new_session=True, **pipes)
    assert started.stdout is not None
    if started.stdout.readline() != b"ready\n":
        raise InputError(f"JAX's coordination service does not start on port {port}")
    _SERVICES.append(started)  # its standard input is open as long as this process lives


_SERVICES: list[Any] = []


class _Elsewhere:
    def shutdown(self) -> None:
        """Do nothing: the service ends by itself."""


@contextlib.contextmanager
def _served_elsewhere() -> Iterator[None]:
    """Keep JAX from starting its service in this process."""
    from jax._src import distributed

    module: Any = distributed._jax
    own = module.get_distributed_runtime_service
    module.get_distributed_runtime_service = lambda *_, **__: _Elsewhere()
    try:
        yield
    finally:
        module.get_distributed_runtime_service = own

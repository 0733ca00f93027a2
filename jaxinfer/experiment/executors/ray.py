"""The machines of a Ray cluster (Moritz et al. 2018), a worker on each: two rows on one would disturb each other."""

import contextlib
import platform
import socket
import warnings
from collections.abc import Sequence
from typing import Any

from jaxinfer.errors import InputError, shown, shown_text
from jaxinfer.experiment.executors.bench import Bench
from jaxinfer.experiment.executors.spread import Died
from jaxinfer.experiment.executors.task import Task, software
from jaxinfer.host.optional import require

ANSWERS_WITHIN = 10.0  # seconds
STARTS_WITHIN = 300.0  # seconds
CLIENT_PORT = 10001  # Ray's own


class RayWorker:
    """A worker: an actor of Ray's."""

    def __init__(self, task: Task):
        self.bench = Bench(task)

    def begin(self) -> dict[str, Any]:
        """Open the task: the name of the machine, and what keeps the task from being measured there."""
        unlike, problem = self.bench.task.unlike(software()), None
        if unlike is not None:
            problem = f"has {unlike}"
        else:
            try:
                _ = self.bench.opened
            except InputError as error:
                problem = str(error)
        return {"machine": platform.node(), "problem": problem}

    def measure(self, name: str, finished: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return self.bench.measure(name, finished)


class Handle:
    """A worker as the driver knows it."""

    def __init__(self, actor: Any, node: str, machine: str):
        self.actor, self.node, self.machine, self.answer = actor, node, machine, None

    def __str__(self) -> str:
        return self.machine


class RayPool:
    """Workers on the nodes of a Ray cluster, one on each. address: of a Ray client server; None: as Ray finds it.

    Raises InputError where Ray is missing, where the address does not answer, and where no node can measure the task.
    """

    spare: Sequence[Handle] = ()

    def __init__(self, task: Task, address: str | None = None):
        self.ray = require("ray", "for --on ray", "jaxinfer[ray]")
        self.task = task
        self.handles: list[Handle] = []
        self.refused: dict[str, str] = {}  # nodes that cannot measure the task, and why
        self._connect(address)
        first = self.start()
        if first is None:
            self.close()
            raise InputError(next((f"--on: {why}" for why in self.refused.values()), "--on: no Ray node is alive"))
        self.spare = [first]

    def _connect(self, address: str | None) -> None:
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if address is not None:
            host, port = _host_and_port(address)
            try:
                socket.create_connection((host, port), ANSWERS_WITHIN).close()
            except OSError as error:
                why = error.strerror or error
                raise InputError(
                    f"--on: ray://{host}:{port} does not answer within {ANSWERS_WITHIN:g} s: {why}"
                ) from None
            quiet["address"] = f"ray://{host}:{port}"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.ray.init(**quiet)
        except Exception as error:
            where = quiet.get("address", "ray")
            raise InputError(f"--on: {where}: {shown_text(' '.join(str(error).split()), 200)}") from None

    def room(self) -> int:
        return len(self._nodes())

    def start(self) -> Handle | None:
        if self.spare:
            spare, *self.spare = self.spare
            return spare
        taken = {handle.node for handle in self.handles}
        for node, resources in self._nodes().items():
            if node not in taken and (handle := self._started(node, resources)) is not None:
                self.handles.append(handle)
                return handle
        return None

    def _started(self, node: str, resources: dict[str, float]) -> Handle | None:
        """Start a worker on a node; None where it cannot measure the task, which is `refused`, or dies at once."""
        here = self.ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=False)
        wanted: dict[str, Any] = {"num_cpus": min(1.0, resources.get("CPU", 0.0)), "num_gpus": resources.get("GPU", 0)}
        if "TPU" in resources:
            wanted["resources"] = {"TPU": resources["TPU"]}
        made = self.ray.remote(RayWorker).options(max_restarts=0, scheduling_strategy=here, **wanted)
        actor = made.remote(self.task)
        try:
            found = self.ray.get(actor.begin.remote(), timeout=STARTS_WITHIN)
        except self.ray.exceptions.RayError as error:
            self.refused[node] = f"Ray node {node[:12]} starts no worker: {_line(error)}"
            return None
        if found["problem"]:
            self.refused[node] = f"{found['machine']}: {found['problem']}"
            return None
        return Handle(actor, node, found["machine"])

    def send(self, worker: Handle, name: str, finished: Sequence[dict[str, Any]]) -> None:
        worker.answer = worker.actor.measure.remote(name, list(finished))

    def wait(self, workers: Sequence[Handle]) -> tuple[Handle, dict[str, Any] | Died]:
        by_answer = {worker.answer: worker for worker in workers}
        done: list[Any] = []
        while not done:  # a little at a time, so that Ctrl-C is never far away
            done, _ = self.ray.wait(list(by_answer), num_returns=1, timeout=0.5)
        worker = by_answer[done[0]]
        try:
            return worker, self.ray.get(done[0])
        except self.ray.exceptions.RayError as error:
            self._drop(worker)
            return worker, Died(_line(error))

    def _drop(self, worker: Handle) -> None:
        self.handles.remove(worker)
        with contextlib.suppress(Exception):
            self.ray.kill(worker.actor)

    def _nodes(self) -> dict[str, dict[str, float]]:
        """Give the resources of each node that is alive and not refused, by its id."""
        return {
            node["NodeID"]: node.get("Resources", {})
            for node in self.ray.nodes()
            if node["Alive"] and node["NodeID"] not in self.refused
        }

    def close(self) -> None:
        for handle in list(self.handles):
            self._drop(handle)
        with contextlib.suppress(Exception):
            self.ray.shutdown()


def _line(error: Exception) -> str:
    """Say in a line what Ray says in many."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if type(error).__name__.startswith(("RayTaskError", "OutOfMemory")) and lines:
        return shown_text(lines[-1], 200)
    return shown_text(f"{type(error).__name__}: {lines[0] if lines else ''}", 200)


def _host_and_port(address: str) -> tuple[str, int]:
    host, colon, port = address.rpartition(":")
    if not colon:
        return address, CLIENT_PORT
    if not host or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise InputError(f"--on: {shown('ray://' + address)} must be ray://HOST:PORT, as in ray://10.0.0.1:10001")
    return host, int(port)

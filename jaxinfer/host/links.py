"""Connections between the processes of one run: lines of JSON, signs of life, and what happens when one is gone.

Process 0 listens, and each other process holds one connection to it. A process that is killed loses its connection at
once, a machine that is gone stops giving signs of life. Either ends the run on every process, with one line. JAX's own
service would end them as well, by an abort and a stack trace, after a minute or two.
"""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

GRACE = 2.0  # seconds in which processes that fail alike come to the same end
ENDS_WITHIN = 600.0  # seconds after process 0, in which others come to their ends
MOST_BYTES = 256 << 20  # of one line


class Link:
    """A connection to another process of the run. What comes is heard by a thread of its own."""

    def __init__(self, connection: socket.socket, patience: float):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(patience)
        self._connection, self._lines = connection, connection.makefile("rb")
        self._sending = threading.Lock()

    def wait_for(self, patience: float) -> None:
        """Let so many seconds pass without a message before the other end is taken for gone."""
        self._connection.settimeout(patience)

    def read(self) -> dict[str, Any] | None:
        """Wait for the next message; None where the other end is gone, or gives no sign of life."""
        try:
            line = self._lines.readline(MOST_BYTES)
            found = json.loads(line) if line.endswith(b"\n") else None
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def send(self, **message: Any) -> None:
        """Send a message. One that cannot arrive is dropped: the reader finds out that the other end is gone."""
        data = json.dumps(message).encode() + b"\n"
        with self._sending, contextlib.suppress(OSError):
            self._connection.sendall(data)


class Links:
    """All that the processes of a run tell each other.

    `fail(code, line)` is called once, by a thread, where another process is gone or has failed, and this one did not
    fail alike within `GRACE` seconds: it must end the process.
    """

    def __init__(self, process: int, processes: int, patience: float, fail: Callable[[int, str], None]):
        self.process, self.processes, self.patience = process, processes, patience
        self._fail_with, self._changed = fail, threading.Condition()
        self._links: dict[int, Link] = {}
        self._said: dict[int, Any] = {}  # by process 0, in order
        self._counts = {"said": 0, "gathered": 0}
        self._given: dict[int, dict[int, Any]] = {}  # to process 0: by occasion and process
        self._failures: dict[int, tuple[int, str]] = {}  # exit code and line of other processes
        self._over = False  # this process is on its way out

    def add(self, other: int, link: Link) -> None:
        """Hear what another process sends from here on."""
        with self._changed:
            self._links[other] = link
            self._changed.notify_all()
        threading.Thread(target=self._hear, args=(other, link), daemon=True, name=f"process {other}").start()
        threading.Thread(target=self._beat, args=(link,), daemon=True, name=f"signs of life to {other}").start()

    @property
    def others(self) -> tuple[int, ...]:
        """List the processes that this one is connected with."""
        return tuple(self._links)

    def complete(self, timeout: float) -> bool:
        """Wait until every process that this one talks to is there."""
        wanted = self.processes - 1 if self.process == 0 else 1
        with self._changed:
            return self._changed.wait_for(lambda: len(self._links) >= wanted, timeout)

    def of_first(self, value: Any) -> Any:
        """Give on every process what process 0 gives, which is plain data."""
        with self._changed:
            number = self._counts["said"] = self._counts["said"] + 1
            if self.process:
                self._changed.wait_for(lambda: number in self._said)
                return self._said.pop(number)
        for link in list(self._links.values()):
            link.send(said=number, value=value, over=self._over)
        return value

    def gather(self, value: Any = None, timeout: float | None = None) -> list[Any] | None:
        """Give process 0 the values of all, in order; None on others, and where not all came in time."""
        with self._changed:
            number = self._counts["gathered"] = self._counts["gathered"] + 1
        if self.process:
            self._links[0].send(gathered=number, value=value)
            return None
        with self._changed:
            there = self._given.setdefault(number, {})
            if not self._changed.wait_for(lambda: len(there) >= self.processes - 1, timeout):
                return None
            del self._given[number]
        return [value, *(there[other] for other in sorted(there))]

    def failed(self, code: int, line: str) -> bool:
        """Tell the others that this process ends with an exit code and a line. Returns whether process 0 says the line.

        Waits until the others know, for at most `GRACE` seconds.
        """
        with self._changed:
            self._over = True
            links = list(self._links.values())
        for link in links:
            link.send(failed=code, line=line, by=self.process)
        with self._changed:
            if self.process and links:
                self._changed.wait_for(lambda: 0 in self._failures, GRACE)
            elif links:
                self._changed.wait_for(lambda: not self._links, GRACE)
            return self.process > 0 and self._failures.get(0, (0, None))[1] == line

    def done(self) -> bool:
        """Wait until every process has come to its end without a failure; False where one has not in time."""
        if self.gather(None, ENDS_WITHIN) is None and self.process == 0:
            return False
        with self._changed:
            self._over = self.process == 0
        self.of_first(None)  # which ends the signs of life: see `_hear`
        return True

    def _hear(self, other: int, link: Link) -> None:
        while (message := link.read()) is not None:
            if "failed" in message:
                self._failed(int(message["by"]), int(message["failed"]), str(message["line"]))
            with self._changed:
                if "said" in message:
                    self._said[message["said"]] = message["value"]
                    self._over = self._over or message["over"]
                elif "gathered" in message:
                    self._given.setdefault(message["gathered"], {})[other] = message["value"]
                self._changed.notify_all()
        with self._changed:
            self._links.pop(other, None)
            known = self._over or bool(self._failures)
            self._changed.notify_all()
        if not known:
            self._failed(other, 1, f"process {other} of {self.processes} is gone")

    def _failed(self, by: int, code: int, line: str) -> None:
        """Another process has failed: pass it on, and end this one as well, unless it comes to its own end."""
        with self._changed:
            new = by not in self._failures
            self._failures.setdefault(by, (code, line))
            first = len(self._failures) == 1
            others = [link for other, link in self._links.items() if other != by] if self.process == 0 else []
            self._changed.notify_all()
        if new:
            for link in others:
                link.send(failed=code, line=line, by=by)
        if new and first and not self._over:
            threading.Thread(target=self._end, args=(by, code, line), daemon=True).start()

    def _end(self, by: int, code: int, line: str) -> None:
        gone = line.startswith(f"process {by} of ")
        if not gone:  # this process may come to the same end, and say so itself
            time.sleep(GRACE / 2)
        if not self._over:
            self._fail_with(code, line if gone else f"process {by}: {line}" if line else f"process {by} has ended")

    def _beat(self, link: Link) -> None:
        while not self._over:
            time.sleep(min(self.patience / 4, 5.0))
            link.send(alive=True)

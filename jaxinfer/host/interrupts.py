"""Ctrl-C and other signals that end a command, from its first moment on.

This is imported before anything else, and imports next to nothing itself: even `signal` takes milliseconds.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # typeshed has no stubs of it
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import Any

SIGINT: int = _signal.SIGINT
NUMBERS: list[int] = [getattr(_signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(_signal, name)]
PROGRAMS = ("jaxinfer", "jaxinfer-script")  # the command, as pip installs it
RETRY = 0.05  # seconds until an interruption that got lost is sent again

_state: dict[str, Any] = {"ready": False, "heard": 0}


def is_program() -> bool:
    """Tell whether this process is the command, and not another program that has imported it."""
    main = sys.modules.get("__main__")
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None) or ""
    return (
        getattr(spec, "name", None) == "jaxinfer.cli.__main__" or os.path.basename(file).partition(".")[0] in PROGRAMS
    )


def listen() -> None:
    """Hear signals from here on, if this process is the command's own.

    Until `ready` one ends the process at once and without a word: there is nothing to keep yet, and an exception would
    get lost in what is being imported. Later it is a KeyboardInterrupt, SIGTERM too.
    """
    if is_program():
        for number in NUMBERS:
            if _signal.getsignal(number) is not _signal.SIG_IGN:  # as `nohup` has it
                _signal.signal(number, _heard)
        sys.unraisablehook = _unraisable


def ready(is_ready: bool = True) -> None:
    """Let a signal be an exception from here on, for all is imported. False: there is nothing to keep."""
    _state["ready"] = is_ready


def heard() -> int:
    """Return the number of the signal that came last, 0 if none did."""
    return _state["heard"]


def _heard(number: int, frame: FrameType | None) -> None:
    if not _state["ready"]:
        os._exit(128 + number)
    _state["heard"] = number
    raise KeyboardInterrupt


def _unraisable(what: Any) -> None:
    """Take an exception where none can be raised, such as in a finalizer: an interruption is sent again later."""
    if not issubclass(what.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(what)
        return
    import threading

    def again() -> None:
        if hasattr(_signal, "pthread_kill"):  # a signal of the system's also ends a sleep
            _signal.pthread_kill(threading.main_thread().ident, _state["heard"] or SIGINT)
        else:
            _signal.raise_signal(_state["heard"] or SIGINT)

    timer = threading.Timer(RETRY, again)
    timer.daemon = True
    timer.start()

"""The process of a command: its three streams, and how it ends."""

import contextlib
import io
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from jaxinfer.errors import InputError, shown_text
from jaxinfer.host import interrupts

LONGEST = 800  # characters of an error line, whatever is named in it
AT_END: list[Callable[[int, str], str]] = []  # given the exit code and the error line, they give the line that is said
AT_ERROR: list[Callable[[BaseException], None]] = []  # given an exception that will be a traceback
FAILED, USAGE = 1, 2  # exit codes; after a signal it is 128 and the signal's number, as a shell has it


def guard(
    call: Callable[[], Any], usage: type[BaseException] = InputError, abort: type[BaseException] = KeyboardInterrupt
) -> NoReturn:
    """Make a command's call and leave with its exit code; one line and no traceback for what a user can cause.

    Exit code 2 for bad input, 1 for what cannot be written, 128 and its number after a signal that interrupted it.
    usage: what the command line's parser raises for bad input, which has `format_message`; abort: for Ctrl-C.
    """
    interrupts.listen()
    try:
        _open_streams()
        _check_arguments()
        code = call()
        if code == 128 + interrupts.SIGINT and interrupts.heard():  # the parser knows no other signal
            raise KeyboardInterrupt
        sys.stdout.flush()
        _leave(code if isinstance(code, int) else 0)
    except InputError as error:
        _leave(USAGE, str(error))
    except usage as error:
        message: Any = getattr(error, "format_message", None)
        _leave(USAGE, message() if message else str(error))
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        _leave(FAILED)
    except OSError as error:
        _leave(FAILED, _of_system(error))
    except MemoryError as error:
        _leave(FAILED, f"out of memory{': ' if str(error) else ''}{shown_text(str(error))}")
    except (KeyboardInterrupt, abort) as error:
        if isinstance(error.__cause__, EOFError):
            raise error.__cause__ from None
        _leave(128 + (interrupts.heard() or interrupts.SIGINT))
    except Exception as error:
        if number := interrupts.heard():  # what else it became on its way through other libraries
            _leave(128 + number)
        if "RESOURCE_EXHAUSTED" in str(error):  # XLA's
            _leave(FAILED, f"out of memory: {shown_text(str(error))}")
        for told in AT_ERROR:
            told(error)
        raise


def say(message: str) -> None:
    """Say one line on standard error; nothing for an empty message."""
    if message:
        with contextlib.suppress(OSError, ValueError):
            print("error:", shown_text(" ".join(message.split()), LONGEST), file=sys.stderr, flush=True)


def _open_streams() -> None:
    """Make sure of the three streams. Leaves if standard output is closed.

    Errors of standard output name it. What cannot be written to standard error is dropped: it is not worth an end.
    """
    if not interrupts.is_program():
        return
    closed = sys.stdout is None
    if None in (sys.stdin, sys.stdout, sys.stderr):  # a file that is opened later must not become one of them
        while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
            pass
        os.close(descriptor)
    if sys.stdin is None:
        sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), encoding="utf-8")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    sys.stderr = _stream(sys.stderr, _Forgiving(2, "w", closefd=False), "backslashreplace", True)
    sys.stdout = _stream(sys.stdout, _Named(1, "w", closefd=False), "replace", False)
    if closed:
        _leave(FAILED, "standard output: is closed")


def renumbered(stream: Any, descriptor: int) -> io.TextIOWrapper:
    """Give standard output anew, on another descriptor of the same file."""
    return _stream(stream, _Named(descriptor, "w"), "replace", False)


def _stream(was: Any, raw: io.FileIO, errors: str, by_line: bool) -> io.TextIOWrapper:
    encoding = getattr(was, "encoding", None) or "utf-8"
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, errors, line_buffering=by_line or raw.isatty())


class _Forgiving(io.FileIO):
    """A file into which everything can be written, whether or not it arrives."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except OSError:
            return len(data)


class _Named(io.FileIO):
    """Standard output, which says so where it cannot be written."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except OSError as error:
            error.filename = "standard output"
            raise


def _check_arguments() -> None:
    for place, argument in enumerate(sys.argv[1:], start=1):
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise InputError(f"argument {place}: is not UTF-8 text: {shown_text(argument, 60)}") from None


def _of_system(error: OSError) -> str:
    """Say what the system refused, and where."""
    what = error.strerror or shown_text(str(error))
    return what if error.filename is None else f"{shown_text(str(error.filename))}: {what}"


def _leave(code: int, message: str = "") -> NoReturn:
    interrupts.ready(False)  # what comes now, other libraries' farewells, is not worth a word
    try:
        sys.stdout.flush()
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and not isinstance(error, BrokenPipeError) and not message:
            message = f"standard output: {error.strerror}"
        code = code or FAILED
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    for call in AT_END:
        message = call(code, message)
    say(message)
    if interrupts.is_program() and interrupts.heard():
        # The device's work goes on in threads of its own, and would meet its memory already freed.
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()
        os._exit(code)
    sys.exit(code)

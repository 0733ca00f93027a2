"""One process at a time writes a run folder."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from jaxinfer.errors import InputError

NAME = ".lock"  # holds the number of the process; the lock itself is the kernel's, and ends with the process


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a run folder while something is written into it. Raises InputError if another process does."""
    lock = take(folder)
    try:
        yield
    finally:
        release(folder, lock)


def check_free(folder: Path) -> None:
    """Raise InputError if a process holds a run folder."""
    with held(folder):
        pass


def take(folder: Path) -> int:
    """Take the lock of a folder, to be given to `release`. Raises InputError if another process has it."""
    path = folder / NAME
    while True:
        try:
            lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise InputError(f"{folder}: cannot be written: {error.strerror}") from None
        if not _locked(lock):
            process = os.read(lock, 20).decode("ascii", "replace").strip()
            os.close(lock)
            by = f" (process {process})" if process.isdecimal() else ""
            raise InputError(f"{folder}: another run is writing it{by}; wait for its end, or leave out --resume")
        if _is(path, lock):  # and not one that was removed between the opening and the lock
            break
        os.close(lock)
    with contextlib.suppress(OSError):  # on a full disk the number is missing
        os.truncate(lock, 0)
        os.write(lock, f"{os.getpid()}\n".encode())
    return lock


def release(folder: Path, lock: int) -> None:
    """Give the lock of a folder back. Its file goes first, while nobody else can hold it."""
    with contextlib.suppress(OSError):
        (folder / NAME).unlink()
    os.close(lock)


def _locked(lock: int) -> bool:
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _is(path: Path, lock: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(lock))
    except OSError:
        return False

"""Files that users name, and files that are written whole or not at all."""

import contextlib
import errno
import json
import math
import os
import platform
import re
import shutil
import signal
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxinfer.errors import InputError, shown, shown_text

MOST_BYTES = 64 << 20  # of a text that is read at once: configs, tokenizers, prompts
_HOST = re.sub(r"[^\w-]", "", platform.node()) or "host"
_OPEN: set[Path] = set()  # the drafts of folders that are being written
_DRAFT = re.compile(rf"\.{_HOST}-(\d+)\.tmp$")  # how the name of what this machine is writing ends: with the process


def cache_dir() -> Path | None:
    """Return the user's cache folder for jaxinfer, or None where caching is switched off.

    The environment variable JAXINFER_CACHE moves it (`JAXINFER_CACHE=/some/folder`) or switches it off
    (`JAXINFER_CACHE=off`). By default it is `$XDG_CACHE_HOME/jaxinfer`, or `~/.cache/jaxinfer`. The folder may not
    exist yet. Raises InputError for what can be no path.
    """
    setting = os.environ.get("JAXINFER_CACHE", "")
    if setting.lower() == "off":
        return None
    if setting:
        return path_of(setting, "JAXINFER_CACHE")
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "jaxinfer"


def path_of(named: str | Path, name: str | None = None) -> Path:
    """Return the path that a user names, `~` expanded. `name`: the option or key that names it, for errors.

    Raises InputError for what can be no path: a NUL, a lone surrogate, an unknown user's home, a name too long for the
    system, and what is no text.
    """
    where = _where(name, named)
    try:
        text = os.fspath(named)
        if not isinstance(text, str):
            raise TypeError
        os.fsencode(text)
        path = Path(text).expanduser()
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            path.stat()
        return path
    except TypeError:
        raise InputError(f"{where}: must be a path") from None
    except UnicodeEncodeError:
        raise InputError(f"{where}: is no path: it holds half a character (a lone surrogate)") from None
    except ValueError:
        raise InputError(f"{where}: is no path: it holds a NUL character") from None
    except RuntimeError:
        raise InputError(f"{where}: there is no such user's home folder") from None
    except OSError as error:
        raise InputError(f"{where}: is no path: {error.strerror}") from None


def read_bytes(file: str | Path, name: str | None = None, most: int = MOST_BYTES) -> bytes:
    """Read the bytes of a regular file of at most `most` bytes. `name`: the option or key that names it, for errors.

    Raises InputError if there is no such file, it cannot be read, it is a folder, a pipe or a device, or it is larger.
    """
    path, where = path_of(file, name), _where(name, file)
    try:
        if path.is_dir():
            raise InputError(f"{where}: is a folder; give a file")
        # A pipe that nobody writes to would be waited for at the opening.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(descriptor, "rb") as opened:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise InputError(f"{where}: is a pipe or a device; give a regular file")
            if status.st_size > most:
                raise InputError(f"{where}: has {status.st_size:,} bytes, and at most {most:,} are read")
            data = opened.read(most + 1)
    except FileNotFoundError:
        raise InputError(f"{where}: no such file") from None
    except OSError as error:
        raise InputError(f"{where}: cannot be read: {error.strerror or error}") from None
    if len(data) > most:
        raise InputError(f"{where}: has more than the {most:,} bytes that are read")
    return data


def check_regular(file: str | Path, name: str | None = None) -> int:
    """Return the size in bytes of a regular file that can be read; links are followed. `name`: see `read_bytes`.

    Raises InputError if there is no such file, it cannot be read, or it is a folder, a pipe or a device: what opens
    files by their names would wait for ever.
    """
    path, where = path_of(file, name), _where(name, file)
    try:
        status = path.stat()
    except FileNotFoundError:
        raise InputError(f"{where}: no such file") from None
    except OSError as error:
        raise InputError(f"{where}: cannot be read: {error.strerror or error}") from None
    if stat.S_ISDIR(status.st_mode):
        raise InputError(f"{where}: is a folder; give a file")
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{where}: is a pipe or a device; give a regular file")
    if not os.access(path, os.R_OK):
        raise InputError(f"{where}: cannot be read: permission denied")
    return status.st_size


def read_text(file: str | Path, name: str | None = None, most: int = MOST_BYTES) -> str:
    """Read the text of a regular file in UTF-8: see `read_bytes`. Raises InputError if it is no such text, too."""
    try:
        return read_bytes(file, name, most).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{_where(name, file)}: is not UTF-8 text (byte {error.start})") from None


def parse_json(text: str | bytes, where: str, infinity: bool = False) -> Any:
    """Parse JSON text. Raises InputError, which begins with `where`, for anything that is none.

    NaN and Infinity are no JSON; neither is read what is nested some hundreds deep or holds a number of thousands of
    digits. infinity: read that word all the same.
    """

    def refuse(word: str) -> Any:
        if infinity and word == "Infinity":
            return math.inf
        raise ValueError(f"{word} is not a number of JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError:
        raise InputError(f"{where}: is nested too deep") from None
    except ValueError as error:  # UnicodeDecodeError too, and the limit on the digits of a number
        raise InputError(f"{where}: is not valid JSON: {shown_error(error)}") from None


def read_json(
    file: str | Path, name: str | None = None, most: int = MOST_BYTES, infinity: bool = False
) -> dict[str, Any]:
    """Read the JSON object in a file. Raises InputError if there is none: see `read_bytes` and `parse_json`."""
    value = parse_json(read_text(file, name, most), _where(name, file), infinity)
    if not isinstance(value, dict):
        raise InputError(f"{_where(name, file)}: must hold a JSON object, not {shown(value)}")
    return value


def shown_error(error: BaseException) -> str:
    """Say what another library says of an error, as one line of bounded length."""
    return shown_text(" ".join(str(error).split()) or type(error).__name__)


def draft_of(path: Path) -> Path:
    """Name the place where this process writes what shall become `path`: beside it, under a name that `sweep` knows."""
    return path.with_name(f".{path.name}.{_HOST}-{os.getpid()}.tmp")


def write_atomic(path: Path, text: str) -> None:
    """Write `text` to `path` so that a reader sees the whole of it or nothing. Creates the folder. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = draft_of(path)
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Yield a folder to fill, which becomes `path` at the end: all or nothing, after SIGTERM and Ctrl-C too.

    What processes that were killed have left beside it is removed. Raises InputError if `path` exists or cannot be
    written.
    """
    path = refuse_existing(path)
    draft = draft_of(path)
    with ended_by_signals():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            sweep(path.parent)
            draft.mkdir()
            _OPEN.add(draft)
            yield draft
            draft.rename(path)
        except OSError as error:
            raise InputError(f"{path}: cannot be written: {error.strerror or error}") from None
        finally:
            try:
                shutil.rmtree(draft, ignore_errors=True)
            except KeyboardInterrupt:  # by who does not want to wait
                shutil.rmtree(draft, ignore_errors=True)
                raise
            finally:
                _OPEN.discard(draft)


def refuse_existing(path: str | Path) -> Path:
    """Return the absolute path of a folder to write. Raises InputError if it exists, or could not be made there."""
    path = path_of(path).absolute()
    if os.path.lexists(path):
        raise InputError(f"{shown_text(str(path))}: already exists; give a folder that does not")
    above = next((parent for parent in path.parents if os.path.lexists(parent)), path.parent)
    trial = draft_of(above / path.name)
    if trial not in _OPEN:
        shutil.rmtree(trial, ignore_errors=True)  # left by a process of the same number
    try:
        trial.mkdir()
        trial.rmdir()
    except OSError as error:
        raise InputError(f"{shown_text(str(path))}: cannot be written: {error.strerror or error}") from None
    return path


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the body by an exception, SystemExit(128 + number), so that it can clean up.

    Signals that the process handles or ignores are left alone, and so are all in other threads than the main one.
    """
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    ours = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
    if threading.current_thread() is not threading.main_thread():
        ours = []

    def end(number: int, _: Any) -> None:
        for each in ours:
            signal.signal(each, signal.SIG_IGN)  # one is enough: another would end the cleaning up
        raise SystemExit(128 + number)

    for number in ours:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def foreign_writer() -> Iterator[None]:
    """Raise whatever another library raises while it writes as an OSError of one line."""
    try:
        yield
    except (OSError, InputError):
        raise
    except Exception as error:
        for number in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO):
            if os.strerror(number) in str(error):
                raise OSError(number, os.strerror(number)) from None
        raise OSError(shown_error(error)) from None


def sweep(folder: Path) -> None:
    """Remove what `write_atomic` and `new_folder` left in a folder in processes that are no more."""
    for left in folder.glob(".*.tmp"):
        found = _DRAFT.search(left.name)
        if found is None or _runs(int(found[1])):
            continue
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                left.unlink()


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # another user's
        return True
    return True


def _where(name: str | None, file: Any) -> str:
    text = shown(file) if not isinstance(file, str | Path) else shown_text(str(file))
    return text if name is None else f"{name}: {text}"

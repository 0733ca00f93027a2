"""Calls Orbax: in a thread of its own, and without its log on the terminal."""

import contextlib
import logging
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from jaxinfer.checkpoint.assemble import aligned, flatten, unflatten
from jaxinfer.checkpoint.finite import all_finite, warn_of
from jaxinfer.checkpoint.mapped import Bounds, told
from jaxinfer.errors import InputError
from jaxinfer.host.files import shown_error

T = TypeVar("T")
_LOGGERS = ("absl", "asyncio", "orbax")
_LATE = "Event loop is closed"

CHUNK = 1 << 25  # bytes of an array that are packed as one: who wants a part of it unpacks no more than these around it
_CACHED = 1 << 28  # bytes of chunks that are kept unpacked, for the other shards of a device or of its neighbours


def apart(work: Callable[[], T], hurry: Callable[[], None] = lambda: None) -> T:
    """Do `work` in another thread, and give what it gives: in Orbax's event loop Ctrl-C would leave a traceback.

    An exception that comes meanwhile (KeyboardInterrupt, SystemExit) is raised once the work has ended; `hurry` is
    called, now and then, to make it end soon, by an error that nobody reads.
    """
    _ignore_late_news()
    with _quiet(), ThreadPoolExecutor(1) as pool:
        done = pool.submit(work)
        stopped: BaseException | None = None
        while not done.done():
            try:
                if stopped is not None:
                    hurry()
                wait([done], timeout=None if stopped is None else 0.1)
            except (KeyboardInterrupt, SystemExit) as error:
                stopped = stopped or error
        if stopped is not None:
            raise stopped
        return done.result()


def write(folder: Path, params: Any) -> None:
    """Write a tree of arrays into a folder that is not there yet. Raises what Orbax raises.

    If that fails, or is interrupted, the folder that it is in is removed.
    """

    def save() -> None:
        import orbax.checkpoint as ocp

        with ocp.StandardCheckpointer() as checkpointer:
            chunks = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=CHUNK), params)
            checkpointer.save(folder, params, save_args=chunks)
            checkpointer.wait_until_finished()

    try:
        # Without the folder Orbax has nothing to go on with.
        apart(save, lambda: shutil.rmtree(folder.parent, ignore_errors=True))
    except BaseException:
        _remove(folder.parent)
        raise


def metadata(folder: Path) -> dict[str, Any]:
    """List what a folder of Orbax holds, by path: each has a shape. Raises InputError if it is none, or is damaged."""

    def read() -> dict[str, Any]:
        import orbax.checkpoint as ocp

        with ocp.PyTreeCheckpointer() as checkpointer:
            return flatten(checkpointer.metadata(folder).item_metadata.tree)

    try:
        return apart(read)
    except Exception as error:  # orbax raises many kinds
        raise InputError(f"{folder}: is not an Orbax checkpoint, or is damaged: {shown_error(error)}") from None


def restored(folder: Path, wanted: dict[str, Any]) -> dict:
    """Read its numbers as numpy arrays in the dtypes of `wanted`, by path. Raises InputError if it is damaged."""

    def read() -> dict:
        import orbax.checkpoint as ocp

        how = {name: ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype) for name, leaf in wanted.items()}
        with ocp.PyTreeCheckpointer() as checkpointer:
            return checkpointer.restore(folder, restore_args=unflatten(how))

    try:
        return apart(read)
    except Exception as error:
        raise InputError(f"{folder}: is damaged: {shown_error(error)}") from None


class Stored:
    """The arrays of a folder by path, of which parts can be read in the dtypes of `leaves` (see `sharded.Source`)."""

    def __init__(self, folder: Path, leaves: dict[str, Any]):
        self.leaves = leaves
        self._folder = folder
        self._context: Any = None
        self._open: dict[str, Any] = {}
        self._broken: dict[str, None] = {}

    def read(self, path: str, index: Bounds | None = None) -> np.ndarray:
        """Read a part of an array. Raises InputError if it is damaged."""
        leaf = self.leaves[path]
        try:
            found = self._array(path)
            part = found[tuple(slice(*bound) for bound in index)] if index and found.shape else found
            numbers = part.read().result()
        except Exception as error:  # tensorstore raises many kinds
            raise InputError(f"{self._folder}: is damaged: {shown_error(error)}") from None
        told(numbers.nbytes)
        made = aligned(numbers.shape, leaf.dtype)
        made[...] = numbers.astype(leaf.dtype, copy=False)
        if not all_finite(made):
            self._broken[path] = None
        return made

    def warn(self) -> None:
        """Warn if something that was read is no finite number."""
        warn_of(list(self._broken), str(self._folder))

    def _array(self, path: str) -> Any:
        import tensorstore as ts

        if self._context is None:
            self._context = ts.Context({"cache_pool": {"total_bytes_limit": _CACHED}})
        if path not in self._open:
            store = {"driver": "ocdbt", "base": self._folder.absolute().as_uri(), "path": path.replace("/", ".")}
            spec = {"driver": "zarr", "kvstore": store, "recheck_cached_data": False, "recheck_cached_metadata": False}
            self._open[path] = ts.open(spec, open=True, read=True, context=self._context).result()
        return self._open[path]


def _remove(folder: Path) -> None:
    """Remove a folder in which Orbax has failed to write something, until it stays away.

    Other writes of Orbax are still under way, and make the folder anew.
    """
    for _ in range(40):
        gone = not folder.exists()
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.05)
        if gone and not folder.exists():
            return


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Print nothing of what Orbax and asyncio log: what counts of it comes as an exception."""
    before = {name: logging.getLogger(name).level for name in _LOGGERS}
    for name in before:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


def _ignore_late_news() -> None:
    """Ignore what reads or writes tell an event loop that is no more, once one of their kind has failed."""
    if not isinstance(sys.unraisablehook, _WithoutLateNews):
        sys.unraisablehook = _WithoutLateNews(sys.unraisablehook)
        logging.getLogger("asyncio").addFilter(_is_no_late_news)
        warnings.filterwarnings("ignore", r"coroutine 'async_serialize\w*\.", RuntimeWarning)  # those not begun


def _is_no_late_news(record: logging.LogRecord) -> bool:
    """Tell whether a record of asyncio is not that of a write whose failure somebody else has told already."""
    return "exception was never retrieved" not in record.getMessage()


@dataclass(frozen=True)
class _WithoutLateNews:
    """A hook for errors that nobody can catch, which passes on all but Orbax's late news."""

    before: Callable[[Any], object]

    def __call__(self, news: Any) -> None:
        if not (isinstance(news.exc_value, RuntimeError) and str(news.exc_value) == _LATE):
            self.before(news)

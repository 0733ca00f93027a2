"""Python files of a user's own, which add methods, policies, weight formats and kinds of experiments to the registries.

Such a file is a module that ends with a line for each thing, such as `METHODS.add("repeat", Repeat)`. It is named by
`plugins:` in a config or by `--plugin`, and runs once in a process.
"""

import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from jaxinfer.errors import InputError, shown_text
from jaxinfer.host.files import path_of, read_text
from jaxinfer.host.registry import Registry

_loaded: dict[Path, ModuleType] = {}


def load(files: Iterable[str | Path], beside: Path | None = None, name: str = "plugins") -> None:
    """Run the files that have not run yet, in order. beside: the folder that relative paths begin at.

    name: the option or key that named them, for errors.

    Raises InputError for a file that cannot be read or run, or registers a name that is taken; none of its names stay.
    """
    for given in files:
        file = path_of(given, name)
        file = (file if beside is None else beside / file).resolve()
        if file not in _loaded:
            _loaded[file] = _run(file, read_text(file, name))


def _run(file: Path, text: str) -> ModuleType:
    module = ModuleType(f"jaxinfer_plugin_{file.stem}_{len(_loaded)}")
    module.__file__ = str(file)
    sys.modules[module.__name__] = module  # where dataclasses look up their annotations
    before = len(Registry.added)
    try:
        exec(compile(text, str(file), "exec"), module.__dict__)
    except Exception as error:
        del sys.modules[module.__name__]
        while len(Registry.added) > before:
            registry, added = Registry.added[-1]
            registry.remove(added)
        raise InputError(f"{shown_text(str(file))}: {_place(file, error)}{_message(error)}") from None
    return module


def _place(file: Path, error: Exception) -> str:
    """Say which line of the file it was, if one was."""
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}: "
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    return f"line {lines[-1]}: " if lines else ""


def _message(error: Exception) -> str:
    if isinstance(error, InputError):
        return str(error)
    said = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}: {shown_text(' '.join(said.split()))}"

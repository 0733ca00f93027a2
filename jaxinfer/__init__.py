"""jaxinfer: a JAX/XLA compiler-driven framework for LLM inference research.

Names are imported when they are first used, so that `jaxinfer --help` does not wait for JAX.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # as type checkers know it, without the 20 ms of typing in which Ctrl-C is not yet heard
if TYPE_CHECKING:
    from typing import Any

    # Every public name. Type checkers read these lines, and so does `_handed_on`: there is no other list.
    from jaxinfer.api import Model as Model
    from jaxinfer.api import Result as Result
    from jaxinfer.api import load as load
    from jaxinfer.cache import *  # noqa: F403  (for type checkers alone)
    from jaxinfer.cache import POLICIES as POLICIES
    from jaxinfer.config import LayerKind as LayerKind
    from jaxinfer.config import ModelConfig as ModelConfig
    from jaxinfer.config import Rope as Rope
    from jaxinfer.config import RopeScaling as RopeScaling
    from jaxinfer.config import Segment as Segment
    from jaxinfer.decoding.constraints.constraint import Constraint as Constraint
    from jaxinfer.decoding.contract import DecodeMethod as DecodeMethod
    from jaxinfer.decoding.drafts.growth import Dynamic as Dynamic
    from jaxinfer.decoding.methods import *  # noqa: F403  (for type checkers alone)
    from jaxinfer.decoding.methods import METHODS as METHODS
    from jaxinfer.decoding.sampling.settings import Sampling as Sampling
    from jaxinfer.errors import InputError as InputError
    from jaxinfer.runtime.stats import Stats as Stats
    from jaxinfer.runtime.streaming import Stream as Stream

__version__ = "0.1.0"


def _handed_on(package: str) -> dict[str, str]:
    """Map each name that a package of this one hands on to the module that has it.

    Handed on is the y of a line "from x import y as y", and by "from x import *" whatever x hands on. The lines are
    read, not run: to run those of this package is to import JAX.
    """
    loader: Any = __spec__.loader
    file = __file__.replace("__init__", "/".join((*package.split(".")[1:], "__init__")))
    found: dict[str, str] = {}
    for line in loader.get_data(file).decode().splitlines():
        match line.split():
            case ["from", module, "import", "*", *_]:
                found |= dict.fromkeys(_handed_on(module), module)
            case ["from", module, "import", name, "as", alias, *_] if name == alias:
                found[name] = module
    return found


_HOME = _handed_on(__name__)
if not TYPE_CHECKING:  # they know which names are handed on, and not what `sorted` gives
    __all__ = sorted(_HOME)
_MODULES = ("heads", "kernels", "compress")  # `jaxinfer.heads.load` works without an import of its own


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"jaxinfer.{name}")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})

"""Optional packages, imported where they are needed."""

import importlib
from types import ModuleType

from jaxinfer.errors import InputError


def require(module: str, purpose: str, package: str | None = None) -> ModuleType:
    """Import an optional package. Raises InputError that says what to pip install (`package`, if named otherwise)."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise InputError(f"{package or module} is needed {purpose}: pip install {package or module}") from None

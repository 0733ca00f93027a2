"""Weights that are no finite numbers: a model that has some writes nonsense, and is loaded with a warning."""

import warnings
from collections.abc import Mapping, Sequence

import numpy as np

from jaxinfer.errors import shown

_CHUNK = 1 << 22  # elements that are looked at once
_EXPONENT = 0x7F80  # of bfloat16: all ones where it is no finite number


def all_finite(x: np.ndarray) -> bool:
    """Tell whether an array holds neither NaN nor infinities; whole numbers never do."""
    if x.dtype.kind not in "fV":
        return True
    flat = x.reshape(-1)
    return all(_finite(flat[start : start + _CHUNK]) for start in range(0, flat.size, _CHUNK))


def _finite(x: np.ndarray) -> bool:
    if x.dtype.kind == "V":  # bfloat16, whose arithmetic numpy does one by one
        return not bool(((x.view(np.uint16) & _EXPONENT) == _EXPONENT).any()) if x.dtype.itemsize == 2 else True
    with np.errstate(all="ignore"):
        return bool(np.isfinite(x.sum())) or bool(np.isfinite(x).all())


def warn_of_others(arrays: Mapping[str, np.ndarray], where: str, what: str = "parameter") -> None:
    """Warn, once, of those of these arrays that hold what is no finite number."""
    warn_of([name for name, x in arrays.items() if not all_finite(x)], where, what)


def warn_of(bad: Sequence[str], where: str, what: str = "parameter") -> None:
    """Warn, once, of the arrays with these names, if there are any."""
    if bad:
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        warnings.warn(f"{where}: {what} {shown(bad[0], 120)}{more} holds NaN or infinite numbers", stacklevel=6)

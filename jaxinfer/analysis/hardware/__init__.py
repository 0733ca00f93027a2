"""Hardware as data: what one device can do at most, with the source of every constant.

    get("h100-sxm")               a device of the package, see NAMES; h100 and other spellings are known too
    get("my_device.yaml")         a file of a user's own
    get("this-machine")           what the device of this process reaches, measured once

The files in devices/ show the form. Rates are dense peaks, never those for sparse matrices.
"""

import os

from jaxinfer.analysis.hardware.constants import Constants, Hardware
from jaxinfer.analysis.hardware.measuring import THIS_MACHINE, Say, this_machine
from jaxinfer.analysis.hardware.reading import ALIASES, NAMES, device, known, read_file
from jaxinfer.errors import InputError, nearest, shown, shown_text

__all__ = ["ALIASES", "NAMES", "THIS_MACHINE", "Constants", "Hardware", "get"]


def get(name_or_path: str | os.PathLike[str], fresh: bool = False, say: Say | None = None) -> Hardware:
    """Return hardware by its name, by the path of a YAML file, or by `this-machine`, which is measured once.

    fresh: measure this machine again. say: told in a line what is being measured. Raises InputError for an unknown
    name, with the nearest one, and for a file that cannot be read or is not complete.
    """
    if isinstance(name_or_path, os.PathLike):
        return read_file(os.fspath(name_or_path))
    if not isinstance(name_or_path, str) or not name_or_path.strip():
        raise InputError(f"hardware={shown(name_or_path)}: must be a name, such as {NAMES[0]}, or a .yaml file")
    name = name_or_path.strip()
    if name.lower().replace("_", "-") == THIS_MACHINE:
        return this_machine(fresh, say)
    if (found := known(name)) is not None:
        return device(found)
    if name.lower().endswith((".yaml", ".yml")) or os.sep in name:
        return read_file(name)
    choices = (*NAMES, THIS_MACHINE)
    near = nearest(name.lower().replace("_", "-"), (*choices, *ALIASES))
    raise InputError(
        f"{shown_text(name)}: is no known hardware: {', '.join(choices)}, or a .yaml file of your own{near}"
    )

"""The keys at the top of every config, whatever its kind: `kind`, and `plugins`, files that add to the registries.

    kind: step_time
    plugins: [my_methods.py]      # relative to the folder of the config

Plug-ins run before the rest of the config is checked, so that it may name what they add.
"""

from pathlib import Path
from typing import Any

from jaxinfer.experiment.merge import Origin, show
from jaxinfer.host import plugins

KEYS = ("kind", "plugins")


def take(data: dict[str, Any], origin: Origin, folder: Path) -> tuple[Any, list[str], dict[str, Any]]:
    """Take the kind that a config names (None: it names none), its plug-ins as absolute paths, and its other keys.

    The plug-ins have run by then. Raises InputError for a list that is none, and for a file that fails.
    """
    files = data.get("plugins", [])
    if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
        raise origin.error(("plugins",), f"expected a list of Python files, got {show(files)}")
    plugins.load(files, folder, f"{origin.of(('plugins',))}: plugins")
    # A path with `~` is one from the user's home, whatever the folder.
    paths = [str((folder / Path(file).expanduser()).resolve()) for file in files]
    return data.get("kind"), paths, {key: value for key, value in data.items() if key not in KEYS}

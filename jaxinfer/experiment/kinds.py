"""The kinds of experiments by name, and a config as the experiment of its kind.

A `kind` that is not registered is looked for in a file of its name, `experiments/<kind>.py`: in the folder beside that
of the config (../experiments, as configs/ and experiments/ lie in the repository), then below the working folder. Such
a file ends with `KINDS.add("<kind>", Kind(...))`; one of another name is given by `plugins:` or `--plugin`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxinfer.errors import InputError, shown_text
from jaxinfer.experiment import heading, merge, spread
from jaxinfer.experiment.kind import Kind
from jaxinfer.experiment.merge import Origin, show
from jaxinfer.experiment.registry import suggest
from jaxinfer.experiment.rows import ROWS
from jaxinfer.experiment.typed import check_name, typed
from jaxinfer.host import plugins
from jaxinfer.host.registry import Registry

DEFAULT = "rows"
KINDS: Registry[Kind] = Registry("kind of experiment", {DEFAULT: ROWS})


@dataclass(frozen=True)
class Experiment:
    """A config that was read and checked, with its kind. heading: what config.yaml of a run says above the config."""

    kind: Kind
    config: Any
    heading: dict[str, Any]


def read(
    path: str | Path,
    overrides: Sequence[str] = (),
    plugin_files: Sequence[str] = (),
    default: str = DEFAULT,
    here: bool = True,
) -> Experiment:
    """Read and check a config of any kind. plugin_files: those of the command line, which run first.

    default: the kind of a config that names none. here: whether it is measured on this machine, whose files and devices
    are checked then. Raises InputError, one line, for whatever cannot be.
    """
    plugins.load(plugin_files, name="--plugin")
    data, origin = merge.read(path, list(overrides))
    named, files, data = heading.take(data, origin, Path(path).parent)
    name = default if named is None else named
    kind = find(name, Path(path).parent, origin)
    data = spread.into_model(data, kind.config, origin)
    config = kind.read(data, origin) if kind.read else typed(kind.config, data, origin, heading.KEYS)
    check_name(config.name, origin)
    if here:
        kind.check(config)
    files = list(dict.fromkeys([*(str(Path(file).expanduser().resolve()) for file in plugin_files), *files]))
    above = {"kind": name} if files or name != DEFAULT else {}
    return Experiment(kind, config, above | ({"plugins": files} if files else {}))


def find(name: Any, folder: Path, origin: Origin) -> Kind:
    """Find the kind of a name, in the registry or in a file. folder: that of the config. Raises InputError."""
    if isinstance(name, str) and name in KINDS:
        return KINDS[name]
    places = dict.fromkeys((folder.resolve().parent / "experiments", Path("experiments").resolve()))
    files = {file.stem: file for place in reversed(places) for file in sorted(place.glob("*.py"))}
    if not isinstance(name, str) or name not in files:
        raise origin.error(("kind",), f"unknown kind of experiment {show(name)}{suggest(name, [*KINDS, *files])}")
    plugins.load([files[name]], name="kind")
    if name not in KINDS:
        raise InputError(f"{shown_text(str(files[name]))}: registers no kind of experiment {name!r}")
    return KINDS[name]

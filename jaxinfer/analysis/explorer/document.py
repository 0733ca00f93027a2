"""The explorer as one self-contained HTML file: styles, scripts, and the analyzer's formulas as data."""

import base64
import html
import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxinfer.analysis import hardware
from jaxinfer.analysis.explorer.catalog import catalog
from jaxinfer.analysis.hardware import Hardware, measuring
from jaxinfer.analysis.roofline.shapes import config_of
from jaxinfer.checkpoint.presets import PREFIX, SHAPES
from jaxinfer.config import ModelConfig
from jaxinfer.host.files import cache_dir, write_atomic

ASSETS = Path(__file__).parent / "assets"
SCRIPTS = ("format.js", "roofline.js", "state.js", "plots.js", "network.js", "panels.js", "controls.js", "page.js")
DEFAULTS = ("llama-3-8b", "h100-sxm")  # what the page opens with where nothing is said
HEIGHT = 900  # pixels, in a notebook


@dataclass(frozen=True)
class Page:
    """An HTML file that needs no other. A notebook shows it in a frame."""

    html: str

    def _repr_html_(self) -> str:
        frame = "width:100%;border:0;border-radius:8px"
        return f'<iframe srcdoc="{html.escape(self.html)}" style="{frame};height:{HEIGHT}px"></iframe>'

    def write(self, path: str | Path) -> None:
        """Write the file, whole or not at all."""
        write_atomic(Path(path), self.html)


def page(
    model: str | None = None,
    device: str | None = None,
    models: Mapping[str, ModelConfig] | None = None,
    devices: Iterable[Hardware] | None = None,
) -> Page:
    """Make the page.

    model, device: what it opens with, as `jaxinfer roofline` takes them; what is not on it is added. models, devices:
    those on it; default: all known shapes, all devices of the package, and this machine if it has been measured.
    Raises InputError for a model or a device that is unknown.
    """
    shapes = dict(SHAPES if models is None else models)
    known = _devices() if devices is None else list(devices)
    start = {"model": _first(shapes, DEFAULTS), "hardware": _first([one.name for one in known], DEFAULTS)}
    if model is not None:
        start["model"] = _added(shapes, model)
    if device is not None:
        chosen = hardware.get(device)
        known = [chosen, *(one for one in known if one.name != chosen.name)]
        start["hardware"] = chosen.name
    return Page(_html({"start": start, **catalog(shapes, known)}))


def _devices() -> list[Hardware]:
    """Give the devices of the package, and this machine where its measured constants are in the cache.

    JAX's device is asked for its name only where some machine has been measured: an accelerator that starts takes its
    memory.
    """
    cache = cache_dir()
    some = cache is not None and any((cache / "hardware").glob("*.json"))
    kept = measuring.kept_file() if some else None
    measured = [hardware.get(hardware.THIS_MACHINE)] if kept is not None and kept.is_file() else []
    return [*map(hardware.get, hardware.NAMES), *measured]


def _added(shapes: dict[str, ModelConfig], source: str) -> str:
    """Add a model to the shapes unless it is there, and return its name there."""
    text, config = source.removeprefix(PREFIX), config_of(source)
    known = [name for name, one in shapes.items() if one == config]
    if known:
        return text if text in known else known[0]
    name = Path(text).name or text
    shapes[name] = config
    return name


def _first(names: Iterable[str], wanted: Iterable[str]) -> str:
    """Give the first wanted name that there is, or else the first name."""
    known = list(names)
    return next((name for name in wanted if name in known), known[0])


def packed(data: Any) -> str:
    """Give data as JSON, deflated (RFC 1950), in base64."""
    return base64.b64encode(zlib.compress(json.dumps(data, separators=(",", ":")).encode(), 9)).decode()


def script(names: Iterable[str] = SCRIPTS) -> str:
    """Give the page's scripts as one."""
    return "\n".join((ASSETS / name).read_text(encoding="utf-8") for name in names)


def _html(data: Any) -> str:
    parts = {"STYLE": (ASSETS / "page.css").read_text(encoding="utf-8"), "SCRIPT": script(), "DATA": packed(data)}
    text = (ASSETS / "page.html").read_text(encoding="utf-8")
    for name, part in parts.items():
        text = text.replace(f"/*{name}*/", part)
    return text

"""Where files that are costly to rebuild are kept between runs."""

import os
from pathlib import Path


def cache_dir() -> Path | None:
    """The user's cache folder for jaxinfer, or None where caching is switched off.

    The environment variable JAXINFER_CACHE moves it (`JAXINFER_CACHE=/some/folder`) or switches it off
    (`JAXINFER_CACHE=off`). By default it is `$XDG_CACHE_HOME/jaxinfer`, or `~/.cache/jaxinfer`. The folder may not
    exist yet.
    """
    setting = os.environ.get("JAXINFER_CACHE", "")
    if setting.lower() == "off":
        return None
    if setting:
        return Path(setting).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "jaxinfer"


def write_atomic(path: Path, text: str) -> None:
    """Write `text` to `path` so that a reader sees the whole of it or nothing. Creates the folder. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)

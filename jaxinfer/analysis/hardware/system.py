"""The operating system's word on a machine: its processor, its cores, its memory and its caches."""

import os
import platform
import re
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
CACHES = Path("/sys/devices/system/cpu")
LIMIT = Path("/sys/fs/cgroup/memory.max")  # of a container
ASSUMED_CACHE = float(32 << 20)  # bytes, where the system does not tell
ASSUMED_MEMORY = float(8 << 30)

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def processor() -> str:
    """Return the processor's name."""
    found = re.search(r"^model name\s*:\s*(.+)$", _text(CPUINFO), re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine() or "CPU"


def cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory() -> tuple[float, str]:
    """Return the bytes of memory that this process may use, and who says so."""
    try:
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return ASSUMED_MEMORY, "assumed: 8 GiB; the system does not tell"
    limit = _text(LIMIT).strip()
    if limit.isdecimal() and 0 < int(limit) < physical:
        return float(limit), f"the limit of this container, {LIMIT}"
    return float(physical), "physical memory, sysconf"


def last_cache() -> tuple[float, str]:
    """Return the bytes of all caches of the last level that these cores have, and who says so.

    A cache that several cores share counts once.
    """
    found: dict[int, dict[str, int]] = {}
    for folder in CACHES.glob("cpu[0-9]*/cache/index*"):
        level, kind = _text(folder / "level").strip(), _text(folder / "type").strip()
        size = re.fullmatch(r"(\d+)([KMG]?)", _text(folder / "size").strip())
        if kind in ("Unified", "Data") and level.isdecimal() and size and int(size[1]):
            shared = _text(folder / "shared_cpu_list").strip()
            found.setdefault(int(level), {})[shared] = int(size[1]) * _UNITS[size[2]]
    if not found:
        return ASSUMED_CACHE, "assumed: 32 MiB; the system does not tell"
    last = max(found)
    return float(sum(found[last].values())), f"caches of level {last}, {CACHES}"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""

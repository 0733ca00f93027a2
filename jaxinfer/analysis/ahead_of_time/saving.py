"""Executables in a file: compiled here for the machine that loads them.

A file is a line that says what it is, the length of a header, the header as JSON, and the programs. The header names
the model, the mesh, the versions and the device, which are checked before a program is touched, and the sha256 of each.

A program is what `jax.experimental.serialize_executable` writes: machine code, and a pickle around it that names JAX's
own classes. Reading it makes objects of these alone (`ALLOWED`); a pickle that names anything else is refused. The
machine code is run as it is: load executables of those alone whom you would let run a program.
"""

import hashlib
import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jaxlib
from jax.experimental import serialize_executable

from jaxinfer.analysis.ahead_of_time import shapes
from jaxinfer.analysis.ahead_of_time.ask import Ask
from jaxinfer.analysis.ahead_of_time.studying import Built, Say, compiled
from jaxinfer.decoding.sampling.settings import bucket
from jaxinfer.errors import InputError, shown
from jaxinfer.host.files import draft_of, path_of, read_bytes
from jaxinfer.runtime.beginning import SMALLEST_BUFFER
from jaxinfer.runtime.compiled import SavedPrograms, identity, preload
from jaxinfer.sharding import MeshShape, Sharding
from jaxinfer.sharding.meshes import make_virtual

MAGIC = b"jaxinfer executable 1\n"
MOST_BYTES = 16 << 30
MOST_HEADER = 16 << 20
FUNCTIONS = (
    ("jax._src.named_sharding", "_unpickle_named_sharding"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "_reconstruct"),
)
ALLOWED = re.compile(r"(jax|jaxlib)(\.[\w.]+)?|ml_dtypes|numpy(\.dtypes)?|builtins")
BUILTINS = ("set", "frozenset", "slice", "complex")


def save(file: str | Path, ask: Ask, built: Mapping[str, Built], say: Say | None = None) -> Path:
    """Write what `generate` runs of an ask: its programs, and the prefill of every width up to its prompt.

    Raises InputError for a program that the compiler refused, and where nothing can be written.
    """
    path = path_of(file, "--save")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise InputError(f"--save: {shown(str(file))}: must be a file in a folder that is there")
    entries, data = [], []
    for one in _all(ask, built, say):
        if one.compiled is None:
            raise InputError(f"--save: {one.program.name} was refused: {one.error}")
        payload, _, out_tree = serialize_executable.serialize(one.compiled)
        entries.append(
            {
                "name": one.program.name,
                "signature": one.program.signature,
                "size": len(payload),
                "sha256": hashlib.sha256(payload).hexdigest(),
                "rest": _skeleton(out_tree),
            }
        )
        data.append(payload)
    program = next(iter(built.values())).program
    header = json.dumps(_header(ask, program) | {"programs": entries}).encode()
    whole = b"".join([MAGIC, len(header).to_bytes(8, "little"), header, *data])
    draft = draft_of(path)
    try:
        draft.write_bytes(whole)
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise InputError(f"--save: {shown(str(file))}: cannot be written: {error.strerror}") from None
    return path


def _all(ask: Ask, built: Mapping[str, Built], say: Say | None) -> list[Built]:
    found = {one.program.signature: one for one in built.values()}
    for program in shapes.widths(ask, next(iter(built.values())).program.layout):
        if program.signature not in found:
            if say is not None:
                say(f"compiling {program.name} for {ask.slice}")
            found[program.signature] = compiled(program)
    return list(found.values())


def _header(ask: Ask, program: shapes.Program) -> dict[str, Any]:
    device = program.layout.mesh.devices.flat[0]
    return {
        "model": identity(program.static, program.arguments),
        "mesh": str(ask.mesh),
        "pad_heads": ask.pad_heads,
        "device_kind": device.device_kind,
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "buffer": bucket(ask.context, SMALLEST_BUFFER),
        "batch": ask.batch,
        "context": ask.context,
        "prompt": ask.tokens,
        "weights": ask.weights,
        "dtype": ask.dtype,
        "method": repr(ask.method_of("decode")),
        "policy": repr(ask.cache_policy),
    }


@dataclass(frozen=True)
class Entry:
    """A program in a file."""

    file: str
    name: str
    payload: bytes = field(repr=False)
    rest: Any  # what it returns beside what it was given to carry on; "-": nothing

    def load(self, args: tuple[Any, ...], carry: int, layout: Sharding | None) -> Any:
        """Make a `jax.stages.Compiled` of it for arguments like these. Raises InputError for what is none."""
        assert layout is not None
        head: Any = jax.tree.structure(args[carry])
        carried = jax.tree.unflatten(head, [0] * head.num_leaves)
        out = head if self.rest == "-" else jax.tree.structure((carried, *map(_value, self.rest)))
        devices = list(layout.mesh.devices.flat)
        try:
            return _load(self.payload, jax.tree.structure((args, {})), out, devices)
        except InputError:
            raise
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(f"{self.file}: {self.name}: this machine cannot load it: {reason}") from None


class _Unpickler(serialize_executable._JaxPjrtUnpickler):
    """Reads a serialized executable, and no class but those that one names."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in FUNCTIONS:
            return super().find_class(module, name)
        if ALLOWED.fullmatch(module) and "." not in name and (module != "builtins" or name in BUILTINS):
            found = super().find_class(module, name)
            if isinstance(found, type):
                return found
        raise InputError(f"an executable names {module}.{name}, which none needs: the file is not one of ours")


def _load(payload: bytes, in_tree: Any, out_tree: Any, devices: list[Any]) -> Any:
    unloaded, args_flat, no_kwargs = _Unpickler(io.BytesIO(payload), devices[0].client, devices).load()
    return jax.stages.Compiled(unloaded.load(), [], in_tree.unflatten(args_flat), out_tree, no_kwargs=no_kwargs)


def read(file: str | Path) -> tuple[dict[str, Any], SavedPrograms]:
    """Read a file's header and its programs, which are not loaded yet.

    Raises InputError for a damaged file, one of another version of JAX, or for a device that is not here.
    """
    data, where = read_bytes(file, "--executable", most=MOST_BYTES), f"--executable: {file}"
    start = len(MAGIC) + 8
    if not data.startswith(MAGIC) or len(data) < start:
        raise InputError(f"{where}: is no executable of jaxinfer compile --save")
    length = int.from_bytes(data[len(MAGIC) : start], "little")
    try:
        if not 0 < length <= min(MOST_HEADER, len(data) - start):
            raise ValueError
        header = json.loads(data[start : start + length])
        programs, place = {}, start + length
        for entry in header["programs"]:
            payload = data[place : place + entry["size"]]
            place += entry["size"]
            if hashlib.sha256(payload).hexdigest() != entry["sha256"]:
                raise ValueError
            programs[str(entry["signature"])] = Entry(where, str(entry["name"]), payload, entry["rest"])
        saved = SavedPrograms(where, str(header["model"]), int(header["buffer"]), programs)
        _check(header, where)
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InputError(f"{where}: is damaged: its header and its programs do not agree") from None
    return header, saved


def _check(header: Mapping[str, Any], where: str) -> None:
    """Raise InputError for an executable of another version or device, with both."""
    for name, here in (("jax", jax.__version__), ("jaxlib", jaxlib.__version__)):
        if header[name] != here:
            raise InputError(f"{where}: was compiled by {name} {header[name]}, and this is {name} {here}")
    mesh = MeshShape.of(str(header["mesh"]))
    make_virtual(mesh.size)
    present = jax.devices()
    if header["device_kind"] != present[0].device_kind:
        raise InputError(
            f"{where}: was compiled for a device {header['device_kind']!r}, and this machine has "
            f"{present[0].device_kind!r}"
        )
    if mesh.size > len(present):
        raise InputError(f"{where}: was compiled for {mesh.size} devices, and this machine has {len(present)}")


def use(file: str | Path) -> tuple[MeshShape, bool]:
    """Let the programs of a file take the place of compiling: over which mesh, and with heads padded or not, models
    must be spread for that.

    Raises InputError as `read`.
    """
    header, saved = read(file)
    preload(saved)
    return MeshShape.of(header["mesh"]), header.get("pad_heads") is True


def _skeleton(out_tree: Any) -> Any:
    """Write what a program returns beside what it carries on: None, "*" for an array, lists and mappings of these."""
    found = jax.tree.unflatten(out_tree, ["*"] * out_tree.num_leaves)
    return [_plain(x) for x in found[1:]] if type(found) is tuple else "-"


def _plain(tree: Any) -> Any:
    if tree is None or tree == "*":
        return tree
    if type(tree) is tuple:
        return {"tuple": [_plain(x) for x in tree]}
    if type(tree) is list:
        return [_plain(x) for x in tree]
    if type(tree) is dict:
        return {"dict": {key: _plain(x) for key, x in tree.items()}}
    raise InputError(f"--save: a program gives {type(tree).__name__}, which no file holds")


def _value(plain: Any) -> Any:
    if plain is None:
        return None
    if isinstance(plain, list):
        return [_value(x) for x in plain]
    if isinstance(plain, dict):
        if "tuple" in plain:
            return tuple(_value(x) for x in plain["tuple"])
        return {key: _value(x) for key, x in plain["dict"].items()}
    return 0

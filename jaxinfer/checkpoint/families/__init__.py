"""The model families that can be loaded, one file each: a table of tensors and two configuration readers.

To add a family, write such a file and name it in FAMILIES.
"""

from collections.abc import Callable

from jaxinfer.checkpoint.families.gemma3 import GEMMA3
from jaxinfer.checkpoint.families.llama import LLAMA
from jaxinfer.checkpoint.mapping import Family
from jaxinfer.config import ModelConfig
from jaxinfer.errors import InputError, nearest

FAMILIES: tuple[Family, ...] = (LLAMA, GEMMA3)


def by_gguf_arch(arch: str, file: str) -> Family:
    """The family of a GGUF file's `general.architecture`. Raises InputError that lists those supported."""
    return _find({family.gguf_arch: family for family in FAMILIES}, arch, f"{file}: architecture")


def by_hf_type(model_type: str, file: str) -> Family:
    """The family of a config.json's `model_type`. Raises InputError that lists those supported."""
    return _find({name: family for family in FAMILIES for name in family.hf_types}, model_type, f"{file}: model_type")


def configured(read: Callable[[], ModelConfig], file: str) -> ModelConfig:
    """What a family's reader gives. Raises InputError if the fields are of the right types but do not fit together."""
    try:
        return read()
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{file}: {error}") from None


def _find(families: dict[str, Family], name: str, where: str) -> Family:
    if name not in families:
        known = ", ".join(families)
        raise InputError(f"{where} {name!r} is not supported; supported: {known}{nearest(name, families)}")
    return families[name]

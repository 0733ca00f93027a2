"""The model families that can be loaded, one file each: a table of tensors and two configuration readers.

To add a family, write such a file and name it in FAMILIES.
"""

from collections.abc import Callable

from jaxinfer.checkpoint.families.bloom import BLOOM
from jaxinfer.checkpoint.families.deepseek import DEEPSEEK_V2, DEEPSEEK_V3
from jaxinfer.checkpoint.families.falcon import FALCON
from jaxinfer.checkpoint.families.gemma import GEMMA, GEMMA2
from jaxinfer.checkpoint.families.gemma3 import GEMMA3
from jaxinfer.checkpoint.families.gpt2 import GPT2
from jaxinfer.checkpoint.families.gpt_neox import GPT_NEOX
from jaxinfer.checkpoint.families.gpt_oss import GPT_OSS
from jaxinfer.checkpoint.families.granite import GRANITE
from jaxinfer.checkpoint.families.llama import LLAMA
from jaxinfer.checkpoint.families.mamba import MAMBA, MAMBA2
from jaxinfer.checkpoint.families.mistral import MISTRAL
from jaxinfer.checkpoint.families.moe import MIXTRAL, OLMOE, QWEN2_MOE, QWEN3_MOE
from jaxinfer.checkpoint.families.mpt import MPT
from jaxinfer.checkpoint.families.olmo2 import OLMO2
from jaxinfer.checkpoint.families.opt import OPT
from jaxinfer.checkpoint.families.phi3 import PHI3
from jaxinfer.checkpoint.families.qwen import QWEN2, QWEN3
from jaxinfer.checkpoint.families.smollm3 import SMOLLM3
from jaxinfer.checkpoint.families.stablelm import STABLELM
from jaxinfer.checkpoint.mapping import Family
from jaxinfer.config import ModelConfig
from jaxinfer.errors import InputError, nearest, shown

FAMILIES: tuple[Family, ...] = (
    LLAMA,
    MISTRAL,
    QWEN2,
    QWEN3,
    MIXTRAL,
    QWEN2_MOE,
    QWEN3_MOE,
    OLMOE,
    GEMMA,
    GEMMA2,
    GEMMA3,
    PHI3,
    OLMO2,
    SMOLLM3,
    GRANITE,
    STABLELM,
    FALCON,
    MPT,
    BLOOM,
    GPT2,
    GPT_NEOX,
    OPT,
    DEEPSEEK_V2,
    DEEPSEEK_V3,
    GPT_OSS,
    MAMBA,
    MAMBA2,
)


def by_gguf_arch(arch: str, file: str) -> Family:
    """Return the family of a GGUF file's `general.architecture`. Raises InputError that lists those supported."""
    return _find({family.gguf_arch: family for family in FAMILIES if family.gguf_arch}, arch, f"{file}: architecture")


def by_hf_type(model_type: str, file: str) -> Family:
    """Return the family of a config.json's `model_type`. Raises InputError that lists those supported."""
    return _find({name: family for family in FAMILIES for name in family.hf_types}, model_type, f"{file}: model_type")


def by_name(name: str) -> Family:
    """Return the family that `ModelConfig.family` names. Raises InputError that lists those supported."""
    return _find({family.name: family for family in FAMILIES}, name, "family")


def configured(read: Callable[[], ModelConfig], file: str) -> ModelConfig:
    """Run a family's reader. Raises InputError if the fields are of the right types but do not fit together."""
    try:
        return read()
    except InputError:
        raise
    except (ValueError, ArithmeticError) as error:
        raise InputError(f"{file}: {error}") from None


def _find(families: dict[str, Family], name: str, where: str) -> Family:
    if name not in families:
        known = ", ".join(families)
        raise InputError(f"{where} {shown(name)} is not supported; supported: {known}{nearest(name, families)}")
    return families[name]

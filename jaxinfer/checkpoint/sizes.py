"""Sizes that a configuration names, compared with the tensors that are there, before anything is built of them.

A damaged file may speak of 2^31 layers or of a vocabulary of 10^12: what such numbers would make takes all memory, or
for ever. No layer is without a tensor, and every size of a model is a side of one of its tensors.
"""

import re
from collections.abc import Iterator

from jaxinfer.checkpoint.fields import Fields
from jaxinfer.checkpoint.mapping import Tensors
from jaxinfer.config import MLA, SSM, ModelConfig
from jaxinfer.errors import InputError, shown

_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "block_count")
_NUMBER = re.compile(r"(?:^|\.)([0-9]{1,9})\.")


def check_layers(fields: Fields, tensors: Tensors) -> None:
    """Raise InputError if a configuration names more layers than there are tensors of; call it before it is read."""
    numbers = {found[1] for name in tensors if (found := _NUMBER.search(name))}
    for name in _LAYERS:
        value = fields.get(name, None)
        if isinstance(value, int) and value > max(1, len(numbers)):
            raise InputError(
                f"{fields.file}: field {fields.prefix + name!r} is {shown(value)}, and there are tensors of "
                f"{len(numbers)} layers"
            )


def check_sizes(cfg: ModelConfig, tensors: Tensors, each_expert: bool, source: str) -> None:
    """Raise InputError if a size of the model is larger than any side of its tensors.

    each_expert: each expert is a tensor of its own.
    """
    longest = max((max(x.shape) for x in tensors.values() if x.shape and 0 not in x.shape), default=0)
    for name, size in _sizes(cfg):
        if size > longest:
            raise InputError(
                f"{source}: {name}={shown(size)} fits none of its tensors, whose longest side is {longest}"
            )
    experts = sum(kind.moe.experts for kind in cfg.layers if kind.moe)
    if each_expert and experts > len(tensors):
        raise InputError(f"{source}: {experts} experts are more than the {len(tensors)} tensors that are there")


def _sizes(cfg: ModelConfig) -> Iterator[tuple[str, int]]:
    for name in ("vocab_size", "d_model", "n_heads", "n_kv_heads", "head_dim"):
        yield name, getattr(cfg, name)
    if cfg.absolute_positions == "learned":
        yield "max_positions", cfg.max_positions
    if cfg.d_ff and any(kind.moe is None for kind in cfg.kinds):
        yield "d_ff", cfg.d_ff
    if cfg.mla:
        yield from _of(cfg.mla, "kv_rank", "nope_dim", "rope_dim", "v_dim", "q_rank")
    for kind in cfg.kinds:
        if isinstance(kind.mixer, SSM):
            yield from _of(kind.mixer, "width", "state", "conv", "dt_rank", "heads", "groups")
        if kind.moe:
            yield from ((f"moe.{name}", getattr(kind.moe, name) or 0) for name in ("d_ff", "shared_d_ff"))


def _of(part: MLA | SSM, *names: str) -> Iterator[tuple[str, int]]:
    yield from ((f"{type(part).__name__.lower()}.{name}", getattr(part, name) or 0) for name in names)

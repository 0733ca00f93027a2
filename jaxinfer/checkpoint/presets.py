"""Models known by their shape alone: what loading the real checkpoint would give, without its weights."""

from jaxinfer.checkpoint.families import by_hf_type
from jaxinfer.checkpoint.fields import Fields
from jaxinfer.checkpoint.published import PUBLISHED, Published
from jaxinfer.config import ModelConfig
from jaxinfer.errors import InputError, nearest, shown_text

PREFIX = "random:"


def _config(model: Published) -> ModelConfig:
    fields = Fields(f"{model.repo}/config.json", model.fields)
    return by_hf_type(fields.text("model_type"), fields.file).from_hf(fields)


SHAPES: dict[str, ModelConfig] = {name: _config(model) for name, model in PUBLISHED.items()}
"""By name: the configuration that the family's reader makes of the published config.json."""


def preset(name: str, where: str | None = None) -> ModelConfig:
    """Return the shape of a well-known model: `llama-2-7b`, or in another spelling `llama2-7b` and `Llama_2_7B`.

    where: what names it, for the error. Raises InputError, with the nearest name, for one that is not known.
    """
    spellings = {_plain(known): known for known in SHAPES}
    found = spellings.get(_plain(name))
    if found is None:
        near = nearest(name.lower(), SHAPES)
        raise InputError(f"{shown_text(where or name)}: is no known shape: {', '.join(SHAPES)}{near}")
    return SHAPES[found]


def shape_of(source: str) -> ModelConfig | None:
    """Return the shape of `random:NAME`; None for a source of another kind. Raises InputError for an unknown name."""
    if not isinstance(source, str) or not source.startswith(PREFIX):  # a path is none
        return None
    return preset(source.removeprefix(PREFIX), source)


def _plain(name: str) -> str:
    """Return what all spellings of a name share: its letters, digits and points (1.3b is not 13b)."""
    return "".join(x for x in name.lower() if x.isalnum() or x == ".")

"""The parts of an experiment as data: frozen dataclasses, which pydantic holds to their annotations."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from jaxinfer.compress.context import Kind
from jaxinfer.host.values import FORBID_UNKNOWN_KEYS


@dataclass(frozen=True)
class ContextSpec:
    """A context `factor` times as long as the model's, with scaled positions: see `compress.extend_context`."""

    kind: Kind
    factor: float

    __pydantic_config__ = FORBID_UNKNOWN_KEYS


@dataclass(frozen=True)
class ModelSpec:
    """The weights: a built-in name, a file, or a folder, as `jaxinfer.load` takes it; dtype null is its default.

    `weights` is a format that they are rounded to; null leaves them as they are. `context` stretches what the model
    reads; null leaves it as it is. `tokenizer` is a folder with a tokenizer.json, a tokenizer.json or a GGUF
    file, whose tokenizer is taken; null takes the model's own. `mesh`, such as data=2,tensor=4, is what it is spread
    over; `pad_heads` adds heads of zeros where its heads do not divide: see `spread`.
    """

    source: str
    dtype: Literal["float32", "bfloat16"] | None = None
    weights: str | None = None
    context: ContextSpec | None = None
    tokenizer: str | None = None
    mesh: Any = None
    pad_heads: bool = False

    __pydantic_config__ = FORBID_UNKNOWN_KEYS


@dataclass(frozen=True)
class SyntheticSpec:
    """Prompts of random token ids: `count` of `prompt` tokens each, after which `generate` tokens come, no fewer."""

    prompt: int
    generate: int
    count: int = 4
    seed: int = 0

    __pydantic_config__ = FORBID_UNKNOWN_KEYS


@dataclass(frozen=True)
class PromptSpec:
    """The prompts: the name of a bundled set, a .jsonl file, the prompts themselves, or synthetic ones in their place.

    `per_family` takes the first few of each family, `limit` the first of all; `chat` wraps each as one user turn of the
    model's chat template.
    """

    source: str | tuple[str, ...] = "quickstart"
    limit: int | None = None
    per_family: int | None = None
    chat: bool = True
    synthetic: SyntheticSpec | None = None

    __pydantic_config__ = FORBID_UNKNOWN_KEYS


@dataclass(frozen=True)
class DecodingSpec:
    """Holds what is common to all rows: tokens to emit for each prompt, seed, prompts in a batch, timed passes.

    `ignore_eos` and `min_new_tokens` are those of `generate`: every prompt gives as many tokens as the next. `agree` is
    a share, such as 0.03: two passes that agree so far are enough (`passes.agree`); with 0 there are always `repeats`.
    """

    max_new_tokens: int = 64
    min_new_tokens: int = 0
    ignore_eos: bool = False
    seed: int = 0
    batch: int = 1
    repeats: int = 3
    agree: float = 0.0

    __pydantic_config__ = FORBID_UNKNOWN_KEYS


@dataclass(frozen=True)
class ConstraintSpec:
    """The form of new texts, as `jaxinfer.Constraint` has it; json_schema is the path of a file."""

    regex: str | None = None
    json_schema: str | None = None
    choice: tuple[str, ...] | None = None

    __pydantic_config__ = FORBID_UNKNOWN_KEYS


@dataclass(frozen=True)
class RowSpec:
    """One row of the table. The mappings name a method, a cache policy and sampling parameters; see `registry`."""

    name: str
    method: dict[str, Any]
    policy: dict[str, Any] | None = None  # null: the exact one that suits the model, as in `generate`
    sampling: dict[str, Any] | None = None
    constraint: ConstraintSpec | None = None

    __pydantic_config__ = FORBID_UNKNOWN_KEYS


@dataclass(frozen=True)
class ExtraSpec:
    """An extra of a method: a draft model and its layers (null: all), a folder of heads, a text file.

    `weights` is a format that a draft model's weights are rounded to: the model itself in int4 may draft for it.

    A draft model may have extras of its own, for the method that it drafts with (`Cascade`).
    """

    source: str
    dtype: Literal["float32", "bfloat16"] | None = None
    weights: str | None = None
    layers: tuple[int, ...] | None = None
    extras: "dict[str, ExtraSpec]" = field(default_factory=dict)

    __pydantic_config__ = FORBID_UNKNOWN_KEYS


@dataclass(frozen=True)
class PerplexitySpec:
    """The perplexity of a text file: see `analysis.quality.perplexity`."""

    text: str
    window: int = 512
    max_windows: int | None = None

    __pydantic_config__ = FORBID_UNKNOWN_KEYS


@dataclass(frozen=True)
class TaskSpec:
    """The items of a task: a .jsonl file, of which the first `limit`."""

    file: str
    limit: int | None = None

    __pydantic_config__ = FORBID_UNKNOWN_KEYS


@dataclass(frozen=True)
class QualitySpec:
    """Holds what is asked of a row's quality: see `analysis.quality`. divergence: from the row's reference."""

    divergence: bool = True
    perplexity: PerplexitySpec | None = None
    multiple_choice: TaskSpec | None = None
    last_word: TaskSpec | None = None

    __pydantic_config__ = FORBID_UNKNOWN_KEYS


@dataclass(frozen=True)
class Experiment:
    """One experiment: the rows of its table, measured on one model and one set of prompts, or a grid of such."""

    name: str
    model: ModelSpec
    rows: tuple[RowSpec, ...] = ()
    prompts: PromptSpec = PromptSpec()
    decoding: DecodingSpec = DecodingSpec()
    extras: dict[str, ExtraSpec] = field(default_factory=dict)  # by the names that methods know them by
    axes: dict[str, tuple[Any, ...]] = field(default_factory=dict)  # see `axes`
    include: tuple[dict[str, Any], ...] = ()
    exclude: tuple[dict[str, Any], ...] = ()
    quality: QualitySpec | None = None
    ledger: bool = False  # of every row: physics, compiler and clock side by side, and where the time goes
    profile: bool = False  # a trace of every row for XProf and TensorBoard, in the run folder
    output: str = "runs"

    __pydantic_config__ = FORBID_UNKNOWN_KEYS


def model_from(plain: Mapping[str, Any]) -> ModelSpec:
    """Make a model of what `dataclasses.asdict` gave of it."""
    context = plain["context"] and ContextSpec(**plain["context"])
    return ModelSpec(**{**plain, "context": context})


def prompts_from(plain: Mapping[str, Any]) -> PromptSpec:
    """Make prompts of what `dataclasses.asdict` gave of them."""
    source, synthetic = plain["source"], plain["synthetic"] and SyntheticSpec(**plain["synthetic"])
    return PromptSpec(
        **{**plain, "source": source if isinstance(source, str) else tuple(source), "synthetic": synthetic}
    )

"""The analyzer's formulas as programs in JavaScript: one for each model, stage, attention and mode.

`Expression`s for the parts of a setting make the analyzer write its formulas down. They share most of their parts, so
that a program computes each part once and in order: `const t0=batch/data,t1=t0*4096,...;`.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

from jaxinfer.analysis.roofline import Operator, Setting, Storage, llm_viewer
from jaxinfer.analysis.roofline.analysis import STAGES, Stage, call
from jaxinfer.analysis.roofline.arithmetic import Expression, Number
from jaxinfer.analysis.roofline.memory import memory
from jaxinfer.analysis.roofline.network import operators
from jaxinfer.config import ModelConfig
from jaxinfer.errors import InputError

STORED = ("bits", "scales", "rows")
ARGUMENTS = (
    *("batch", "prompt", "generate", "context", "width", "budget"),
    *(f"{part}_{name}" for part in ("weight", "outside", "kv") for name in STORED),
    *("operands", "activations", "tensor", "pipeline", "data", "expert", "on_chip"),
)
"""The parameters of every program, in order. outside: the storage of embedding and head; budget: 2^52 for none."""
FIELDS = ("layers", "ops", "weights", "read", "written", "kv_read", "kv_written", "wire", "bits")
"""The figures of an operator that a program returns, in order; after the operators come those of memory."""
MEMORY = ("weights", "kv", "activations", "logits", "total")
VARIANTS = tuple((stage, flash) for stage in STAGES for flash in (False, True))

_INNERMOST = re.compile(r"(?:Math\.\w+)?\([^()]*\)")


def programs(config: ModelConfig) -> dict[str, Any]:
    """Give a model's programs: `default`, and `llm-viewer` unless that tool has no arithmetic for it (None).

    Each is a dict by `prefill`, `prefill-flash`, `decode` and `decode-flash` of `names` and `kinds` of the operators
    and `source`, the body of a function of ARGUMENTS that returns an array of numbers.
    """
    setting = _setting()
    found: dict[str, Any] = {"default": {_name(*one): _default(config, setting, *one) for one in VARIANTS}}
    try:
        found["llm-viewer"] = {_name(*one): _compat(config, setting, *one) for one in VARIANTS}
    except InputError:
        found["llm-viewer"] = None
    return found


def _name(stage: Stage, flash: bool) -> str:
    return stage + "-flash" * flash


def _setting() -> Setting:
    """Give a setting of variables, all but those that choose a program."""

    def stored(part: str, embedding: Storage | None = None, operands: Number | None = None) -> Storage:
        bits, scales, rows = (Expression(f"{part}_{name}") for name in STORED)
        return Storage(bits, scales, rows, embedding, operands)

    plain = ("batch", "prompt", "generate", "width", "activations", "tensor", "pipeline", "data", "expert")
    variables: dict[str, Any] = {name: Expression(name) for name in plain}
    weights = stored("weight", stored("outside"), Expression("operands"))
    return Setting(**variables, weights=weights, kv=stored("kv"), kv_budget=Expression("budget"))


def _default(config: ModelConfig, setting: Setting, stage: Stage, flash: bool) -> dict[str, Any]:
    setting = setting.replace(flash=flash)
    on_chip: Number = Expression("on_chip")
    context: Number = Expression("context")
    one = call(config, setting, stage, on_chip, context)
    made = operators(one)
    held = memory(config, setting, one, made).as_dict()
    return _program(made, [held[name] for name in MEMORY])


def _compat(config: ModelConfig, setting: Setting, stage: Stage, flash: bool) -> dict[str, Any]:
    alone = {"width": 1, "tensor": 1, "pipeline": 1, "data": 1, "expert": 1, "kv_budget": None}
    setting = setting.replace(flash=flash, **alone)
    made = llm_viewer.operators(config, setting, stage, Expression("on_chip"))
    held = llm_viewer.memory(config, setting, made)
    return _program(made, [held.get(name, 0) for name in MEMORY])


def _program(made: Sequence[Operator], held: Sequence[Number]) -> dict[str, Any]:
    names, kinds = [one.name for one in made], [one.kind for one in made]
    return {"names": names, "kinds": kinds, "source": source(made, held)}


def source(made: Sequence[Operator], held: Sequence[Number]) -> str:
    """Write the body of a function that returns FIELDS of each operator and then `held`, parts that recur once."""
    known: dict[str, str] = {}
    wanted = [getattr(one, field) for one in made for field in FIELDS] + list(held)
    results = [_shared(value, known) for value in wanted]
    steps = ",".join(f"{name}={text}" for text, name in known.items())
    return (f"const {steps};" if steps else "") + f"return [{','.join(results)}]"


def _shared(value: Number, known: dict[str, str]) -> str:
    """Replace a formula's parentheses by the names of what they hold, innermost first."""
    if not isinstance(value, Expression):
        return repr(value)
    text, replace = value.text, _naming(known)
    while "(" in text:
        text = _INNERMOST.sub(replace, text)
    return text


def _naming(known: dict[str, str]) -> Callable[[re.Match[str]], str]:
    def replace(found: re.Match[str]) -> str:
        text = found[0]
        text = text if text.startswith("Math") else text[1:-1]
        return known.setdefault(text, f"t{len(known)}")

    return replace

"""The proof of an option: its programs are compiled for the target, and the compiler says what they take."""

import importlib
from collections.abc import Callable
from typing import Any

from jaxinfer.analysis.planning.goal import Goal
from jaxinfer.analysis.planning.option import Option, Proof
from jaxinfer.cache import CachePolicy, Quantized
from jaxinfer.config import ModelConfig
from jaxinfer.errors import InputError

Prover = Callable[[ModelConfig, Option, Goal], Proof]
"""Compile an option of a model for a goal. It raises nothing: a Proof says why there is none."""

STUDY = "jaxinfer.analysis.ahead_of_time"


def compiled(config: ModelConfig, option: Option, goal: Goal) -> Proof:
    """Compile the prefill and the decode step of an option for its target, and ask the compiler what they take."""
    try:
        module = importlib.import_module(STUDY)
        account = module.study(module.Ask(**asked(config, option, goal)))
    except (InputError, ImportError) as error:
        return Proof(None, why=str(error))
    return Proof(bool(account.fits), dict(account.bytes), float(account.limit))


def asked(config: ModelConfig, option: Option, goal: Goal) -> dict[str, Any]:
    """Give what is asked of `ahead_of_time` for an option."""
    return {
        "config": config,
        "target": option.target,
        "mesh": option.mesh,
        "weights": None if option.weights == "bfloat16" else option.weights,
        "policy": None if option.kv == "bfloat16" else _policy(option.kv),
        "batch": option.batch,
        "context": goal.slots,
        "prompt": goal.prompt,
    }


def _policy(kv: str) -> CachePolicy:
    formats: dict[str, Any] = {"format": kv}
    return Quantized(**formats)

"""Whole models compiled for machines that are not here, by libtpu and by the CUDA plugin, each where it is installed.

pip install -e ".[tpu]" pytest pytest-xdist hypothesis; pytest -n 0 tests/analysis/test_compiled_for_targets.py
pip install -e ".[cuda]" pytest pytest-xdist hypothesis; pytest -n 0 tests/analysis/test_compiled_for_targets.py
"""

import jax
import pytest

from jaxinfer import Quantized
from jaxinfer.analysis.ahead_of_time import Ask, study
from jaxinfer.checkpoint.presets import preset
from jaxinfer.sharding import MeshShape, topologies

DECODE = {"steps": ("decode",)}  # a prefill takes most of the time to compile
CASES = [
    ("llama-3-70b", "v5e:8x8", "data=1,tensor=64", {"batch": 16, "context": 8192}),
    (
        "llama-3-8b",
        "v5e:2x2",
        "tensor=4",
        {"batch": 4, "context": 4096, "weights": "int8", "policy": Quantized()} | DECODE,
    ),
    ("gemma3-12b", "v6e:2x2", "data=2,tensor=2", {"batch": 4, "context": 8192} | DECODE),
    ("llama-3-8b", "v4:2x2x1", "data=2,tensor=2", {"batch": 4, "context": 2048} | DECODE),
    ("llama-3-8b", "v5p:2x2x1", "tensor=4", {"batch": 4, "context": 2048} | DECODE),
    ("llama-3-8b", "tpu7x:2x2x1", "tensor=8", {"batch": 4, "context": 2048} | DECODE),
    ("llama-3-70b", "h200:1x1x8", "tensor=8", {"batch": 16, "context": 8192}),
    ("llama-3-8b", "a100:1", "tensor=1", {"batch": 4, "context": 4096} | DECODE),
    ("llama-3-8b", "h100:2", "tensor=2", {"batch": 4, "context": 4096} | DECODE),
    ("llama-3-8b", "b200:2", "data=2", {"batch": 4, "context": 4096} | DECODE),
]


@pytest.fixture(autouse=True)
def _as_users_have_it():
    """Optimize what is compiled for other machines as it is for users."""
    jax.config.update("jax_disable_most_optimizations", False)


def asked(model, target, mesh, options):
    extra = topologies.missing(target)
    if extra:
        pytest.skip(f"compiling for {target} takes {extra}")
    return Ask(preset(model), target, MeshShape.of(mesh), **options)


@pytest.mark.parametrize(("model", "target", "mesh", "options"), CASES, ids=[f"{c[0]}-{c[1]}" for c in CASES])
def test_a_model_fits_and_its_bytes_are_those_of_the_memory_model(model, target, mesh, options):
    found = study(asked(model, target, mesh, options))
    assert found.fits, found.json()
    theirs = found.predicted["weights"] + found.predicted["kv"]
    assert found.bytes["weights"] + found.bytes["cache"] == pytest.approx(theirs, rel=0.02)
    # The compiler for TPU7x lays some weights out anew in each call: 1.7 GB of temporaries.
    assert found.total == pytest.approx(found.predicted["total"], rel=0.9 if target.startswith("tpu7x") else 0.1)
    tensor = MeshShape.of(mesh).shape.get("tensor", 1)
    for step in found.steps.values():
        assert step.error is None
        assert step.roofline_seconds > step.roofline_collective_seconds >= 0
        often = sum(x.per_layer for x in step.collectives if x.per_layer)
        assert often == (2 if tensor > 1 else 0), step.collectives  # after attention, and after the MLP
    if found.asked["target"].startswith(("v", "tpu")):
        assert any(kernel.target == "tpu_custom_call" for kernel in found.steps["decode"].kernels)


def test_a_model_that_does_not_fit_is_an_answer():
    found = study(asked("llama-3-70b", "v5e:2x2", "tensor=4", {"batch": 1, "context": 2048, "steps": ("decode",)}))
    assert not found.fits
    assert found.bytes["weights"] > found.limit

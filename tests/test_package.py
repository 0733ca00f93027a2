"""The package as a whole: its public names, and what importing it costs."""

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

import jaxinfer

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parent.parent

NAMES = [
    "Adaptive",
    "Beam",
    "Cache",
    "CachePolicy",
    "Cascade",
    "Constraint",
    "Contrastive",
    "Datastore",
    "DecodeMethod",
    "Dense",
    "Dola",
    "Dynamic",
    "Eagle",
    "EarlyExit",
    "Fallback",
    "Greedy",
    "InputError",
    "Jacobi",
    "LLMA",
    "LayerKind",
    "Lookahead",
    "Lookup",
    "METHODS",
    "MTP",
    "Medusa",
    "Model",
    "ModelConfig",
    "POLICIES",
    "Paged",
    "Quantized",
    "Recycling",
    "Result",
    "Retrieval",
    "Rope",
    "RopeScaling",
    "Sample",
    "Sampling",
    "Segment",
    "SelfSpeculative",
    "Speculative",
    "SpeculativeTree",
    "Stats",
    "Stream",
    "Suffix",
    "Window",
    "load",
    "references",
]


def test_every_public_name_is_there():
    assert jaxinfer.__all__ == NAMES
    scope: dict[str, object] = {}
    exec("from jaxinfer import *", scope)
    assert set(scope) - {"__builtins__"} == set(NAMES)
    for name in jaxinfer.__all__:
        assert scope[name] is getattr(jaxinfer, name) is getattr(sys.modules[jaxinfer._HOME[name]], name)
    assert set(jaxinfer.__all__) <= set(dir(jaxinfer))


@pytest.mark.parametrize("registry", [jaxinfer.METHODS, jaxinfer.POLICIES], ids=lambda registry: registry.kind)
def test_what_is_registered_is_public_and_named_as_its_file(registry):
    for name, cls in registry.items():
        assert getattr(jaxinfer, cls.__name__) is cls
        assert cls.__module__.endswith(f".{name}")
        folder = Path(sys.modules[cls.__module__].__file__).parent
    files = {
        path.stem for path in folder.glob("*.py") if re.search(r"^class \w+\((Decode|Cache)", path.read_text(), re.M)
    }
    assert files - {"wrapper"} == set(registry) - {"adaptive"}  # which extends the wrapper


def test_importing_it_reads_the_names_and_runs_nothing():
    code = "import sys, jaxinfer; dir(jaxinfer); print({'jax', 'flax', 'numpy', 'typing', 'ast'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, "set()\n"), done.stderr


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'jaxinfer' has no attribute 'nothing'"):
        jaxinfer.nothing  # noqa: B018


def test_help_does_not_wait_for_jax():
    code = "import sys, jaxinfer.cli.__main__; print({'jax', 'flax', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "set()\n"), done.stderr


def test_installed_version_is_the_package_s_own():
    try:
        installed = importlib.metadata.version("jaxinfer")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("not installed")
    assert installed == jaxinfer.__version__

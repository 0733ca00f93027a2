"""The package as a whole: its public names, and what importing it costs."""

import importlib.metadata
import subprocess
import sys

import pytest

import jaxinfer


def test_every_public_name_is_there():
    assert set(jaxinfer.__all__) == set(jaxinfer._HOME)
    for name in jaxinfer.__all__:
        assert getattr(jaxinfer, name) is getattr(sys.modules[jaxinfer._HOME[name]], name)
    assert set(jaxinfer.__all__) <= set(dir(jaxinfer))


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'jaxinfer' has no attribute 'nothing'"):
        jaxinfer.nothing  # noqa: B018


def test_help_does_not_wait_for_jax():
    code = "import sys, jaxinfer.cli; print({'jax', 'flax', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "set()\n"), done.stderr


def test_installed_version_is_the_package_s_own():
    try:
        installed = importlib.metadata.version("jaxinfer")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("not installed")
    assert installed == jaxinfer.__version__

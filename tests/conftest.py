"""Models that tests share: the two real ones, and random ones small enough to compile in a second."""

import gc
import os
from importlib.metadata import version
from pathlib import Path

# Half the time of the suite is the compiler's. Its older emitters make the same loops of the same operations in half
# of the time; jaxlib 0.11 has dropped them, and ends a process that asks for them. Two processes keep two cores busy: a
# program need not be split over more. What real models run, and what tests measure of a program, is made as users have
# it: `as_users_have_it`.
FAST_TO_COMPILE = ["--xla_cpu_parallel_codegen_split_count=1"]
HAS_OLDER_EMITTERS = tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11)
if HAS_OLDER_EMITTERS:
    FAST_TO_COMPILE.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FAST_TO_COMPILE]).strip()
# Torch's threads spin while they wait for each other. Two processes of two threads on two cores: a small product took
# 16 ms instead of 0.05.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import jax  # noqa: E402  (which reads the flags)
import numpy as np  # noqa: E402
import pytest  # noqa: E402

import jaxinfer  # noqa: E402
from jaxinfer import LayerKind, Model, ModelConfig, Rope, Segment  # noqa: E402  (JAX reads the flags first)
from jaxinfer.runtime import compiled  # noqa: E402

SLOWEST = (
    "test_reference.py",
    "test_lossless.py",
    "test_families.py",
    "test_api.py",
    "test_programs.py",
    "test_quality.py",
)


def pytest_ignore_collect(collection_path, config):
    """With `-m quick` files without such a test are not even imported: what they need may not be installed."""
    if config.option.markexpr == "quick" and collection_path.name.startswith("test_"):
        return "mark.quick" not in collection_path.read_text(encoding="utf-8") or None
    return None


def pytest_collection_modifyitems(items):
    """Files run whole, each in one of two processes: the longest first, so that none is left over at the end."""
    items.sort(key=lambda item: SLOWEST.index(item.path.name) if item.path.name in SLOWEST else len(SLOWEST))


def pytest_collection_finish():
    """All that has been imported stays: looking through it for garbage is a fifth of the time that tracing takes."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Only what a real model runs is worth optimizing: small programs take most of their time to compile."""
    is_real = bool({"smollm2", "gemma3", "real", "pair"} & set(item.fixturenames))
    jax.config.update("jax_disable_most_optimizations", not is_real)
    as_users_have_it(is_real or "usual_emitters" in item.fixturenames)


def as_users_have_it(wanted, _compile=jax.stages.Lowered.compile):
    """Tell whether the programs of `jaxinfer.runtime.compiled` are made by XLA's usual emitters."""
    options = {"xla_cpu_use_fusion_emitters": True} if wanted and HAS_OLDER_EMITTERS else {}
    jax.stages.Lowered.compile = lambda lowered: _compile(lowered, compiler_options=options)


@pytest.fixture
def usual_emitters():
    """For tests of how much memory a program takes: none that was made otherwise is left."""
    compiled.clear()


@pytest.fixture(scope="session", autouse=True)
def _kept_programs():
    """Programs are compiled once a machine, not once a run: the user's own cache. Tests of compile time do without."""
    compiled.enable_compilation_cache()


@pytest.fixture(scope="module", autouse=True)
def _forgotten_programs():
    """A module leaves no program loaded: those of a whole suite take more memory maps than a process may have."""
    yield
    compiled.clear()
    jax.clear_caches()


@pytest.fixture(scope="session")
def smollm2():
    """SmolLM2 135M Instruct in float32."""
    return jaxinfer.load("smollm2-135m", dtype="float32")


@pytest.fixture(scope="session")
def gemma3():
    """Gemma 3 270M in float32."""
    return jaxinfer.load("gemma3-270m", dtype="float32")


@pytest.fixture(params=["smollm2", "gemma3"])
def real(request):
    """Each of the two real models."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def prose():
    """Fifteen pages of plain English, about 2,750 tokens."""
    return (Path(__file__).parent / "data" / "prose.txt").read_text()


LLAMA = ModelConfig(
    family="llama",
    vocab_size=97,
    d_model=48,
    d_ff=80,
    n_heads=6,
    n_kv_heads=2,
    head_dim=16,
    segments=(Segment((LayerKind(),), 3),),
    max_positions=1024,
    tie_embeddings=False,
)

_LOCAL, _GLOBAL = LayerKind("local", Rope(10_000.0), window=8), LayerKind("global", Rope(1_000_000.0))

GEMMA = LLAMA.replace(
    family="gemma3",
    n_heads=4,
    n_kv_heads=1,
    segments=(Segment((_LOCAL, _GLOBAL), 2),),
    norm_eps=1e-6,
    activation="gelu_tanh",
    qk_norm="head",
    post_norms=True,
    tie_embeddings=True,
    embed_scale=48**0.5,
    query_scale=0.2,
)

SEGMENTS = LLAMA.replace(
    segments=(Segment((_LOCAL, _GLOBAL), 2), Segment((_GLOBAL,), 1)),
)


@pytest.fixture(scope="session")
def tiny_llama():
    """Random weights: grouped queries, one kind of layer, a head of its own."""
    return Model.random(LLAMA)


@pytest.fixture(scope="session")
def tiny_gemma():
    """Random weights: local layers (window 8) and global ones in turn, norms on q and k and behind, a tied head."""
    return Model.random(GEMMA, seed=1)


@pytest.fixture(scope="session")
def tiny_segments():
    """Random weights: a segment of alternating layers, twice, and a segment of one layer."""
    return Model.random(SEGMENTS, seed=2)


@pytest.fixture(params=["tiny_gemma", "tiny_segments"])
def tiny(request):
    """Multi-query attention and a tied head, or grouped queries, two segments and a head of its own."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def ragged():
    """Makes prompts for a small model: random token ids, a row for each length."""

    def make(lengths, vocab_size=97, seed=0):
        rng = np.random.default_rng(seed)
        return [rng.integers(0, vocab_size, length).tolist() for length in lengths]

    return make

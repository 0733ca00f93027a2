"""The Mosaic GPU kernel, interpreted on a CPU, which JAX can do since 0.12 (its two wgmma become jnp products)."""

import jax.numpy as jnp
import numpy as np
import pytest
from cases import Case, check_half

from jaxinfer.kernels import gpu
from jaxinfer.kernels.contract import PLAIN, Scoring
from jaxinfer.kernels.gpu import join, plgpu

pytestmark = pytest.mark.quick

interpreted = pytest.mark.skipif(
    not hasattr(plgpu, "InterpretGPUParams"), reason="this JAX cannot interpret Mosaic GPU"
)
SCORING = Scoring(softcap=1.5, slopes=2.0 ** -np.arange(8, dtype=np.float32))


def kernel(*args, **options):
    return gpu.partial(*args, interpret=plgpu.InterpretGPUParams(), **options)


@interpreted
@pytest.mark.parametrize(
    ("case", "scoring", "splits"),
    [
        (dict(heads=(4, 2), width=64, tokens=1, lengths=(0, 1, 63, 64, 65, 256)), PLAIN, 2),
        (dict(heads=(9, 3), width=96, tokens=5, lengths=(0, 130, 256), window=90, first=3, scattered=True), PLAIN, 3),
        (dict(heads=(4, 2), width=64, tokens=3, lengths=(0, 200), stored="int8"), PLAIN, 1),
        (dict(heads=(4, 2), width=128, tokens=3, lengths=(0, 200), stored="float8_e4m3fn"), PLAIN, 2),
        (dict(heads=(8, 2), width=64, tokens=30, lengths=(0, 200)), SCORING, 2),
    ],
    ids=["ragged", "window", "int8", "fp8", "softcap-alibi"],
)
def test_the_cached_part(case, scoring, splits):
    check_half(Case(slots=256, **case), kernel, scoring, splits=splits)


@interpreted
def test_other_blocks_and_a_longer_ring():
    case = Case((4, 2), 64, 3, (0, 200, 512), slots=512)
    check_half(case, kernel, plan={"block": 128, "stages": 3}, splits=1)


@interpreted
def test_prefill():
    case = Case((6, 2), 64, 100, (7,), slots=128, window=70)
    pos = jnp.where(jnp.arange(128) < 100, jnp.arange(128) + 7, -1)[None]
    case.q_pos, case.kv_pos = pos[:, :100], pos
    check_half(case, kernel, ordered=True)


@interpreted
def test_pages():
    case = Case((4, 2), 64, 3, (5, 256), slots=256)
    table = np.array([[3, 0], [1, 2]])

    def paged(x):
        pool = np.zeros((x.shape[0], 4, x.shape[2], 128, x.shape[4]), np.float32)
        for row in range(2):
            for i in range(2):
                pool[:, table[row, i]] = x[:, row, :, i * 128 : (i + 1) * 128]
        return jnp.asarray(pool)

    whole = case.expected()
    half = case.expected(dtype=jnp.bfloat16)
    case.k, case.v = paged(case.k), paged(case.v)
    found = case.found(kernel, dtype=jnp.bfloat16, pages=jnp.asarray(table, jnp.int32))
    assert np.abs(found.out - whole.out).max() <= 2 * np.abs(half.out - whole.out).max()


def test_pieces_join_to_the_whole():
    rng = np.random.default_rng(0)
    scores, values = rng.normal(size=(2, 3, 4, 9)), rng.normal(size=(2, 3, 9, 8))
    pieces = []
    for part in (slice(0, 2), slice(2, 9), slice(9, 9)):  # the last piece has no block left
        weights = np.exp(scores[..., part])
        total = weights.sum(-1)
        with np.errstate(divide="ignore"):
            out = weights @ values[:, :, part] / np.maximum(total, 1e-30)[..., None]
            pieces.append((out, np.log(total)))
    out, lse = join(*(jnp.asarray(np.stack(x), jnp.float32) for x in zip(*pieces, strict=True)))
    weights = np.exp(scores)
    np.testing.assert_allclose(out, weights @ values / weights.sum(-1)[..., None], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(lse, np.log(weights.sum(-1)), rtol=1e-5, atol=1e-5)


def test_pieces_that_saw_nothing_join_to_nothing():
    out, lse = join(jnp.zeros((3, 1, 1, 4, 8)), jnp.full((3, 1, 1, 4), -jnp.inf))
    assert not np.asarray(out).any()
    assert np.isneginf(lse).all()

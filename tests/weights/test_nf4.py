"""NF4 with double quantization against the paper written out in numpy, and on a real model."""

import jax
import numpy as np
import pytest

import jaxinfer
from jaxinfer.analysis.quality import token_nll
from jaxinfer.weights.formats import FORMATS
from jaxinfer.weights.formats.nf4 import CODEBOOK
from jaxinfer.weights.qtensor import dequantized, is_quantized

NF4 = FORMATS["nf4"]


def weight(*shape):
    """Normal numbers of sizes that differ from block to block, and a row of zeros."""
    rng = np.random.default_rng(0)
    w = rng.normal(size=shape).astype(np.float32) * rng.uniform(0.5, 2, size=(*shape[:-1], 1)).astype(np.float32)
    w.reshape(-1, shape[-1])[0] = 0
    return w


def slow(w):
    """w[out, in] as QLoRA, section 3, has it: the numbers that come back, and the scale of each block."""
    blocks = []
    for row in w.astype(np.float64):
        row = np.concatenate([row, np.zeros(-len(row) % 64)])
        blocks += [row[start : start + 64] for start in range(0, len(row), 64)]
    constants = np.array([np.abs(block).max() for block in blocks])
    centered = constants - constants.mean()
    kept = np.zeros_like(constants)
    for start in range(0, len(constants), 256):
        part = centered[start : start + 256]
        step = np.abs(part).max() / 127 or 1.0
        kept[start : start + 256] = np.round(part / step) * step + constants.mean()
    found = []
    for block, constant, back in zip(blocks, constants, kept, strict=True):
        nearest = [np.abs(CODEBOOK.astype(np.float64) - x / (constant or 1.0)).argmin() for x in block]
        found.append(CODEBOOK[nearest] * back)
    return np.array(found).reshape(len(w), -1)[:, : w.shape[1]], np.repeat(kept, 64).reshape(len(w), -1)


def test_the_codebook_is_the_published_one():
    """Quantiles of a normal distribution, eight on the side of zero and nine on the other (appendix E)."""
    from statistics import NormalDist

    offset = 0.9677083
    above = [NormalDist().inv_cdf(p) for p in np.linspace(offset, 0.5, 9)[:-1]]
    below = [-NormalDist().inv_cdf(p) for p in np.linspace(offset, 0.5, 8)[:-1]]
    made = np.sort(np.array([*above, *below, 0.0]))
    np.testing.assert_allclose(CODEBOOK, made / made.max(), atol=1e-5)


@pytest.mark.parametrize("shape", [(9, 64), (40, 576), (300, 64), (7, 100), (5, 1)])  # several steps, ragged inputs
def test_numbers_are_those_of_the_paper(shape):
    w = weight(*shape)
    stored = NF4.encode(w)
    width = -(-shape[1] // 64) * 64
    assert (stored.codes.shape, stored.scale.shape) == ((shape[0], width // 2), (shape[0], width // 64))
    assert stored.step.shape == (-(-stored.scale.size // 256),)
    found, (expected, scales) = np.asarray(dequantized(stored)), slow(w)
    assert found.shape == shape
    # Where a number lies between two codes, either is nearest.
    assert (np.abs(found - expected) > 1e-5).mean() < 0.01
    largest_gap = np.diff(CODEBOOK).max() / 2
    step = np.asarray(stored.step).max()
    assert (np.abs(found - w) <= largest_gap * np.abs(scales[:, : shape[1]]) + step + 1e-5).all()


def test_each_weight_of_a_stack_has_steps_and_a_mean_of_its_own():
    w = weight(2, 3, 20, 5, 16)  # layers, experts, outputs, two axes of inputs
    encode = jax.vmap(jax.vmap(lambda one: NF4.encode(one, 2)))
    stored = encode(w)
    assert (stored.mean.shape, stored.step.shape, stored.shape) == ((2, 3), (2, 3, 1), w.shape)
    for layer in range(2):
        for expert in range(3):
            alone = dequantized(NF4.encode(w[layer, expert], 2))
            np.testing.assert_allclose(dequantized(stored)[layer, expert], alone, atol=1e-6)
    axes = stored.axes(("layers", "experts", "mlp", "heads", "head_dim"))
    assert axes.codes == axes.scale == ("layers", "experts", "mlp", None)
    assert (axes.step, axes.mean) == (("layers", "experts", None), ("layers", "experts"))


def test_codes_and_scales_take_four_bits_and_an_eighth():
    stored = NF4.encode(weight(512, 1024))
    assert stored.nbytes == 512 * 1024 / 2 + 512 * 1024 / 64 + 4 * 512 * 1024 / (64 * 256) + 4


def test_a_real_model_in_four_bits(smollm2, prose):
    model = jaxinfer.load("smollm2-135m", dtype="float32", weights="nf4")
    assert model.weights == "nf4"
    kernels = [x for x in jax.tree.leaves(model.params["segment_0"], is_leaf=is_quantized) if is_quantized(x)]
    bits = 8 * sum(x.nbytes for x in kernels) / sum(int(np.prod(x.shape)) for x in kernels)
    assert 4.126 < bits < 4.13
    result = model.generate(["The capital of France is"], max_new_tokens=8)
    assert len(result.tokens[0]) == 8
    assert result.stats.weight_bytes == sum(x.nbytes for x in jax.tree.leaves(model.params))
    assert result.stats.weight_bytes < 0.2 * sum(x.nbytes for x in jax.tree.leaves(smollm2.params))
    ids = np.array([smollm2.encode(prose)[:256]])
    worse = float(np.mean(token_nll(model, ids))) - float(np.mean(token_nll(smollm2, ids)))
    assert 0.01 < worse < 0.6

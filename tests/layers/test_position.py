"""Positions that no family of tests/test_families.py has, by their definitions."""

import numpy as np
import pytest

from jaxinfer import LayerKind, Model, ModelConfig, Rope, Segment
from jaxinfer.config import RopeScaling
from jaxinfer.layers.position import alibi_slopes, rope_frequencies, rotate, sinusoids

pytestmark = pytest.mark.quick

POSITIONS = np.array([[0, 3, 700], [5, 1, 2]], np.int32)


@pytest.mark.parametrize("width", [None, 6])
def test_interleaved_rope_is_half_rope_on_reordered_dimensions(width):
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 10)).astype(np.float32)
    turning = width or 10
    order = [*range(0, turning, 2), *range(1, turning, 2), *range(turning, 10)]
    expected = np.empty_like(x)
    expected[..., order] = rotate(x[..., order], POSITIONS, Rope(width=width))
    found = rotate(x, POSITIONS, Rope(width=width, interleaved=True))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    assert np.abs(found - rotate(x, POSITIONS, Rope(width=width))).max() > 0.1


def test_sinusoids():
    found = sinusoids(POSITIONS, 7)
    for i in range(7):
        angle = POSITIONS / 10_000 ** ((i - i % 2) / 7)
        np.testing.assert_allclose(found[..., i], np.cos(angle) if i % 2 else np.sin(angle), atol=1e-4)


def test_ntk_keeps_the_highest_frequency_and_divides_the_lowest():
    plain, scaled = (rope_frequencies(Rope(scaling=scaling), 16) for scaling in (None, RopeScaling("ntk", 4.0)))
    assert scaled[0] == plain[0] == 1.0
    assert scaled[-1] == pytest.approx(plain[-1] / 4, rel=1e-5)
    assert (np.diff(plain / scaled) > 0).all()


def test_slopes_of_head_counts_that_are_no_power_of_two():
    np.testing.assert_allclose(alibi_slopes(8), 2.0 ** -np.arange(1, 9))
    np.testing.assert_allclose(alibi_slopes(6), [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3])


def test_factors_of_longrope_that_do_not_fit():
    scaling = RopeScaling("longrope", 2.0, divisors=(1.0, 2.0))
    segments = (Segment((LayerKind(rope=Rope(scaling=scaling)),), 1),)
    with pytest.raises(ValueError, match="longrope has 2 factors, expected 4: one for each frequency"):
        ModelConfig("llama", 97, 32, 64, 4, 2, 8, segments, 64)


def test_a_model_with_sinusoidal_positions(ragged):
    """It is the model with learned ones whose table holds them: in a prompt, and in cached steps behind it."""
    segments = (Segment((LayerKind(rope=None),), 1),)
    cfg = ModelConfig("gpt2", 97, 48, 64, 4, 4, 12, segments, 64, absolute_positions="sinusoidal")
    model, rows = Model.random(cfg), ragged((20, 3))
    angles = np.arange(64)[:, None] / 1e4 ** (np.arange(0, 48, 2) / 48)
    table = np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(64, 48)
    embed = model.params["embed"] | {"positions": table.astype(np.float32)}
    learned = Model(cfg.replace(absolute_positions="learned"), model.params | {"embed": embed})
    new = model.generate(rows, max_new_tokens=8).tokens
    text = [rows[0] + new[0]]
    logits = np.asarray(learned.logits(text))
    np.testing.assert_allclose(model.logits(text), logits, rtol=1e-4, atol=1e-4)
    assert logits[0, 19:-1].argmax(axis=-1).tolist() == new[0]

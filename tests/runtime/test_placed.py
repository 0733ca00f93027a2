"""A batch of prompts is read in calls of few tokens and few widths, and each row as if it were alone."""

import jax
import numpy as np
import pytest

from jaxinfer import Dense
from jaxinfer.decoding.sampling.settings import bucket
from jaxinfer.runtime.placed import LARGEST_CHUNK, SMALLEST_CHUNK, chunks
from jaxinfer.sharding import choices

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    ("n", "rows", "widths"),
    [
        *((0, 1, []), (1, 1, [16]), (100, 1, [128]), (150, 1, [192]), (512, 1, [512]), (513, 1, [320, 320])),
        *((100, 8, [56, 56]), (90, 3, [96]), (20, 8, [24]), (40, 64, [16, 16, 16]), (512, 2, [256, 256])),
    ],
)
def test_the_rows_of_a_batch_share_the_tokens_of_a_call(n, rows, widths):
    assert [*chunks(n, rows)] == widths


@pytest.mark.parametrize("rows", [1, 3, 8, 100])
def test_calls_take_all_tokens_with_little_padding_in_few_programs(rows):
    programs = set()
    for n in range(1, 2 * LARGEST_CHUNK):
        widths, largest = chunks(n, rows), max(LARGEST_CHUNK // bucket(rows), SMALLEST_CHUNK)
        assert len({*widths}) == 1
        assert len(widths) == -(-n // largest)
        assert widths[0] <= largest
        assert 0 <= sum(widths) - n < len(widths) * max(largest // 8, SMALLEST_CHUNK)
        programs |= {*widths}
    assert len(programs) <= 10


def test_an_accelerator_takes_a_batch_at_once(monkeypatch):
    monkeypatch.setattr(choices.Choice, "here", lambda choice: False)
    assert [*chunks(512, 8)] == [512]


def test_a_row_of_a_batch_is_read_as_alone(tiny_llama):
    lengths = np.array([101, 1, 65, 64, 66, 113, 2, 37], np.int32)
    tokens = np.random.default_rng(0).integers(1, tiny_llama.config.vocab_size, (8, 128)).astype(np.int32)
    together, _, _ = tiny_llama.placed.read(Dense(), tokens, lengths, lengths + 1)
    assert together.length.tolist() == (lengths - 1).tolist()
    for row, length in enumerate(lengths):
        alone, _, _ = tiny_llama.placed.read(Dense(), tokens[row : row + 1], lengths[row : row + 1], lengths[:1] + 1)
        for name, store in alone.stores.items():
            found = together.stores[name]
            np.testing.assert_array_equal(found.pos[row], store.pos[0])
            for one, own in zip(jax.tree.leaves((found.k, found.v)), jax.tree.leaves((store.k, store.v)), strict=True):
                kept = slice(0, length - 1)
                np.testing.assert_allclose(one[:, row, :, kept], own[:, 0, :, kept], atol=1e-5)

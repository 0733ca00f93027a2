"""Jacobi decoding against the iteration in Python, both ways of moving on."""

import numpy as np
import pytest

from jaxinfer import Dense, InputError, Jacobi, Sampling
from jaxinfer.runtime.generation import Generation

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("blocks", [False, True])
def test_against_the_iteration_in_python(tiny_llama, ragged, blocks):
    width, prompts = 5, ragged((2, 7))
    method = Jacobi(width, blocks)
    sampling = Sampling(temperature=0.0)
    generation = Generation.begin(tiny_llama.placed, prompts, [50] * 2, method, Dense(), sampling, [0] * 2, (), False)
    texts = [list(prompt) for prompt in prompts]
    guesses = [[prompt[-1]] * (width - 1) for prompt in prompts]
    left, several, cut = [width - 1] * 2, 0, 0
    for _ in range(10):  # of at most 5 tokens
        padded = np.zeros((2, 64), np.int32)
        for row, text in enumerate(texts):
            whole = text + guesses[row]
            padded[row, : len(whole)] = whole
        says = np.asarray(tiny_llama.logits(padded)).argmax(-1)
        generation.advance(1)
        for row, text in enumerate(texts):
            behind = says[row, len(text) - 1 :][:width].tolist()
            n = 1
            while n <= left[row] and guesses[row][n - 1] == behind[n - 1]:
                n += 1
            text.extend(behind[:n])
            several += n > 1
            cut += left[row] < width - 1
            guesses[row] = (behind[n:] + behind[-1:] * width)[: width - 1]
            if blocks:  # what is left of the block; a new one when nothing is
                left[row] = left[row] - n if left[row] > n else width - 1
            assert [*prompts[row], *generation.rows()[row]] == text
    assert several > 3
    assert (cut > 3) == blocks


def test_bad_sizes(tiny_llama):
    with pytest.raises(InputError, match=r"^width=1 must be at least 2"):
        Jacobi(width=1)
    with pytest.raises(InputError, match=r"Jacobi scores 2000 tokens a step, and the context of random is 1024 tokens"):
        tiny_llama.generate([[1]], method=Jacobi(width=2000))

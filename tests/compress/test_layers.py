"""A model without some of its layers, against the whole one with layers that do nothing."""

import numpy as np
import pytest
from small_methods import silenced

from jaxinfer import InputError
from jaxinfer.compress import keep_layers, search_layers

TEXT = np.random.default_rng(0).integers(0, 97, (2, 40))


@pytest.mark.parametrize(
    ("name", "kept"), [("tiny_llama", [0, 2]), ("tiny_segments", [0, 1, 4]), ("tiny_segments", [1, 3, 4])]
)
def test_layers_that_are_left_out_add_nothing(request, name, kept):
    model = request.getfixturevalue(name)
    gone = sorted(set(range(model.config.n_layers)) - set(kept))
    short = keep_layers(model, kept)
    assert [kind.name for kind in short.config.layers] == [model.config.layers[layer].name for layer in kept]
    np.testing.assert_allclose(short.logits(TEXT), silenced(model, gone).logits(TEXT), atol=2e-5)
    assert np.abs(np.asarray(short.logits(TEXT)) - np.asarray(model.logits(TEXT))).max() > 0.01


def test_all_layers_are_the_model(tiny_segments):
    np.testing.assert_allclose(keep_layers(tiny_segments, range(5)).logits(TEXT), tiny_segments.logits(TEXT), atol=2e-5)


def test_the_search_drops_what_does_nothing(tiny_llama):
    model = silenced(tiny_llama, [1])
    seen = []
    layers, agreement = search_layers(model, TEXT, 2, progress=lambda left, found: seen.append((left, found)))
    assert (layers, agreement) == ([0, 2], 1.0)
    assert seen == [(2, 1.0)]
    fewer, less = search_layers(model, TEXT, 1)
    assert set(fewer) < {0, 2}
    assert less < 1


@pytest.mark.parametrize("layers", [[], [1, 0], [0, 0], [-1], [0, 3]])
def test_layers_that_are_not_there(tiny_llama, layers):
    with pytest.raises(InputError, match="must be rising numbers from 0 to 2, the layers of random"):
        keep_layers(tiny_llama, layers)
    with pytest.raises(InputError, match="keep=4 must be between 1 and 3"):
        search_layers(tiny_llama, TEXT, 4)

"""Drafting with some of the model's own layers: what they read and keep, and what is refused."""

import pytest
from small_methods import blurred, silenced

from jaxinfer import Dense, InputError, Lookup, Model, SelfSpeculative, Window
from jaxinfer.config import SSM, LayerKind, Segment
from jaxinfer.network.layerwise import runs

LENGTHS = (1, 4, 30, 17, 64)
NEW = 40


@pytest.mark.parametrize(
    ("name", "gone", "method", "policy"),
    [
        ("tiny_segments", (1, 4), SelfSpeculative(5, skip=(1, 4)), Window()),
        ("tiny_segments", (3, 4), SelfSpeculative(5, exit=3), Dense()),
    ],
    ids=str,
)
def test_layers_that_add_nothing_are_not_missed(request, ragged, name, gone, method, policy):
    """The draft is then the model: one guess that is not accepted would mean that it read or kept something wrong."""
    model, prompts = silenced(request.getfixturevalue(name), gone), ragged(LENGTHS)
    result = model.generate(prompts, max_new_tokens=NEW, method=method, policy=policy)
    assert result.tokens == model.generate(prompts, max_new_tokens=NEW, policy=policy).tokens
    assert result.stats.accepted == result.stats.proposed
    assert result.stats.steps == [NEW // 5] * len(LENGTHS)


def test_an_unsure_draft_keeps_quiet(tiny_llama, ragged):
    result = tiny_llama.generate(ragged(LENGTHS), max_new_tokens=8, method=SelfSpeculative(3, confidence=1.0))
    assert result.stats.proposed == [0] * len(LENGTHS)
    assert result.stats.steps == [8] * len(LENGTHS)


def test_layers_are_run_in_as_few_scans_as_there_are_changes(tiny_segments):
    """Two kinds in turn, twice, and one layer."""
    cfg = tiny_segments.config
    assert runs(cfg, range(5)) == [(0, (0, 1), [0, 1]), (1, (0,), [0])]
    assert runs(cfg, (0, 2, 3)) == [(0, (0,), [0]), (0, (0, 1), [1])]
    assert runs(cfg, (1, 3, 4)) == [(0, (1,), [0, 1]), (1, (0,), [0])]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"skip": (0, 3)}, "skip: layer 3 is not there: those of random are 0 to 2"),
        ({"skip": (-1,)}, "skip: layer -1 is not there"),
        ({"skip": (0, 1, 2)}, r"skip=\(0, 1, 2\) leaves none of the 3 layers of random"),
        ({"exit": 3}, "exit=3 must be between 1 and 2: random has 3 layers"),
        ({"exit": 0}, "exit=0 must be between 1 and 2"),
        ({"skip": (1,), "exit": 1}, r"skip=\(1,\) and exit=1: give one of them"),
        ({"width": 1}, "width=1 must be at least 2"),
        ({"confidence": -0.5}, r"confidence=-0\.5 must be between 0 and 1"),
        ({"width": 2000}, "scores 2000 tokens a step"),
    ],
)
def test_what_it_refuses(tiny_llama, options, message):
    with pytest.raises(InputError, match=message):
        tiny_llama.generate([[1, 2]], method=SelfSpeculative(**options))


def test_a_recurrent_layer_has_to_be_skipped(tiny_llama, ragged):
    mixed = Segment((LayerKind(), LayerKind("state", mixer=SSM(1, 32, 4))), 2)
    model = blurred(Model.random(tiny_llama.config.replace(segments=(mixed,))))
    with pytest.raises(InputError, match="layer 1 of random is recurrent"):
        model.generate([[1, 2]], method=SelfSpeculative(skip=(0,)))
    prompts = ragged((1, 9))
    result = model.generate(prompts, max_new_tokens=12, method=SelfSpeculative(3, skip=(1, 3)))
    assert result.tokens == model.generate(prompts, max_new_tokens=12, method=Lookup(3)).tokens
    assert sum(result.stats.proposed) > 0

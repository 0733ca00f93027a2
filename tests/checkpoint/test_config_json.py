"""Configurations to JSON and back: those of every family, random ones, and damaged ones."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from damage import damaged
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxinfer.checkpoint.config_json import config_from_json, config_to_json
from jaxinfer.checkpoint.families import by_hf_type, configured
from jaxinfer.checkpoint.fields import Fields
from jaxinfer.config import MLA, SSM, LayerKind, LinearAttention, ModelConfig, MoE, Rope, RopeScaling, Segment
from jaxinfer.errors import InputError

GOLDEN = sorted((Path(__file__).parent.parent / "golden").glob("*.npz"))


def there_and_back(config):
    text = json.dumps(config_to_json(config), allow_nan=False)
    return config_from_json(json.loads(text, parse_constant=lambda word: pytest.fail(word)))


@pytest.mark.parametrize("file", GOLDEN, ids=lambda file: file.stem)
def test_every_family(file):
    fields = Fields("config.json", json.loads(str(np.load(file)["config"])))
    config = configured(lambda: by_hf_type(fields.text("model_type"), "").hf_config(fields), "")
    found = there_and_back(config)
    assert found == config
    assert hash(found) == hash(config)
    assert [type(kind.mixer) for kind in found.kinds] == [type(kind.mixer) for kind in config.kinds]


positive = st.floats(1e-6, 1e6)
ropes = st.builds(
    Rope,
    theta=st.floats(2.0, 1e7),
    scaling=st.none()
    | st.builds(
        RopeScaling,
        st.sampled_from(["linear", "ntk", "dynamic", "llama3", "yarn"]),
        positive,
        original_max_positions=st.integers(1, 2**20),
        truncate=st.booleans(),
        magnitude=positive,
    )
    | st.builds(
        RopeScaling,
        st.just("longrope"),
        positive,
        divisors=st.just((1.5, 2.0, 2.5, 3.0)),
        short_divisors=st.sampled_from([(), (1.0, 1.0, 1.0, 1.25)]),
    ),
    width=st.sampled_from([None, 8]),
    interleaved=st.booleans(),
)
mixtures = st.builds(
    MoE,
    experts=st.just(8),
    top_k=st.integers(1, 2),
    d_ff=st.integers(1, 64),
    router=st.sampled_from(["softmax", "topk", "sigmoid", "sinkhorn", "hash", "expert_choice", "soft"]),
    normalize=st.booleans(),
    scale=positive,
    groups=st.sampled_from([None, 4]),
    top_groups=st.integers(1, 4),
    shared_d_ff=st.none() | st.integers(1, 64),
    dispatch=st.sampled_from(["dropless", "capacity", "dense"]),
    capacity_factor=positive,
    priority=st.sampled_from(["order", "gate"]),
    in_decode=st.sampled_from(["dropless", "same"]),
)
mixers = st.just(LinearAttention()) | st.builds(
    SSM,
    st.sampled_from([1, 2]),
    width=st.sampled_from([16, 32]),
    state=st.integers(1, 16),
    conv=st.integers(2, 4),
    heads=st.sampled_from([2, 4]),
    groups=st.sampled_from([1, 2]),
    bias=st.booleans(),
    dt_limit=st.tuples(st.floats(0, 0.5), st.floats(1, 8) | st.just(math.inf)),
)
kinds = st.builds(
    LayerKind,
    name=st.text(min_size=1, max_size=8),
    rope=st.none() | ropes,
    window=st.none() | st.integers(1, 4096),
    moe=st.none() | mixtures,
    mixer=st.none() | mixers,
)
patterns = st.lists(kinds, min_size=1, max_size=4, unique_by=lambda kind: kind.name).map(tuple)
configs = st.builds(
    ModelConfig,
    family=st.sampled_from(["llama", "mamba2"]),
    vocab_size=st.integers(1, 300_000),
    d_model=st.integers(1, 8192),
    d_ff=st.integers(0, 8192),
    n_heads=st.sampled_from([4, 8]),
    n_kv_heads=st.sampled_from([1, 2, 4]),
    head_dim=st.just(8),
    segments=st.lists(st.builds(Segment, patterns, st.integers(1, 100)), min_size=1, max_size=1).map(tuple),
    max_positions=st.integers(1, 2**30),
    norm_eps=positive,
    norm=st.sampled_from(["rms", "layer"]),
    activation=st.sampled_from(["silu", "gelu", "relu2"]),
    gated=st.booleans(),
    qk_norm=st.sampled_from([None, "head", "whole"]),
    tie_embeddings=st.booleans(),
    embed_scale=positive,
    query_scale=st.none() | positive,
    logit_softcap=st.none() | positive,
    absolute_positions=st.sampled_from([None, "learned", "sinusoidal"]),
    alibi=st.none() | positive,
)


@settings(max_examples=150, derandomize=True, deadline=None)
@given(configs)
def test_any_configuration(config):
    found = there_and_back(config)
    assert found == config
    assert repr(found) == repr(config)  # 1 is not 1.0, and a list no tuple


def test_latent_attention():
    config = ModelConfig(
        "x", 10, 8, 16, 2, 2, 12, (Segment((LayerKind(rope=Rope(width=4)),), 2),), 64, mla=MLA(4, 8, 4, 6)
    )
    assert there_and_back(config) == config


def test_whole_numbers_that_stand_for_others():
    """JSON written by others says 10000 where we say 10000.0."""
    config = ModelConfig("x", 10, 8, 16, 2, 2, 4, (Segment((LayerKind(rope=Rope(10_000.0)),), 2),), 64)
    values = config_to_json(config)
    values["segments"][0]["pattern"][0]["rope"]["theta"] = 10_000
    found = config_from_json(values)
    assert repr(found) == repr(config)


SCALED = Rope(1e4, RopeScaling("yarn", 4.0))
BASE = ModelConfig(
    "x",
    97,
    16,
    32,
    4,
    2,
    8,
    (
        Segment(
            (LayerKind("a", SCALED, 8), LayerKind("b", None, moe=MoE(8, 2, 16)), LayerKind("c", mixer=SSM(1, 16, 4))), 2
        ),
        Segment((LayerKind("d", mixer=LinearAttention()),), 1),
    ),
    64,
)


@settings(max_examples=400, derandomize=True, deadline=None)
@given(st.data())
def test_damaged_configurations(data):
    """Some fields changed, dropped or added: it is one line, or a configuration that means what the JSON says."""
    values = damaged(data, config_to_json(BASE))
    try:
        found = config_from_json(values)
    except InputError as error:
        line = str(error)
    else:
        line = ""
        again = json.loads(json.dumps(config_to_json(found), allow_nan=False))
        assert is_within(values, again)
    assert len(line) < 400
    assert line.isprintable()


def is_within(given, whole):
    """Tell whether all that is given came back as it was: defaults stand for what was not."""
    if isinstance(given, dict):
        return given.keys() <= whole.keys() and all(is_within(item, whole[name]) for name, item in given.items())
    if isinstance(given, list):
        return len(given) == len(whole) and all(map(is_within, given, whole))
    return given == whole

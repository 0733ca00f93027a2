"""Orbax folders: the way there and back, and what can go wrong on it."""

import json
import os
import shutil

import jax
import numpy as np
import pytest
from gguf_files import GPT2_TOKENIZER, write_gguf

from jaxinfer.checkpoint import convert, load_checkpoint, save_checkpoint
from jaxinfer.checkpoint.assemble import flatten
from jaxinfer.checkpoint.config_json import config_from_json, config_to_json
from jaxinfer.config import LayerKind, ModelConfig, Rope, RopeScaling, Segment
from jaxinfer.errors import InputError


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    tokenizer = GPT2_TOKENIZER | {"add_bos_token": True}
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", tokenizer=tokenizer)


@pytest.fixture
def saved(source, tmp_path):
    convert(source, tmp_path / "saved")
    return tmp_path / "saved"


def equal(left, right):
    left, right = flatten(left), flatten(right)
    assert left.keys() == right.keys()
    return all(left[path].dtype == right[path].dtype and np.array_equal(left[path], right[path]) for path in left)


def test_there_and_back(source, saved):
    before, after = load_checkpoint(source), load_checkpoint(saved)
    assert equal(before.params, after.params)
    assert all(isinstance(leaf, jax.Array) for leaf in flatten(after.params).values())
    assert after.config == before.config
    assert after.name == "tiny"
    assert after.tokenizer.settings == before.tokenizer.settings
    text = "hello  world 12"
    assert after.tokenizer.encode(text) == before.tokenizer.encode(text)
    assert after.tokenizer.encode(text)[0] == before.tokenizer.bos_id
    assert sorted(os.listdir(saved.parent)) == ["saved"]


def test_gemma3_without_a_tokenizer(gemma3_folder, tmp_path):
    before = load_checkpoint(gemma3_folder)
    save_checkpoint(before, str(tmp_path / "gemma"))
    after = load_checkpoint(tmp_path / "gemma")
    assert equal(before.params, after.params)
    assert after.config == before.config
    assert after.tokenizer is None


def test_dtypes(source, tmp_path):
    convert(source, tmp_path / "half", "bfloat16")
    assert equal(load_checkpoint(tmp_path / "half", "bfloat16").params, load_checkpoint(source, "bfloat16").params)
    leaves = flatten(load_checkpoint(tmp_path / "half", "float32").params)
    assert {str(leaf.dtype) for leaf in leaves.values()} == {"float32"}


def test_place_gets_every_parameter_as_numpy(source, saved):
    for checkpoint in (source, saved):
        shapes = []
        params = load_checkpoint(
            checkpoint, place=lambda leaf, shapes=shapes: (shapes.append(leaf.shape), leaf)[1]
        ).params
        leaves = flatten(params)
        assert sorted(shapes) == sorted(leaf.shape for leaf in leaves.values())
        assert all(isinstance(leaf, np.ndarray) for leaf in leaves.values())


def test_configurations_to_json_and_back():
    local = LayerKind("local", Rope(1e4), window=512)
    globl = LayerKind("global", Rope(1e6, RopeScaling("linear", 8.0)))
    segments = (Segment((local, globl), 3), Segment((local,), 1))
    config = ModelConfig("gemma3", 100, 8, 16, 2, 1, 4, segments, 64, query_scale=0.25, qk_norm="head")
    assert config_from_json(json.loads(json.dumps(config_to_json(config)))) == config


def test_a_destination_that_exists(source, saved, tmp_path):
    with pytest.raises(InputError, match=r"saved: already exists"):
        convert(source, saved)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be written"):
        convert(source, tmp_path / "file" / "below")


def test_a_failure_leaves_nothing(source, tmp_path, monkeypatch):
    checkpoint = load_checkpoint(source)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    with pytest.raises(InputError, match=r"model: cannot be written: No space left on device"):
        save_checkpoint(checkpoint, tmp_path / "model")
    assert os.listdir(tmp_path) == []


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_manifest_that_does_not_fit(saved):
    manifest = saved / "jaxinfer.json"
    config = json.loads(manifest.read_text())["config"]
    for changes, message in [
        ({"format": 99}, r"jaxinfer.json: format 99 is not supported; supported: 1"),
        ({"config": config | {"colour": 1}}, r"jaxinfer.json: the configuration does not fit: .*'colour'"),
        ({"config": {"family": "llama"}}, r"jaxinfer.json: the configuration does not fit: .*vocab_size"),
        ({"config": config | {"d_ff": "wide"}}, r"jaxinfer.json: the configuration does not fit: 'wide' where int"),
        ({"config": "llama"}, r"jaxinfer.json: the configuration does not fit"),
        (
            {"config": config | {"d_ff": 500}},
            r"'segment_0/layer_0/mlp/down/kernel' has shape .*, expected \(2, 256, 500\)",
        ),
        ({"config": config | {"tie_embeddings": False}}, r"parameter 'head/kernel' of shape \(64, 256\) is missing"),
        ({"config": config | {"tie_embeddings": True}}, None),
    ]:
        before = manifest.read_text()
        edit(manifest, **changes)
        if message is None:
            load_checkpoint(saved)
        else:
            with pytest.raises(InputError, match=message):
                load_checkpoint(saved)
        manifest.write_text(before)


def test_a_damaged_folder(saved):
    (saved / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"tokenizer.json: is not a valid tokenizer"):
        load_checkpoint(saved)
    shutil.rmtree(saved / "params")
    with pytest.raises(InputError, match=r"params: is not an Orbax checkpoint, or is damaged"):
        load_checkpoint(saved)

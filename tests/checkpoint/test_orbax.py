"""Orbax folders: the way there and back, and what can go wrong on it."""

import json
import os

import chex
import jax
import numpy as np
import pytest

from jaxinfer.checkpoint import checksums, convert, save_checkpoint
from jaxinfer.checkpoint.assemble import flatten
from jaxinfer.checkpoint.config_json import config_from_json, config_to_json
from jaxinfer.checkpoint.loading import load_checkpoint
from jaxinfer.config import LayerKind, ModelConfig, Rope, RopeScaling, Segment
from jaxinfer.errors import InputError


def test_there_and_back(source, saved):
    before, after = load_checkpoint(source), load_checkpoint(saved)
    chex.assert_trees_all_equal(before.params, after.params, strict=True)
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
    chex.assert_trees_all_equal(before.params, after.params, strict=True)
    assert after.config == before.config
    assert after.tokenizer is None


def test_dtypes(source, tmp_path):
    convert(source, tmp_path / "half", "bfloat16")
    chex.assert_trees_all_equal(
        load_checkpoint(tmp_path / "half", "bfloat16").params, load_checkpoint(source, "bfloat16").params, strict=True
    )
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


def test_processes_share_the_verifying(saved):
    """Each of two verifies the small files and its share of the rest: together they verify all."""
    data = [path for path in (saved / "params").rglob("*") if path.is_file()]
    found = []
    for path in data:
        before = path.read_bytes()
        path.write_bytes(bytes([before[0] ^ 1]) + before[1:])
        told = []
        for process in (0, 1):
            try:
                checksums.verify(saved, ("jaxinfer.json",), ("params",), process, 2)
            except InputError:
                told.append(process)
        found.append(told)
        path.write_bytes(before)
    assert all(len(told) == 1 for told in found)
    assert {0, 1} == {told[0] for told in found}
    (saved / "jaxinfer.json").write_text("{}")
    for process in (0, 1):
        with pytest.raises(InputError, match="is damaged: its checksum"):
            checksums.verify(saved, ("jaxinfer.json",), ("params",), process, 2)

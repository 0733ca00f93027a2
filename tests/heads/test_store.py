"""Heads on disk: what is saved comes back, and what is wrong is said in one line."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxinfer import InputError, heads
from jaxinfer.heads.heads import KINDS, HeadsConfig, frequent
from jaxinfer.heads.store import init_params


def some_heads(kind, config, count=2):
    cfg = HeadsConfig.of(kind, "tiny", config, 20, count)
    params = jax.tree.map(lambda x: x + 0.5 * jnp.arange(x.size).reshape(x.shape), init_params(cfg))
    return heads.Heads(params, jnp.arange(40, 20, -1, dtype=jnp.int32), cfg)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_heads_come_back(tiny_gemma, tmp_path, kind):
    given = some_heads(kind, tiny_gemma.config)
    heads.save(given, tmp_path / "heads")
    found = heads.load(tmp_path / "heads")
    assert found.cfg == given.cfg
    assert jax.tree.structure(found) == jax.tree.structure(given)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(given), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    with pytest.raises(InputError, match="already exists"):
        heads.save(given, tmp_path / "heads")


def change_json(**changes):
    def change(folder):
        fields = json.loads((folder / "heads.json").read_text())
        (folder / "heads.json").write_text(json.dumps({**fields, **changes}))

    return change


def change_arrays(**changes):
    def change(folder):
        arrays = {**load_file(folder / "heads.safetensors"), **{k.replace("__", "/"): v for k, v in changes.items()}}
        save_file({k: v for k, v in arrays.items() if v is not None}, folder / "heads.safetensors")

    return change


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda folder: (folder / "heads.json").unlink(), "holds no heads.json"),
        (lambda folder: (folder / "heads.json").write_text("{"), "not valid JSON"),
        (lambda folder: (folder / "heads.safetensors").unlink(), "heads.safetensors: cannot be read"),
        (lambda folder: (folder / "heads.safetensors").write_bytes(b"123"), "heads.safetensors: cannot be read"),
        (change_json(format=9), "is of another format"),
        (change_json(kind="medula"), "kind 'medula' is unknown; known: medusa, hydra, eagle"),
        (change_json(flavour=1), "'flavour' is no field"),
        (change_json(d_model="48"), "d_model='48' is not a number"),
        (change_json(count=3), "'params/head_3/.*' of shape .* is missing"),
        (change_json(draft_vocab=21), r"'vocab' has shape \(20,\), expected \(21,\)"),
        (change_arrays(vocab=np.full(20, 97, np.int32)), "beyond the 97 tokens of tiny"),
        (change_arrays(params__head_1__bias=np.zeros(3, np.float32)), r"'params/head_1/bias' has shape \(3,\)"),
        (change_arrays(params__head_1__bias=None), "'params/head_1/bias' of shape .* is missing"),
        (change_arrays(extra=np.zeros(1, np.float32)), "'extra' has no place in medusa heads"),
    ],
)
def test_damaged_folders(tiny_gemma, tmp_path, damage, line):
    heads.save(some_heads("medusa", tiny_gemma.config), tmp_path / "heads")
    damage(tmp_path / "heads")
    with pytest.raises(InputError, match=line) as caught:
        heads.load(tmp_path / "heads")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("medula", 20, 2), "kind='medula'"),
        (("medusa", 98, 2), "draft_vocab=98 must be from 2 to the 97"),
        (("medusa", 20, 0), "count=0"),
    ],
)
def test_bad_configurations(tiny_gemma, arguments, line):
    kind, vocab, count = arguments
    with pytest.raises(InputError, match=line):
        HeadsConfig.of(kind, "tiny", tiny_gemma.config, vocab, count)


def test_frequent_tokens_come_first_and_low_ids_fill_up():
    assert frequent(np.array([7, 3, 7, 7, 9, 3]), 12, 6).tolist() == [7, 3, 9, 0, 1, 2]

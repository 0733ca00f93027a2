"""Heads on disk: what is saved comes back, and what is wrong is said in one line."""

import dataclasses
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from jaxinfer import InputError, heads
from jaxinfer.checkpoint import checksums
from jaxinfer.heads.store import init_params
from jaxinfer.network.heads import KINDS, HeadsConfig, frequent

pytestmark = pytest.mark.quick

NAMES = ["format", *(field.name for field in dataclasses.fields(HeadsConfig))]


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
    chex.assert_trees_all_equal(found, given, strict=True)
    with pytest.raises(InputError, match="already exists"):
        heads.save(given, tmp_path / "heads")


def test_what_is_no_heads(tmp_path):
    for wrong in (None, {"a": 1}, "medusa"):
        with pytest.raises(InputError, match="is no Heads"):
            heads.save(wrong, tmp_path / "out")
    for wrong in (None, 5, "a\0b", "~no-such-user-here/x", tmp_path):
        with pytest.raises(InputError, match=r"^heads: |holds no heads.json"):
            heads.load(wrong)
    assert not list(tmp_path.iterdir())


def change_json(**changes):
    def change(folder):
        fields = json.loads((folder / "heads.json").read_text())
        (folder / "heads.json").write_text(json.dumps({**fields, **changes}))
        checksums.write(folder)

    return change


def change_arrays(**changes):
    def change(folder):
        arrays = {**load_file(folder / "heads.safetensors"), **{k.replace("__", "/"): v for k, v in changes.items()}}
        save_file({k: v for k, v in arrays.items() if v is not None}, folder / "heads.safetensors")
        checksums.write(folder)

    return change


def write(name, content):
    def change(folder):
        (folder / name).write_bytes(content)
        checksums.write(folder)

    return change


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda folder: (folder / "heads.json").unlink(), "holds no heads.json"),
        (write("heads.json", b"{"), "not valid JSON"),
        (lambda folder: (folder / "heads.safetensors").unlink(), "heads.safetensors: no such file"),
        (write("heads.safetensors", b"123"), "heads.safetensors: cannot be read"),
        (lambda folder: (folder / "checksums.sha256").unlink(), "checksums.sha256: no such file"),
        (change_json(format=9), "is of another format"),
        (change_json(format=[3]), "is of another format"),
        (change_json(kind="medula"), "kind: 'medula' must be one of medusa, hydra, eagle; nearest: 'medusa'"),
        (change_json(kind=["medusa"]), "kind: .* must be one of"),
        (change_json(flavour=1), "HeadsConfig has no field 'flavour'"),
        (change_json(backbone=None), "backbone: None is not text"),
        (change_json(d_model="48"), "d_model: '48' is not a whole number"),
        (change_json(d_model=0), "d_model: 0 must be from 1"),
        (change_json(d_model=2**30), "d_model=1073741824 is more than all that heads.safetensors holds"),
        (change_json(d_model=2**63), "d_model: 9223372036854775808 must be from 1 to 2147483647"),
        (change_json(count=0), "count: 0 must be from 1"),
        (change_json(count=17), "count: 17 must be from 1 to 16"),
        (change_json(draft_vocab=98), "draft_vocab: 98 must be from 2 to the vocabulary of 97"),
        (change_json(eps=-1.0), "eps: -1.0 must be a finite number above 0"),
        (change_json(rope_theta=True), "rope_theta: True is not a number"),
        (change_json(kind="eagle"), "n_heads: 0 must be at least 1"),
        (change_arrays(vocab=np.zeros(20, np.float32)), "'vocab' holds float32, not whole numbers"),
        (change_arrays(params__head_1__bias=np.zeros(48, np.int32)), "'params/head_1/bias' holds int32"),
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


@pytest.mark.parametrize("name", ["heads.json", "heads.safetensors", "checksums.sha256"])
def test_one_bit_anywhere_is_found(tiny_gemma, tmp_path, name):
    heads.save(some_heads("eagle", tiny_gemma.config), tmp_path / "heads")
    file = tmp_path / "heads" / name
    whole = file.read_bytes()
    for where in range(0, len(whole), max(1, len(whole) // 7)):
        data = bytearray(whole)
        data[where] ^= 1
        file.write_bytes(data)
        with pytest.raises(InputError, match=r"damaged|no such file|does not list it"):
            heads.load(tmp_path / "heads")
    file.write_bytes(whole)
    (tmp_path / "heads" / "loss.svg").write_text("which is not read")
    heads.load(tmp_path / "heads")


def test_heads_of_the_format_before_load_with_a_warning(tiny_gemma, tmp_path):
    ours = some_heads("hydra", tiny_gemma.config)
    heads.save(ours, tmp_path / "heads")
    change_json(format=2)(tmp_path / "heads")
    (tmp_path / "heads" / "checksums.sha256").unlink()
    with pytest.warns(UserWarning, match="written without checksums"):
        found = heads.load(tmp_path / "heads")
    assert found.cfg == ours.cfg
    chex.assert_trees_all_equal(found, ours, strict=True)


VALUES = [None, True, -1, 0, 1, 2, 1.5, 2**31, 2**63, 10**400, "", "eagle", "x" * 400, [], [1], {}, {"a": 1}, "\ud800"]


@settings(
    max_examples=200, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.dictionaries(st.sampled_from([*NAMES, "added"]), st.sampled_from(VALUES), min_size=1, max_size=3))
def test_any_damage_to_the_manifest_is_one_line(small_heads, changes):
    """Or the heads are as they were: a change of a figure that has no array is not seen (rope_theta)."""
    fields = json.loads((small_heads / "heads.json").read_text())
    try:
        change_json(**changes)(small_heads)
        found = heads.load(small_heads)
        line = ""
        assert all(getattr(found.cfg, name) == value for name, value in changes.items() if name != "format")
    except InputError as error:
        line = str(error)
    (small_heads / "heads.json").write_text(json.dumps(fields))
    assert line.isprintable()
    assert len(line) < 500


@pytest.fixture(scope="module")
def small_heads(tiny_gemma, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz") / "heads"
    heads.save(some_heads("eagle", tiny_gemma.config), folder)
    return folder


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

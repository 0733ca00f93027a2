"""Damages to an Orbax folder: every bit of it, and every field of what it says of itself."""

import dataclasses
import hashlib
import json
import shutil

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from damage import damaged
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxinfer import Model
from jaxinfer.checkpoint import checksums, convert, save_checkpoint
from jaxinfer.checkpoint.checkpoint import Checkpoint
from jaxinfer.checkpoint.finite import all_finite
from jaxinfer.checkpoint.loading import load_checkpoint
from jaxinfer.config import SSM, LayerKind, ModelConfig, Segment
from jaxinfer.errors import InputError


def edit(path, **changes):
    """Fields of a file changed, as if it had been written so: with a checksum that is right."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    checksums.write(path.parent)


def test_a_manifest_that_does_not_fit(saved):
    manifest = saved / "jaxinfer.json"
    config = json.loads(manifest.read_text())["config"]
    [segment] = config["segments"]
    [kind] = segment["pattern"]

    def with_kind(**changes):
        return {"config": config | {"segments": [segment | {"pattern": [kind | changes]}]}}

    for changes, message in [
        ({"format": 99}, r"jaxinfer.json: format 99 is not supported; supported: 1, 2"),
        ({"format": True}, r"jaxinfer.json: format True is not supported"),
        ({"format": None}, r"jaxinfer.json: format None is not supported"),
        ({"colour": 1}, r"jaxinfer.json: Manifest has no field 'colour'"),
        ({"name": ["x"]}, r"jaxinfer.json: name: \['x'\] is not text"),
        ({"dtype": "float16"}, r"jaxinfer.json: dtype: 'float16' must be one of float32, bfloat16"),
        ({"weights": "int5"}, r"jaxinfer.json: weights: 'int5' must be one of int8, int4.*nearest: 'int8'"),
        ({"weights": ["int8"]}, r"jaxinfer.json: weights: .* must be one of"),
        ({"weights": "int8"}, r"embed/embedding/codes.* is missing"),
        ({"config": config | {"colour": 1}}, r"jaxinfer.json: config: ModelConfig has no field 'colour'"),
        ({"config": {"family": "llama"}}, r"jaxinfer.json: config: field 'vocab_size' is missing"),
        ({"config": config | {"d_ff": "wide"}}, r"jaxinfer.json: config.d_ff: 'wide' is not a whole number"),
        ({"config": config | {"d_ff": True}}, r"jaxinfer.json: config.d_ff: True is not a whole number"),
        ({"config": config | {"d_ff": 512.0}}, r"jaxinfer.json: config.d_ff: 512.0 is not a whole number"),
        ({"config": config | {"d_ff": 2**31}}, r"jaxinfer.json: config.d_ff: 2147483648 must be from 0 to"),
        ({"config": config | {"d_ff": 2**30}}, r"jaxinfer.json: config: d_ff=1073741824 is more than all that params"),
        ({"config": config | {"n_kv_heads": 0}}, r"jaxinfer.json: config.n_kv_heads: 0 must be from 1"),
        (
            {"config": config | {"n_kv_heads": 3}},
            r"jaxinfer.json: config: n_heads=4 must be a multiple of n_kv_heads=3",
        ),
        ({"config": config | {"norm_eps": 0}}, r"jaxinfer.json: config.norm_eps: 0.0 must be a finite number above 0"),
        ({"config": config | {"norm_eps": "Infinity"}}, r"jaxinfer.json: config.norm_eps: inf must be a finite number"),
        (
            {"config": config | {"logit_scale": 10**400}},
            r"jaxinfer.json: config.logit_scale: .* must be a finite number",
        ),
        ({"config": config | {"norm": "batch"}}, r"jaxinfer.json: config.norm: 'batch' must be one of rms, layer"),
        ({"config": config | {"gated": 1}}, r"jaxinfer.json: config.gated: 1 is not true or false"),
        ({"config": config | {"segments": []}}, r"jaxinfer.json: config.segments: is empty"),
        ({"config": config | {"segments": "abc"}}, r"jaxinfer.json: config.segments: 'abc' is not a list"),
        ({"config": config | {"segments": [segment | {"pattern": []}]}}, r"config.segments\[0\].pattern: is empty"),
        ({"config": config | {"segments": [segment | {"repeats": 10**6}]}}, r"segments: 1000000 layers are more than"),
        ({"config": config | {"segments": [segment | {"repeats": 3}]}}, r"repeats: 3 layers .* and params holds 2"),
        ({"config": config | {"segments": [segment | {"pattern": [kind, kind | {"window": 8}]}]}}, "are both called"),
        (with_kind(window=0), r"config.segments\[0\].pattern\[0\].window: 0 must be from 1"),
        (
            with_kind(rope=kind["rope"] | {"theta": -1}),
            r"pattern\[0\].rope.theta: -1.0 must be a finite number above 0",
        ),
        (with_kind(rope=kind["rope"] | {"width": 3}), r"config: rotary width=3 must be even"),
        (with_kind(rope=kind["rope"] | {"scaling": {"kind": "yran", "factor": 2}}), r"kind: 'yran' must be one of"),
        (with_kind(moe={"experts": 4, "top_k": 2, "d_ff": 8, "router": "xyz"}), r"moe.router: 'xyz' must be one of"),
        (with_kind(moe={"experts": 4, "top_k": 5, "d_ff": 8}), r"pattern\[0\].moe: top_k=5 must be between 1 and"),
        (with_kind(mixer={"version": True, "width": 8, "state": 8}), r"mixer.version: True must be one of 1, 2"),
        (with_kind(mixer={"width": 8}), r"mixer: field 'version' is missing"),
        ({"config": "llama"}, r"jaxinfer.json: config: 'llama' is not an object"),
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
            with pytest.raises(InputError, match=message) as caught:
                load_checkpoint(saved)
            assert len(str(caught.value)) < 400
            assert "\n" not in str(caught.value)
        manifest.write_text(before)


def test_tokenizer_settings_that_do_not_fit(saved):
    settings = saved / "tokenizer_settings.json"
    for changes, message in [
        ({"bos_id": "1"}, r"tokenizer_settings.json: bos_id: must be the number of a token"),
        ({"bos_id": -1}, r"tokenizer_settings.json: bos_id: must be the number of a token"),
        ({"bos_id": 64}, r"tokenizer_settings.json: bos_id: token 64 is not in the vocabulary"),
        ({"eos_ids": [1, 1.5]}, r"tokenizer_settings.json: eos_ids: must be the number of a token"),
        ({"eos_ids": [1, 99]}, r"tokenizer_settings.json: eos_ids: token 99 is not in the vocabulary"),
        ({"chat_template": 5}, r"tokenizer_settings.json: the chat template: must be a text"),
        ({"shade": 5}, r"tokenizer_settings.json: has no key 'shade'"),
    ]:
        before = settings.read_text()
        edit(settings, **changes)
        with pytest.raises(InputError, match=message):
            load_checkpoint(saved)
        settings.write_text(before)


def test_a_damaged_folder(saved):
    (saved / "tokenizer.json").write_text("{}")
    checksums.write(saved)
    with pytest.raises(InputError, match=r"tokenizer.json: is not a valid tokenizer"):
        load_checkpoint(saved)
    shutil.rmtree(saved / "params")
    checksums.write(saved)
    (saved / "tokenizer.json").unlink()
    checksums.write(saved)
    with pytest.raises(InputError, match=r"params: is not an Orbax checkpoint, or is damaged"):
        load_checkpoint(saved)


def all_files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def flipped(path, where, bit=1):
    data = bytearray(path.read_bytes())
    data[where] ^= bit
    path.write_bytes(data)


def test_one_bit_anywhere_is_found(saved):
    """In every file, at its start, in its middle and at its end."""
    load_checkpoint(saved)
    files = all_files(saved)
    assert {"jaxinfer.json", "tokenizer.json", "tokenizer_settings.json", "checksums.sha256"} < {x.name for x in files}
    assert len(files) > 8
    for file in files:
        size = file.stat().st_size
        assert size
        for where in {0, size // 2, size - 1}:
            flipped(file, where)
            with pytest.raises(InputError, match=r"damaged|no such file") as caught:
                load_checkpoint(saved)
            assert str(caught.value).isprintable()
            assert file.name in str(caught.value) or file.name == "checksums.sha256"
            flipped(file, where)
    load_checkpoint(saved)


def test_files_that_are_cut_short_missing_or_added(saved):
    for file in all_files(saved):
        whole = file.read_bytes()
        file.write_bytes(whole[:-1])
        with pytest.raises(InputError):
            load_checkpoint(saved)
        file.unlink()
        with pytest.raises(InputError):
            load_checkpoint(saved)
        file.write_bytes(whole)
    for name in ("params/d/another", "params/x"):
        (saved / name).write_bytes(b"x")
        with pytest.raises(InputError, match=f"{name}: was not written with this folder"):
            load_checkpoint(saved)
        (saved / name).unlink()
    (saved / "README.md").write_text("What a user keeps beside it is not read.")
    (saved / "params" / ".nfs0001").write_text("")
    load_checkpoint(saved)


def test_a_tokenizer_that_was_added_is_not_read(gemma3_folder, saved, tmp_path):
    save_checkpoint(load_checkpoint(gemma3_folder), tmp_path / "plain")
    for name in ("tokenizer.json", "tokenizer_settings.json"):
        shutil.copy(saved / name, tmp_path / "plain" / name)
    with pytest.raises(InputError, match=r"tokenizer(_settings)?.json: was not written with this folder"):
        load_checkpoint(tmp_path / "plain")


def test_checksums_are_those_of_sha256sum(saved):
    lines = (saved / "checksums.sha256").read_text().splitlines()
    found = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    expected = {
        str(file.relative_to(saved)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in all_files(saved)
        if file.name != "checksums.sha256"
    }
    assert found == expected


def test_folders_of_the_first_format_load_with_a_warning(saved, recwarn):
    whole = load_checkpoint(saved)
    assert not [w for w in recwarn if "checksums" in str(w.message)]
    (saved / "checksums.sha256").unlink()
    with pytest.raises(InputError, match=r"checksums.sha256: no such file"):
        load_checkpoint(saved)
    manifest = saved / "jaxinfer.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 1}))
    with pytest.warns(UserWarning, match="written without checksums") as caught:
        found = load_checkpoint(saved)
    assert len(caught) == 1
    chex.assert_trees_all_equal(found.params, whole.params, strict=True)
    assert found.config == whole.config


def test_an_old_folder_that_holds_the_word_infinity(tmp_path):
    mixer = SSM(2, width=32, state=4, heads=2)
    config = ModelConfig(
        "mamba2", 20, 16, 0, 2, 2, 16, (Segment((LayerKind("state", rope=None, mixer=mixer),), 2),), 64
    )
    model = Model.random(config)
    save_checkpoint(Checkpoint(config, model.params, None, "m"), tmp_path / "m")
    text = (tmp_path / "m" / "jaxinfer.json").read_text()
    json.loads(text, parse_constant=lambda word: pytest.fail(word))
    assert load_checkpoint(tmp_path / "m").config == config
    (tmp_path / "m" / "checksums.sha256").unlink()
    old = text.replace('"format": 2', '"format": 1').replace('"Infinity"', "Infinity")
    assert old.count("Infinity") == 1
    (tmp_path / "m" / "jaxinfer.json").write_text(old)
    with pytest.warns(UserWarning, match="checksums"):
        assert load_checkpoint(tmp_path / "m").config == config
    for word in ("NaN", "-Infinity", "-1", '"-Infinity"', "0"):
        (tmp_path / "m" / "jaxinfer.json").write_text(old.replace("Infinity", word))
        with pytest.raises(InputError, match=r"jaxinfer.json: "):
            load_checkpoint(tmp_path / "m")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers_give_one_warning(source, tmp_path, dtype, bad, recwarn):
    whole = load_checkpoint(source, dtype)
    embedding = np.array(whole.params["embed"]["embedding"])
    embedding[3, 5] = bad
    params = {**whole.params, "embed": {"embedding": embedding}}
    save_checkpoint(dataclasses.replace(whole, params=params), tmp_path / "bad")
    assert not recwarn.list
    load_checkpoint(tmp_path / "bad", dtype)
    [caught] = recwarn.list
    assert "parameter 'embed/embedding' holds NaN or infinite numbers" in str(caught.message)


def test_large_numbers_are_numbers():
    assert all_finite(np.full((3, 1000), 3e38, np.float32))  # whose sum is none
    assert all_finite(np.full(1000, 3e38, jnp.bfloat16))
    assert all_finite(np.arange(5))
    assert all_finite(np.zeros((0, 3), np.float32))
    far = np.zeros(5_000_001, np.float32)
    far[-1] = np.nan
    assert not all_finite(far)
    assert not all_finite(far.astype(jnp.bfloat16))


@pytest.fixture(scope="module")
def fuzzed(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz") / "saved"
    convert(source, folder)
    return folder


@pytest.mark.parametrize("name", ["jaxinfer.json", "tokenizer_settings.json", "tokenizer.json"])
@settings(max_examples=50, derandomize=True, deadline=None)
@given(data=st.data())
def test_any_damage_is_one_line(fuzzed, name, data):
    """With checksums that are right, as if it had been written so. A model that loads is the same but for names."""
    file = fuzzed / name
    whole = file.read_text()
    if data.draw(st.booleans()) and name != "tokenizer.json":
        damage = json.dumps(damaged(data, json.loads(whole)))
    else:
        start = data.draw(st.integers(0, len(whole) - 1))
        damage = (
            whole[:start]
            + data.draw(st.text('x0"{}[],: é', max_size=3))
            + whole[start + data.draw(st.integers(0, 9)) :]
        )
    line = ""
    try:
        file.write_text(damage, errors="surrogatepass")
        checksums.write(fuzzed)
        load_checkpoint(fuzzed)
    except InputError as error:
        line = str(error)
    finally:
        file.write_text(whole)
    assert line.isprintable()
    assert len(line) < 700

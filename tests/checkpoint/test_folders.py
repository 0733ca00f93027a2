"""Folders as transformers writes and reads them: heads of their own, names, shards, links, stale files."""

import json
import os
import re
import warnings

import numpy as np
import pytest
from gguf_convert import GOLDEN, golden, write_folder
from safetensors.numpy import load_file, save_file

import jaxinfer
from jaxinfer.checkpoint import save_folder
from jaxinfer.checkpoint.assemble import flatten
from jaxinfer.checkpoint.gguf import open_gguf
from jaxinfer.checkpoint.huggingface import open_folder
from jaxinfer.checkpoint.loading import load_checkpoint
from jaxinfer.errors import InputError

FAMILIES = {}  # one case of each
for _file in sorted(GOLDEN.glob("*.npz")):
    FAMILIES.setdefault(json.loads(str(np.load(_file)["config"]))["model_type"], _file.stem)
CASES = sorted(FAMILIES.values())
INDEX = "model.safetensors.index.json"


def head_of(config) -> str:
    return "embed_out.weight" if config["model_type"] == "gpt_neox" else "lm_head.weight"


def embedding_of(tensors) -> str:
    """The one matrix of 97 rows that is no head."""
    (name,) = (name for name, x in tensors.items() if x.shape == (97, 48) and not re.match("lm_head|embed_out", name))
    return name


def same(found, expected):
    found, expected = flatten(found.params), flatten(expected.params)
    assert found.keys() == expected.keys()
    for path, leaf in found.items():
        np.testing.assert_array_equal(leaf, expected[path], err_msg=path)


def same_tensors(found, expected):
    (_, config, tensors), (_, other, others) = found, expected
    assert config == other
    assert tensors.keys() == others.keys()
    for name, x in tensors.items():
        n = others[name].shape[0]
        np.testing.assert_array_equal(x.rows(0, n).astype(np.float32), others[name].rows(0, n), err_msg=name)


@pytest.fixture
def in_torch():
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()

    def load(folder, dtype="float32", auto="AutoModelForCausalLM"):
        return getattr(transformers, auto).from_pretrained(folder, dtype=getattr(torch, dtype)).eval()

    return load


@pytest.mark.parametrize("case", CASES)
def test_a_head_of_its_own_counts_where_the_configuration_ties_it(case, in_torch, tmp_path):
    config, tensors, _ = golden(case)
    config["tie_word_embeddings"] = True
    embedding, head = embedding_of(tensors), head_of(config)
    own = np.random.default_rng(5).normal(size=(97, 48)).astype(np.float32)
    other = write_folder(tmp_path / "other", config, tensors | {head: own})
    _, found, read = open_folder(other)
    assert not found.tie_embeddings
    np.testing.assert_array_equal(read[head].rows(0, 97), own)
    theirs = in_torch(other)
    np.testing.assert_array_equal(theirs.get_output_embeddings().weight.detach().numpy(), own)
    np.testing.assert_array_equal(theirs.get_input_embeddings().weight.detach().numpy(), tensors[embedding])

    _, found, _ = open_folder(write_folder(tmp_path / "same", config, tensors | {head: tensors[embedding]}))
    assert found.tie_embeddings
    head_alone = {name: x for name, x in tensors.items() if name != embedding} | {head: own}
    _, found, read = open_folder(write_folder(tmp_path / "head", config, head_alone))
    assert found.tie_embeddings
    np.testing.assert_array_equal(read[embedding].rows(0, 97), own)


@pytest.mark.parametrize("case", ["llama", "gpt2", "gpt-neox", "mamba"])
def test_a_head_of_its_own_is_loaded_and_exported(case, in_torch, tmp_path):
    config, tensors, _ = golden(case)
    own = np.random.default_rng(5).normal(size=(97, 48)).astype(np.float32)
    folder = write_folder(tmp_path / "model", config | {"tie_word_embeddings": True}, tensors | {head_of(config): own})
    found = load_checkpoint(folder)
    np.testing.assert_array_equal(flatten(found.params)["head/kernel"], own)
    save_folder(found, tmp_path / "out")
    same(load_checkpoint(tmp_path / "out"), found)
    theirs = in_torch(tmp_path / "out")
    np.testing.assert_array_equal(theirs.get_output_embeddings().weight.detach().numpy(), own)


def test_the_logits_of_a_head_of_its_own(in_torch, tmp_path):
    torch = pytest.importorskip("torch")
    config, tensors, _ = golden("llama-yarn")
    tensors["lm_head.weight"] = np.random.default_rng(5).normal(size=(97, 48)).astype(np.float32)
    folder = write_folder(tmp_path / "model", config | {"tie_word_embeddings": True}, tensors)
    ids = [1, 5, 90, 33, 2]
    with torch.inference_mode():
        expected = in_torch(folder)(torch.tensor([ids])).logits[0].numpy()
    found = np.asarray(jaxinfer.load(str(folder), dtype="float32").logits([ids]))[0]
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("case", CASES)
def test_what_transformers_saves(case, in_torch, tmp_path):
    """AutoModel, whose names lack their beginning and which has no head; and shards in bfloat16."""
    config, tensors, _ = golden(case)
    plain = {name: x for name, x in tensors.items() if name != head_of(config)}
    folder = write_folder(tmp_path / "model", config | {"tie_word_embeddings": True}, plain)
    in_torch(folder, auto="AutoModel").save_pretrained(tmp_path / "bare")
    bare = load_file(tmp_path / "bare" / "model.safetensors")
    assert not bare.keys() & plain.keys()
    same_tensors(open_folder(tmp_path / "bare"), open_folder(folder))

    in_torch(folder, "bfloat16").save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert (tmp_path / "shards" / INDEX).exists()
    same_tensors(open_folder(tmp_path / "shards"), open_folder(folder))  # which bfloat16 holds, too


@pytest.mark.parametrize("case", ["llama", "gpt-neox", "falcon-7b"])
def test_a_head_that_is_not_there(case, in_torch, tmp_path):
    config, tensors, _ = golden(case)
    folder = write_folder(tmp_path / "model", config, tensors)
    in_torch(folder, auto="AutoModel").save_pretrained(tmp_path / "bare")
    untied = json.loads((tmp_path / "bare" / "config.json").read_text()) | {"tie_word_embeddings": False}
    (tmp_path / "bare" / "config.json").write_text(json.dumps(untied))
    message = (
        rf"bare: tensor '{head_of(config)}' of shape \(97, 48\) is missing .* the head, which AutoModelForCausalLM"
    )
    with pytest.raises(InputError, match=message):
        load_checkpoint(tmp_path / "bare")


@pytest.mark.parametrize("case", CASES)
def test_buffers_of_older_files_are_left(case, tmp_path):
    config, tensors, _ = golden(case)
    stray = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.arange(4)}
    load_checkpoint(write_folder(tmp_path / "stray", config, tensors | stray))


@pytest.fixture
def llama(tmp_path):
    """A small folder in one file, its config and its tensors."""
    config, tensors, _ = golden("llama")
    return write_folder(tmp_path / "llama", config, tensors), config, tensors


@pytest.fixture
def shards(llama, tmp_path):
    """The same in two files and an index."""
    _, config, tensors = llama
    folder = tmp_path / "shards"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    names = sorted(tensors)
    where = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(names)}
    for part in set(where.values()):
        save_file({name: tensors[name] for name in names if where[name] == part}, folder / part)
    (folder / INDEX).write_text(json.dumps({"weight_map": where}))
    return folder


def edit_index(folder, **changes):
    where = json.loads((folder / INDEX).read_text())["weight_map"] | changes
    (folder / INDEX).write_text(json.dumps({"weight_map": where}))


NAME = "model.layers.1.mlp.up_proj.weight"


def test_one_whole_file_comes_before_a_stale_index(llama, in_torch):
    folder, _, _ = llama
    (folder / INDEX).write_text(json.dumps({"weight_map": {"x": "gone.safetensors"}}))
    weight = in_torch(folder).state_dict()[NAME].numpy()
    np.testing.assert_array_equal(flatten(load_checkpoint(folder).params)["segment_0/layer_0/mlp/up/kernel"][1], weight)


@pytest.mark.parametrize(
    "name",
    ["../llama/model.safetensors", "/etc/passwd", "a/../../llama/model.safetensors", "", ".", 3, None, ["x"], "a\0b"],
    ids=repr,
)
def test_nothing_outside_the_folder_is_read(shards, name):
    edit_index(shards, **{NAME: name})
    with pytest.raises(InputError, match=rf"{INDEX}: tensor '{NAME}': .* must be the name of a file in the folder"):
        load_checkpoint(shards)


def test_links_as_the_hubs_cache_has_them(shards, llama, tmp_path):
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for n, file in enumerate([*shards.glob("*.safetensors"), shards / INDEX, shards / "config.json"]):
        file.rename(blobs / str(n))
        file.symlink_to(os.path.relpath(blobs / str(n), shards))
    same(load_checkpoint(shards), load_checkpoint(llama[0]))


@pytest.mark.parametrize("values", [[], {}, {"weight_map": 3}, {"weight_map": ["x"]}, {"weight_map": {}}], ids=str)
def test_an_index_of_another_kind(shards, values):
    (shards / INDEX).write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"weight_map|must hold a JSON object|is missing from this llama model"):
        load_checkpoint(shards)


def test_files_that_are_none(llama, shards, tmp_path):
    folder, _, _ = llama
    weights = folder / "model.safetensors"
    weights.unlink()
    os.mkfifo(weights)
    with pytest.raises(InputError, match=r"model.safetensors: is a pipe or a device; give a regular file"):
        load_checkpoint(folder)
    weights.unlink()
    weights.symlink_to("/dev/zero")
    with pytest.raises(InputError, match=r"model.safetensors: is a pipe or a device"):
        load_checkpoint(folder)
    weights.unlink()
    weights.mkdir()
    with pytest.raises(InputError, match=r"model.safetensors: is a folder; give a file"):
        load_checkpoint(folder)
    (shards / "part-1.safetensors").unlink()
    os.mkfifo(shards / "part-1.safetensors")
    with pytest.raises(InputError, match=r"part-1.safetensors: is a pipe or a device"):
        load_checkpoint(shards)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read(llama):
    (llama[0] / "model.safetensors").chmod(0)
    with pytest.raises(InputError, match=r"model.safetensors: cannot be read: permission denied"):
        load_checkpoint(llama[0])


def test_numbers_of_a_kind_that_is_not_read_are_refused_before_any_is(llama, tmp_path):
    _, config, tensors = llama
    folder = write_folder(tmp_path / "whole", config, tensors | {NAME: tensors[NAME].astype(np.int32)})
    placed = []
    with pytest.raises(InputError, match=rf"tensor '{NAME}' is I32; supported: BF16, F16, F32, F64"):
        load_checkpoint(folder, place=placed.append)
    assert not placed


def test_two_names_for_one_tensor(tmp_path):
    config, tensors, _ = golden("falcon-40b")
    name = next(name for name in tensors if ".ln_attn." in name)
    twice = tensors | {name.replace(".ln_attn.", ".input_layernorm."): tensors[name]}
    with pytest.raises(InputError, match=r"tensors '.*' and '.*' are one in this model"):
        load_checkpoint(write_folder(tmp_path / "model", config, twice))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_finite_numbers(llama, tmp_path, dtype, bad):
    import jax.numpy as jnp

    _, config, tensors = llama
    tensors = {name: x.astype(jnp.dtype(dtype)) for name, x in tensors.items()}
    folder = write_folder(tmp_path / "model", config, tensors)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_checkpoint(folder)
    for name in (NAME, "model.norm.weight"):
        tensors[name] = tensors[name].copy()
        tensors[name].reshape(-1)[-1] = bad
    folder = write_folder(tmp_path / "broken", config, tensors)
    with pytest.warns(UserWarning, match="broken: tensor 'model") as said:
        load_checkpoint(folder)
    assert len(said) == 1
    assert str(said[0].message).endswith("(and 1 more) holds NaN or infinite numbers")


def test_large_weights_are_finite(llama, tmp_path):
    """Their sum is not."""
    _, config, tensors = llama
    folder = write_folder(tmp_path / "model", config, tensors | {NAME: np.full_like(tensors[NAME], 3e38)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_checkpoint(folder)


def test_quantized_blocks_are_broken_as_a_whole():
    """`Tensor.shared` relies on this, for every quantization that is read: of random bytes, some scales are NaN."""
    gguf = pytest.importorskip("gguf")
    rng = np.random.default_rng(0)
    seen = 0
    for kind in gguf.GGMLQuantizationType:
        block, n_bytes = gguf.GGML_QUANT_SIZES[kind]
        raw = rng.integers(0, 256, (max(64, 32_000 // block), n_bytes), dtype=np.uint8)
        try:
            with np.errstate(all="ignore"):
                numbers = gguf.dequantize(raw.reshape(1, -1), kind).reshape(-1, block) if block > 1 else None
        except NotImplementedError:
            continue
        if numbers is not None and kind.name != "MXFP4":
            bad = ~np.isfinite(numbers)
            seen += bad.any()
            np.testing.assert_array_equal(bad.any(axis=1), bad[:, 0], err_msg=kind.name)
    assert seen > 15


def test_a_broken_scale_in_a_gguf_file(tmp_path):
    from gguf_files import write_gguf

    path = write_gguf(tmp_path / "model.gguf", kind="Q4_0")
    header, _, _, _ = open_gguf(path)
    info = header.tensors["blk.1.ffn_up.weight"]
    raw = bytearray(path.read_bytes())
    raw[info.start + 18 * 5 : info.start + 18 * 5 + 2] = np.float16(np.nan).tobytes()
    path.write_bytes(raw)
    with pytest.warns(UserWarning, match=r"model.gguf: tensor 'blk.1.ffn_up.weight' holds NaN or infinite numbers"):
        load_checkpoint(path)

"""Folders in float8 with a scale for each block, row or tensor, against the same numbers written out in float32."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from gguf_convert import golden, write_folder

from jaxinfer.checkpoint.assemble import flatten
from jaxinfer.checkpoint.loading import load_checkpoint
from jaxinfer.errors import InputError

BLOCK = (16, 24)  # leaves blocks over at the edges: 48 columns of 24, 32 rows of 16, 60 rows or columns, 20, 8
PACKING = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": list(BLOCK)}


def packed(weight):
    """float8[out, in], the scale of each block, and what they stand for: block by block."""
    height, width = BLOCK
    n_rows, n_columns = (-(-length // size) for length, size in zip(weight.shape, BLOCK, strict=True))
    codes, scales = np.zeros(weight.shape, jnp.float8_e4m3fn), np.zeros((n_rows, n_columns), np.float32)
    whole = np.zeros(weight.shape, np.float32)
    for i in range(n_rows):
        for j in range(n_columns):
            at = slice(i * height, (i + 1) * height), slice(j * width, (j + 1) * width)
            scales[i, j] = np.abs(weight[at]).max() / 448
            codes[at] = (weight[at] / scales[i, j]).astype(jnp.float8_e4m3fn)
            whole[at] = codes[at].astype(np.float32) * scales[i, j]
    return codes, scales, whole


def write_safetensors(file, tensors):
    """The format by hand: numpy's writer knows no float8."""
    names = {"float8_e4m3fn": "F8_E4M3", "float32": "F32", "bfloat16": "BF16"}
    header, at = {}, 0
    for name, x in tensors.items():
        header[name] = {"dtype": names[x.dtype.name], "shape": x.shape, "data_offsets": [at, at + x.nbytes]}
        at += x.nbytes
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(x.tobytes() for x in tensors.values()))


@pytest.fixture(scope="module")
def model():
    """config.json, and the tensors of a DeepSeek-V3 as float8 with scales and as what these stand for."""
    config, tensors, _ = golden("deepseek-v3")
    in_float8, plain = {}, {}
    for name, x in tensors.items():
        plain[name] = in_float8[name] = x
        if name.endswith(("_proj.weight", "_proj_with_mqa.weight")):
            in_float8[name], in_float8[f"{name}_scale_inv"], plain[name] = packed(x)
    assert sum(name.endswith("_scale_inv") for name in in_float8) > 50
    return config | {"quantization_config": PACKING}, in_float8, plain


def write(folder, config, *files):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    names = [f"model-{n}.safetensors" for n in range(len(files))] if len(files) > 1 else ["model.safetensors"]
    for name, tensors in zip(names, files, strict=True):
        write_safetensors(folder / name, tensors)
    if len(files) > 1:
        where = {key: name for name, tensors in zip(names, files, strict=True) for key in tensors}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return folder


def test_weights_are_widened_block_by_block(model, tmp_path):
    """In one file; and with the scales in another file than the weights."""
    config, in_float8, plain = model
    bare = {key: value for key, value in config.items() if key != "quantization_config"}
    expected = flatten(load_checkpoint(write_folder(tmp_path / "plain", bare, plain)).params)
    scales = {name: x for name, x in in_float8.items() if name.endswith("_scale_inv")}
    others = {name: x for name, x in in_float8.items() if name not in scales}
    for folder in (write(tmp_path / "one", config, in_float8), write(tmp_path / "two", config, scales, others)):
        found = flatten(load_checkpoint(folder).params)
        assert found.keys() == expected.keys()
        for path, leaf in found.items():
            np.testing.assert_array_equal(leaf, expected[path], err_msg=path)


def test_transformers_widens_them_alike(model):
    """Where blocks divide a matrix, as its own conversion asks for."""
    torch = pytest.importorskip("torch")
    fp8 = pytest.importorskip("transformers.integrations.finegrained_fp8")
    weight = np.random.default_rng(0).standard_normal((48, 48)).astype(np.float32)
    codes, scales, whole = packed(weight)
    theirs = torch.from_numpy(codes.view(np.uint8)).view(torch.float8_e4m3fn)
    found = fp8._dequantize_fp8_weight(theirs, torch.from_numpy(scales), list(BLOCK), torch.float32)
    np.testing.assert_array_equal(found.numpy(), whole)


NAME = "model.layers.1.mlp.experts.3.up_proj.weight"


@pytest.mark.parametrize(
    ("packing", "change", "message"),
    [
        ({"weight_block_size": None}, {}, r"weight_scale_inv' has shape \(\d, \d\), expected \(\d+, 1\)"),
        (
            {"weight_block_size": [128]},
            {},
            r"config.json: .*must be a list of two whole numbers above zero, not \[128\]",
        ),
        ({"fmt": "e5m2"}, {}, r"config.json: fmt='e5m2': only 'e4m3' is supported"),
        ({}, {f"{NAME}_scale_inv": None}, rf"tensor '{NAME}' is in float8, and its scales, '{NAME}_scale_inv' or"),
        (
            {},
            {f"{NAME}_scale_inv": np.ones((1, 2), np.float32)},
            rf"tensor '{NAME}_scale_inv' has shape \(1, 2\), expected \(2, 2\)",
        ),
        ({"quant_method": "awq"}, {}, r"such quantized Hugging Face checkpoints are not supported"),
    ],
)
def test_a_packing_that_does_not_fit(model, tmp_path, packing, change, message):
    config, in_float8, _ = model
    config = config | {"quantization_config": PACKING | packing}
    tensors = {name: change.get(name, x) for name, x in in_float8.items()}
    folder = write(tmp_path / "model", config, {name: x for name, x in tensors.items() if x is not None})
    with pytest.raises(InputError, match=message):
        load_checkpoint(folder)


def rowwise(weight, axis):
    """float8[out, in], one scale (axis None) or one a row (axis 1), and what they stand for: row by row."""
    largest = np.abs(weight).max(axis=axis, keepdims=axis is not None)
    scales = np.asarray(largest / 448, np.float32)
    codes = (weight / scales).astype(jnp.float8_e4m3fn)
    whole = np.zeros(weight.shape, np.float32)
    for i, row in enumerate(codes):
        whole[i] = row.astype(np.float32) * (scales if axis is None else scales[i])
    return codes, scales, whole


def compressed(strategy):
    weights = {"num_bits": 8, "type": "float", "strategy": strategy, "symmetric": True, "dynamic": False}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": {"num_bits": 8, "type": "float"}}
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


PER_TENSOR = {"quant_method": "fp8", "activation_scheme": "static"}


@pytest.mark.parametrize(
    ("packing", "axis", "name", "shaped", "of_inputs"),
    [
        (PER_TENSOR, None, "_scale_inv", lambda x: x, "activation_scale"),
        (PER_TENSOR | {"weight_block_size": None}, None, "_scale_inv", lambda x: x.astype(jnp.bfloat16), "input_scale"),
        (PER_TENSOR, None, "_scale", lambda x: x.reshape(1), "input_scale"),
        (compressed("tensor"), None, "_scale", lambda x: x.reshape(1), "input_scale"),
        (compressed("channel"), 1, "_scale", lambda x: x, "input_scale"),
        (compressed("channel"), 1, "_scale", lambda x: x[:, 0], "k_scale"),
    ],
    ids=["number", "null-block", "one", "tensor", "channel", "flat-channel"],
)
def test_a_scale_for_a_tensor_or_for_each_row(tmp_path, packing, axis, name, shaped, of_inputs):
    config, tensors, _ = golden("llama")
    in_float8, plain = {}, {}
    for key, x in tensors.items():
        plain[key] = in_float8[key] = x
        if key.endswith("_proj.weight"):
            codes, scales, plain[key] = rowwise(x, axis)
            scales = shaped(scales)
            if axis is None:
                plain[key] = codes.astype(np.float32) * np.float32(scales.reshape(()))
            in_float8 |= {
                key: codes,
                key + name: scales,
                key.removesuffix("weight") + of_inputs: np.ones(1, np.float32),
            }
    expected = flatten(load_checkpoint(write_folder(tmp_path / "plain", config, plain)).params)
    found = flatten(
        load_checkpoint(write(tmp_path / "packed", config | {"quantization_config": packing}, in_float8)).params
    )
    assert found.keys() == expected.keys()
    for path, leaf in found.items():
        np.testing.assert_array_equal(leaf, expected[path], err_msg=path)


def test_transformers_widens_one_scale_alike():
    torch = pytest.importorskip("torch")
    fp8 = pytest.importorskip("transformers.integrations.finegrained_fp8")
    codes, scales, whole = rowwise(np.random.default_rng(0).standard_normal((20, 48)).astype(np.float32), None)
    theirs = torch.from_numpy(codes.view(np.uint8)).view(torch.float8_e4m3fn)
    found = fp8._dequantize_fp8_weight(theirs, torch.from_numpy(np.array(scales)), None, torch.float32)
    np.testing.assert_array_equal(found.numpy(), whole)


@pytest.mark.parametrize(
    ("packing", "message"),
    [
        (
            compressed("channel") | {"format": "pack-quantized"},
            "such quantized Hugging Face checkpoints are not supported",
        ),
        (compressed("group") | {"config_groups": {"a": {"weights": {"type": "int"}}}}, "type='int': only 'float' is"),
        (compressed("group") | {"config_groups": {"a": {"weights": {"num_bits": 4}}}}, "num_bits=4: only 8 is"),
        (compressed("group") | {"config_groups": {"a": 3}}, "field 'a' must be an object, not 3"),
        (compressed("group") | {"config_groups": []}, "field 'config_groups' must be an object, not "),
    ],
)
def test_a_compression_that_is_not_read(tmp_path, packing, message):
    config, tensors, _ = golden("llama")
    folder = write_folder(tmp_path / "model", config | {"quantization_config": packing}, tensors)
    with pytest.raises(InputError, match=f"config.json: .*{message}"):
        load_checkpoint(folder)


def test_float8_that_the_config_does_not_announce(model, tmp_path):
    config, in_float8, _ = model
    bare = {key: value for key, value in config.items() if key != "quantization_config"}
    tensors = {name: x for name, x in in_float8.items() if not name.endswith("_scale_inv")}
    with pytest.raises(InputError, match=r"is F8_E4M3; supported: BF16, F16, F32, F64"):
        load_checkpoint(write(tmp_path / "model", bare, tensors))

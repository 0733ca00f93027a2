"""GGUF files written for the test: every quantization, and everything that can be wrong with a file."""

import json

import numpy as np
import pytest
from gguf_files import LLAMA_METADATA, llama_tensors, write_gguf
from safetensors.numpy import save_file

from jaxinfer.checkpoint.assemble import flatten
from jaxinfer.checkpoint.gguf_header import read_header
from jaxinfer.checkpoint.loading import load_checkpoint
from jaxinfer.config import RopeScaling
from jaxinfer.errors import InputError


@pytest.fixture
def file(tmp_path):
    return tmp_path / "tiny.gguf"


def up_kernel(path, dtype="float32"):
    return np.asarray(load_checkpoint(path, dtype).params["segment_0"]["layer_0"]["mlp"]["up"]["kernel"][1], np.float32)


def test_float32_is_exact_and_named_after_the_file(file):
    checkpoint = load_checkpoint(write_gguf(file))
    tensors, layer = llama_tensors(), checkpoint.params["segment_0"]["layer_0"]
    assert checkpoint.name == "tiny"
    assert checkpoint.tokenizer is None
    assert checkpoint.config.norm_eps == 1e-5
    np.testing.assert_array_equal(layer["mlp"]["down"]["kernel"][0], tensors["blk.0.ffn_down.weight"])
    np.testing.assert_array_equal(layer["attention_norm"]["scale"][1], tensors["blk.1.attn_norm.weight"])
    np.testing.assert_array_equal(
        layer["attention"]["v"]["kernel"][1], tensors["blk.1.attn_v.weight"].reshape(2, 64, 256)
    )


def test_rope_rows_are_put_back_into_halves(file):
    """llama.cpp's converter maps row (head, half, i) to (head, i, half): `LlamaModel.permute` in convert_hf_to_gguf."""
    tensors = llama_tensors()
    hf = tensors["blk.0.attn_k.weight"]
    tensors["blk.0.attn_k.weight"] = hf.reshape(2, 2, 32, 256).swapaxes(1, 2).reshape(128, 256)
    layer = load_checkpoint(write_gguf(file, tensors=tensors)).params["segment_0"]["layer_0"]
    np.testing.assert_array_equal(layer["attention"]["k"]["kernel"][0], hf.reshape(2, 64, 256))


@pytest.mark.parametrize("kind", ["Q4_1", "Q8_0"])
def test_every_parameter_equals_transformers_reading(file, kind):
    """Of a file with llama.cpp's names and order of rows, into torch's names and order."""
    import torch
    from transformers import AutoModelForCausalLM

    write_gguf(file, kind=kind, metadata={"vocab_size": 64})
    theirs = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    folder = file.parent / "torch"
    folder.mkdir()
    save_file({name: weight.numpy() for name, weight in theirs.state_dict().items()}, folder / "model.safetensors")
    fields = theirs.config.to_dict()
    fields.pop("quantization_config", None)
    (folder / "config.json").write_text(json.dumps(fields, default=str))
    ours, reference = load_checkpoint(file), load_checkpoint(folder)
    leaves, expected = flatten(ours.params), flatten(reference.params)
    assert leaves.keys() == expected.keys()
    for path, leaf in leaves.items():
        np.testing.assert_array_equal(leaf, expected[path], err_msg=path)
    assert reference.config.norm_eps == pytest.approx(1e-5)  # of a float32, digit by digit
    assert ours.config == reference.config.replace(norm_eps=1e-5)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_quantizations(file, kind):
    import gguf

    weight = llama_tensors()["blk.1.ffn_up.weight"]
    number = gguf.GGMLQuantizationType[kind]
    expected = gguf.dequantize(gguf.quantize(weight, number), number)
    np.testing.assert_array_equal(up_kernel(write_gguf(file, kind=kind)), expected)
    assert np.abs(expected - weight).max() < 0.5  # the oracle is no nonsense
    bfloat16 = up_kernel(file, "bfloat16")
    np.testing.assert_allclose(bfloat16, expected, rtol=2**-8)


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"])
def test_k_quantizations(file, kind):
    """gguf cannot quantize to these: random blocks, with finite scales, against its dequantization in one piece."""
    import gguf

    number = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[number]
    raw = np.random.default_rng(0).integers(0, 60, (512, 256 // block * size), np.uint8)  # no f16 above 0x3b3b
    writer = gguf.GGUFWriter(str(file), "llama")
    for key, value in LLAMA_METADATA.items():
        (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(f"llama.{key}", value)
    for name, tensor in llama_tensors().items():
        if name == "blk.1.ffn_up.weight":
            writer.add_tensor(name, raw, raw_dtype=number)
        else:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    expected = gguf.dequantize(raw, number)
    assert np.isfinite(expected).all()
    assert expected.std() > 0
    np.testing.assert_array_equal(up_kernel(file), expected)


def test_llama3_scaling_is_recognized_in_its_tensor(file):
    divisors = np.float32(_llama3_divisors(factor=32.0, theta=500_000.0, width=64))
    tensors = llama_tensors() | {"rope_freqs.weight": divisors}
    write_gguf(file, tensors=tensors, metadata={"rope.freq_base": 500_000.0})
    assert load_checkpoint(file).config.kinds[0].rope.scaling == RopeScaling("llama3", 32.0, 1.0, 4.0, 8192)
    write_gguf(file, tensors=tensors | {"rope_freqs.weight": divisors + 0.5})
    with pytest.raises(InputError, match=r"'rope_freqs.weight' does not hold the RoPE scaling of Llama 3.1"):
        load_checkpoint(file)


def _llama3_divisors(factor, theta, width, low=1.0, high=4.0, original=8192):
    """`generate_extra_tensors` of LlamaModel in llama.cpp's convert_hf_to_gguf."""
    divisors = []
    for frequency in 1.0 / theta ** (np.arange(0, width, 2) / width):
        wavelength = 2 * np.pi / frequency
        if wavelength < original / high:
            divisors.append(1.0)
        elif wavelength > original / low:
            divisors.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    return divisors


def test_linear_scaling(file):
    write_gguf(file, metadata={"rope.scaling.type": "linear", "rope.scaling.factor": 4.0})
    assert load_checkpoint(file).config.kinds[0].rope.scaling == RopeScaling("linear", 4.0)


def test_yarn(file):
    """What the metadata leaves out: 32 and 1 turns, the context, and a growth of 0.1 ln(factor) + 1."""
    metadata = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}
    (kind,) = load_checkpoint(write_gguf(file, metadata=metadata)).config.kinds
    growth = 0.1 * np.log(4) + 1
    assert kind.rope.scaling == RopeScaling("yarn", 4.0, original_max_positions=128, magnitude=growth)
    metadata |= {"rope.scaling.original_context_length": 32, "rope.scaling.attn_factor": 1.5}
    metadata |= {"rope.scaling.yarn_beta_fast": 12.0, "rope.scaling.yarn_beta_slow": 2.0}
    (kind,) = load_checkpoint(write_gguf(file, metadata=metadata)).config.kinds
    said = dict(original_max_positions=32, beta_fast=12.0, beta_slow=2.0, magnitude=growth * 1.5)
    assert kind.rope.scaling == RopeScaling("yarn", 4.0, **said)


def test_a_file_cut_anywhere(file):
    whole = write_gguf(file).read_bytes()
    header_end = min(info.start for info in read_header(file).tensors.values())
    for size in [5, 20, 40, header_end // 2, header_end - 40]:
        file.write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"tiny.gguf: the header is cut short or corrupted"):
            load_checkpoint(file)
    for size in [header_end + 1, len(whole) // 2, len(whole) - 64]:
        file.write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"tiny.gguf: the file is cut short: tensor '.*' ends at byte"):
            load_checkpoint(file)


def test_a_header_of_noise(file):
    """Whatever bytes change in a header, the answer is a model or one clear line."""
    whole = bytearray(write_gguf(file).read_bytes())
    header_end = min(info.start for info in read_header(file).tensors.values())
    rng = np.random.default_rng(0)
    messages = []
    for _ in range(60):
        noisy = whole.copy()
        for at in rng.integers(4, header_end, 4):
            noisy[at] = rng.integers(256)
        file.write_bytes(noisy)
        try:
            load_checkpoint(file)
        except InputError as error:
            messages.append(str(error))
    assert len(messages) > 20
    assert all(str(file) in message and "\n" not in message for message in messages)


@pytest.mark.parametrize(("content", "message"), [(b"", "the file is empty"), (b"hello world", "is not a GGUF file")])
def test_not_gguf(file, content, message):
    file.write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_checkpoint(file)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"embedding_length": None}, r"tiny.gguf: field 'llama.embedding_length' is missing"),
        ({"attention.head_count": "4"}, r"field 'llama.attention.head_count' must be a whole number, not '4'"),
        ({"attention.head_count_kv": [2, 1]}, r"field 'llama.attention.head_count_kv' must be a whole number"),
        ({"attention.head_count_kv": 3}, r"tiny.gguf: n_heads=4 must be a multiple of n_kv_heads=3"),
        ({"expert_count": 8}, r"field 'llama.expert_used_count' is missing, and this model family needs it"),
        ({"rope.scaling.type": "su"}, r"rope.scaling.type='su' is not supported; supported: none, linear, yarn"),
        ({"rope.scaling.type": "yarn"}, r"field 'llama.rope.scaling.factor' is missing"),
        ({"block_count": 3}, r"tiny.gguf: field 'llama.block_count' is 3, and there are tensors of 2 layers"),
        (
            {"block_count": 1_000_000},
            r"tiny.gguf: field 'llama.block_count' is 1000000, and there are tensors of 2 layers",
        ),
        (
            {"block_count": 2**31},
            r"tiny.gguf: field 'llama.block_count' is 2147483648, and there are tensors of 2 layers",
        ),
        ({"rope.dimension_count": 0}, r"llama.rope.dimension_count' must be above zero"),
        ({"rope.dimension_count": 63}, r"llama.rope.dimension_count=63 must be 64"),
        ({"rope.dimension_count": 32}, r"llama.rope.dimension_count=32 must be 64"),
        ({"rope.freq_base": 0.0}, r"llama.rope.freq_base' must be above zero"),
        ({"rope.freq_base": float("nan")}, r"llama.rope.freq_base' must be"),
        ({"rope.freq_base": float("inf")}, r"llama.rope.freq_base' must be"),
        ({"rope.scaling.factor": -2.0}, r"llama.rope.scaling.factor' must be above zero"),
        ({"attention.layer_norm_rms_epsilon": float("nan")}, r"layer_norm_rms_epsilon' must be"),
        ({"block_count": 1}, r"tensor 'blk.1.attn_norm.weight' \(and 8 more\) has no place in this llama model"),
        ({"feed_forward_length": 500}, r"'blk.0.ffn_gate.weight' has shape \(512, 256\), expected \(500, 256\)"),
    ],
)
def test_metadata_that_does_not_fit(file, metadata, message):
    with pytest.raises(InputError, match=message):
        load_checkpoint(write_gguf(file, metadata=metadata))


def test_an_unknown_architecture(file):
    with pytest.raises(
        InputError, match=r"architecture 'gema3' is not supported; supported: llama, qwen2, .* gemma3, .*; nearest"
    ):
        load_checkpoint(write_gguf(file, arch="gema3"))


def test_a_tensor_too_many(file):
    tensors = llama_tensors() | {"blk.0.attn_norm.bias": np.zeros(256, np.float32)}
    with pytest.raises(InputError, match=r"tiny.gguf: tensor 'blk.0.attn_norm.bias' has no place in this llama model"):
        load_checkpoint(write_gguf(file, tensors=tensors))


def test_no_embedding(file):
    tensors = llama_tensors()
    del tensors["token_embd.weight"]
    with pytest.raises(InputError, match=r"tiny.gguf: tensor 'token_embd.weight' is missing"):
        load_checkpoint(write_gguf(file, tensors=tensors))

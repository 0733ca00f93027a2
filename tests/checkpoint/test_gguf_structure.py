"""GGUF files as they lie on disk: what is damaged in them, files in parts, and what few of them have."""

import struct
import time

import numpy as np
import pytest
from gguf_files import llama_tensors, write_gguf
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxinfer.checkpoint.assemble import flatten
from jaxinfer.checkpoint.gguf import open_gguf
from jaxinfer.checkpoint.gguf_header import read_header
from jaxinfer.checkpoint.loading import load_checkpoint
from jaxinfer.config import RopeScaling
from jaxinfer.errors import InputError

pytestmark = pytest.mark.quick


@pytest.fixture
def file(tmp_path):
    return tmp_path / "tiny.gguf"


def raw(path, tensors, metadata=(("general.architecture", "llama"),), data=4096, alignment=32):
    """A file written byte by byte: tensors are (name, shape, type, offset)."""

    def text(x):
        return struct.pack("<Q", len(x)) + x.encode()

    out = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    for key, value in metadata:
        if isinstance(value, str):
            out += text(key) + struct.pack("<I", 8) + text(value)
        else:
            out += text(key) + struct.pack("<II", 4, value)
    for name, shape, kind, offset in tensors:
        out += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
    path.write_bytes(out + b"\0" * (-len(out) % alignment) + b"\0" * data)
    return path


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ([("a", (8,), 0, 0), ("a", (8,), 0, 32)], (), "tensor 'a' is there twice"),
        ([("a", (8,), 0, 0), ("b", (8,), 0, 0)], (), "tensors 'a' and 'b' overlap"),
        ([("a", (16,), 0, 0), ("b", (8,), 0, 32)], (), "tensors 'a' and 'b' overlap"),
        ([("a", (8,), 0, 4)], (), "tensor 'a' is at 4, .*no multiple of the alignment, 32"),
        ([("a", (8,), 0, 32)], (("general.alignment", 48),), "general.alignment must be a power of two, not 48"),
        ([("a", (8,), 0, 0)], (("general.alignment", 0),), "general.alignment must be a power of two, not 0"),
        ([("a", (8,), 0, 0)], (("general.alignment", "x"),), "general.alignment must be a power of two, not 'x'"),
        ([], (("k", 1), ("k", 2)), "the key 'k' is there twice"),
        ([("a", (0, 8), 0, 0)], (), r"tensor 'a'.* has shape \(8, 0\)"),
        ([("a", (8, 2**31), 0, 0)], (), "tensor 'a'.* has shape"),
        ([("a", (8, 2**63), 0, 0)], (), "tensor 'a'.* has shape"),
        ([("a", (1,) * 9, 0, 0)], (), "tensor 'a' has 9 dimensions"),
        ([("a", (8,), 0, 2**40)], (), "the file is cut short"),
        ([("a", (8,), 999, 0)], (), "tensor 'a' has the unknown quantization type 999"),
    ],
)
def test_what_would_load_other_weights_is_refused(file, tensors, metadata, message):
    raw(file, tensors, (("general.architecture", "llama"), *metadata))
    start = time.thread_time()
    with pytest.raises(InputError, match=f"tiny.gguf: {message}"):
        open_gguf(file)
    assert time.thread_time() - start < 1


def test_a_smaller_and_a_larger_alignment_are_followed(file):
    tensors = [("a", (8,), 0, 0), ("b", (8,), 0, 64)]
    header = read_header(raw(file, tensors, (("general.alignment", 64),), alignment=64))
    assert [info.start % 64 for info in header.tensors.values()] == [0, 0]
    assert header.tensors["b"].start - header.tensors["a"].start == 64


SCALINGS = [
    ({"rope.scaling.factor": 4.0}, RopeScaling("linear", 4.0)),
    ({"rope.scale_linear": 2.0}, RopeScaling("linear", 2.0)),
    ({"rope.scale_linear": 2.0, "rope.scaling.factor": 4.0}, RopeScaling("linear", 4.0)),
    ({"rope.scaling.type": "linear", "rope.scale_linear": 2.0}, RopeScaling("linear", 2.0)),
    ({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, None),
    ({"rope.scaling.factor": 1.0}, None),
    ({}, None),
]


@pytest.mark.parametrize(("metadata", "scaling"), SCALINGS)
def test_a_factor_without_a_type_is_linear(file, metadata, scaling):
    """As llama.cpp reads it, which knew no other in 2023."""
    _, _, config, _ = open_gguf(write_gguf(file, metadata=metadata))
    assert config.kinds[0].rope.scaling == scaling
    assert config.max_positions == 128  # what the file says is what the scaling reaches


def test_biases_of_the_llama_architecture_are_read(file):
    rng = np.random.default_rng(1)
    widths = {"attn_q": 256, "attn_k": 128, "attn_v": 128, "attn_output": 256}
    widths |= {"ffn_gate": 512, "ffn_up": 512, "ffn_down": 256}
    names = {f"blk.{n}.{name}.bias": size for n in range(2) for name, size in widths.items()}
    biases = {name: rng.normal(size=size).astype(np.float32) for name, size in names.items()}
    loaded = load_checkpoint(write_gguf(file, tensors=llama_tensors() | biases))
    layer = loaded.params["segment_0"]["layer_0"]
    for n in range(2):
        np.testing.assert_array_equal(layer["attention"]["o"]["bias"][n], biases[f"blk.{n}.attn_output.bias"])
        np.testing.assert_array_equal(layer["mlp"]["gate"]["bias"][n], biases[f"blk.{n}.ffn_gate.bias"])
        halves = biases[f"blk.{n}.attn_q.bias"].reshape(4, 32, 2).swapaxes(1, 2)  # element by element in the file
        np.testing.assert_array_equal(layer["attention"]["q"]["bias"][n], halves.reshape(4, 64))


def test_a_head_of_its_own_beside_the_embedding_counts(file):
    tensors = llama_tensors()
    tied = load_checkpoint(write_gguf(file, tensors=tensors))
    own = tensors | {"output.weight": 2 * tensors["token_embd.weight"]}
    untied = load_checkpoint(write_gguf(file, tensors=own))
    assert tied.config.tie_embeddings
    assert not untied.config.tie_embeddings
    np.testing.assert_array_equal(untied.params["head"]["kernel"], own["output.weight"])


@pytest.fixture
def parts(tmp_path):
    """A model in three files, as llama.cpp's gguf-split makes them, and the same in one."""
    import gguf

    tensors = llama_tensors()
    whole = write_gguf(tmp_path / "whole.gguf", tensors=tensors)
    names = sorted(tensors)
    files = []
    for n in range(3):
        held = names[n::3]
        file = tmp_path / f"model-{n + 1:05}-of-00003.gguf"
        writer = gguf.GGUFWriter(str(file), "llama")
        if n == 0:
            from gguf_files import LLAMA_METADATA

            for key, value in LLAMA_METADATA.items():
                (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(f"llama.{key}", value)
        writer.add_uint16("split.no", n)
        writer.add_uint16("split.count", 3)
        writer.add_int32("split.tensors.count", len(names))
        for name in held:
            writer.add_tensor(name, tensors[name])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        files.append(file)
    return whole, files


def test_any_part_names_the_whole_model(parts):
    whole, files = parts
    expected = flatten(load_checkpoint(whole).params)
    for file in files:
        found = flatten(load_checkpoint(file).params)
        assert found.keys() == expected.keys()
        for name, leaf in found.items():
            np.testing.assert_array_equal(leaf, expected[name])


def test_parts_that_do_not_make_a_model_are_refused(parts, tmp_path):
    _, files = parts
    second = files[1].read_bytes()
    files[1].unlink()
    with pytest.raises(InputError, match=r"model-00002-of-00003.gguf: no such file, and .* is one of 3 parts"):
        load_checkpoint(files[0])
    files[1].write_bytes(files[2].read_bytes())
    with pytest.raises(InputError, match=r"model-00002-of-00003.gguf: split.no is 2, expected 1"):
        load_checkpoint(files[0])
    files[1].write_bytes(second)
    renamed = files[0].rename(tmp_path / "other.gguf")
    with pytest.raises(InputError, match=r"other.gguf: is one of 3 parts, which must be called NAME-00001"):
        load_checkpoint(renamed)
    renamed.rename(files[0])
    changed = files[0].read_bytes()
    at = changed.index(b"split.tensors.count") + len("split.tensors.count") + 4
    files[0].write_bytes(changed[:at] + struct.pack("<i", 5) + changed[at + 4 :])
    with pytest.raises(InputError, match=r"split.tensors.count is 5, and the parts hold \d+"):
        load_checkpoint(files[0])


@pytest.fixture(scope="module")
def bytes_of_a_file(tmp_path_factory):
    path = write_gguf(tmp_path_factory.mktemp("fuzz") / "a.gguf", tokenizer={"model": "gpt2", "tokens": ["a", "b"]})
    return path.read_bytes()


@settings(max_examples=400, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_header_is_read_or_refused(bytes_of_a_file, tmp_path_factory, data):
    """Bytes of the header replaced, cut or doubled: no other error, in no time."""
    content = bytearray(bytes_of_a_file)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, 2500))
        size = data.draw(st.sampled_from([1, 4, 8]))
        content[at : at + size] = data.draw(
            st.binary(min_size=size, max_size=size)
            | st.sampled_from([b"\xff" * size, b"\0" * size, b"\x7f" * size, b""])
        )
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, 6000)) :]
    path = tmp_path_factory.mktemp("fuzz") / "a.gguf"
    path.write_bytes(bytes(content))
    start = time.thread_time()
    try:
        said = str(open_gguf(path)[2].n_layers)
    except InputError as error:
        said = str(error)
    assert said
    assert len(said) < 1000
    assert time.thread_time() - start < 5
    path.unlink()

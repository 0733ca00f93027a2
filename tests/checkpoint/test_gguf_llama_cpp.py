"""llama.cpp reads the files that the other tests read: what `gguf_convert` writes is what its converter would."""

import numpy as np
import pytest
from gguf_convert import CASES, golden, write_file

import jaxinfer

llama_cpp = pytest.importorskip("llama_cpp")

# What llama.cpp does otherwise than transformers: Gemma's own query scale is in no file, OLMoE's norms must be as wide
# as d_model, and of DeepSeek it knows YaRN with equal mscales, V3's choice of groups, and a lite model of 27 layers.
OTHERWISE = ("gemma2", "gemma3", "olmoe", "deepseek-v2", "deepseek-v2-groups", "deepseek-v3")


def logits_of(file, ids):
    """float32[T, V] of one row, with a cache in float32."""
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = 256
    settings.type_k = settings.type_v = llama_cpp.GGML_TYPE_F32
    settings.flash_attn_type, settings.n_threads = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED, 1
    model = llama_cpp.llama_model_load_from_file(str(file).encode(), llama_cpp.llama_model_default_params())
    context = llama_cpp.llama_init_from_model(model, settings)
    batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for n, id in enumerate(ids):
        batch.token[n], batch.pos[n], batch.n_seq_id[n], batch.logits[n] = id, n, 1, 1
        batch.seq_id[n][0] = 0
    assert llama_cpp.llama_decode(context, batch) == 0
    width = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    rows = [llama_cpp.llama_get_logits_ith(context, n) for n in range(len(ids))]
    logits = np.stack([np.ctypeslib.as_array(row, (width,)).copy() for row in rows])
    llama_cpp.llama_batch_free(batch)
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    return logits


def assert_close(found, expected):
    """llama.cpp looks GELU up in a table of half precision."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize("case", [case for case in CASES if case not in OTHERWISE])
def test_llama_cpp_computes_the_logits_of_transformers(case, tmp_path):
    config, tensors, arrays = golden(case)
    file = write_file(tmp_path / "model.gguf", case, config, tensors)
    assert_close(logits_of(file, arrays["prompt:2"].tolist()), arrays["logits:2"])


@pytest.mark.parametrize("old_latent", [False, True])
def test_llama_cpp_computes_our_logits_of_deepseek(old_latent, tmp_path):
    config, tensors, arrays = golden("deepseek-v3")
    config["rope_parameters"]["mscale"] = config["rope_parameters"]["mscale_all_dim"]
    ids = arrays["prompt:2"][None].astype(np.int32)
    file = write_file(tmp_path / "model.gguf", "deepseek-v3", config, tensors, old_latent=old_latent)
    assert_close(logits_of(file, ids[0].tolist()), np.asarray(jaxinfer.load(str(file)).logits(ids))[0])

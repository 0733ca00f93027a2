"""Small checkpoints that transformers writes, for the tests."""

from pathlib import Path

import pytest
from gguf_files import GPT2_TOKENIZER, write_gguf

from jaxinfer.checkpoint import convert

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
SIZES |= {"head_dim": 32, "vocab_size": 80, "max_position_embeddings": 256}


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path_factory):
    """One cache for the whole run, away from the user's."""
    folder = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("JAXINFER_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def llama_torch():
    """A random llama of 3 layers in torch, with a head of its own."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling |= {"original_max_position_embeddings": 64, "rope_theta": 50_000.0}
    config = LlamaConfig(**SIZES, num_hidden_layers=3, rope_parameters=scaling, tie_word_embeddings=False)
    return _random_norms(LlamaForCausalLM(config))


@pytest.fixture(scope="session")
def gemma3_torch():
    """A random Gemma 3 of 8 layers in torch: one period of six, and two layers more."""
    import torch
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(0)
    config = Gemma3TextConfig(**SIZES, num_hidden_layers=8, sliding_window=16, query_pre_attn_scalar=48)
    return _random_norms(Gemma3ForCausalLM(config))


def _random_norms(model):
    """Norms are initialized to a constant, which would hide a wrong mapping."""
    import torch

    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data = torch.randn_like(parameter) * 0.1 + 1
    return model.eval()


@pytest.fixture(scope="session")
def llama_folder(llama_torch, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hf") / "tiny-llama"
    llama_torch.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def llama_shards(llama_torch, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hf") / "tiny-llama-shards"
    llama_torch.save_pretrained(folder, max_shard_size="100KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


@pytest.fixture(scope="session")
def gemma3_folder(gemma3_torch, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hf") / "tiny-gemma3"
    gemma3_torch.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A small GGUF file with a tokenizer."""
    tokenizer = GPT2_TOKENIZER | {"add_bos_token": True}
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", tokenizer=tokenizer)


@pytest.fixture
def saved(source, tmp_path) -> Path:
    """The same as an Orbax folder of its own, to be damaged."""
    convert(source, tmp_path / "saved")
    return tmp_path / "saved"

"""GGUF files of every family that is read from them, beside the same model as a Hugging Face folder."""

import numpy as np
import pytest
from gguf_convert import CASES, golden, write_file, write_folder

from jaxinfer.checkpoint.assemble import flatten
from jaxinfer.checkpoint.families import FAMILIES
from jaxinfer.checkpoint.loading import load_checkpoint
from jaxinfer.errors import InputError

gguf = pytest.importorskip("gguf")

SAID = {  # what GGUF files cannot say otherwise: as in the published models
    "deepseek-v3": dict(mscale=0.7),
    "gpt-oss": dict(truncate=False),
}


def write(case, path, **options):
    """A GGUF file and a Hugging Face folder of a golden model: their paths."""
    config, tensors, _ = golden(case)
    config["rope_parameters"] = config.get("rope_parameters", {}) | SAID.get(case, {})
    file = write_file(path / "model.gguf", case, config, tensors, **options)
    return file, write_folder(path / "hf", config, tensors)


def assert_same_model(case, ours, reference):
    leaves, expected = flatten(ours.params), flatten(reference.params)
    assert leaves.keys() == expected.keys()
    for path, leaf in leaves.items():
        close = 1e-6 if path.endswith("a_log") else 0  # the file holds its exponential
        np.testing.assert_allclose(leaf, expected[path], rtol=close, atol=close, err_msg=path)
    for name in ("norm_eps", "embed_scale", "residual_scale", "logit_scale", "query_scale"):
        found, wanted = (getattr(x.config, name) for x in (ours, reference))
        default = reference.config.head_dim**-0.5 if name == "query_scale" else None
        if name == "query_scale" and case in ("gemma2", "gemma3"):
            wanted = default  # what is in no GGUF file; the published models are so, save the largest
        assert (found or default) == pytest.approx(wanted or default, rel=1e-6), name  # float32 in the file
    skipped = dict(norm_eps=1.0, embed_scale=1.0, residual_scale=1.0, logit_scale=1.0, query_scale=None)
    skipped |= dict(attention_softcap=None, logit_softcap=None, family="")
    assert ours.config.replace(**skipped) == reference.config.replace(**skipped)
    for name in ("attention_softcap", "logit_softcap"):
        assert getattr(ours.config, name) == getattr(reference.config, name)


def test_all_that_are_read_are_here():
    read = {family.gguf_arch for family in FAMILIES if family.gguf_arch}
    assert read == {gguf.MODEL_ARCH_NAMES[getattr(gguf.MODEL_ARCH, name)] for name in CASES.values()}


@pytest.mark.parametrize("case", CASES)
def test_a_gguf_file_is_the_model_of_the_folder(case, tmp_path):
    assert_same_model(case, *map(load_checkpoint, write(case, tmp_path)))


@pytest.mark.parametrize("case", ["deepseek-v2", "deepseek-v3"])
def test_latent_attention_as_older_files_have_it(case, tmp_path):
    assert_same_model(case, *map(load_checkpoint, write(case, tmp_path, old_latent=True)))


@pytest.mark.parametrize(
    ("case", "field"),
    [
        ("mixtral", "expert_used_count"),
        ("qwen2-moe", "expert_shared_feed_forward_length"),
        ("gemma2", "attention.key_length"),
        ("gpt2", "attention.layer_norm_epsilon"),
        ("deepseek-v2", "attention.kv_lora_rank"),
        ("mamba2", "ssm.inner_size"),
    ],
)
def test_a_field_that_a_family_needs(case, field, tmp_path):
    file, _ = write(case, tmp_path, without=(field,))
    with pytest.raises(
        InputError, match=rf"model.gguf: field '[\w-]+.{field}' is missing, and this model family needs it"
    ):
        load_checkpoint(file)

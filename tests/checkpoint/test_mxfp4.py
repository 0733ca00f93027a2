"""The packing of gpt-oss's published experts, against the unpacking of transformers."""

import json

import numpy as np
import pytest
from gguf_convert import write_file
from safetensors.numpy import load_file, save_file

from jaxinfer.checkpoint.assemble import flatten
from jaxinfer.checkpoint.loading import load_checkpoint
from jaxinfer.errors import InputError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
mxfp4 = pytest.importorskip("transformers.integrations.mxfp4")

D, F, E = 64, 96, 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random gpt-oss of two layers, whose experts are replaced by random packed ones; and what those hold."""
    folder = tmp_path_factory.mktemp("gpt-oss")
    config = transformers.GptOssConfig(
        vocab_size=97,
        hidden_size=D,
        intermediate_size=F,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_local_experts=E,
        num_experts_per_tok=2,
    )
    transformers.GptOssForCausalLM(config).save_pretrained(folder)
    tensors, rng = load_file(folder / "model.safetensors"), np.random.default_rng(0)
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        _, n_in, n_out = tensors.pop(name).shape
        tensors[f"{name}_blocks"] = rng.integers(0, 256, (E, n_out, n_in // 32, 16), np.uint8)
        tensors[f"{name}_scales"] = rng.integers(110, 130, (E, n_out, n_in // 32), np.uint8)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return _rewritten(folder, "mxfp4"), tensors


def _rewritten(folder, method):
    fields = json.loads((folder / "config.json").read_text())
    fields["quantization_config"] = {"quant_method": method}
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


def test_experts_are_unpacked_as_transformers_does(folder):
    path, tensors = folder
    leaves = flatten(load_checkpoint(path).params)
    for n in range(2):
        for name in ("gate_up_proj", "down_proj"):
            stem = f"model.layers.{n}.mlp.experts.{name}"
            packed = (torch.from_numpy(tensors[f"{stem}_{part}"]) for part in ("blocks", "scales"))
            whole = mxfp4.convert_moe_packed_tensors(*packed, dtype=torch.float32).numpy()  # [E, in, out]
            layer = f"segment_0/layer_{n}/moe"
            if name == "down_proj":
                np.testing.assert_array_equal(leaves[f"{layer}/down"][0], whole.swapaxes(1, 2))
            else:
                np.testing.assert_array_equal(leaves[f"{layer}/gate"][0], whole[:, :, 0::2].swapaxes(1, 2))
                np.testing.assert_array_equal(leaves[f"{layer}/up"][0], whole[:, :, 1::2].swapaxes(1, 2))


def test_a_gguf_file_holds_the_same_blocks(folder, tmp_path):
    pytest.importorskip("gguf")
    path, tensors = folder
    packed, plain = [], {}
    for name, x in tensors.items():
        stem = name.removesuffix("_blocks")
        if stem != name:
            packed.append((stem, x, tensors[f"{stem}_scales"]))
        elif not name.endswith("_scales"):
            plain[name] = x
    config = json.loads((path / "config.json").read_text())
    file = write_file(tmp_path / "model.gguf", "gpt-oss", config, plain, mxfp4=packed)
    ours, expected = (load_checkpoint(source) for source in (file, path))
    assert ours.config == expected.config.replace(norm_eps=ours.config.norm_eps)
    leaves, wanted = flatten(ours.params), flatten(expected.params)
    assert leaves.keys() == wanted.keys()
    for name, leaf in leaves.items():
        np.testing.assert_array_equal(leaf, wanted[name], err_msg=name)


def test_other_packings_are_refused(folder):
    path = _rewritten(folder[0], "awq")
    with pytest.raises(InputError, match=r"config.json: quantization_config=.*awq.* are not supported"):
        load_checkpoint(path)
    _rewritten(path, "mxfp4")


def test_a_pair_of_which_one_half_is_missing(folder, tmp_path):
    path, tensors = folder
    (tmp_path / "config.json").write_text((path / "config.json").read_text())
    gone = "model.layers.1.mlp.experts.down_proj_scales"
    save_file({k: v for k, v in tensors.items() if k != gone}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"tensor 'model.layers.1.mlp.experts.down_proj' of shape .* is missing"):
        load_checkpoint(tmp_path)

"""Hugging Face folders, against the torch models that transformers saved into them."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxinfer.checkpoint.assemble import flatten
from jaxinfer.checkpoint.loading import load_checkpoint
from jaxinfer.config import RopeScaling
from jaxinfer.errors import InputError
from jaxinfer.network.transformer import abstract_params


def expected_leaves(model, offset: float) -> dict[tuple[str, int], np.ndarray]:
    """Every parameter of a torch model in this package's layout, by its path within the layer and its layer."""
    heads, kv_heads, width, depth = 4, 2, 32, 64
    leaves = {}
    for key, value in model.state_dict().items():
        weight = value.numpy()
        if not key.startswith("model.layers."):
            leaves[key, None] = weight + offset if "norm" in key else weight
            continue
        _, _, n, *name, _ = key.split(".")
        match name[-1]:
            case "q_proj":
                weight = weight.reshape(heads, width, depth)
            case "k_proj" | "v_proj":
                weight = weight.reshape(kv_heads, width, depth)
            case "o_proj":
                weight = weight.reshape(depth, heads, width)
            case "gate_proj" | "up_proj" | "down_proj":
                pass
            case _:
                weight = weight + np.float32(offset)
        leaves[name[-1], int(n)] = weight
    return leaves


PATHS = {
    "q_proj": "attention/q/kernel",
    "k_proj": "attention/k/kernel",
    "v_proj": "attention/v/kernel",
    "o_proj": "attention/o/kernel",
    "q_norm": "attention/q_norm/scale",
    "k_norm": "attention/k_norm/scale",
    "gate_proj": "mlp/gate/kernel",
    "up_proj": "mlp/up/kernel",
    "down_proj": "mlp/down/kernel",
    "input_layernorm": "attention_norm/scale",
}
LLAMA_PATHS = PATHS | {"post_attention_layernorm": "mlp_norm/scale"}
GEMMA3_PATHS = PATHS | {
    "post_attention_layernorm": "attention_post_norm/scale",
    "pre_feedforward_layernorm": "mlp_norm/scale",
    "post_feedforward_layernorm": "mlp_post_norm/scale",
}
ROOT_PATHS = {
    "model.embed_tokens.weight": "embed/embedding",
    "model.norm.weight": "final_norm/scale",
    "lm_head.weight": "head/kernel",
}


def assert_equal_leaves(checkpoint, model, paths, offset=0.0, where=lambda n: (0, 0, n)):
    leaves, seen = flatten(checkpoint.params), {}
    for (name, n), weight in expected_leaves(model, offset).items():
        if n is None:
            path = ROOT_PATHS[name]
            if path not in leaves:  # the tied head
                continue
            found = leaves[path]
        else:
            segment, position, repeat = where(n)
            path = f"segment_{segment}/layer_{position}/{paths[name]}"
            found = leaves[path][repeat]
        seen[path] = seen.get(path, 0) + 1
        np.testing.assert_array_equal(found, weight, err_msg=f"{name} {n}")
    assert set(seen) == set(leaves)
    wanted = flatten(abstract_params(checkpoint.config, "float32"))
    assert {path: leaf.shape for path, leaf in leaves.items()} == {path: leaf.shape for path, leaf in wanted.items()}


def test_llama_in_one_file(llama_folder, llama_torch):
    checkpoint = load_checkpoint(llama_folder)
    assert_equal_leaves(checkpoint, llama_torch, LLAMA_PATHS)
    config = checkpoint.config
    assert checkpoint.name == "tiny-llama"
    assert checkpoint.tokenizer is None
    assert (config.n_layers, config.max_positions, config.tie_embeddings) == (3, 256, False)
    assert config.kinds[0].rope.theta == 50_000.0
    assert config.kinds[0].rope.scaling == RopeScaling("llama3", 8.0, 1.0, 4.0, 64)


def test_llama_in_shards(llama_shards, llama_torch):
    assert_equal_leaves(load_checkpoint(str(llama_shards)), llama_torch, LLAMA_PATHS)


def test_gemma3(gemma3_folder, gemma3_torch):
    checkpoint = load_checkpoint(gemma3_folder)
    # Eight layers: runs of five local ones, a global one, and two local ones spell out fewer than a period of six.
    places = [*((0, 0, n) for n in range(5)), (1, 0, 0), (2, 0, 0), (2, 0, 1)]
    where = places.__getitem__
    assert_equal_leaves(checkpoint, gemma3_torch, GEMMA3_PATHS, 1.0, where)
    config = checkpoint.config
    assert [kind.name for kind in config.layers] == ["local"] * 5 + ["global"] + ["local"] * 2
    assert config.query_scale == pytest.approx(48**-0.5)
    assert config.embed_scale == 8.0
    assert config.kinds[0].window == 16


def test_bfloat16_weights_are_read_as_they_are(llama_folder, llama_torch, tmp_path):
    import torch

    llama_torch.to(torch.bfloat16).save_pretrained(tmp_path / "bf16")
    reference = llama_torch.state_dict()["model.layers.1.mlp.up_proj.weight"].float().numpy()
    llama_torch.to(torch.float32)
    for dtype in ("float32", "bfloat16"):
        kernel = load_checkpoint(tmp_path / "bf16", dtype).params["segment_0"]["layer_0"]["mlp"]["up"]["kernel"]
        assert kernel.dtype == dtype
        np.testing.assert_array_equal(np.asarray(kernel[1], np.float32), reference)


@pytest.fixture
def copy(llama_folder, tmp_path):
    return shutil.copytree(llama_folder, tmp_path / "copy")


def edit_config(folder, **changes):
    values = json.loads((folder / "config.json").read_text()) | changes
    kept = {key: value for key, value in values.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(kept))


def edit_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_rope_as_transformers_4_wrote_it(copy):
    scaling = {"type": "linear", "factor": 4.0}
    edit_config(copy, rope_parameters=..., rope_theta=1234.0, rope_scaling=scaling)
    rope = load_checkpoint(copy).config.kinds[0].rope
    assert (rope.theta, rope.scaling) == (1234.0, RopeScaling("linear", 4.0))


def test_gemma3_as_transformers_4_wrote_it(gemma3_folder, tmp_path):
    folder = shutil.copytree(gemma3_folder, tmp_path / "old")
    edit_config(
        folder,
        rope_parameters=...,
        layer_types=...,
        rope_theta=2e6,
        rope_local_base_freq=2e4,
        rope_scaling={"rope_type": "linear", "factor": 8.0},
        sliding_window_pattern=3,
    )
    config = load_checkpoint(folder).config
    assert [kind.name for kind in config.layers] == ["local", "local", "global"] * 2 + ["local", "local"]
    local, globl = config.kinds
    assert (local.rope.theta, local.rope.scaling) == (2e4, None)
    assert (globl.rope.theta, globl.rope.scaling) == (2e6, RopeScaling("linear", 8.0))


def test_the_text_part_of_a_multimodal_gemma3(gemma3_folder, tmp_path):
    folder = shutil.copytree(gemma3_folder, tmp_path / "multimodal")
    text = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": text}))

    def wrap(tensors):
        for name in list(tensors):
            tensors[f"language_model.{name}"] = tensors.pop(name)
        tensors["vision_tower.position_ids"] = np.arange(3)

    edit_tensors(folder, wrap)
    wrapped, plain = load_checkpoint(folder), load_checkpoint(gemma3_folder)
    assert wrapped.config == plain.config
    for path, leaf in flatten(plain.params).items():
        np.testing.assert_array_equal(flatten(wrapped.params)[path], leaf)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": ...}, r"config.json: field 'hidden_size' is missing"),
        ({"num_hidden_layers": "3"}, r"config.json: field 'num_hidden_layers' must be a whole number, not '3'"),
        ({"num_hidden_layers": 0}, r"config.json: field 'num_hidden_layers' must be above zero"),
        ({"num_key_value_heads": 3}, r"config.json: n_heads=4 must be a multiple of n_kv_heads=3"),
        (
            {"attention_bias": True},
            r"tensor 'model.layers.0.self_attn.q_proj.bias' of shape \(128,\) \(and 11 more\) is missing",
        ),
        ({"attention_bias": 1}, r"config.json: field 'attention_bias' must be true or false, not 1"),
        ({"quantization_config": {"quant_method": "awq"}}, r"quantized Hugging Face checkpoints are not supported"),
        ({"hidden_act": "tanh"}, r"hidden_act='tanh' is not supported; supported: silu"),
        ({"rope_parameters": {"rope_type": "yarn"}}, r"config.json: field 'factor' is missing"),
        (
            {"rope_parameters": {"rope_type": "mrope"}},
            r"rope type 'mrope' is not supported; supported: default, linear",
        ),
        (
            {"rope_parameters": {"rope_type": "longrope", "short_factor": 3, "original_max_position_embeddings": 999}},
            r"config.json: field 'short_factor' must be a list of positive numbers",
        ),
        ({"head_dim": 33}, r"config.json: head_dim=33 must be even for rotary positions"),
        ({"model_type": "lama"}, r"model_type 'lama' is not supported; supported: llama, .*; nearest: 'llama'"),
        ({"model_type": ...}, r"config.json: field 'model_type' is missing"),
    ],
)
def test_a_config_that_does_not_fit(copy, changes, message):
    edit_config(copy, **changes)
    with pytest.raises(InputError, match=message):
        load_checkpoint(copy)


def test_a_config_that_is_not_json(copy):
    (copy / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config.json: is not valid JSON"):
        load_checkpoint(copy)


def test_tensors_that_do_not_fit(copy):
    name = "model.layers.1.self_attn.k_proj.weight"
    original = load_file(copy / "model.safetensors")[name]
    edit_tensors(copy, lambda tensors: tensors.update({name: original[:-1]}))
    with pytest.raises(
        InputError, match=rf"copy: tensor '{name}' has shape \(63, 64\), expected \(64, 64\) in this llama"
    ):
        load_checkpoint(copy)
    edit_tensors(copy, lambda tensors: tensors.pop(name))
    with pytest.raises(
        InputError, match=rf"copy: tensor '{name}' of shape \(64, 64\) is missing from this llama model"
    ):
        load_checkpoint(copy)
    edit_tensors(copy, lambda tensors: tensors.update({name: original, "model.layers.3.surprise": original}))
    with pytest.raises(InputError, match=r"tensor 'model.layers.3.surprise' has no place in this llama model"):
        load_checkpoint(copy)


@pytest.mark.parametrize("size", [4, 2000, -1])
def test_a_truncated_file(copy, size):
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(InputError, match=r"model.safetensors: is cut short or not a safetensors file"):
        load_checkpoint(copy)


def test_no_weights(copy):
    (copy / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"copy: holds neither model.safetensors nor model.safetensors.index.json"):
        load_checkpoint(copy)


def test_shards_that_do_not_fit(llama_shards, tmp_path):
    folder = shutil.copytree(llama_shards, tmp_path / "shards")
    index = folder / "model.safetensors.index.json"
    values = json.loads(index.read_text())
    name, file = next(iter(values["weight_map"].items()))
    other = next(other for other in values["weight_map"].values() if other != file)

    moved = values | {"weight_map": values["weight_map"] | {name: other}}
    index.write_text(json.dumps(moved))
    with pytest.raises(InputError, match=rf"{other}: tensor '{name}' is missing"):
        load_checkpoint(folder)

    dropped = {key: value for key, value in values["weight_map"].items() if key != name}
    index.write_text(json.dumps(values | {"weight_map": dropped}))
    with pytest.raises(InputError, match=rf"tensor '{name}' of shape .* is missing from this llama model"):
        load_checkpoint(folder)

    index.write_text(json.dumps(values))
    (folder / file).unlink()
    with pytest.raises(InputError, match=rf"{file}: no such file, though model.safetensors.index.json names it"):
        load_checkpoint(folder)

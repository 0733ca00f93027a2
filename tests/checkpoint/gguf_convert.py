"""What llama.cpp's converter does to a Hugging Face model, written out for the models of tests/golden.

Names are those of the gguf package's own map. What the converter changes in a tensor before it writes it, and what it
says of the configuration, stand here.
"""

import json
import re
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = {  # golden file: the architecture in gguf
    "llama": "LLAMA",
    "llama-yarn": "LLAMA",
    "qwen2": "QWEN2",
    "qwen3": "QWEN3",
    "gemma": "GEMMA",
    "gemma2": "GEMMA2",
    "gemma3": "GEMMA3",
    "phi3": "PHI3",
    "olmo2": "OLMO2",
    "smollm3": "SMOLLM3",
    "granite": "GRANITE",
    "mixtral": "LLAMA",
    "qwen2-moe": "QWEN2MOE",
    "qwen3-moe": "QWEN3MOE",
    "olmoe": "OLMOE",
    "stablelm": "STABLELM",
    "stablelm-parallel": "STABLELM",
    "falcon-7b": "FALCON",
    "falcon-40b": "FALCON",
    "mpt": "MPT",
    "bloom": "BLOOM",
    "gpt2": "GPT2",
    "gpt-neox": "GPTNEOX",
    "gpt-neox-serial": "GPTNEOX",
    "deepseek-v2": "DEEPSEEK2",
    "deepseek-v2-groups": "DEEPSEEK2",
    "deepseek-v3": "DEEPSEEK2",
    "gpt-oss": "GPT_OSS",
    "mamba": "MAMBA",
    "mamba2": "MAMBA2",
}
FIELDS = {  # in config.json: in the metadata
    "max_position_embeddings": "context_length",
    "n_positions": "context_length",
    "max_seq_len": "context_length",
    "seq_length": "context_length",
    "hidden_size": "embedding_length",
    "n_embd": "embedding_length",
    "d_model": "embedding_length",
    "num_hidden_layers": "block_count",
    "n_layer": "block_count",
    "n_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "ffn_hidden_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "n_head": "attention.head_count",
    "n_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "layer_norm_eps": "attention.layer_norm_epsilon",
    "layer_norm_epsilon": "attention.layer_norm_epsilon",
    "num_local_experts": "expert_count",
    "num_experts": "expert_count",
    "n_routed_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    "n_group": "expert_group_count",
    "topk_group": "expert_group_used_count",
    "n_shared_experts": "expert_shared_count",
    "routed_scaling_factor": "expert_weights_scale",
    "norm_topk_prob": "expert_weights_norm",
    "first_k_dense_replace": "leading_dense_block_count",
    "moe_intermediate_size": "expert_feed_forward_length",
    "shared_expert_intermediate_size": "expert_shared_feed_forward_length",
    "sliding_window": "attention.sliding_window",
    "kv_lora_rank": "attention.kv_lora_rank",
    "q_lora_rank": "attention.q_lora_rank",
    "use_parallel_residual": "use_parallel_residual",
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "attention_multiplier": "attention.scale",
    "logits_scaling": "logit_scale",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "state_size": "ssm.state_size",
    "conv_kernel": "ssm.conv_kernel",
    "time_step_rank": "ssm.time_step_rank",
    "n_groups": "ssm.group_count",
}
TURNED = ("llama", "llama-yarn", "smollm3", "granite", "mixtral")  # the halves of q's and k's heads are interleaved
PLAIN_ROPE = ("llama", "qwen", "gemma", "phi3", "olmo", "smollm3", "granite", "mixtral")  # with a head's width


def golden(case):
    """config.json, the tensors and the arrays of a golden file."""
    arrays = np.load(GOLDEN / f"{case}.npz")
    tensors = {k.removeprefix("tensor:"): arrays[k].astype(np.float32) / 64 for k in arrays if k.startswith("tensor:")}
    return json.loads(str(arrays["config"])), tensors, arrays


def write_folder(folder, config, tensors):
    """A Hugging Face folder."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return folder


def write_file(path, case, config, tensors, without=(), old_latent=False, mxfp4=()):
    """A GGUF file; `old_latent`: as DeepSeek-V2's were before keys and values of the latent were two tensors.

    `mxfp4`: stems of the names of gpt-oss's packed experts in Hugging Face files, with their blocks and scales.
    """
    import gguf

    arch = getattr(gguf.MODEL_ARCH, CASES[case])
    writer = gguf.GGUFWriter(str(path), gguf.MODEL_ARCH_NAMES[arch])
    for name, value in metadata(case, config, old_latent).items():
        if name not in without:
            kinds = {bool: writer.add_bool, float: writer.add_float32, str: writer.add_string, int: writer.add_uint32}
            kinds[type(value)](f"{writer.arch}.{name}", value)
    writer.add_tokenizer_model("no_vocab")
    for name, x in converted(case, config, tensors, old_latent).items():
        writer.add_tensor(name, x)
    for stem, blocks, scales in mxfp4:
        for name, x in repacked(stem, blocks, scales):
            writer.add_tensor(name, x, raw_dtype=gguf.GGMLQuantizationType.MXFP4)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def metadata(case, config, old_latent=False):
    """What the converter says of the configuration, without the architecture's name in front."""
    found = {FIELDS[name]: value for name, value in config.items() if name in FIELDS and value is not None}
    found = {"vocab_size": config["vocab_size"], **found}
    width, n_heads = found["embedding_length"], found.get("attention.head_count")
    ropes = config.get("rope_parameters") or {}
    ropes = ropes.get("full_attention", ropes)
    if ropes:
        found["rope.freq_base"] = float(ropes["rope_theta"])
    if ropes.get("rope_type") == "yarn":
        found["rope.scaling.type"], found["rope.scaling.factor"] = "yarn", ropes["factor"]
        found["rope.scaling.original_context_length"] = ropes["original_max_position_embeddings"]
    if case.startswith((*PLAIN_ROPE, "gpt-oss")):
        found["attention.key_length"] = config.get("head_dim") or width // n_heads
        found["attention.value_length"] = found["attention.key_length"]
    if case == "phi3":
        found.pop("attention.sliding_window", None)
    if case == "gemma3":
        found["attention.sliding_window_pattern"] = 2
    if case.startswith(("stablelm", "gpt-neox")):
        found["rope.dimension_count"] = int(ropes["partial_rotary_factor"] * (width // n_heads))
    if case in ("mpt", "bloom", "gpt2"):
        found["feed_forward_length"] = 4 * width
    if case == "bloom":
        found["context_length"] = 2048
        found["attention.head_count_kv"] = n_heads
    if case == "mpt":
        found["attention.max_alibi_bias"] = 8.0
    if case.startswith("falcon"):
        found["tensor_data_layout"] = "jploski"
        found["attention.head_count_kv"] = config["num_kv_heads"] if config["new_decoder_architecture"] else 1
    if case == "gpt-oss":
        found["expert_feed_forward_length"] = config["intermediate_size"]
    if case.startswith("deepseek"):
        found |= _latent(config, found, ropes, old_latent)
    if case.startswith("mamba"):
        found["attention.layer_norm_rms_epsilon"] = found.pop("attention.layer_norm_epsilon")
        found |= {"context_length": 2**20, "feed_forward_length": 0, "attention.head_count": 0}
        found["ssm.inner_size"] = config["expand"] * width
        if case == "mamba2":
            found["ssm.time_step_rank"] = found["ssm.inner_size"] // config["head_dim"]
    return found


def _latent(config, found, ropes, old_latent):
    nope, turning = config["qk_nope_head_dim"], config["qk_rope_head_dim"]
    own = {"rope.dimension_count": turning}
    if config["model_type"] == "deepseek_v3":
        own["expert_gating_func"] = 2
    if "mscale_all_dim" in ropes:
        own["rope.scaling.yarn_log_multiplier"] = 0.1 * ropes["mscale_all_dim"]
    if old_latent:
        return own | {"attention.key_length": nope + turning, "attention.value_length": config["v_head_dim"]}
    return own | {
        "attention.head_count_kv": 1,
        "attention.key_length": config["kv_lora_rank"] + turning,
        "attention.value_length": config["kv_lora_rank"],
        "attention.key_length_mla": nope + turning,
        "attention.value_length_mla": config["v_head_dim"],
    }


def converted(case, config, tensors, old_latent=False):
    """The file's tensors by their GGUF names, experts put together, as the converter writes them."""
    import gguf

    n_layers = metadata(case, config)["block_count"]
    names = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, CASES[case]), n_layers)
    together: dict[str, list] = {}
    found = {}
    for name, x in sorted(tensors.items()):
        block, _, rest = name.partition(".experts.")
        if rest and rest[0].isdigit():
            number, _, part = rest.partition(".")
            together.setdefault(f"{block}.experts.{part}", []).append((int(number), x))
            continue
        for own, y in changed(case, config, name, x, old_latent):
            found[names.get_name(own, try_suffixes=(".weight", ".bias"))] = y
    for name, parts in together.items():
        stacked = np.stack([x for _, x in sorted(parts, key=lambda part: part[0])])
        found[names.get_name(name, try_suffixes=(".weight",))] = stacked
    assert None not in found
    return {name: np.ascontiguousarray(x) for name, x in found.items()}


def changed(case, config, name, x, old_latent):
    """The tensors that the converter makes of one, under the names that it looks up in the map."""
    if "norm" in name and "gemma" in case:
        x = x + 1
    if case in TURNED and name.endswith(("q_proj.weight", "k_proj.weight")):
        heads = config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
        x = x.reshape(heads, 2, -1, x.shape[1]).swapaxes(1, 2).reshape(x.shape)
    if "query_key_value" in name:
        x = _in_turn(case, config, x)
    if case == "bloom":
        name = name.removeprefix("transformer.")
    if case == "gpt2" and re.search(r"\.(c_attn|c_proj|c_fc)\.weight", name):
        x = x.T
    if name.endswith("kv_b_proj.weight") and not old_latent:
        return _split_latent(config, name, x)
    name = name.replace("e_score_correction_bias", "e_score_correction.bias")
    if case == "gpt-oss":
        return _gpt_oss(name, x)
    if case.startswith("mamba"):
        return [_mamba(case, config, name, x)]
    return [(name, x)]


def _in_turn(case, config, x):
    """q, k and v of all heads one after the other, from groups of queries with their key and value behind them."""
    n_heads = config.get("num_attention_heads") or config["n_head"]
    n_kv = metadata(case, config)["attention.head_count_kv"] if case.startswith("falcon") else n_heads
    groups = x.reshape(n_kv, n_heads // n_kv + 2, -1, *x.shape[1:])
    parts = groups[:, :-2], groups[:, -2:-1], groups[:, -1:]
    return np.concatenate([part.reshape(-1, *x.shape[1:]) for part in parts])


def _split_latent(config, name, x):
    heads = x.reshape(config["num_attention_heads"], -1, x.shape[1])
    k, v = np.split(heads, [config["qk_nope_head_dim"]], axis=1)
    return [(name.replace("kv_b", "k_b"), k.swapaxes(1, 2)), (name.replace("kv_b", "v_b"), v)]


def _gpt_oss(name, x):
    if name.endswith("sinks"):
        return [(f"{name}.weight", x)]
    if "_proj" not in name or ".experts." not in name:
        return [(name, x)]
    stem, bias = name.removesuffix("_bias"), name.endswith("_bias")
    suffix, x = (".bias", x) if bias else (".weight", x.swapaxes(1, 2))
    if "gate_up" not in stem:
        return [(stem + suffix, x)]
    return [(stem.replace("gate_up", own) + suffix, x[:, start::2]) for start, own in enumerate(("gate", "up"))]


def repacked(stem, blocks, scales):
    """The GGUF names and bytes of gpt-oss's packed experts: the scale in front of a block, and in the bytes of a block
    number i in the low half and number i + 16 in the high half, where Hugging Face has two neighbours in a byte."""
    numbers = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(*blocks.shape[:3], 2, 16)
    bytes_of = np.concatenate([scales[..., None], numbers[..., 0, :] | numbers[..., 1, :] << 4], axis=-1)
    bytes_of = bytes_of.reshape(*blocks.shape[:2], -1)
    block = f"blk.{stem.split('.')[2]}"
    if stem.endswith("down_proj"):
        return [(f"{block}.ffn_down_exps.weight", bytes_of)]
    return [(f"{block}.ffn_{own}_exps.weight", bytes_of[:, start::2]) for start, own in enumerate(("gate", "up"))]


def _mamba(case, config, name, x):
    if name.endswith(".dt_bias"):
        name = name.removesuffix("dt_bias") + "dt_proj.bias"
    if name.endswith("conv1d.weight"):
        x = x[:, 0]
    if name.endswith(".A_log"):
        x = -np.exp(x)
    if case == "mamba2" and name.endswith((".A_log", ".D")):
        x = x[:, None]
    if name.endswith("mixer.norm.weight"):
        x = x.reshape(config["n_groups"], -1)
    return name, x

"""GGUF files of every family that is read from them, beside the same model as a Hugging Face folder.

Names are those of the gguf package's own map; what its converter does to some tensors is written out here.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxinfer.checkpoint import load_checkpoint
from jaxinfer.checkpoint.assemble import flatten
from jaxinfer.checkpoint.families import FAMILIES
from jaxinfer.errors import InputError

gguf = pytest.importorskip("gguf")

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = {  # golden file: the architecture in gguf
    "llama": "LLAMA",
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
}
FIELDS = {  # in config.json: in the metadata
    "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "num_local_experts": "expert_count",
    "num_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    "moe_intermediate_size": "expert_feed_forward_length",
    "shared_expert_intermediate_size": "expert_shared_feed_forward_length",
    "sliding_window": "attention.sliding_window",
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "attention_multiplier": "attention.scale",
    "logits_scaling": "logit_scale",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
TURNED = ("llama", "smollm3", "granite", "mixtral")  # the converter interleaves the halves of q's and k's heads


def converted(case, config, tensors):
    """The file's tensors by their GGUF names, experts put together, as the converter writes them."""
    n_layers = config["num_hidden_layers"]
    names = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, CASES[case]), n_layers)
    together: dict[str, list] = {}
    found = {}
    for name, x in sorted(tensors.items()):
        block, _, rest = name.partition(".experts.")
        if rest:
            number, _, part = rest.partition(".")
            together.setdefault(f"{block}.experts.{part}", []).append((int(number), x))
            continue
        if "norm" in name and "gemma" in case:
            x = x + 1
        if case in TURNED and name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
            x = x.reshape(heads, 2, -1, x.shape[1]).swapaxes(1, 2).reshape(x.shape)
        found[names.get_name(name, try_suffixes=(".weight", ".bias"))] = x
    for name, parts in together.items():
        stacked = np.stack([x for _, x in sorted(parts, key=lambda part: part[0])])
        found[names.get_name(name, try_suffixes=(".weight",))] = stacked
    assert None not in found
    return found


def write(case, path, without=()):
    """A GGUF file and a Hugging Face folder of a golden model: their paths."""
    arrays = np.load(GOLDEN / f"{case}.npz")
    config = json.loads(str(arrays["config"]))
    tensors = {
        k.removeprefix("tensor:"): x.astype(np.float32) / 64 for k, x in arrays.items() if k.startswith("tensor:")
    }
    folder = path / "hf"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    writer = gguf.GGUFWriter(str(path / "model.gguf"), gguf.MODEL_ARCH_NAMES[getattr(gguf.MODEL_ARCH, CASES[case])])
    arch = writer.arch
    ropes = config["rope_parameters"]
    fields = {FIELDS[name]: value for name, value in config.items() if name in FIELDS and value is not None}
    if case == "phi3":
        fields.pop("attention.sliding_window", None)
    fields["attention.key_length"] = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    fields["rope.freq_base"] = ropes.get("full_attention", ropes)["rope_theta"]
    for name, value in fields.items():
        if name not in without:
            (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(f"{arch}.{name}", value)
    if case == "gemma3":
        writer.add_uint32(f"{arch}.attention.sliding_window_pattern", 2)
    for name, x in converted(case, config, tensors).items():
        writer.add_tensor(name, x)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path / "model.gguf", folder


def test_all_that_are_read_are_here():
    read = {family.gguf_arch for family in FAMILIES if family.gguf_arch}
    assert read == {gguf.MODEL_ARCH_NAMES[getattr(gguf.MODEL_ARCH, name)] for name in CASES.values()}


@pytest.mark.parametrize("case", CASES)
def test_a_gguf_file_is_the_model_of_the_folder(case, tmp_path):
    ours, reference = map(load_checkpoint, write(case, tmp_path))
    leaves, expected = flatten(ours.params), flatten(reference.params)
    assert leaves.keys() == expected.keys()
    for path, leaf in leaves.items():
        np.testing.assert_array_equal(leaf, expected[path], err_msg=path)
    for name in ("norm_eps", "embed_scale", "residual_scale", "logit_scale", "query_scale"):
        found, wanted = (getattr(x.config, name) for x in (ours, reference))
        default = reference.config.head_dim**-0.5 if name == "query_scale" else None
        if name == "query_scale" and case in ("gemma2", "gemma3"):
            wanted = default  # what is in no GGUF file; the published models are so, save the largest
        assert (found or default) == pytest.approx(wanted or default, rel=1e-6), name  # float32 in the file
    skipped = dict(norm_eps=0.0, embed_scale=1.0, residual_scale=1.0, logit_scale=1.0, query_scale=None)
    skipped |= dict(attention_softcap=None, logit_softcap=None, family="")
    assert ours.config.replace(**skipped) == reference.config.replace(**skipped)
    for name in ("attention_softcap", "logit_softcap"):
        assert getattr(ours.config, name) == getattr(reference.config, name)


@pytest.mark.parametrize(
    ("case", "field"),
    [
        ("mixtral", "expert_used_count"),
        ("qwen2-moe", "expert_shared_feed_forward_length"),
        ("gemma2", "attention.key_length"),
    ],
)
def test_a_field_that_a_family_needs(case, field, tmp_path):
    file, _ = write(case, tmp_path, without=(field,))
    with pytest.raises(
        InputError, match=rf"model.gguf: field '\w+.{field}' is missing, and this model family needs it"
    ):
        load_checkpoint(file)

"""config.json of every family: what happens where a field is missing, or says what cannot be."""

import pytest
from gguf_convert import GOLDEN, golden

from jaxinfer.checkpoint.families import by_hf_type, configured
from jaxinfer.checkpoint.fields import Fields
from jaxinfer.config import ModelConfig
from jaxinfer.errors import InputError

CASES = sorted(file.stem for file in GOLDEN.glob("*.npz"))


def read(config) -> ModelConfig:
    fields = Fields("config.json", config)
    family = by_hf_type(fields.text("model_type"), fields.file)
    return configured(lambda: family.hf_config(fields), fields.file)


@pytest.mark.parametrize("case", CASES)
def test_a_field_that_the_family_needs_is_named(case):
    """Whichever is missing: it has a default, which is transformers' own, or one line says what does not fit."""
    config, _, _ = golden(case)
    assert isinstance(read(config), ModelConfig)
    said = {}
    for name in config:
        try:
            read({key: value for key, value in config.items() if key != name})
        except InputError as error:
            said[name] = str(error)
    needed = {"hidden_size", "d_model", "num_hidden_layers", *(() if case == "gemma3" else ("vocab_size",))}
    for name in ("model_type", *(needed & set(config))):
        assert said[name] == f"config.json: field {name!r} is missing, and this model family needs it"
    assert all(line.startswith("config.json: ") and "\n" not in line for line in said.values())


@pytest.mark.parametrize(
    "case", ["mixtral", "qwen2-moe", "qwen3-moe", "olmoe", "gpt-oss", "deepseek-v2", "deepseek-v3"]
)
def test_more_experts_a_token_than_there_are(case):
    config, _, _ = golden(case)
    with pytest.raises(InputError, match=r"config.json: top_k=99 must be between 1 and the number of experts, \d"):
        read(config | {"num_experts_per_tok": 99})


@pytest.mark.parametrize(
    ("case", "changes", "message"),
    [
        ("llama", dict(head_dim=7), "head_dim=7 must be even for rotary positions"),
        ("qwen3", dict(head_dim=15), "head_dim=15 must be even for rotary positions"),
        ("gpt-neox-serial", dict(hidden_size=42), "rotary width=3 must be even for rotary positions"),
        ("deepseek-v3", dict(qk_rope_head_dim=7, head_dim=7), "rope_dim=7 must be even for rotary positions"),
        ("deepseek-v2-groups", dict(n_group=3), "groups=3 must divide the number of experts, 8"),
        ("deepseek-v3", dict(topk_group=5), "top_groups=5 must be between 1 and the number of groups, 4"),
    ],
)
def test_widths_and_groups_that_do_not_fit(case, changes, message):
    config, _, _ = golden(case)
    with pytest.raises(InputError, match=f"config.json: {message}"):
        read(config | changes)

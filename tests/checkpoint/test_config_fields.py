"""config.json of every family: what happens where a field is missing, or says what cannot be."""

import contextlib
import json
import math

import pytest
from gguf_convert import GOLDEN, golden

from jaxinfer.checkpoint.families import by_hf_type, configured
from jaxinfer.checkpoint.fields import Fields
from jaxinfer.config import SSM, LayerKind, ModelConfig, MoE, Rope, RopeScaling, Segment
from jaxinfer.errors import InputError

CASES = sorted(file.stem for file in GOLDEN.glob("*.npz"))


def read(config) -> ModelConfig:
    fields = Fields("config.json", config)
    family = by_hf_type(fields.text("model_type"), fields.file)
    return configured(lambda: family.from_hf(fields), fields.file)


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


@pytest.mark.parametrize("case", [case for case in CASES if case != "qwen2-window"])  # whose layers ask for no window
def test_what_a_file_leaves_out_is_as_in_transformers(case):
    """Each field in turn is left out: our reader says of the rest what it says of transformers' full configuration."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    mapping = pytest.importorskip("transformers.models.auto.configuration_auto").CONFIG_MAPPING
    config, _, _ = golden(case)
    if "time_step_limit" in config:
        config["time_step_limit"] = [0.0, math.inf]

    def attempt(reader, values):
        with contextlib.suppress(InputError, ValueError, TypeError):  # what one of the two asks for
            return reader(json.loads(json.dumps(values)))

    def theirs(values):
        with contextlib.suppress(huggingface_hub.errors.StrictDataclassError):
            return json.loads(mapping[config["model_type"]].from_dict(values).to_json_string(use_diff=False))

    rests = {name: {key: x for key, x in config.items() if key != name} for name in config.keys() - {"model_type"}}
    pairs = {name: (attempt(read, rest), attempt(theirs, rest)) for name, rest in rests.items()}
    both = {name: pair for name, pair in pairs.items() if None not in pair}
    assert len(both) > len(config) // 2
    for name, (found, full) in both.items():
        assert read(full) == found, name


def test_mistral_without_a_window_and_with_a_missing_one():
    config, _, _ = golden("mistral")
    assert read(config | {"sliding_window": None}).kinds[0].window is None
    del config["sliding_window"]
    assert read(config).kinds[0].window == 4096


SCALED = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=64, rope_theta=10_000.0)


@pytest.mark.parametrize(
    "value", [0, 0.0, -1.0, 1e999, -1e999, math.nan, 10**400], ids=lambda x: f"{x:.0e}" if x < 9**99 else "huge"
)
@pytest.mark.parametrize(
    ("case", "name"),
    [
        ("llama", "rms_norm_eps"),
        ("gpt2", "layer_norm_epsilon"),
        ("gpt-neox", "layer_norm_eps"),
        ("gemma2", "query_pre_attn_scalar"),
        ("gemma2", "attn_logit_softcapping"),
        ("gemma2", "final_logit_softcapping"),
        ("granite", "embedding_multiplier"),
        ("granite", "residual_multiplier"),
        ("granite", "attention_multiplier"),
        ("granite", "logits_scaling"),
        ("deepseek-v3", "routed_scaling_factor"),
        ("mamba", "expand"),
        ("gemma3", "rope_parameters.sliding_attention.rope_theta"),
        *(("llama", f"rope_parameters.{name}") for name in ("factor", "rope_theta", "attention_factor")),
        *(("llama", f"rope_parameters.{name}") for name in ("beta_fast", "beta_slow")),
    ],
)
def test_numbers_are_finite_and_above_zero(case, name, value):
    config, _, _ = golden(case)
    config = json.loads(json.dumps(config))
    if case == "llama":
        config["rope_parameters"] = dict(SCALED)
    *outer, last = name.split(".")
    within = config
    for key in outer:
        within = within[key]
    within[last] = value
    with pytest.raises(InputError, match=rf"^config.json: field '{last}' must be (a |above zero|.* number)") as error:
        read(config)
    assert len(str(error.value)) < 160


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Rope(math.nan), "theta=nan must be a finite number above zero"),
        (lambda: Rope(-1.0), "theta=-1.0 must be"),
        (lambda: Rope(1.0, RopeScaling("yarn", 2.0)), "theta=1.0 must be above 1 for yarn"),
        (lambda: RopeScaling("linear", 0.0), "factor=0.0 must be a finite number above zero"),
        (lambda: RopeScaling("linear", math.inf), "factor=inf must be"),
        (lambda: RopeScaling("liner", 2.0), "kind='liner' must be one of linear, ntk"),
        (lambda: RopeScaling("llama3", 2.0, 4.0, 4.0), "high_freq_factor=4.0 must be above low_freq_factor=4.0"),
        (lambda: RopeScaling("longrope", 2.0, divisors=(1.0, math.nan)), "divisor=nan must be"),
        (lambda: RopeScaling("yarn", 2.0, original_max_positions=0), "original_max_positions=0 must be between 1 and"),
        (lambda: LayerKind(window=0), "window=0 must be between 1 and 2147483646"),
        (lambda: TINY.replace(norm_eps=0.0), "norm_eps=0.0 must be a finite number above zero"),
        (lambda: TINY.replace(n_kv_heads=0), "n_kv_heads=0 must be between 1"),
        (lambda: TINY.replace(max_positions=2**31 - 1), "max_positions=2147483647 must be between 1 and 2147483646"),
        (lambda: TINY.replace(vocab_size="97"), "vocab_size='97' must be a whole number"),
        (lambda: TINY.replace(logit_softcap=-5.0), "logit_softcap=-5.0 must be"),
        (lambda: SSM(1, 8, 4, dt_limit=(math.nan, 1.0)), r"dt_limit=\(nan, 1.0\) must be the lowest"),
        (lambda: MoE(4, 2, 8, scale=math.inf), "scale=inf must be"),
    ],
)
def test_configurations_made_by_hand_are_checked_too(make, message):
    with pytest.raises(ValueError, match=message):
        make()


TINY = ModelConfig("llama", 97, 48, 80, 6, 2, 8, (Segment((LayerKind(),), 1),), 64)


@pytest.mark.parametrize(
    ("case", "changes", "message"),
    [
        ("gemma2", dict(layer_types=[["full_attention"]] * 4), "field 'layer_types' must be a list of 4 of sliding_"),
        ("gemma3", dict(layer_types=["full_attention"]), "field 'layer_types' must be a list of 4 of sliding_"),
        ("qwen3", dict(layer_types={}), "field 'layer_types' must be a list, not {}"),
        ("smollm3", dict(no_rope_layers=[1, 1, 1, 1.0]), "field 'no_rope_layers' must be a list of 4 of 0, 1"),
        ("qwen2-moe", dict(mlp_only_layers="x"), "field 'mlp_only_layers' must be a list, not 'x'"),
        ("mamba2", dict(time_step_limit=[0, []]), "field 'time_step_limit' must be a list of two numbers, not"),
        ("mamba2", dict(time_step_limit=[3, 1]), "dt_limit=.* must be the lowest number and the highest"),
        ("deepseek-v2", dict(first_k_dense_replace=1.5), "field 'first_k_dense_replace' must be a whole number"),
        ("falcon-rw", dict(num_attention_heads=96), "a width of 48 cannot be shared by 96 heads"),
        ("gpt2", dict(n_head=5), "a width of 48 cannot be shared by 5 heads"),
        ("llama", dict(hidden_act="x" * 5000), "hidden_act='xxx.*xxx' is not supported; supported: silu"),
        ("llama", dict(rope_parameters=dict(rope_type="dynamic", factor=2.0), head_dim=2), "head_dim=2 must be at"),
        ("llama", dict(rope_scaling=dict(type="linear", factor=1e9)), "max_positions=256000000000 must be between"),
    ],
)
def test_fields_of_wrong_types_and_lengths(case, changes, message):
    config, _, _ = golden(case)
    with pytest.raises(InputError, match=f"^config.json: {message}") as error:
        read(config | changes)
    assert len(str(error.value)) < 400

"""Damaged folders: sizes that no tensor has, anything in a config or in a header; each ends in one line, and soon."""

import json
import random
import time

import pytest
from gguf_convert import golden, write_folder
from hypothesis import given, settings
from hypothesis import strategies as st
from test_folders import CASES

from jaxinfer.checkpoint.huggingface import open_folder
from jaxinfer.checkpoint.loading import load_checkpoint
from jaxinfer.checkpoint.sizes import check_sizes
from jaxinfer.errors import InputError


@pytest.fixture
def llama(tmp_path):
    config, tensors, _ = golden("llama")
    return write_folder(tmp_path / "llama", config, tensors)


HUGE = (1 << 20, 1 << 31, 1 << 63)


@pytest.mark.parametrize("value", [0, *HUGE])
@pytest.mark.parametrize(
    ("case", "name"),
    [
        ("llama", "num_hidden_layers"),
        ("llama", "vocab_size"),
        ("llama", "hidden_size"),
        ("llama", "intermediate_size"),
        ("llama", "num_attention_heads"),
        ("llama", "head_dim"),
        ("gpt2", "n_layer"),
        ("gpt2", "n_positions"),
        ("mpt", "n_layers"),
        ("gemma3", "num_hidden_layers"),
        ("smollm3", "num_hidden_layers"),
        ("mixtral", "num_local_experts"),
        ("gpt-oss", "num_local_experts"),
        ("qwen3-moe", "moe_intermediate_size"),
        ("qwen2-moe", "shared_expert_intermediate_size"),
        ("deepseek-v3", "kv_lora_rank"),
        ("mamba", "state_size"),
        ("mamba2", "num_heads"),
    ],
)
def test_sizes_that_no_tensor_has(case, name, value, tmp_path):
    config, tensors, _ = golden(case)
    started = time.process_time()
    without = {key: x for key, x in config.items() if key not in ("layer_types", "no_rope_layers")}
    with pytest.raises(InputError) as error:
        load_checkpoint(write_folder(tmp_path / "model", without | {name: value}, tensors))
    assert time.process_time() - started < 1
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("layers", [10**6, 1 << 31])
def test_layers_of_a_gemma3_with_pictures(tmp_path, layers):
    config, tensors, _ = golden("gemma3")
    text = config | {"num_hidden_layers": layers, "layer_types": None}
    folder = write_folder(tmp_path / "model", {"model_type": "gemma3", "text_config": text}, tensors)
    with pytest.raises(InputError, match=rf"'num_hidden_layers' is {layers}, and there are tensors of 4 layers"):
        load_checkpoint(folder)


# Anything at all in a header, and anything at all in a config.

WORDS = st.sampled_from(["F32", "BF16", "I64", "F8_E4M3", "U8", "", "x" * 9000, "\u0000", "model.norm.weight"])
NUMBERS = st.one_of(
    st.sampled_from([0, 1, -1, 2, 8, 97, 2**31, 2**63, 2**64, 10**40, 1.5, 1e999, -0.0]), st.integers(-5, 70_000)
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, WORDS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(WORDS, inner, max_size=2)),
    max_leaves=5,
)


def places(value, before=()):
    """Every place in nested objects and lists."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield (*before, key)
        yield from places(inner, (*before, key))


def changed(value, place, new):
    """A copy with one place changed; `...` removes it."""
    copy = json.loads(json.dumps(value))
    within = copy
    for key in place[:-1]:
        within = within[key]
    if new is ...:
        del within[place[-1]]
    else:
        within[place[-1]] = new
    return copy


def opens_or_says(folder):
    """Opens, with sizes that fit, or ends in one line of InputError; in well under a second."""
    started = time.process_time()
    said = ""
    try:
        family, config, tensors = open_folder(folder)
        check_sizes(config, tensors, "{e}" in str(family.rules), str(folder))
    except InputError as error:
        said = str(error)
    assert "\n" not in said
    assert len(said) < 1000
    assert time.process_time() - started < 1


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder of each family, and its config."""
    folders = {}
    for case in CASES:
        config, tensors, _ = golden(case)
        folders[case] = (write_folder(tmp_path_factory.mktemp("fuzz") / case, config, tensors), config)
    return folders


EXTRA = (
    "rope_scaling",
    "rope_parameters",
    "quantization_config",
    "layer_types",
    "text_config",
    "head_dim",
    "attn_config",
)


@settings(max_examples=400, derandomize=True, deadline=None, database=None)
@given(case=st.sampled_from(CASES), at=st.integers(0, 10**6), new=st.one_of(st.just(...), VALUES), also=VALUES)
def test_any_config(small, case, at, new, also):
    folder, config = small[case]
    where = list(places(config))
    values = changed(config, where[at % len(where)], new)
    if at % 3 == 0:
        values[EXTRA[at % len(EXTRA)]] = also
    (folder / "config.json").write_text(json.dumps(values))
    opens_or_says(folder)


@settings(max_examples=300, derandomize=True, deadline=None, database=None)
@given(at=st.integers(0, 10**6), new=st.one_of(st.just(...), VALUES), in_float8=st.booleans(), cut=st.integers(0, 9))
def test_any_safetensors_header(small, at, new, in_float8, cut):
    folder, config = small["gpt2"]
    packing = {"quant_method": "fp8"} if in_float8 else None
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": packing}))
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    where = list(places(header))
    text = json.dumps(changed(header, where[at % len(where)], new)).encode()
    size = {0: 0, 1: 1 << 40, 2: (1 << 64) - 1, 3: length - 1}.get(cut, len(text))
    try:
        file.write_bytes(size.to_bytes(8, "little") + text + whole[8 + length :])
        opens_or_says(folder)
    finally:
        file.write_bytes(whole)
        (folder / "config.json").write_text(json.dumps(config))


def test_headers_that_are_damaged_in_known_ways(llama):
    file = llama / "model.safetensors"
    whole = file.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    first, second = sorted(header, key=lambda name: header[name]["data_offsets"])[:2]
    overlap = changed(header, (second, "data_offsets"), header[first]["data_offsets"])
    short = changed(header, (first, "shape"), [1])
    other = changed(header, (first, "dtype"), "F64")
    unknown = changed(header, (first, "dtype"), "F99")
    twice = json.dumps(header)[:-1] + ", " + json.dumps({first: header[second]})[1:]
    for text in (*map(json.dumps, (overlap, short, other, unknown)), twice, "{" * 100_000, ""):
        file.write_bytes(len(text).to_bytes(8, "little") + text.encode() + whole[8 + length :])
        with pytest.raises(InputError, match=r"model.safetensors: is cut short or not a safetensors file \(.*\); dow"):
            load_checkpoint(llama)


def test_random_bytes_in_a_file(llama):
    file = llama / "model.safetensors"
    whole, rng = file.read_bytes(), random.Random(0)
    for _ in range(60):
        raw = bytearray(whole)
        for _ in range(rng.choice([1, 3, 20])):
            raw[rng.randrange(3000)] = rng.randrange(256)
        file.write_bytes(raw)
        opens_or_says(llama)

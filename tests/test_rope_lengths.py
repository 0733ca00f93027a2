"""Rotary frequencies that follow the length of the text, against transformers: below, above and across the bound."""

import json
from pathlib import Path

import numpy as np
import pytest

import jaxinfer
from jaxinfer.checkpoint import export

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TRAINED = 16
SIZES = dict(vocab_size=97, hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=6)
NO_TOKENS = dict(bos_token_id=None, eos_token_id=None, pad_token_id=None)
DYNAMIC = transformers.LlamaConfig(
    **SIZES,
    **NO_TOKENS,
    num_key_value_heads=2,
    max_position_embeddings=TRAINED,
    rope_parameters=dict(rope_type="dynamic", factor=4.0, rope_theta=10_000.0),
)
LONGROPE = transformers.Phi3Config(
    **SIZES,
    **NO_TOKENS,
    num_key_value_heads=2,
    max_position_embeddings=4 * TRAINED,
    original_max_position_embeddings=TRAINED,
    rope_parameters=dict(
        rope_type="longrope",
        rope_theta=10_000.0,
        original_max_position_embeddings=TRAINED,
        short_factor=[1.0, 1.2, 1.5, 2.0],
        long_factor=[1.0, 2.0, 5.0, 9.0],
    ),
)


@pytest.fixture(scope="module", params=[DYNAMIC, LONGROPE], ids=["dynamic", "longrope"])
def both(request, tmp_path_factory):
    torch.manual_seed(0)
    folder = str(tmp_path_factory.mktemp("model"))
    theirs = transformers.AutoModelForCausalLM.from_config(request.param, attn_implementation="eager").eval()
    theirs.apply(lambda module: [torch.nn.init.normal_(p, std=0.3) for p in module.parameters(False) if p.ndim > 1])
    theirs.save_pretrained(folder)
    return jaxinfer.load(folder, dtype="float32"), theirs, folder


def prompts(*lengths):
    rng = np.random.default_rng(1)
    return [rng.integers(0, 97, n).tolist() for n in lengths]


@pytest.mark.parametrize("length", [TRAINED - 3, TRAINED, TRAINED + 1, 50])
def test_logits(both, length):
    ours, theirs, _ = both
    (ids,) = prompts(length)
    with torch.inference_mode():
        expected = theirs(torch.tensor([ids]), use_cache=False).logits[0].numpy()
    found = np.asarray(ours.logits([ids]))[0]
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def test_ragged_rows_go_on_as_each_would_alone(both):
    """transformers fills Phi-3's cache anew where a text crosses the bound, so only dynamic scaling crosses it."""
    ours, theirs, _ = both
    crossing = theirs.config.model_type == "llama"
    rows = prompts(3, 30, TRAINED - 2 if crossing else TRAINED + 5)
    options = dict(max_new_tokens=12, do_sample=False)
    expected = [theirs.generate(torch.tensor([ids]), **options)[0, len(ids) :].tolist() for ids in rows]
    assert ours.generate(rows, max_new_tokens=12).tokens == expected
    assert ours.generate(rows, max_new_tokens=12, method=jaxinfer.Lookup(width=4)).tokens == expected


def test_export(both, tmp_path):
    *_, folder = both
    export(folder, tmp_path / "out")
    written, given = (json.loads((Path(where) / "config.json").read_text()) for where in (tmp_path / "out", folder))
    assert written["max_position_embeddings"] == given["max_position_embeddings"]
    for name in given["rope_parameters"].keys() - {"partial_rotary_factor"}:  # of the whole head
        assert written["rope_parameters"][name] == given["rope_parameters"][name]


def scaled(kind, **scaling):
    """A Llama whose file says the trained length alone (Qwen's way), and how its positions are scaled."""
    return transformers.LlamaConfig(
        **SIZES,
        **NO_TOKENS,
        num_key_value_heads=2,
        max_position_embeddings=scaling.pop("said", TRAINED),
        rope_parameters=dict(rope_type=kind, factor=4.0, rope_theta=10_000.0, **scaling),
    )


ORIGINAL = dict(original_max_position_embeddings=TRAINED)
REACHES = {  # how many positions there are
    "linear": (scaled("linear"), 4 * TRAINED),
    "yarn": (scaled("yarn", **ORIGINAL), 4 * TRAINED),
    "yarn, which the file says": (scaled("yarn", said=4 * TRAINED, **ORIGINAL), 4 * TRAINED),
    "yarn without the original": (scaled("yarn"), 4 * TRAINED),
    "yarn with more": (scaled("yarn", said=5 * TRAINED, **ORIGINAL), 5 * TRAINED),
    "dynamic": (DYNAMIC, 4 * TRAINED),
    "longrope": (LONGROPE, 4 * TRAINED),
    "llama3": (
        scaled("llama3", said=4 * TRAINED, low_freq_factor=1.0, high_freq_factor=4.0, **ORIGINAL),
        4 * TRAINED,
    ),
}


@pytest.mark.parametrize("name", REACHES)
@pytest.mark.parametrize("words", ["rope_parameters", "rope_scaling"])  # of transformers 5, and of 4
def test_scaling_reaches_beyond_the_trained_length(name, words, tmp_path):
    config, reached = REACHES[name]
    torch.manual_seed(0)
    theirs = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    theirs.apply(lambda module: [torch.nn.init.normal_(p, std=0.3) for p in module.parameters(False) if p.ndim > 1])
    theirs.save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    values = json.loads(file.read_text())
    if words == "rope_scaling":
        scaling = values.pop("rope_parameters")
        values["rope_theta"] = scaling.pop("rope_theta")
        scaling["type"] = scaling.pop("rope_type")
        file.write_text(json.dumps(values | {"rope_scaling": scaling}))
    ours = jaxinfer.load(str(tmp_path / "model"), dtype="float32")
    assert ours.config.max_positions == reached
    (ids,) = prompts(reached)
    found = np.asarray(ours.logits([ids]))[0]
    for model in (theirs, transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()):
        with torch.inference_mode():
            expected = model(torch.tensor([ids]), use_cache=False).logits[0].numpy()
        assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()

    export(str(tmp_path / "model"), tmp_path / "out")
    again = jaxinfer.load(str(tmp_path / "out"), dtype="float32")
    assert again.config == ours.config
    with torch.inference_mode():
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
        assert np.abs(model(torch.tensor([ids]), use_cache=False).logits[0].numpy() - expected).max() < 1e-3


@pytest.mark.parametrize("factor", [1.0, 1.37, 2.5, 3.0, 7.77, 1 / 3])
def test_the_trained_length_is_found_again(factor):
    from jaxinfer.checkpoint.families.llama import LLAMA
    from jaxinfer.checkpoint.fields import Fields

    base = dict(SIZES, num_key_value_heads=2)
    for trained in (1, 3, 16, 1000, 32_768, 131_071):
        scaling = dict(rope_type="linear", factor=factor, rope_theta=10_000.0)
        values = base | dict(max_position_embeddings=trained, rope_parameters=scaling)
        config = LLAMA.from_hf(Fields("config.json", values))
        assert LLAMA.from_hf(Fields("config.json", LLAMA.hf_fields(config))) == config
        if factor >= 1:
            assert LLAMA.hf_fields(config)["max_position_embeddings"] == trained

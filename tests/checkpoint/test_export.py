"""Export to Hugging Face folders: the tokenizer and what is refused. Weights: tests/test_families.py."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gguf_files import GPT2_TOKENIZER, write_gguf
from safetensors import safe_open

import jaxinfer
from jaxinfer.api import Model
from jaxinfer.checkpoint import export, save_checkpoint, save_folder
from jaxinfer.checkpoint.checkpoint import Checkpoint
from jaxinfer.checkpoint.loading import load_checkpoint
from jaxinfer.cli.commands import main
from jaxinfer.compress import extend_context, keep_layers, moefy, quantize_weights, reroute
from jaxinfer.config import LayerKind, LinearAttention, ModelConfig, MoE, Rope, Segment
from jaxinfer.errors import InputError
from jaxinfer.network.transformer import abstract_params


def run(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["jaxinfer", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_:
        main()
    return exit_.value.code


def test_a_gguf_model_becomes_a_folder_with_its_tokenizer(smollm2, tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    out = tmp_path / "out"
    assert run(monkeypatch, "export", "smollm2-135m", out, "--dtype", "bfloat16") == 0
    theirs = transformers.AutoTokenizer.from_pretrained(out)
    text = "Ünïcode, 1234 and\n  spaces 🍎"
    assert theirs.encode(text) == smollm2.tokenizer.encode(text)
    chat = [{"role": "user", "content": "Hi!"}]
    ids = theirs.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert list(ids) == smollm2.tokenizer.chat(chat)
    fields = json.loads((out / "config.json").read_text())
    assert (fields["model_type"], fields["num_hidden_layers"], fields["num_key_value_heads"]) == ("llama", 30, 3)
    with safe_open(out / "model.safetensors", "pt") as file:
        found = file.get_tensor("model.layers.7.self_attn.q_proj.weight").float().numpy()
    expected = smollm2.params["segment_0"]["layer_0"]["attention"]["q"]["kernel"][7].reshape(576, 576)
    np.testing.assert_allclose(found, expected, rtol=2**-8)
    back = jaxinfer.load(str(out), dtype="bfloat16")
    assert back.config == smollm2.config
    assert back.tokenizer.stop_ids == smollm2.tokenizer.stop_ids


def test_what_is_there_already_is_left_alone(tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, "export", "smollm2-135m", tmp_path) == 2
    assert capsys.readouterr().err.strip().endswith("already exists; give a folder that does not")
    assert not list(tmp_path.iterdir())


def test_nothing_is_left_of_an_export_that_fails(tmp_path):
    with pytest.raises(InputError, match="no such file or model"):
        export("smollm3-135m", tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        export("smollm2-135m", tmp_path / "file" / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def small(config, change=lambda model: model, tokenizer=None):
    """A random model as a checkpoint, after a change of it, and the model."""
    rng = np.random.default_rng(0)
    shapes = abstract_params(config, "float32")
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(0.5 * (x.ndim < 3), 0.2, x.shape), x.dtype), shapes)
    model = change(Model(config, params, name="random"))
    return Checkpoint(model.config, model.params, tokenizer, model.name), model


PLAIN = ModelConfig(
    "llama", 97, 48, 80, 6, 2, 16, (Segment((LayerKind(),), 2),), 64, tie_embeddings=False, norm_eps=1e-6
)
WINDOW, WHOLE = LayerKind("local", Rope(1e4), window=8), LayerKind("global", Rope(1e6))
GEMMA3 = PLAIN.replace(
    family="gemma3",
    segments=(Segment((WINDOW, WHOLE), 2),),
    activation="gelu_tanh",
    qk_norm="head",
    post_norms=True,
    tie_embeddings=True,
    embed_scale=48**0.5,
    query_scale=16**-0.5,
)
MIXTRAL = PLAIN.replace(
    family="mixtral", d_ff=40, segments=(Segment((LayerKind(moe=MoE(4, 2, 40, router="topk")),), 2),)
)


def extended(kind, factor=4.0):
    return lambda model: extend_context(model, kind, factor)


@pytest.mark.parametrize(
    ("config", "change"),
    [
        (PLAIN, extended("none")),
        (PLAIN, extended("linear")),
        (PLAIN, extended("ntk")),
        (PLAIN, extended("yarn", 3.0)),
        (PLAIN.replace(attention_bias=True, output_bias=True, mlp_bias=True), extended("yarn")),
        (GEMMA3, extended("linear")),
        (MIXTRAL, extended("yarn")),
        (MIXTRAL, lambda model: reroute(model, top_k=1)),
        (MIXTRAL, lambda model: reroute(model, dispatch="dense")),
        (PLAIN, lambda model: keep_layers(model, [1])),
    ],
)
def test_what_can_be_said_is_what_transformers_reads(config, change, tmp_path):
    """Logits of a text beyond the context that the model had."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    checkpoint, model = small(config, change)
    save_folder(checkpoint, tmp_path / "out")
    options = dict(dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", **options)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    ids = np.random.default_rng(0).integers(0, 97, min(100, model.config.max_positions)).tolist()
    with torch.inference_mode():
        expected = theirs.eval()(torch.tensor([ids]), use_cache=False).logits[0].numpy()
    found = np.asarray(model.logits([ids]))[0]
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        (PLAIN, lambda model: moefy(model, 4, 2), "layer 0: moe=True cannot be written: a config.json of llama would"),
        (MIXTRAL, lambda model: reroute(model, router="softmax"), "moe.router='softmax' cannot be written"),
        (MIXTRAL, lambda model: reroute(model, equal_gates=True), "moe.equal_gates=True cannot be written"),
        (MIXTRAL, lambda model: reroute(model, scale=2.0), r"moe.scale=2.0 cannot be written: .* read as 1.0"),
        (MIXTRAL, lambda model: reroute(model, dispatch="capacity"), "moe.dispatch='capacity' cannot be written"),
        (PLAIN.replace(family="mixtral"), lambda model: model, "cannot be written as mixtral"),
        (PLAIN.replace(family="gemma2"), extended("linear"), "cannot be written"),
        (PLAIN.replace(qk_norm="head"), lambda model: model, "qk_norm='head' cannot be written: .* read as None"),
        (PLAIN.replace(logit_softcap=30.0), lambda model: model, "logit_softcap=30.0 cannot be written"),
        (PLAIN.replace(residual_scale=0.5), lambda model: model, "residual_scale=0.5 cannot be written"),
        (PLAIN.replace(query_scale=0.5), lambda model: model, "query_scale=0.5 cannot be written"),
        (PLAIN.replace(segments=(Segment((WINDOW, WHOLE), 1),)), lambda model: model, "layer 0: window=8 cannot be"),
        (
            PLAIN.replace(segments=(Segment((LayerKind("a", Rope(1e4)), LayerKind("b", Rope(1e6))), 1),)),
            lambda model: model,
            "layer 1: rope.frequencies=theta 1e.06 cannot be written: .* read as theta 10000",
        ),
        (
            PLAIN.replace(family="qwen2", attention_bias=True, segments=(Segment((WINDOW, WHOLE), 1),)),
            extended("yarn"),
            "layer 1: rope.frequencies=theta 1e.06, yarn 4 cannot be written",
        ),
        (PLAIN.replace(family="phi3"), extended("yarn"), "transformers has no yarn scaling of this family's positions"),
        (PLAIN.replace(family="nobody"), lambda model: model, "family 'nobody' is not supported"),
        (PLAIN, lambda model: quantize_weights(model, "int8"), "has int8 weights"),
        (
            PLAIN.replace(segments=(Segment((LayerKind(mixer=LinearAttention()),), 1),)),
            lambda model: model,
            "layer 0: mixer=True cannot be written",
        ),
    ],
)
def test_what_cannot_be_said_is_refused_by_name(config, change, message, tmp_path):
    checkpoint, _ = small(config, change)
    with pytest.raises(InputError, match=message) as caught:
        save_folder(checkpoint, tmp_path / "out")
    assert str(caught.value).isprintable()
    assert not list(tmp_path.iterdir())


def test_a_rerouted_model_is_not_exported_by_the_command(tmp_path, monkeypatch, capsys):
    """Through an Orbax folder, which can say all of it."""
    checkpoint, _ = small(MIXTRAL, lambda model: reroute(model, router="sinkhorn"))
    save_checkpoint(checkpoint, tmp_path / "rerouted")
    assert run(monkeypatch, "export", tmp_path / "rerouted", tmp_path / "out") == 2
    line = capsys.readouterr().err
    assert line.startswith("error: random: layer 0: moe.router='sinkhorn' cannot be written")
    assert line.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["rerouted"]


@pytest.mark.parametrize("bos", [True, False])
def test_tokenizers_put_bos_where_ours_do(bos, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer = GPT2_TOKENIZER | {"add_bos_token": bos, "chat_template": "{{ bos_token }}{{ messages[0].content }}"}
    ours = load_checkpoint(write_gguf(tmp_path / "tiny.gguf", tokenizer=tokenizer)).tokenizer
    checkpoint, _ = small(PLAIN, tokenizer=ours)
    save_folder(checkpoint, tmp_path / "out")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (theirs.encode("hello")[0] == theirs.bos_token_id) == bos
    for text in ("hello world 12", " hell", "a<|im_end|>b<|start|>", "", "<|start|>hello"):
        assert theirs.encode(text) == ours.encode(text)
        assert theirs.decode(ours.encode(text)) == ours.decode(ours.encode(text), skip_special=False)
    assert (theirs.bos_token_id, theirs.eos_token_id) == (ours.bos_id, ours.settings.eos_ids[0])
    assert theirs.chat_template == ours.settings.chat_template
    config = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    generation = transformers.GenerationConfig.from_model_config(config)
    assert tuple(sorted(generation.eos_token_id)) == ours.stop_ids
    assert generation.bos_token_id == ours.bos_id

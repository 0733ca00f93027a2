"""Export to Hugging Face folders: the tokenizer and what is refused. Weights: tests/test_families.py."""

import json

import numpy as np
import pytest
from safetensors import safe_open

import jaxinfer
from jaxinfer.checkpoint import export
from jaxinfer.cli import main
from jaxinfer.errors import InputError


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

"""What a model can be named by, and what is said about everything else."""

import pytest

from jaxinfer.checkpoint.loading import load_checkpoint
from jaxinfer.errors import InputError
from jaxinfer.host.files import cache_dir


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("smolm2-135m", r"smolm2-135m: no such file or model; give a built-in name \(smollm2-135m, gemma3-270m\), "),
        ("smolm2-135m", r"; nearest: 'smollm2-135m'$"),
        ("models/absent.gguf", r"models/absent.gguf: no such file or model"),
        ("/nowhere/at/all", r"/nowhere/at/all: no such file or model"),
        ("", r"no such file or model"),
    ],
)
def test_nothing_by_that_name(source, message):
    with pytest.raises(InputError, match=message):
        load_checkpoint(source)


def test_a_folder_that_is_no_checkpoint(tmp_path):
    with pytest.raises(InputError, match=r"is not a checkpoint: it holds neither config.json nor jaxinfer.json"):
        load_checkpoint(tmp_path)


def test_a_file_that_is_no_checkpoint(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(InputError, match=r"notes.txt: is not a checkpoint; give a built-in name"):
        load_checkpoint(tmp_path / "notes.txt")


def test_a_hub_id_while_offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"^nobody/nothing: no such folder here, and it cannot be had from the hub"):
        load_checkpoint("nobody/nothing")


def test_a_hub_id_is_a_folder_once_downloaded(monkeypatch, llama_folder):
    asked = {}

    def download(repo, allow_patterns):
        asked.update(repo=repo, patterns=allow_patterns)
        return str(llama_folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert load_checkpoint("somebody/small-model").name == "small-model"
    assert asked["repo"] == "somebody/small-model"
    assert {"config.json", "model*.safetensors", "tokenizer.json"} <= set(asked["patterns"])
    assert {"tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json", "chat_template.jinja"} <= set(
        asked["patterns"]
    )


@pytest.mark.parametrize("dtype", ["float16", "flot32", "int8", 7])
def test_dtypes_that_are_not_supported(dtype):
    with pytest.raises(InputError, match=r"dtype=.* must be one of float32, bfloat16"):
        load_checkpoint("smollm2-135m", dtype)


def test_the_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXINFER_CACHE", str(tmp_path / "moved"))
    assert cache_dir() == tmp_path / "moved"
    monkeypatch.setenv("JAXINFER_CACHE", "off")
    assert cache_dir() is None
    monkeypatch.delenv("JAXINFER_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "jaxinfer"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "jaxinfer"

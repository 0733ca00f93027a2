"""Kinds that need little to be told apart from a wrong one: attention, long texts, and transformers."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import scripts

import jaxinfer
from jaxinfer import InputError
from jaxinfer.checkpoint import presets
from jaxinfer.compress import extend_context

SMALL = presets.SHAPES["llama-2-7b"].replace(vocab_size=131, d_model=64, d_ff=128, n_heads=2, n_kv_heads=1, head_dim=32)
CONFIGS = scripts.ROOT / "configs"


def figures(folder):
    (run,) = (folder / "runs").iterdir()
    return json.loads((run / "results.json").read_text()), (run / "table.md").read_text()


def test_every_formulation_of_attention_is_timed_and_held_to_the_definition(tmp_path):
    sizes = ("heads=4", "kv_heads=2", "width=16", "dtype=float32", "rounds=1", "steps=2")
    cases = "cases=[{batch: 1, tokens: 3, live: 64}, {batch: 2, tokens: 1, live: 32, stored: int8}]"
    assert scripts.run("kernels", str(CONFIGS / "kernels.yaml"), *sizes, cases, f"output={tmp_path}/runs") == 0
    found, table = figures(tmp_path)
    names = [(row["live"], row["formulation"]) for row in found["rows"] if row["formulation"] != "torch"]
    assert names == [(64, "reference"), (64, "xla"), (64, "jax.nn, xla"), (32, "reference"), (32, "xla")]
    assert all(row["seconds"] > 0 and row["error"] < 1e-5 for row in found["rows"])
    assert found["machine"]["copy_bytes_per_s"] > 0
    assert "jax.nn, xla" in table


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("heads=3", "heads=3 must be a multiple of kv_heads=8"),
        ("cases=[{batch: 0, tokens: 1, live: 1}]", "must have batch and tokens from 1"),
        ("cases=[{batch: 1, tokens: 1, live: 1, stored: int3}]", "stored='int3' must be int8 or float8_e4m3fn"),
        ("cases=[]", "there is nothing to measure in it"),
    ],
)
def test_cases_that_cannot_be_measured_are_named(tmp_path, override, message):
    with pytest.raises(InputError, match=message):
        scripts.run("kernels", str(CONFIGS / "kernels.yaml"), override, f"output={tmp_path}/runs")
    assert not (tmp_path / "runs").exists()


def test_perplexity_is_that_of_each_block_under_each_way_of_scaling(tmp_path, monkeypatch, tiny_llama):
    trained = tiny_llama.config.max_positions
    model = dataclasses.replace(tiny_llama, tokenizer=SimpleNamespace(encode=lambda text: [ord(c) % 61 for c in text]))
    monkeypatch.setattr(jaxinfer, "load", lambda *_: model)
    text = "".join(chr(97 + i * i % 23) for i in range(2 * trained + 5))
    (tmp_path / "long.txt").write_text(text)
    options = ("factor=2", "block=16", "variants=[none, yarn]", f"text={tmp_path}/long.txt", f"output={tmp_path}/runs")
    assert scripts.run("context_extension", str(CONFIGS / "context_extension.yaml"), *options) == 0
    found, table = figures(tmp_path)
    assert (found["trained"], found["tokens"]) == (trained, 2 * trained)
    ids = np.array([model.tokenizer.encode(text)[: 2 * trained]])
    logits = np.asarray(extend_context(model, "yarn", 2.0).logits(ids), np.float64)[0, :-1]
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    nll = -logprobs[np.arange(len(logprobs)), ids[0, 1:]]
    (end, first), *more = found["perplexity"]["yarn"]
    assert (end, len(more)) == (16, (2 * trained - 1) // 16 - 1)
    assert first == pytest.approx(np.exp(nll[:16].mean()), rel=1e-3)
    assert f"{np.exp(nll[trained:].mean()):.2f}" in table
    (tmp_path / "long.txt").write_text("too short")
    with pytest.raises(InputError, match=r"text: .* has 9 tokens, and \d+ are needed"):
        scripts.run("context_extension", str(CONFIGS / "context_extension.yaml"), *options)
    given = (*options, "model.context={kind: yarn, factor: 2}")
    with pytest.raises(InputError, match=r"model.context: each of `variants` extends it"):
        scripts.run("context_extension", str(CONFIGS / "context_extension.yaml"), *given)


def test_both_engines_are_measured_in_turn(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    monkeypatch.setitem(presets.SHAPES, "small", SMALL)
    sizes = ("rounds=2", "steps=3", "prompt_tokens=4", "batch=2", "prefill_tokens=8", "live_tokens=6")
    sizes += ("prefill_batch=3", "prefill_batch_tokens=5")
    given = ("model=random:small", *sizes, "slots=[128, 256]", f"output={tmp_path}/runs")
    assert scripts.run("vs_transformers", str(CONFIGS / "vs_transformers.yaml"), *given) == 0
    found, table = figures(tmp_path)
    titles = [
        "decode step, batch 1",
        "decode step, batch 2",
        "prefill of 8 tokens",
        "prefill of 3 prompts of 5 tokens",
        "decode step, 6 tokens in the cache",
    ]
    assert [one["title"] for one in found["comparisons"]] == titles
    assert all(len(one["first"]) == len(one["second"]) == 2 for one in found["comparisons"])
    assert (found["rows that agree"], found["starts"]) == (None, None)  # random weights, and no tokenizer
    assert all(title in table for title in titles)
    with pytest.raises(InputError, match="prefill_batch: expected a whole number from 1, got 0"):
        scripts.run("vs_transformers", str(CONFIGS / "vs_transformers.yaml"), *given, "prefill_batch=0")

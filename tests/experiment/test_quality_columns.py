"""The columns of quality of a grid, measured on a small random model, against the functions that they call."""

import dataclasses
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

import jaxinfer
from jaxinfer import Model
from jaxinfer.analysis import quality
from jaxinfer.experiment import command, flat, results

DATA = Path(__file__).parents[1] / "data"
LETTERS = SimpleNamespace(
    encode=lambda text: [min(ord(letter), 127) for letter in text],
    decode=lambda ids, **_: "".join(map(chr, ids)),
    has_chat=False,
    strips_first_space=False,
    stop_ids=(),
    bos_id=None,
)


@pytest.fixture
def loaded(monkeypatch, tiny_llama):
    """Makes `jaxinfer.load` give a random model, rounded if that is asked for; it lists what was loaded."""
    random = Model.random(tiny_llama.config.replace(vocab_size=128, max_positions=512), seed=5)
    head = {"kernel": random.params["head"]["kernel"] * 20}
    model = dataclasses.replace(random, params={**random.params, "head": head}, tokenizer=LETTERS)
    made = []

    def load(source, dtype=None, weights=None, tokenizer=None):
        made.append(weights)
        return jaxinfer.compress.quantize_weights(model, weights) if weights else model

    monkeypatch.setattr(jaxinfer, "load", load)
    return SimpleNamespace(made=made, load=load)


def test_quality_is_measured_once_a_setting_and_against_the_first(loaded, tmp_path):
    for name in ("choices.jsonl", "words.jsonl"):
        shutil.copy(DATA / name, tmp_path / name)
    (tmp_path / "book.txt").write_text("It was a bright cold day in April, and the clocks were striking. " * 8)
    config = {
        "name": "trial",
        "model": "smollm2-135m",
        "prompts": {"source": ["abcdef", "uvw"], "chat": False},
        "decoding": {"max_new_tokens": 12, "repeats": 1},
        "axes": {
            "compress": [None, "int4", {"keep_layers": [0, 2]}, {"keep_layers": [0, 9]}],
            "method": ["lookup", "greedy"],
        },
        "quality": {
            "perplexity": {"text": "book.txt", "window": 64, "max_windows": 3},
            "multiple_choice": {"file": "choices.jsonl", "limit": 3},
            "last_word": {"file": "words.jsonl"},
        },
        "output": str(tmp_path / "runs"),
    }
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(config))
    assert command.run_config(str(tmp_path / "grid.yaml"), []) == 1  # layer 9 is none of the model's
    [folder] = (tmp_path / "runs").iterdir()
    rows = {row["name"]: row for row in flat.read(folder / "results.jsonl")}
    assert [row["status"] for row in rows.values()] == ["done"] * 6 + ["failed"] * 2
    assert "layers=[0, 9] must be rising numbers from 0 to 2" in rows["keep_layers=[0, 9] / greedy"]["error"]
    text = (folder / "table.md").read_text()
    assert all(f" {column} |" in text for column in ("KL", "agreement", "perplexity", "acc_norm", "last word"))

    first, other = loaded.load(""), loaded.load("", weights="int4")
    reference = next(row for row in results.read_rows(folder) if row["name"] == "none / greedy")
    given = [LETTERS.encode(prompt["prompt"]) for prompt in reference["prompts"]]
    texts = [[*ids, *prompt["tokens"]] for ids, prompt in zip(given, reference["prompts"], strict=True)]
    expected = quality.divergence(first, other, texts, starts=[6, 3])
    row = rows["int4 / greedy"]
    assert row["kl"] == pytest.approx(expected.kl, rel=1e-5)
    assert (row["agreement"], row["kl_tokens"]) == (expected.agreement, expected.tokens) == (expected.agreement, 24)
    assert (rows["none / greedy"]["kl"], rows["none / lookup"]["kl"]) == (0.0, 0.0)
    book = LETTERS.encode((tmp_path / "book.txt").read_text())
    assert row["perplexity"] == pytest.approx(quality.perplexity(other, book, 64, 3).value, rel=1e-6)
    choices = quality.multiple_choice(other, quality.read_choices(str(DATA / "choices.jsonl"), 3))
    assert (row["acc"], row["acc_norm"], row["choice_items"]) == (choices.acc, choices.acc_norm, 3)
    words = quality.last_word(other, quality.read_words(str(DATA / "words.jsonl")))
    assert row["last_word_perplexity"] == pytest.approx(words.perplexity, rel=1e-5)
    for key in flat.QUALITY[3:]:  # whatever the method
        assert rows["int4 / lookup"][key] == row[key]
    assert rows["int4 / lookup"]["identical"] == 2  # to greedy with the same weights
    assert row["identical_to_reference"] < 2
    outputs = {one["name"]: [p["tokens"] for p in one["prompts"]] for one in results.read_rows(folder)}
    places = [
        next(i for i, pair in enumerate(zip(a, b, strict=True)) if pair[0] != pair[1])
        for a, b in zip(outputs["int4 / greedy"], outputs["none / greedy"], strict=True)
        if a != b
    ]
    assert row["first_divergence_mean"] == pytest.approx(sum(places) / len(places))


def test_a_plain_config_compares_its_policies(loaded, tmp_path):
    rows = [{"name": "greedy", "method": "greedy"}, {"name": "rounded", "method": "greedy", "policy": "quantized"}]
    config = {"name": "trial", "model": "smollm2-135m", "rows": rows, "quality": {}, "output": str(tmp_path / "runs")}
    config |= {"prompts": {"source": ["abcdef"], "chat": False}, "decoding": {"max_new_tokens": 8, "repeats": 1}}
    (tmp_path / "plain.yaml").write_text(yaml.safe_dump(config))
    assert command.run_config(str(tmp_path / "plain.yaml"), []) == 0
    [folder] = (tmp_path / "runs").iterdir()
    exact, rounded = flat.read(folder / "results.jsonl")
    assert exact["kl"] == 0.0
    assert rounded["kl"] > 0.0


def test_a_mesh_of_one_device_measures_the_same_texts(loaded, tmp_path):
    config = {"name": "trial", "model": "smollm2-135m", "output": str(tmp_path / "runs")}
    config |= {"axes": {"mesh": [None, "data=1,tensor=1"], "workload": [{"synthetic": {"prompt": 9, "generate": 5}}]}}
    config |= {"decoding": {"repeats": 1}, "quality": {}}
    (tmp_path / "mesh.yaml").write_text(yaml.safe_dump(config))
    assert command.run_config(str(tmp_path / "mesh.yaml"), []) == 0
    [folder] = (tmp_path / "runs").iterdir()
    alone, spread = flat.read(folder / "results.jsonl")
    assert (spread["mesh"], spread["identical_to_reference"], spread["agreement"]) == ("data=1,tensor=1", 4, 1.0)
    assert (spread["new_tokens"], alone["prompt_tokens"]) == (5, 9)


def test_a_profile_is_a_trace_of_each_row_and_changes_no_text(loaded, tmp_path):
    rows = [{"name": "greedy", "method": "greedy"}, {"name": "a look/up", "method": "lookup"}]
    config = {"name": "trial", "model": "smollm2-135m", "rows": rows, "prompts": {"source": ["abcdef", "uvw"]}}
    config |= {"decoding": {"repeats": 1, "max_new_tokens": 4}, "output": str(tmp_path / "runs")}
    config["prompts"]["chat"] = False
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    told = []
    for more in ([], ["profile=true"]):
        assert command.run_config(str(tmp_path / "config.yaml"), more) == 0
        folder = max((tmp_path / "runs").iterdir(), key=lambda folder: folder.stat().st_mtime)
        told.append(results.read_rows(folder))
    plain, profiled = told
    assert [row.get("profile") for row in plain] == [None, None]
    assert [row["profile"] for row in profiled] == ["profile/greedy", "profile/a_look_up"]
    assert [row["prompts"] for row in plain] == [row["prompts"] for row in profiled]
    traces = sorted(path.parents[3].name for path in (tmp_path / "runs").rglob("*.xplane.pb"))
    assert traces == ["a_look_up", "greedy"]

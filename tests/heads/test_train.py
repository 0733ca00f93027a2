"""Training: the text is the model's own, the loss falls, what is interrupted goes on, and the result drafts."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from jaxinfer import Dense, Eagle, InputError, Medusa, Sampling, heads
from jaxinfer.cli import commands as cli
from jaxinfer.experiment.schema import ModelSpec
from jaxinfer.experiment.train_heads import Training, check, train
from jaxinfer.experiment.typed import read_as
from jaxinfer.heads import fit
from jaxinfer.heads.data import Corpus, DataSpec, make_corpus, own_prompts
from jaxinfer.heads.start import begin
from jaxinfer.heads.train import TrainSpec
from jaxinfer.network.heads import HeadsConfig, unembedding
from jaxinfer.network.resblock import feature
from jaxinfer.runtime import scoring

PROMPTS = ["abc" * n for n in range(1, 13)]
DATA = DataSpec(samples=1, max_new_tokens=60, batch=12, temperature=0.0)


def quiet(*_):
    pass


@pytest.fixture(scope="module")
def model(tiny_gemma):
    """Encodes letters, has no chat template, stops nowhere."""
    tokenizer = SimpleNamespace(
        has_chat=False,
        stop_ids=(),
        encode=lambda text: [ord(c) % 97 for c in text],
        decode=str,
        strips_first_space=False,
    )
    return dataclasses.replace(tiny_gemma, tokenizer=tokenizer, name="tiny")


@pytest.fixture(scope="module")
def corpus(model):
    return make_corpus(model, PROMPTS, DATA, "some text " * 60, quiet)


def test_the_corpus_is_what_the_model_writes_and_thinks(model, corpus):
    greedy = model.generate(PROMPTS, max_new_tokens=DATA.max_new_tokens)
    for row, new in enumerate(greedy.tokens):
        ids = model.encode(PROMPTS[row]) + new
        begin, end = corpus.offsets[row : row + 2]
        assert corpus.tokens[begin:end].tolist() == ids[:-1]
        assert corpus.starts[row] == len(PROMPTS[row])
        hidden = scoring.features(model.placed, Dense(), np.array([ids[:-1]]))[0]
        np.testing.assert_allclose(corpus.features[begin:end], hidden, atol=4e-3, rtol=2e-3)  # float16
    assert len(corpus) == len(PROMPTS) + 2  # 600 letters: two windows of 256
    begin, end = corpus.offsets[-2:]
    assert corpus.tokens[begin:end].tolist() == model.encode("some text " * 60)[256:512]
    hidden = scoring.features(model.placed, Dense(), corpus.tokens[None, begin:end])[0]
    np.testing.assert_allclose(corpus.features[begin:end], hidden, atol=4e-3, rtol=2e-3)


def test_own_prompts_are_what_the_model_writes_in_a_users_place(model):
    def letters(text):
        return [ord(c) % 97 for c in text]

    def chat(messages):
        return [5, 6, *letters(messages[0]["content"]), 7]

    tokenizer = SimpleNamespace(
        has_chat=True,
        stop_ids=(),
        encode=letters,
        decode=lambda ids: str(list(ids)),
        chat=chat,
        strips_first_space=False,
    )
    chatty = dataclasses.replace(model, tokenizer=tokenizer)
    found = own_prompts(chatty, dataclasses.replace(DATA, own_prompts=12), quiet)
    words = ["", "What", "", "Write", "", "How", "", "The", "", "Can you", "", "Explain"]
    starts, seeds = [[5, 6, *letters(word)] for word in words], [1_000_000 + i for i in range(12)]
    hot = Sampling(temperature=1.0)
    written = model.generate(starts, max_new_tokens=DATA.max_new_tokens, sampling=hot, seed=seeds).tokens
    expected = [str([*start[2:], *new[:-1]]) for start, new in zip(starts, written, strict=True)]
    assert sorted(found) == sorted(expected)
    with pytest.raises(InputError, match=r"data.own_prompts=12: tiny has no chat template"):
        own_prompts(model, dataclasses.replace(DATA, own_prompts=12), quiet)


def random_corpus(lengths, starts, d_model=48):
    rng, total = np.random.default_rng(0), sum(lengths)
    features = rng.normal(size=(total, d_model)).astype(np.float16)
    tokens = rng.integers(0, 97, total).astype(np.int32)
    return Corpus(tokens, features, np.cumsum([0, *lengths]), np.array(starts))


def test_what_is_learned_stays_within_the_answers_of_a_text():
    lengths, starts = (9, 200, 5), (4, 150, 0)
    corpus = random_corpus(lengths, starts)
    cfg, lesson = HeadsConfig("medusa", "tiny", 48, 97, 97, count=3), fit.Lesson(corpus, corpus.features[::-1])
    found = fit.places(cfg, corpus, np.arange(3))
    assert found.tolist() == [3, 4, *range(9 + 149, 9 + 196), 209]
    batch = fit.pieces(cfg, lesson, found[:2])
    np.testing.assert_array_equal(batch.said[1], lesson.said[5:8].astype(np.float32))
    assert batch.tokens.tolist() == [corpus.tokens[4:8].tolist(), corpus.tokens[5:9].tolist()]
    np.testing.assert_array_equal(batch.hidden[:, 0], corpus.features[3:5].astype(np.float32))
    for seed in range(20):  # pairs of EAGLE: state t, token t + 1; the next state, and its token t + 2
        batch = fit.windows(lesson, np.arange(3), np.random.default_rng(seed))
        for row, (length, start) in enumerate(zip(lengths, starts, strict=True)):
            begin = corpus.offsets[row]
            own = corpus.features[begin : begin + length].astype(np.float32)
            first = int(np.argmax((own == batch.hidden[row, 0]).all(1)))
            live = np.flatnonzero(batch.live[row])
            expected = [t for t in range(fit.WINDOW) if start <= first + t + 2 < length]
            assert live.tolist() == expected
            for t in live:
                np.testing.assert_array_equal(batch.hidden[row, t + 1], own[first + t + 1])
                np.testing.assert_array_equal(batch.said[row, t], lesson.said[begin + first + t + 1])
                assert batch.tokens[row, t + 1] == corpus.tokens[begin + first + t + 2]


def config(output, kind="medusa", **changes):
    spec = {"steps": 60, "batch": 256, "every": 30, "learning_rate": 3e-3, **changes}
    return Training(ModelSpec("tiny"), str(output), kind, 3, 97, DATA, TrainSpec(**spec))


def prepare(folder, cfg, corpus):
    """A training whose text is there already."""
    partial = folder.with_name(folder.name + ".partial")
    (partial / "corpus").mkdir(parents=True)
    corpus.save(partial / "corpus", {"model": "tiny", "data": dataclasses.asdict(DATA)})
    return partial


@pytest.mark.parametrize(("kind", "method"), [("medusa", Medusa()), ("hydra", Medusa()), ("eagle", Eagle())], ids=str)
def test_heads_learn_what_the_model_writes_and_draft_it(model, corpus, tmp_path, kind, method):
    prepare(tmp_path / "out", kind, corpus)
    folder = train(model, config(tmp_path / "out", kind), PROMPTS, None, quiet)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    record = json.loads((folder / "training.json").read_text())
    losses = [loss for _, loss in record["losses"]]
    # It cannot fall below the entropy of what is learned, and random weights are unsure of everything.
    assert losses[-1] < losses[0]
    assert [step for step, _ in record["accuracy"]] == [30, 60]
    assert (folder / "loss.svg").read_text().startswith("<svg")
    found, prompts = heads.load(folder), PROMPTS[:3]
    greedy = model.generate(prompts, max_new_tokens=60)
    drafted = model.attach(heads=found).generate(prompts, max_new_tokens=60, method=method)
    assert drafted.tokens == greedy.tokens
    assert drafted.stats.tokens_per_step > 1.5
    with pytest.raises(InputError, match="already exists"):
        train(model, config(tmp_path / "out", kind), PROMPTS, None, quiet)


def test_an_interrupted_training_goes_on_where_it_was(model, corpus, tmp_path):
    wanted = config(tmp_path / "whole", steps=40, every=10)
    prepare(tmp_path / "whole", wanted, corpus)
    whole = heads.load(train(model, wanted, PROMPTS, None, quiet))

    def stop(what, done, total):
        if done == 25:
            raise KeyboardInterrupt

    again = dataclasses.replace(wanted, output=str(tmp_path / "again"))
    partial = prepare(tmp_path / "again", again, corpus)
    with pytest.raises(KeyboardInterrupt):
        train(model, again, PROMPTS, None, stop)
    assert not (tmp_path / "again").exists()
    other = dataclasses.replace(again, count=2)
    with pytest.raises(InputError, match="was begun with count=3, and this is count=2"):
        train(model, other, PROMPTS, None, quiet)
    shown = []
    found = heads.load(train(model, again, PROMPTS, None, lambda what, done, total: shown.append(done)))
    assert shown == list(range(21, 41))
    assert not partial.exists()
    np.testing.assert_allclose(found.params["head_2"]["down"], whole.params["head_2"]["down"], atol=1e-6)
    np.testing.assert_array_equal(found.vocab, whole.vocab)


def test_the_loss_is_the_cross_entropy_against_what_the_backbone_says(model):
    """By its definition, in float64: sum over the tokens that can be guessed of -q log p."""
    corpus, cfg = random_corpus((300,), (0,)), HeadsConfig.of("medusa", "tiny", model.config, 60, 2)
    at = fit.places(cfg, corpus, np.arange(1))[:50]
    vocab = np.random.default_rng(0).permutation(97)[:60].astype(np.int32)
    rows = np.asarray(unembedding(model.params, vocab))
    frozen = fit.Frozen({"embed": model.params["embed"]}, jnp.asarray(rows), jnp.asarray(fit.place_of(vocab, 97)))
    params = begin(cfg, model.params, corpus, np.arange(len(corpus)), 0)
    batch = fit.pieces(cfg, fit.teach(corpus, frozen.rows, size=64), at)
    value = float(fit.loss(params, cfg, frozen, batch, jax.random.key(0)))
    features, labels, _ = fit.guesses(params, cfg, frozen, batch)

    def log_softmax(z):
        return z - np.log(np.exp(z - z.max(-1, keepdims=True)).sum(-1, keepdims=True)) - z.max(-1, keepdims=True)

    q = np.exp(log_softmax(corpus.features[at[:, None] + [1, 2]].astype(np.float64) @ rows.T))
    entropy = -(q * log_softmax(np.asarray(features, np.float64) @ rows.T)).sum(-1)
    live = np.isin(labels, vocab)
    expected = (entropy * live * [1, fit.DISCOUNT]).sum() / (live.sum() / 2)
    assert 0 < live.sum() < live.size
    np.testing.assert_allclose(value, expected, rtol=5e-3)  # bfloat16


def test_training_begins_with_the_best_linear_guess(model):
    """Hidden states that follow linearly from what a head reads are found at once."""
    rng, d = np.random.default_rng(0), 48
    tokens, true = rng.integers(0, 97, 3000).astype(np.int32), rng.normal(size=(d, 2 * d)) / 8
    table = np.asarray(model.params["embed"]["embedding"], np.float64)[tokens]
    embedded, hidden = table / np.sqrt((table**2).mean(-1, keepdims=True)), rng.normal(size=(3000, d))
    for t in range(1, 3000):
        state = hidden[t - 1] / np.sqrt((hidden[t - 1] ** 2).mean())
        hidden[t] = true @ np.concatenate([state, embedded[t]])
    corpus = Corpus(tokens, hidden.astype(np.float16), np.array([0, 3000]), np.array([0]))
    cfg = HeadsConfig.of("medusa", "tiny", model.config, 97, 1)
    params = begin(cfg, model.params, corpus, np.arange(1), 0)
    states = corpus.features[:-1].astype(np.float32)
    found = feature(params["head_1"], states, jnp.asarray(embedded[1:, None], jnp.float32))
    assert np.mean((np.asarray(found) - hidden[1:]) ** 2) < 0.02 * np.var(hidden[1:])


def test_two_trainings_share_a_corpus(model, corpus, tmp_path):
    shared = dataclasses.replace(DATA, corpus=str(tmp_path / "text"))
    first = dataclasses.replace(config(tmp_path / "first", steps=1), data=shared)
    train(model, first, PROMPTS[:2], None, quiet)
    made = (tmp_path / "text" / "tokens.npy").stat().st_mtime_ns
    shown = []
    second = dataclasses.replace(first, output=str(tmp_path / "second"), kind="hydra")
    train(model, second, PROMPTS[:2], None, lambda what, done, total: shown.append(what.split()[0]))
    assert shown == ["training"]
    assert (tmp_path / "text" / "tokens.npy").stat().st_mtime_ns == made
    third = dataclasses.replace(second, output=str(tmp_path / "third"), data=dataclasses.replace(shared, seed=1))
    with pytest.raises(InputError, match=r"text: was made with data\.seed=0, and this is data.seed=1"):
        train(model, third, PROMPTS, None, quiet)
    (tmp_path / "text" / "tokens.npy").write_bytes(b"123")
    with pytest.raises(InputError, match="text: a part of the corpus cannot be read"):
        train(model, dataclasses.replace(second, output=str(tmp_path / "fourth")), PROMPTS, None, quiet)
    (tmp_path / "text" / "corpus.json").unlink()
    with pytest.raises(InputError, match="text: holds no corpus"):
        train(model, dataclasses.replace(second, output=str(tmp_path / "fifth")), PROMPTS, None, quiet)


def write(folder, **changes):
    fields = {"model": "tiny", "output": str(folder / "out"), "data": {"max_new_tokens": 20}, **changes}
    (folder / "config.yaml").write_text(yaml.safe_dump(fields))
    return str(folder / "config.yaml")


@pytest.mark.parametrize(
    ("changes", "overrides", "line"),
    [
        ({"kindd": 1}, [], "kindd: unknown key; nearest: 'kind'"),
        ({"kind": "medula"}, [], "kind: expected 'medusa', 'hydra' or 'eagle', got 'medula'"),
        ({}, ["training.steps=0"], "training.steps: expected a number from 1, got 0"),
        ({}, ["data.max_new_tokens=2"], "data.max_new_tokens: expected a number from 8, got 2"),
        ({}, ["data.text=nowhere.txt"], "data.text: nowhere.txt: no such file"),
        ({}, ["data.prompts=nowhere"], "'nowhere' is no .jsonl file and no bundled set"),
        ({"output": " "}, [], "output: is empty"),
        ({}, ["--resume"], "there is no training under way"),
    ],
)
def test_bad_commands(tmp_path, monkeypatch, capsys, changes, overrides, line):
    monkeypatch.setattr("sys.argv", ["jaxinfer", "train", "heads", write(tmp_path, **changes), *overrides])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert line in error
    assert error.count("\n") == 1


def test_the_command_trains_what_the_config_says(model, tmp_path, monkeypatch, capsys):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in PROMPTS))
    small = ["data.samples=1", "data.batch=12", "training.steps=4", "training.batch=16", f"data.prompts={prompts}"]
    file = write(tmp_path, draft_vocab=97, count=2)
    monkeypatch.setattr("jaxinfer.experiment.train_heads.load_model", lambda *_, **__: model)
    monkeypatch.setattr("sys.argv", ["jaxinfer", "train", "heads", file, *small])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"heads: {tmp_path / 'out'}\n"
    assert heads.load(tmp_path / "out").cfg == HeadsConfig.of("medusa", "tiny", model.config, 97, 2)
    (tmp_path / "later.partial").mkdir()
    monkeypatch.setattr("sys.argv", ["jaxinfer", "train", "heads", file, f"output={tmp_path / 'later'}"])
    with pytest.raises(SystemExit):
        cli.main()
    assert "holds a training under way; go on with --resume" in capsys.readouterr().err


def test_the_configs_are_valid():
    for name, kind in (("train_medusa", "medusa"), ("train_eagle", "eagle")):
        file = f"{__file__.rpartition('tests')[0]}configs/{name}.yaml"
        config = read_as(Training, file)
        check(config, file)
        assert config.kind == kind

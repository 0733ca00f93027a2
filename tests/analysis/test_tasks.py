"""Accuracy on tasks and the distance of two models, against slow transcriptions: one text at a time, whole logits."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from jaxinfer import Dense, InputError, Model, Quantized
from jaxinfer.analysis.quality import (
    Choice,
    Word,
    divergence,
    last_word,
    multiple_choice,
    read_choices,
    read_task,
    read_words,
)
from jaxinfer.analysis.quality.continuations import Question, likelihoods, pair
from jaxinfer.compress import quantize_weights
from jaxinfer.runtime.compiled import TRACES

DATA = Path(__file__).parents[1] / "data"
CHOICES, WORDS = DATA / "choices.jsonl", DATA / "words.jsonl"


def merged(text):
    """Bytes as tokens, but for two that merge: the end of a context can change what comes after it."""
    found = []
    for byte in text.encode():
        if found and (found[-1], byte) == (ord("."), ord(" ")):
            found[-1] = 300
        else:
            found.append(byte)
    return found


@pytest.fixture(scope="module")
def model(tiny_llama):
    """Random weights that are far from uniform, and a tokenizer of bytes."""
    random = Model.random(tiny_llama.config.replace(vocab_size=301, max_positions=512), seed=3)
    head = {"kernel": random.params["head"]["kernel"] * 30}
    tokenizer = SimpleNamespace(encode=merged, bos_id=None)
    return dataclasses.replace(random, params={**random.params, "head": head}, tokenizer=tokenizer)


def logprobs(model, ids):
    """log softmax of the logits of one text, float64[T, V]."""
    logits = np.asarray(model.logits(np.array([ids], np.int32))[0], np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def slowly(model, encode, context, continuation):
    """lm-evaluation-harness's loglikelihood of one request: (sum of log p, whether greedy), on a whole text."""
    spaces = len(context) - len(context.rstrip())
    if spaces:
        continuation, context = context[-spaces:] + continuation, context[:-spaces]
    whole, before = encode(context + continuation), encode(context)
    after = whole[len(before) :]
    ids = (before + after)[:-1]
    found = model(ids)[-len(after) :]
    picked = found[np.arange(len(after)), after]
    return picked.sum(), bool((found.argmax(-1) == np.array(after)).all())


def test_choices_follow_from_whole_logits(model):
    items = read_choices(str(CHOICES))
    seen = []
    score = multiple_choice(model, items, progress=lambda done, total: seen.append((done, total)))
    right, normed, by_bytes = [], [], []
    for item, found in zip(items, score.logprobs, strict=True):
        expected = [slowly(lambda ids: logprobs(model, ids), merged, item.context, " " + e)[0] for e in item.endings]
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-3)
        right.append(int(np.argmax(expected)) == item.label)
        normed.append(int(np.argmax([x / len(e) for x, e in zip(expected, item.endings, strict=True)])) == item.label)
        sizes = [len(e.encode()) for e in item.endings]
        by_bytes.append(int(np.argmax([x / n for x, n in zip(expected, sizes, strict=True)])) == item.label)
    assert (score.acc, score.acc_norm, score.acc_bytes) == (np.mean(right), np.mean(normed), np.mean(by_bytes))
    assert score.items == len(items)
    assert seen[-1] == (len(items), len(items))


@pytest.mark.parametrize(
    ("logps", "acc", "acc_norm", "acc_bytes"),
    [((-1.0, -2.0), 1, 0, 0), ((-3.0, -4.0), 1, 1, 0)],
)
def test_the_three_rules_divide_by_nothing_characters_and_bytes(monkeypatch, model, logps, acc, acc_norm, acc_bytes):
    from jaxinfer.analysis.quality import tasks
    from jaxinfer.analysis.quality.continuations import Likelihood

    endings = {(-1.0, -2.0): ("ab", "abcdefgh"), (-3.0, -4.0): ("abcde", "éééééx")}[logps]  # 5 and 6; 5 and 11 bytes
    monkeypatch.setattr(tasks, "likelihoods", lambda *_: [[Likelihood(x, False) for x in logps]])
    score = multiple_choice(model, [Choice("a", endings, 0)])
    assert (score.acc, score.acc_norm, score.acc_bytes) == (acc, acc_norm, acc_bytes)


def test_last_words_follow_from_whole_logits(model):
    items = read_words(str(WORDS))
    best = model.logits(np.array([merged("abc")], np.int32))[0, -1].argmax()
    score = last_word(model, items)
    expected = [slowly(lambda ids: logprobs(model, ids), merged, one.context, " " + one.target) for one in items]
    assert score.logprobs == pytest.approx([value for value, _ in expected], rel=1e-4, abs=1e-3)
    assert score.acc == np.mean([greedy for _, greedy in expected])
    assert score.perplexity == pytest.approx(np.exp(-np.mean([value for value, _ in expected])), rel=1e-3)
    [[sure, unsure]] = likelihoods(model, [Question(tuple(merged("abc")), ((int(best),), (int(best) ^ 1,)))])
    assert (sure.greedy, unsure.greedy) == (True, False)


def test_policies_and_a_context_that_is_too_long(model):
    long = Word("x" * 700, "yz")
    kept = merged(long.context + " yz")[-512 - 1 :]
    expected = logprobs(model, kept[:-1])[np.arange(-3, 0), kept[-3:]].sum()
    score = last_word(model, [long, Word("ab", "c")], Dense())
    assert score.logprobs[0] == pytest.approx(expected, rel=1e-4)
    rounded = last_word(model, [Word("ab" * 40, "c")], Quantized()).logprobs
    assert rounded != last_word(model, [Word("ab" * 40, "c")]).logprobs


def test_contexts_of_all_lengths_are_scored_by_programs_of_few_shapes(model):
    rng = np.random.default_rng(0)
    texts = ["".join(map(chr, rng.integers(97, 122, n))) for n in rng.integers(1, 60, 40)]
    before = sum(TRACES.values())
    last_word(model, [Word(text, "ab") for text in texts])
    assert sum(TRACES.values()) - before <= 12
    again = sum(TRACES.values())
    last_word(model, [Word(text[::-1], "ba") for text in texts])
    assert sum(TRACES.values()) == again


def test_the_pair_is_encoded_as_a_whole():
    tokenizer = SimpleNamespace(bos_id=7, encode=merged)
    plain = SimpleNamespace(tokenizer=tokenizer, name="m", config=SimpleNamespace(vocab_size=301))
    assert pair(plain, "ab. ", " c") == ([97, 98, 46], [32, 99])
    assert pair(plain, "ab", ". c") == ([97, 98], [300, 99])
    assert pair(plain, "", " c") == ([7], [32, 99])
    tokenizer.bos_id = None
    with pytest.raises(InputError, match="the context of an item is empty"):
        pair(plain, "", "c")


def test_divergence_follows_from_the_logits_of_both(model, ragged):
    other = quantize_weights(model, "int4")
    texts = ragged([3, 130, 64, 65, 2], vocab_size=301)
    for starts in (None, [1, 100, 3, 60, 1]):
        total, same, count = 0.0, 0, 0
        for text, start in zip(texts, starts or [1] * 5, strict=True):
            a, b = (logprobs(one, text)[start - 1 : -1] for one in (model, other))
            total += (np.exp(a) * (a - b)).sum()
            same += (a.argmax(-1) == b.argmax(-1)).sum()
            count += len(a)
        found = divergence(model, other, texts, starts=starts)
        assert found.tokens == count
        assert found.kl == pytest.approx(total / count, rel=1e-3)
        assert found.agreement == pytest.approx(same / count)
    assert found.kl > 0.0
    assert divergence(model, model, texts).kl == 0.0
    assert divergence(model, model, texts, policy_b=Quantized()).kl > 0.0


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("3", 'expected {"context": text, "endings": '),
        ('{"context": "a", "endings": ["b"], "label": 0}', "two or more"),
        ('{"context": "a", "endings": ["b", "c"], "label": 2}', "label must be a whole number from 0 to 1, got 2"),
        ('{"context": "a", "endings": ["b", 3], "label": 0}', "endings.1 must be text, and not empty, got 3"),
        ('{"context": "", "target": "b"}', "context must be text, and not empty"),
        ("{", "is not valid JSON"),
    ],
)
def test_a_bad_item_is_one_line_with_its_number(tmp_path, line, problem):
    good = (
        '{"context": "a", "target": "b"}'
        if "target" in line
        else '{"context": "a", "endings": ["b", "c"], "label": "1"}'
    )
    (tmp_path / "items.jsonl").write_text(f"{good}\n{line}\n")
    with pytest.raises(InputError) as caught:
        read_task(str(tmp_path / "items.jsonl"))
    assert str(caught.value).startswith(f"{tmp_path}/items.jsonl:2: ")
    assert problem in str(caught.value)
    assert len(read_task(str(tmp_path / "items.jsonl"), limit=1)) == 1


def test_what_cannot_be_scored_is_refused(model, tiny_llama):
    for call, line in (
        (lambda: multiple_choice(model, []), "items: there are none"),
        (lambda: last_word(tiny_llama, [Word("a", "b")]), "has no tokenizer"),
        (lambda: divergence(model, tiny_llama, [[1, 2]]), "vocabularies of different sizes: 301 and 97"),
        (lambda: divergence(model, model, [[1]]), "there is no token to compare"),
        (lambda: divergence(model, model, "abc"), "must be lists of token ids"),
        (lambda: last_word(model, [Word("a", "b" * 600)]), "longer than the model's context of 512"),
    ):
        with pytest.raises(InputError, match=line):
            call()


def test_real_items_agree_with_transformers(tmp_path):
    """A random Llama of transformers, the same weights here: the score of each ending, one request at a time there."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    import jaxinfer

    sizes = dict(vocab_size=301, hidden_size=32, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**sizes, num_hidden_layers=2, max_position_embeddings=512, initializer_range=0.3)
    theirs = transformers.LlamaForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path / "hf")
    tokenizer = SimpleNamespace(encode=merged, bos_id=None)
    ours = dataclasses.replace(jaxinfer.load(tmp_path / "hf", dtype="float32"), tokenizer=tokenizer)

    def in_torch(ids):
        with torch.inference_mode():
            return torch.log_softmax(theirs(torch.tensor([ids])).logits[0].double(), -1).numpy()

    items = read_choices(str(CHOICES))
    score = multiple_choice(ours, items)
    expected = [[slowly(in_torch, merged, one.context, f" {e}")[0] for e in one.endings] for one in items]
    for found, theirs_found in zip(score.logprobs, expected, strict=True):
        assert found == pytest.approx(theirs_found, rel=1e-4, abs=1e-3)
    best = [int(np.argmax(row)) == one.label for row, one in zip(expected, items, strict=True)]
    assert score.acc == np.mean(best)

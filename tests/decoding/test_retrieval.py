"""The datastore of REST, and the references of LLMA, against slow searches."""

import jax
import numpy as np
import pytest

from jaxinfer import LLMA, Datastore, InputError, Retrieval, references
from jaxinfer.decoding.methods.llma import copy
from jaxinfer.decoding.methods.lookup import ending
from jaxinfer.decoding.methods.retrieval import longest_match, retrieve, suffix_array

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("depth", [1, 2, 3, 8])
def test_the_suffix_array_against_sorting(depth):
    rng = np.random.default_rng(depth)
    for n in (1, 2, 57, 300):
        tokens = rng.integers(-1, 3, n).astype(np.int32)
        sorted_by = 1 << (depth - 1).bit_length()
        expected = sorted(range(n), key=lambda i: (tokens[i : i + sorted_by].tolist(), i))
        assert suffix_array(tokens, depth).tolist() == expected


def places_of(pattern, corpus):
    return [i for i in range(len(corpus) - len(pattern) + 1) if corpus[i : i + len(pattern)] == pattern]


@pytest.mark.parametrize(("vocab", "longest", "shortest"), [(2, 5, 1), (3, 4, 3), (6, 3, 1), (40, 2, 1)])
def test_the_longest_match_and_what_follows_it(vocab, longest, shortest):
    rng = np.random.default_rng(vocab)
    store = Datastore.build([rng.integers(0, vocab, n).tolist() for n in (30, 1, 70)], depth=8)
    corpus = np.asarray(store.tokens).tolist()
    assert corpus.count(-1) == 3
    batch, width, many, deep = 60, 12, 5, 4
    tokens, n = rng.integers(0, vocab, (batch, width)), rng.integers(1, width + 1, batch)

    @jax.jit
    def search(store, tokens, n):
        start, count, length = longest_match(store, ending(tokens, n, longest), shortest)
        return start, count, length, *retrieve(store, start, count, length, many, deep)

    order = np.asarray(store.order)
    found = 0
    for row, (start, count, length, follow, weight) in enumerate(
        zip(*(np.asarray(x) for x in search(store, tokens, n)), strict=True)
    ):
        text = tokens[row, : n[row]].tolist()
        best = next((k for k in range(min(longest, len(text)), shortest - 1, -1) if places_of(text[-k:], corpus)), 0)
        places = places_of(text[-best:], corpus) if best else []
        assert count == len(places)
        assert sorted(order[start : start + count].tolist()) == places
        assert weight.tolist() == [float(i < min(count, many)) for i in range(many)]
        if count:
            found += 1
            assert length == best
            chosen = [order[start + i * max(count, many) // many] for i in range(min(count, many))]
            padded = [*corpus, *[-1] * deep]
            assert follow[: len(chosen)].tolist() == [padded[i + best : i + best + deep] for i in chosen]
    assert found > 10


def slow_copy(documents, text, count, longest, shortest):
    """What follows the longest match of the text's ending that something follows, of equals the latest."""
    for k in range(min(longest, len(text)), shortest - 1, -1):
        for document in reversed(documents):
            for i in reversed(range(k, len(document))):
                if document[i - k : i] == text[-k:]:
                    return document[i : i + count]
    return []


@pytest.mark.parametrize(("vocab", "longest", "shortest"), [(2, 5, 1), (4, 3, 2), (30, 2, 1)])
def test_what_is_copied_from_references(vocab, longest, shortest):
    rng = np.random.default_rng(vocab)
    documents = [rng.integers(0, vocab, n).tolist() for n in (20, 1, 9, 33)]
    corpus = np.pad(references(documents), ((0, 0), (0, 1)), constant_values=-1).reshape(1, -1)
    tokens, n = rng.integers(0, vocab, (60, 10)), rng.integers(1, 11, 60)
    guesses, size = (
        np.asarray(x) for x in jax.jit(lambda c, t, n: copy(c, ending(t, n, longest), 6, shortest))(corpus, tokens, n)
    )
    expected = [slow_copy(documents, t[:m].tolist(), 6, longest, shortest) for t, m in zip(tokens, n, strict=True)]
    assert [g[:s].tolist() for g, s in zip(guesses, size, strict=True)] == expected
    assert any(expected)


def test_documents_that_are_text(tiny_llama):
    class Words:
        def encode(self, text):
            return [len(word) for word in text.split()]

    assert references(["a bc def", "gh"], Words()).tolist() == [[1, 2, 3], [2, -1, -1]]
    assert np.asarray(Datastore.build(["a bc", [5]], Words()).tokens).tolist() == [1, 2, -1, 5, -1]
    for make in (references, Datastore.build):
        with pytest.raises(InputError, match="text needs a tokenizer"):
            make(["a bc"])
        with pytest.raises(InputError, match="at least one"):
            make([])
        with pytest.raises(InputError, match=r"empty"):
            make([[]])


def test_what_cannot_be_attached(tiny_llama):
    def generate(method, **extras):
        tiny_llama.attach(**extras).generate([[1, 2]], method=method)

    store = Datastore.build([[1, 2, 3]], depth=4)
    with pytest.raises(InputError, match=r"Retrieval needs datastore: model.attach\(datastore=...\)"):
        generate(Retrieval())
    with pytest.raises(InputError, match="datastore is a list: it must come from"):
        generate(Retrieval(), datastore=[1, 2])
    with pytest.raises(InputError, match="ngram=8 is longer than the depth=4"):
        generate(Retrieval(), datastore=store)
    with pytest.raises(InputError, match="datastore holds token id 97: ids go from 0 to 96"):
        generate(Retrieval(ngram=2), datastore=Datastore.build([[97]]))
    with pytest.raises(InputError, match="references must be an array of token ids"):
        generate(LLMA(), references=[1, 2])
    with pytest.raises(InputError, match="references must be an array of token ids"):
        generate(LLMA(), references=np.ones(3))
    with pytest.raises(InputError, match="references hold token id 97"):
        generate(LLMA(), references=np.array([3, 97]))
    for method in (LLMA, Retrieval):
        with pytest.raises(InputError, match="width=1 must be at least 2"):
            method(width=1)
        with pytest.raises(InputError, match="min_ngram=0 must be between 1 and"):
            method(min_ngram=0)

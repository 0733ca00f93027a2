"""Sizes of every method and policy there is, and values of other types: refused in a line, before anything compiles."""

import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinfer
from jaxinfer import (
    METHODS,
    POLICIES,
    Adaptive,
    Cascade,
    Datastore,
    Dense,
    Dola,
    Dynamic,
    Eagle,
    EarlyExit,
    Fallback,
    Greedy,
    InputError,
    LayerKind,
    Lookup,
    Medusa,
    Model,
    ModelConfig,
    Sampling,
    Segment,
    SelfSpeculative,
    SpeculativeTree,
    Suffix,
    references,
)
from jaxinfer.decoding.checks import check_method, check_policy
from jaxinfer.decoding.drafts.growth import expansion
from jaxinfer.decoding.methods.lookup import matches

CONTEXT = 256
WRONG = (0, -1, 10**6, 2**31, 2**63, 1.5, "x", None, True, [1], float("nan"))
CLASSES = {**METHODS, **POLICIES, "dynamic": Dynamic}


def fields_of(kind):
    """(class, field name) for each field whose annotation has a type in it, whatever else may be there."""
    found = []
    for name, cls in CLASSES.items():
        for field in dataclasses.fields(cls):
            if kind in str(field.type).replace("|", " ").split() or field.type is {"int": int, "float": float}[kind]:
                found.append(pytest.param(cls, field.name, id=f"{name}.{field.name}"))
    return found


@pytest.fixture(scope="module")
def model():
    """With all that methods need, but heads: of those, sizes are checked before the heads."""
    cfg = ModelConfig("llama", 97, 16, 16, 1, 1, 16, (Segment((LayerKind(),), 2),), CONTEXT)
    small = Model.random(cfg)
    documents = [[1, 2, 3, 4, 5] * 3]
    return small.attach(heads=None, draft=small, datastore=Datastore.build(documents), references=references(documents))


def allowed(cls, name, value, model):
    """Try a value: give the thing with it that passes its checks, the number as it then is. All in a second."""
    start = time.thread_time()
    try:
        thing = cls(**{name: value})
        if cls in METHODS.values():
            check_method(thing, model, Dense())
        elif cls in POLICIES.values():
            check_policy(thing, model)
        else:
            check_method(SpeculativeTree(dynamic=thing), model, Dense())
    except InputError as error:
        refused = str(error)
    else:
        refused = ""
    assert time.thread_time() - start < 1
    assert "\n" not in refused
    assert len(refused) < 400
    return None if refused else getattr(thing, name)


@pytest.mark.parametrize(("cls", "name"), fields_of("int"))
def test_whole_numbers_are_bounded_by_the_context(cls, name, model):
    free = () if cls is Dynamic else cls.unbounded
    for value in WRONG:
        taken = allowed(cls, name, value, model)
        if value is None or taken is None:
            continue
        assert type(taken) is int
        assert type(value) is int
        assert taken == value
        assert value <= CONTEXT or name in free
    assert 10**6 not in [allowed(cls, name, value, model) for value in (10**6,)] or name in free


@pytest.mark.parametrize(("cls", "name"), fields_of("float"))
def test_numbers_are_finite_and_of_their_range(cls, name, model):
    for value in (float("nan"), float("inf"), -float("inf"), "x", None, True, [1.0], 1j, np.array([1.0])):
        assert allowed(cls, name, value, model) is None


def test_what_no_size_bounds_runs_at_any(model):
    """Fields that may be larger than the context: they cost nothing there."""
    prompts = [[1, 2, 3, 1, 2], [5]]
    expected = model.generate(prompts, max_new_tokens=6).tokens
    for options in (
        {"method": METHODS["lookahead"](window=2, ngram=3, guesses=2, buckets=2**31 - 1)},
        {"method": Adaptive(probe=2**31 - 1)},
        {"policy": POLICIES["paged"](pool=2**31 - 1, block=16)},
        {"method": Lookup(ngram=CONTEXT)},
        {"method": Suffix(width=8, ngram=CONTEXT, depth=4, matches=CONTEXT)},
    ):
        sampling = Sampling(temperature=0.0) if "method" in options else None
        assert model.generate(prompts, max_new_tokens=6, sampling=sampling, **options).tokens == expected


def test_numpys_numbers_and_lists_are_taken_as_what_they_are():
    assert Lookup(width=np.int64(4), ngram=jnp.int32(2)) == Lookup(4, 2)
    assert hash(Lookup(width=np.uint8(4))) == hash(Lookup(4))
    assert Medusa(paths=[[0, 0], [1]]).paths == ((0, 0), (1,))
    assert SelfSpeculative(skip=np.array([1])).skip == (1,)
    assert EarlyExit(exits=[1, 2]).exits == (1, 2)
    assert Dola(layers=[0, 1]).layers == (0, 1)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Adaptive(method="lookup"),
        lambda: Adaptive(method=Lookup),
        lambda: Adaptive(method=None),
        lambda: Fallback(first=3),
        lambda: Cascade(inner={"name": "lookup"}),
        lambda: Medusa(paths=3),
        lambda: Medusa(paths=((0, "x"),)),
        lambda: Medusa(paths=((10**12,),)),
        lambda: Eagle(dynamic=3),
        lambda: SpeculativeTree(paths=None),
        lambda: SpeculativeTree(replace="no"),
        lambda: EarlyExit(exits="x"),
        lambda: EarlyExit(measure=["softmax"]),
        lambda: SelfSpeculative(skip=(1.5,)),
        lambda: Dola(layers=1.5),
        lambda: expansion(1000, 1000, 1000),
        lambda: expansion(2, 0),
        lambda: expansion("x"),
        lambda: Datastore.build([[1, 2]], depth=10**6),
        lambda: Datastore.build([[1, 2]], depth="x"),
        lambda: Datastore.build(None),
        lambda: Datastore.build([[1.5]]),
        lambda: references(None),
        lambda: references([[1.5]]),
        lambda: references([["x"]]),
        lambda: POLICIES["quantized"](format=3),
        lambda: POLICIES["paged"](block=17),
        lambda: Suffix(depth=CONTEXT, matches=2**15),
        lambda: jaxinfer.load(None),
        lambda: jaxinfer.load(3),
        lambda: jaxinfer.load(b"x"),
        lambda: jaxinfer.load(""),
        lambda: jaxinfer.load("smollm2-135m", dtype=16),
        lambda: jaxinfer.load("smollm2-135m", weights=8),
        lambda: Model.random(None),
        lambda: Model.random({"family": "llama"}),
    ],
)
def test_what_is_no_value_is_an_input_error(make):
    with pytest.raises(InputError) as error:
        make()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("draft", ["x", None, 3, Greedy()])
def test_what_is_no_draft_model_is_not_attached(model, draft):
    with pytest.raises(InputError, match="draft"):
        model.attach(draft=draft)


def test_other_extras_and_other_vocabularies_are_refused(model):
    other = Model.random(model.config.replace(vocab_size=98))
    cases = [("speculative", {"draft": other}), ("speculative_tree", {"draft": other}), ("cascade", {"draft": other})]
    cases += [(name, {"heads": "x"}) for name in ("medusa", "eagle", "mtp")]
    cases += [("llma", {"references": "x"}), ("llma", {"references": None}), ("retrieval", {"datastore": 3})]
    for name, extras in cases:
        with pytest.raises(InputError):
            model.attach(**extras).generate([[1, 2]], method=METHODS[name]())
    with pytest.raises(InputError, match="exit_classifier"):
        model.attach(exit_classifier=[1]).generate([[1, 2]], method=EarlyExit(measure="classifier"))


def test_random_models_take_a_seed_and_a_type(model):
    for options in ({"seed": -1}, {"seed": 1.5}, {"seed": None}, {"dtype": "float99"}, {"dtype": None}, {"dtype": 3}):
        with pytest.raises(InputError, match=next(iter(options))):
            Model.random(model.config, **options)


def test_long_endings_are_matched_like_short_ones():
    rng = np.random.default_rng(0)
    corpus = rng.integers(0, 2, (3, 90))
    ends = np.concatenate([corpus[:, 60:3:-1], rng.integers(0, 2, (3, 20))], axis=1)
    whole = np.asarray(matches(jnp.asarray(ends), jnp.asarray(corpus)))
    for row, place in np.ndindex(whole.shape):
        agree = 0
        while agree < min(place + 1, ends.shape[1]) and corpus[row, place - agree] == ends[row, agree]:
            agree += 1
        assert whole[row, place] == agree
    assert whole.max() > 32
    text = str(jax.make_jaxpr(matches)(jnp.zeros((1, 5000), int), jnp.zeros((1, 5000), int)))
    assert len(text) < 10_000  # a program that does not grow with them

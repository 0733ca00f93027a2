"""Options of a call: seeds, counts, stop tokens, samples, log-probabilities. Held to transformers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_methods import SMALL, equip
from spelled import Spelled
from words import WORDS

from jaxinfer import Beam, Constraint, Contrastive, Greedy, InputError, Model, Sampling
from jaxinfer.decoding.contract import key_of
from jaxinfer.runtime import compiled
from jaxinfer.runtime.placed import PlacedModel

torch = pytest.importorskip("torch")
pytest.importorskip("transformers", minversion="5")
searches = pytest.importorskip("searches")

HOT = Sampling(temperature=1.0)
COLD = Sampling(temperature=0.0)
LENGTHS = (1, 2, 9, 70)
NEW = 24


@pytest.fixture(scope="module")
def twin(tiny_llama, tmp_path_factory):
    """tiny_llama in transformers."""
    return searches.in_torch(tiny_llama, tmp_path_factory.mktemp("twin") / "model")


@pytest.fixture(scope="module")
def prompts(ragged):
    return ragged(LENGTHS)


@pytest.fixture(scope="module")
def free(tiny_llama, prompts):
    """Greedy's texts, with nothing that ends them."""
    return tiny_llama.generate(prompts, max_new_tokens=NEW).tokens


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 - 1, 2**32, 2**63 + 5, 2**64 - 1])
def test_a_key_is_that_of_jax_with_64_bits(seed):
    with jax.enable_x64():
        expected = np.asarray(jax.random.key_data(jax.random.key(np.uint64(seed))))
    found = jax.random.key_data(key_of(jnp.array(divmod(seed, 2**32), jnp.uint32)))
    np.testing.assert_array_equal(found, expected)
    if seed < 2**32:  # what texts were drawn with when seeds had 32
        np.testing.assert_array_equal(found, jax.random.key_data(jax.random.key(np.uint32(seed))))


def drawn(model, seed, rows=2, **options):
    return model.generate([[1, 2, 3]] * rows, max_new_tokens=12, sampling=HOT, seed=seed, **options).tokens


def test_any_whole_number_is_a_seed_and_every_row_has_its_own(tiny_llama):
    expected = drawn(tiny_llama, 3)
    assert expected[0] != expected[1]
    for seed in (np.int64(3), np.uint8(3), np.array(3), jnp.int32(3), [3, 4], (3, np.int16(4)), np.array([3, 4])):
        assert drawn(tiny_llama, seed) == expected
    large = drawn(tiny_llama, 2**64 - 2)
    assert large == [drawn(tiny_llama, seed, rows=1)[0] for seed in (2**64 - 2, 2**64 - 1)]
    assert drawn(tiny_llama, 2**32 + 3) != expected
    with pytest.raises(InputError, match="seed=18446744073709551615 with 2 rows"):
        drawn(tiny_llama, 2**64 - 1)
    assert drawn(tiny_llama, [2**64 - 1, 2**64 - 1])[0] == large[1]


@pytest.mark.parametrize(
    "seed", [True, np.True_, 1.0, -1, 2**64, None, "3", [1.5, 2], [True, 1], [1], np.array([1.0, 2.0])]
)
def test_what_is_no_seed_is_refused(tiny_llama, seed):
    with pytest.raises(InputError, match=r"^seed"):
        drawn(tiny_llama, seed)


def test_however_many_tokens_are_asked_for_the_context_ends_a_text(tiny_llama):
    model = Model(tiny_llama.config.replace(max_positions=40), tiny_llama.params)
    expected = model.generate([[1, 2], [3] * 30], max_new_tokens=100).tokens
    assert list(map(len, expected)) == [39, 11]
    for many in (2**31 - 1, 2**31, 2**63, 10**30, [2**40, np.uint64(2**63)]):
        assert model.generate([[1, 2], [3] * 30], max_new_tokens=many).tokens == expected
    assert model.generate([[1, 2]], max_new_tokens=2**40, min_new_tokens=2**39).tokens == expected[:1]


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("max_new_tokens", (0, -1, 1.5, "3", None, True, [1, 2], np.array([4.0, 4.0]))),
        ("min_new_tokens", (-1, 1.5, "3", None, True, 5, [1, 2])),
        ("n", (0, -1, 1.5, "3", None, True, 10**6, 2**63, [2])),
        ("stop_tokens", (-1, 97, 1.5, [1.5], ["1"], None, [None], "12", {1: 2}, True, [True], 10**30)),
        ("logprobs", (-1, 98, 1.5, None, "x", 2**63, [1])),
        ("prompt_logprobs", (-1, 98, 1.5, None, "x", 2**63)),
        ("ignore_eos", (None, 1, "yes")),
        ("include_stop", (None, 1, "yes")),
        ("skip_special", (None, 0, "no")),
        ("sampling", ("hot", 0.5, Sampling, {"temperature": 1.0})),
        ("constraint", ("[0-9]+", 3, [None])),
        ("method", ("lookup", 3, Greedy, {"name": "lookup"}, HOT)),
        ("policy", ("dense", 3, Greedy(), HOT)),
        ("progress", ("x", 3, [print])),
        ("temperature", (0.5,)),
    ],
)
def test_what_an_option_cannot_be_is_one_line_that_names_it(tiny_llama, option, values):
    for value in values:
        given = {"max_new_tokens": 4, "sampling": HOT} | {option: value}
        with pytest.raises(InputError, match=option) as error:
            tiny_llama.generate([[1], [2], [3]], **given)
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 400


def in_transformers(twin, prompt, new, **options):
    """Give what transformers gives for a prompt."""
    ids = torch.tensor([prompt])
    given = {"do_sample": False, "pad_token_id": 0, "return_dict_in_generate": True} | options
    with torch.inference_mode():
        return twin.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, **given)


def expected_of(twin, prompt, stops, least):
    """transformers' text, up to its stop token."""
    found = in_transformers(twin, prompt, NEW, min_new_tokens=least, eos_token_id=stops)
    new = found.sequences[0, len(prompt) :].tolist()
    ends = [i for i, token in enumerate(new) if token in stops]
    return new[: ends[0] + 1] if ends else new


METHODS = [SMALL[name] for name in ("greedy", "lookup", "suffix", "speculative")]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_no_stop_token_comes_too_early(tiny_llama, twin, prompts, free, method):
    """As transformers has it, in every row and whatever is drafted: its tokens and the stop tokens' places."""
    stops = [row[at] for row, at in zip(free, (0, 3, 5, 2), strict=True)]
    least = [0, 1, 7, NEW - 1]
    expected = [expected_of(twin, prompt, stops, fewest) for prompt, fewest in zip(prompts, least, strict=True)]
    assert len({len(row) for row in expected}) > 2
    model = equip(tiny_llama, method, [prompt + row for prompt, row in zip(prompts, expected, strict=True)])
    sampling = COLD if method.samples else None
    options = {"max_new_tokens": NEW, "method": method, "sampling": sampling, "stop_tokens": stops}
    assert model.generate(prompts, min_new_tokens=least, **options).tokens == expected
    again = model.generate(prompts, min_new_tokens=least[::-1], **options).tokens  # the same program
    assert again == [expected_of(twin, p, stops, n) for p, n in zip(prompts, least[::-1], strict=True)]


def test_beams_and_contrastive_search_hold_stop_tokens_back(tiny_llama, twin, prompts):
    for prompt in prompts[1:3]:
        found = tiny_llama.generate([prompt], max_new_tokens=NEW, method=Beam(beams=3))
        stops = found.tokens[0][1:4]
        options = {"max_new_tokens": NEW, "stop_tokens": stops, "min_new_tokens": 9}
        searched = tiny_llama.generate([prompt], method=Beam(beams=3), **options)
        asked = {"num_beams": 3, "min_new_tokens": 9, "eos_token_id": stops, "output_scores": True}
        whole = in_transformers(twin, prompt, NEW, **asked)
        new = whole.sequences[0, len(prompt) :].tolist()
        assert searched.tokens[0] == new[: len(searched.tokens[0])]
        assert len(searched.tokens[0]) >= 9
        np.testing.assert_allclose(searched.beams[0][0][1], whole.sequences_scores[0], atol=1e-4)
        text = tiny_llama.generate([prompt], method=Contrastive(k=3), **options).tokens[0]
        assert not set(text[:9]) & set(stops)
        assert len(text) >= 10 or len(text) == NEW


def test_sampled_guesses_keep_the_distribution_with_stop_tokens_held_back(tiny_llama):
    """Drawn guesses: the same tokens are possible, and the text of greedy's draws is that of one token a step."""
    prompt, many = [[1, 2, 3]] * 64, {"max_new_tokens": 6, "sampling": HOT, "min_new_tokens": 4}
    stops = list(range(0, 97, 2))
    model = equip(tiny_llama, SMALL["speculative"], [])
    for method in (SMALL["lookup"], SMALL["speculative"]):
        texts = model.generate(prompt, method=method, stop_tokens=stops, **many).tokens
        assert all(token % 2 for text in texts for token in text[:4])
        assert any(text[-1] % 2 == 0 for text in texts)  # and then they come
        if not method.needs:
            assert texts == model.generate(prompt, stop_tokens=stops, **many).tokens


def test_stop_tokens_end_a_row_and_the_models_own_may_be_ignored(tiny_llama, prompts, free):
    model = dataclasses.replace(tiny_llama, tokenizer=Spelled(stop_ids=(free[0][4], free[1][7])))
    own, more = model.tokenizer.stop_ids, [row[2] for row in free]

    def cut(stops):
        ends = [next((i + 1 for i, token in enumerate(row) if token in stops), NEW) for row in free]
        return [row[:end] for row, end in zip(free, ends, strict=True)]

    options = {"max_new_tokens": NEW}
    assert model.generate(prompts, **options).tokens == cut(own)
    assert model.generate(prompts, stop_tokens=more[1], **options).tokens == cut({*own, more[1]})
    assert model.generate(prompts, ignore_eos=True, **options).tokens == free
    assert model.generate(prompts, ignore_eos=True, stop_tokens=np.array(more), **options).tokens == cut(more)
    many = sorted({token for row in free for token in row})[:20]  # more than there are slots for
    assert model.generate(prompts, ignore_eos=True, stop_tokens=many, **options).tokens == cut(many)


def test_a_text_ends_before_what_stopped_it_or_with_it(tiny_llama, prompts, free):
    own, other = free[2][8], next(token for token in free[2][:8] if Spelled().token_bytes(token))
    model = dataclasses.replace(tiny_llama, tokenizer=Spelled(stop_ids=(own,)))
    for stops in ((), [other]):
        result = model.generate([prompts[2]], max_new_tokens=NEW, stop_tokens=stops)
        kept = model.generate([prompts[2]], max_new_tokens=NEW, stop_tokens=stops, include_stop=True)
        assert kept.tokens == result.tokens
        assert result.texts[0] == model.tokenizer.decode(result.tokens[0][:-1])
        assert kept.texts[0] == result.texts[0] + model.tokenizer.decode(result.tokens[0][-1:], skip_special=False)
        shown = model.generate([prompts[2]], max_new_tokens=NEW, stop_tokens=stops, skip_special=False)
        assert shown.texts[0] == model.tokenizer.decode(result.tokens[0][:-1], skip_special=False)


def test_samples_of_a_prompt_are_rows_that_share_its_reading(tiny_llama, prompts, monkeypatch):
    read, prefill = [], PlacedModel.prefill

    def watched(target, cache, tokens, *rest):
        read.append(len(tokens))
        return prefill(target, cache, tokens, *rest)

    monkeypatch.setattr(PlacedModel, "prefill", watched)
    sampling = Sampling(temperature=[1.0, 0.7, 1.3, 1.0], repetition_penalty=1.2)
    result = tiny_llama.generate(prompts, max_new_tokens=[5, 9, 7, 3], sampling=sampling, n=3, seed=11, logprobs=True)
    assert read == [4]
    apart = tiny_llama.generate(
        [prompt for prompt in prompts for _ in range(3)],
        max_new_tokens=np.repeat([5, 9, 7, 3], 3),
        sampling=dataclasses.replace(sampling, temperature=np.repeat(sampling.temperature, 3)),
        seed=11,
        logprobs=True,
    )
    assert result.tokens == apart.tokens
    assert list(map(len, result.tokens)) == [5] * 3 + [9] * 3 + [7] * 3 + [3] * 3
    assert len({tuple(row) for row in result.tokens}) == 12
    np.testing.assert_allclose(np.concatenate(result.logprobs), np.concatenate(apart.logprobs), atol=1e-5)
    assert result.stats.prompt_tokens == apart.stats.prompt_tokens
    assert result.stats.prefill_rate * result.stats.seconds["prefill"] == pytest.approx(sum(LENGTHS) - 4)
    listed = tiny_llama.generate(
        prompts, max_new_tokens=3, sampling=HOT, n=2, seed=[7, 0, 50, 7], method=SMALL["lookup"]
    )
    alone = tiny_llama.generate([prompts[2]] * 2, max_new_tokens=3, sampling=HOT, seed=[50, 51])
    assert listed.tokens[4:6] == alone.tokens
    several = {"max_new_tokens": 9, "sampling": HOT, "seed": 5, "method": SMALL["speculative"]}
    drafted = equip(tiny_llama, several["method"], [])
    shared = drafted.generate(prompts, n=2, **several).tokens
    assert shared == drafted.generate([prompt for prompt in prompts for _ in range(2)], **several).tokens
    with pytest.raises(InputError, match="n=3: method Greedy takes no sampling"):
        tiny_llama.generate(prompts, n=3)
    with pytest.raises(InputError, match="takes no n"):
        dataclasses.replace(tiny_llama, tokenizer=Spelled()).stream([1], n=2, sampling=HOT)


@pytest.mark.parametrize("method", [None, SMALL["suffix"]], ids=str)
def test_the_likeliest_tokens_are_those_of_transformers(tiny_llama, twin, prompts, method):
    result = tiny_llama.generate(prompts, max_new_tokens=12, method=method, logprobs=5)
    plain = tiny_llama.generate(prompts, max_new_tokens=12, method=method, logprobs=True)
    assert (result.tokens, plain.likeliest) == (plain.tokens, None)
    for row, prompt in enumerate(prompts):
        found = in_transformers(twin, prompt, 12, eos_token_id=None, output_logits=True)
        assert found.sequences[0, len(prompt) :].tolist() == result.tokens[row]
        logp = torch.log_softmax(torch.cat(found.logits), dim=-1)
        own = logp[torch.arange(12), torch.tensor(result.tokens[row])]
        np.testing.assert_allclose(result.logprobs[row], own, atol=1e-4)
        values, ids = logp.topk(5)
        assert [[id for id, _ in place] for place in result.likeliest[row]] == ids.tolist()
        np.testing.assert_allclose([[x for _, x in place] for place in result.likeliest[row]], values, atol=1e-4)


def test_log_probabilities_of_prompts(tiny_llama, ragged):
    prompts = ragged((1, 2, 64, 65, 131))
    for _ in range(2):
        result = tiny_llama.generate(prompts, max_new_tokens=2, prompt_logprobs=3)
        for row, prompt in enumerate(prompts):
            logp = np.asarray(jax.nn.log_softmax(tiny_llama.logits([prompt])[0]))[:-1]
            assert len(result.prompt_logprobs[row]) == len(result.prompt_likeliest[row]) == len(prompt) - 1
            np.testing.assert_allclose(
                result.prompt_logprobs[row], logp[np.arange(len(prompt) - 1), prompt[1:]], atol=1e-4
            )
            for place, found in zip(logp, result.prompt_likeliest[row], strict=True):
                assert [id for id, _ in found] == np.argsort(-place)[:3].tolist()
                np.testing.assert_allclose([x for _, x in found], np.sort(place)[::-1][:3], atol=1e-4)
    own = tiny_llama.generate(prompts[:2], max_new_tokens=2, prompt_logprobs=True, n=2, sampling=HOT)
    assert own.prompt_likeliest is None
    assert own.prompt_logprobs[2] == own.prompt_logprobs[3] == pytest.approx(result.prompt_logprobs[1], abs=1e-5)


def test_what_a_method_or_a_constraint_cannot_do_is_refused_by_name(tiny_llama):
    with pytest.raises(InputError, match="logprobs=2: method Beam"):
        tiny_llama.generate([[1]], method=Beam(), logprobs=2)
    worded = dataclasses.replace(tiny_llama, tokenizer=WORDS)
    constraint = Constraint.regex(worded, "(a|b|c){2}")
    with pytest.raises(InputError, match="ignore_eos: a constraint"):
        worded.generate([[1]], constraint=constraint, ignore_eos=True)
    # A text that can only end, ends: what is held back yields to a constraint that leaves nothing else.
    held = worded.generate([[1]], constraint=constraint, min_new_tokens=20, max_new_tokens=20)
    assert held.tokens[0][-1] in WORDS.stop_ids
    assert len(held.texts[0]) == 2
    more = worded.generate([[1]], constraint=constraint, stop_tokens=list(range(27)))
    assert len(more.tokens[0]) == 1


def test_options_that_are_not_used_are_no_part_of_the_program(tiny_llama, prompts):
    compiled.clear()
    compiled.TRACES.clear()
    tiny_llama.generate(prompts, max_new_tokens=9)
    before = {key[0].__name__ for key in compiled._PROGRAMS}
    tiny_llama.generate(
        prompts, max_new_tokens=9, min_new_tokens=5, stop_tokens=(), ignore_eos=True
    )  # nothing to hold back
    tiny_llama.generate(prompts, max_new_tokens=9, stop_tokens=[5, 6], logprobs=False, prompt_logprobs=0, n=1)
    assert compiled.TRACES["decode"] == 1
    assert {key[0].__name__ for key in compiled._PROGRAMS} == before
    tiny_llama.generate(prompts, max_new_tokens=9, stop_tokens=[5, 6], min_new_tokens=[0, 1, 2, 3])
    tiny_llama.generate(prompts, max_new_tokens=9, stop_tokens=[5], min_new_tokens=4)
    assert compiled.TRACES["decode"] == 2

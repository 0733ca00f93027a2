import re
import sys
from pathlib import Path

import pytest
import yaml

from jaxinfer import METHODS
from jaxinfer.errors import InputError
from jaxinfer.experiment import load_config, results
from jaxinfer.weights.formats import FORMATS

pytestmark = pytest.mark.quick

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"


def error_of(function, *arguments) -> str:
    with pytest.raises(InputError) as caught:
        function(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_quickstart_config_is_valid_and_filled_in():
    config = load_config(QUICKSTART)
    assert [row.name for row in config.rows] == ["greedy", "sampling", "lookup"]
    assert config.rows[2].method == {"name": "lookup", "width": 8, "ngram": 5, "min_ngram": 2, "narrow": 4}
    assert config.rows[1].sampling["top_p"] == 0.9
    assert config.rows[1].sampling["repetition_penalty"] == 1.0


def test_a_resolved_config_is_a_config_and_resolves_to_itself(tmp_path, make):
    config = make("rows.2.policy={name: window, capacity: 64}")
    again = tmp_path / "again.yaml"
    again.write_text(yaml.safe_dump(results.mapping_of(config)))
    assert load_config(again) == config


def test_overrides_reach_any_path_and_the_last_one_wins(make):
    config = make(
        "decoding.seed=1",
        "decoding.seed=2",
        "rows.2.method.width=4",
        "rows.1.sampling.temperature=1e-3",
        "rows.0.policy=window",
        "rows.0.policy.capacity=512",
    )
    assert config.decoding.seed == 2
    assert config.rows[2].method["width"] == 4
    assert config.rows[1].sampling["temperature"] == 0.001
    assert config.rows[0].policy == {"name": "window", "capacity": 512}


def test_every_prompt_may_be_asked_for_as_many_tokens(make):
    decoding = make(
        "decoding.max_new_tokens=8", "decoding.ignore_eos=true", "decoding.min_new_tokens=5", f"decoding.seed={2**40}"
    ).decoding
    assert (decoding.ignore_eos, decoding.min_new_tokens, decoding.seed) == (True, 5, 2**40)
    assert "decoding.min_new_tokens" in error_of(make, "decoding.max_new_tokens=4", "decoding.min_new_tokens=5")
    assert "decoding.min_new_tokens" in error_of(make, "decoding.min_new_tokens=-1")
    constrained = ("decoding.ignore_eos=true", "rows.0.constraint={regex: a}")
    assert "rows.0.constraint" in error_of(make, *constrained)


def test_a_bare_value_is_short_for_the_source_and_keeps_the_rest(make):
    config = make("model.dtype=bfloat16", "model=some/folder", "prompts=quickstart")
    assert (config.model.source, config.model.dtype) == ("some/folder", "bfloat16")
    assert (config.prompts.source, config.prompts.chat) == ("quickstart", False)
    assert make("prompts=[one, two]").prompts.source == ("one", "two")


def test_a_bare_method_replaces_the_method_with_its_parameters(make):
    assert make("rows.2.method=greedy").rows[2].method == {"name": "greedy"}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("decodng.seed=1", "decodng: unknown key; nearest: 'decoding'"),
        ("decoding.sed=1", "decoding.sed: unknown key; nearest: 'seed'"),
        ("rows.0.nme=x", "rows.0.nme: unknown key; nearest: 'name'"),
        (
            "zzz=1",
            "zzz: unknown key; valid: name, model, rows, prompts, decoding, extras, axes, include, exclude, quality, "
            "ledger, profile, output",
        ),
        ("decoding.seed=x", "decoding.seed: expected a whole number, got 'x'"),
        ("decoding.seed=1.5", "decoding.seed: expected a whole number, got 1.5"),
        ("decoding.repeats=true", "decoding.repeats: expected a whole number, got true"),
        ("decoding.repeats=0", "decoding.repeats: expected a whole number from 1, got 0"),
        ("decoding.seed=-1", "decoding.seed: expected a whole number from 0, got -1"),
        ("decoding=3", "decoding: expected a mapping, got 3"),
        ("prompts.chat=5", "prompts.chat: expected true or false, got 5"),
        ("prompts.limit=0", "prompts.limit: expected a whole number from 1, or null, got 0"),
        ("prompts.source=5", "prompts.source: expected text or a list, got 5"),
        ("model.dtype=float16", "model.dtype: expected 'float32' or 'bfloat16', got 'float16'"),
        ("model=", "model: expected a mapping, got null"),
        ("model.context=4", "model.context: expected a mapping, got 4"),
        (
            "model.context={kind: yarn}",
            "model.context.factor: missing; write how many times the context grows, such as 4",
        ),
        ("model.context={factor: 2}", "model.context.kind: missing; write one of none, linear, ntk, yarn"),
        (
            "model.context={kind: yran, factor: 2}",
            "model.context.kind: expected 'none', 'linear', 'ntk' or 'yarn', got 'yran'",
        ),
        ("model.context={kind: yarn, factor: 0.5}", "model.context.factor: expected a number from 1, got 0.5"),
        ("model.context={kind: yarn, factor: .inf}", "model.context.factor: expected a number from 1, got inf"),
        ("model.context={kind: yarn, factor: 2, fast: 3}", "model.context.fast: unknown key; nearest: 'factor'"),
        ("name=a/b", "name: letters, digits and ._- only (it names a folder), got 'a/b'"),
        ("rows=[]", "rows: is empty; write at least one row, such as {name: greedy, method: greedy}"),
        ("rows=[3]", "rows.0: expected a mapping, got 3"),
        ("rows=[{name: a}]", "rows.0.method: missing; write the name of a decode method, such as 'greedy'"),
        ("rows.1.name=greedy", "rows.1.name: 'greedy' is taken by rows.0"),
        ("rows.2.method=lookp", "rows.2.method: unknown method 'lookp'; nearest: 'lookup'"),
        ("rows.2.method=[1]", "rows.2.method: expected a mapping, got [1]"),
        ("rows.2.method.name=[1]", f"rows.2.method: unknown method [1]; valid: {', '.join(METHODS)}"),
        ("rows.2.method=speculative", "rows.2.method: speculative needs draft: write 'extras: {draft: ...}'"),
        (
            "rows.2.method={name: adaptive, method: {name: lookup, widht: 4}}",
            "rows.2.method.method.widht: method 'lookup' has no such parameter; nearest: 'width'",
        ),
        ("rows.2.method={name: adaptive, method: 3}", "rows.2.method.method: expected a mapping, got 3"),
        ("prompts.per_family=0", "prompts.per_family: expected a whole number from 1, or null, got 0"),
        (
            "model.weights=int3",
            f"model.weights: 'int3' must be one of {', '.join(FORMATS)}; nearest: 'int8'",
        ),
        (
            "extras.draft={source: a, weights: nf5}",
            f"extras.draft.weights: 'nf5' must be one of {', '.join(FORMATS)}; nearest: 'nf4'",
        ),
        ("extras.drft=smollm2-135m", "extras.drft: no method uses it; nearest: 'draft'"),
        (
            "extras.draft={layers: [0]}",
            "extras.draft.source: missing; write a built-in name such as 'smollm2-135m', or a path",
        ),
        (
            "extras.heads={source: a, extras: {draft: {source: b}}}",
            "extras.heads.extras: only a draft model has extras of its own; leave it out",
        ),
        (
            "extras.draft={source: a, extras: {draft: {source: b, layer: 1}}}",
            "extras.draft.extras.draft.layer: unknown key; nearest: 'layers'",
        ),
        ("extras.draft={source: a, layer: [0]}", "extras.draft.layer: unknown key; nearest: 'layers'"),
        ("rows.2.method={width: 3}", f"rows.2.method.name: missing; write the name of a method: {', '.join(METHODS)}"),
        ("rows.2.method.widht=8", "rows.2.method.widht: method 'lookup' has no such parameter; nearest: 'width'"),
        ("rows.0.method.width=8", "rows.0.method.width: method 'greedy' has no such parameter; there are none"),
        ("rows.2.method.width=wide", "rows.2.method.width: expected a whole number, got 'wide'"),
        ("rows.0.policy=windw", "rows.0.policy: unknown policy 'windw'; nearest: 'window'"),
        ("rows.1.sampling.temprature=1", "sampling has no such parameter; nearest: 'temperature'"),
        ("rows.1.sampling.temperature=hot", "rows.1.sampling.temperature: expected a number, got 'hot'"),
        ("rows.0.sampling.temperature=1", "rows.0.sampling: method 'greedy' does not sample; leave it out"),
        ("rows.1.sampling.no_repeat_ngram=2.5", "sampling.no_repeat_ngram: expected a whole number, got 2.5"),
        ("rows.1.sampling.bad_words=[7]", "rows.1.sampling.bad_words: expected a list, got [7]"),
        ("rows.1.sampling.logit_bias=7", "rows.1.sampling.logit_bias: expected a mapping or a list, got 7"),
        (
            "rows.2.sampling.mirostat_tau=3",
            "mirostat_tau=3.0 needs a method that scores one token a step, such as Sample; this one scores 8",
        ),
    ],
)
def test_a_bad_override_is_one_line_that_names_it_and_what_would_be_right(make, override, expected):
    message = error_of(make, override)
    assert message.startswith(f"override {override!r}: ")
    assert message.endswith(expected)


def test_a_draft_of_a_draft_is_named_where_it_is_needed(make):
    cascade, draft = "rows.2.method={name: cascade, inner: speculative}", "extras.draft={source: a, layers: [0, 1]}"
    line = "cascade needs draft.draft: write 'extras: {draft: {extras: {draft: ...}}}'"
    with pytest.raises(InputError, match=re.escape(line)):
        make(cascade, draft)
    config = make(cascade, "extras.draft={source: a, layers: [0, 1], extras: {draft: {source: a, layers: [0]}}}")
    assert config.extras["draft"].extras["draft"].layers == (0,)
    assert config.rows[2].method["inner"]["name"] == "speculative"


def test_biases_and_bad_words_survive_the_file_of_a_run(make, tmp_path):
    settings = "{logit_bias: {50: -1, 7: 2.5}, bad_words: [[1, 2], [3]], no_repeat_ngram: 3}"
    config = make(f"rows.1.sampling={settings}")
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(results.mapping_of(config)))
    again = load_config(tmp_path / "again.yaml")
    assert again == config
    row = again.rows[1]
    assert row.sampling["logit_bias"] == ((50, -1.0), (7, 2.5))
    assert row.sampling["bad_words"] == ((1, 2), (3,))


@pytest.mark.parametrize(
    ("override", "value", "path"),
    [("rows.2.method.width=1", "width=1", "rows.2.method"), ("rows.1.sampling.top_p=7", "top_p=7", "rows.1.sampling")],
)
def test_what_a_class_itself_rejects_comes_with_the_path(make, override, value, path):
    assert error_of(make, override).startswith(f"override {override!r}: {path}: {value}")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("nothing", "write it as path.to.key=value"),
        ("a..b=1", "write it as path.to.key=value"),
        ("=1", "write it as path.to.key=value"),
        ("decoding.seed={", "not valid YAML"),
        ("rows.7.name=x", "rows is a list: '7' is not an index of it (0 to 2)"),
        ("rows.first.name=x", "rows is a list: 'first' is not an index of it (0 to 2)"),
        ("name.x=3", "name is 'trial', which has no key 'x'"),
    ],
)
def test_an_override_that_cannot_be_merged(make, override, expected):
    message = error_of(make, override)
    assert repr(override) in message
    assert expected in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ": is empty; a config is a mapping that starts with 'name: ...'"),
        ("# only a comment\n", ": is empty; a config is a mapping that starts with 'name: ...'"),
        ("- a\n- b\n", ": holds a list; a config is a mapping that starts with 'name: ...'"),
        ("just words", ": holds text; a config is a mapping that starts with 'name: ...'"),
        ("name: a\nrows: [1, 2\nmodel: b\n", ":3: not valid YAML: expected ',' or ']', but got ':'"),
        ("name: a\nname: b\n", ":2: not valid YAML: 'name' is given twice"),
        ("name: a\nmodel: b\n", ": rows: missing; write a list with one entry for each row of the table"),
        ("name: a\nmodell: b\nrows: []\n", ": modell: unknown key; nearest: 'model'"),
        ("name: 5\nmodel: b\nrows: []\n", ": name: expected text, got 5"),
    ],
)
def test_a_bad_file_is_one_line_that_names_it(tmp_path, text, expected):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    assert error_of(load_config, path) == f"{path}{expected}"


def test_a_file_that_is_missing_or_not_text(tmp_path):
    assert error_of(load_config, tmp_path / "none.yaml") == f"{tmp_path / 'none.yaml'}: no such config file"
    assert error_of(load_config, tmp_path) == f"{tmp_path}: is a folder; give a file"
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert re.search("binary.yaml: is not UTF-8 text", error_of(load_config, tmp_path / "binary.yaml"))


def test_an_error_in_the_file_is_not_blamed_on_an_override_elsewhere(config_file):
    config_file.write_text(config_file.read_text().replace("repeats: 3", "repeats: two"))
    message = error_of(load_config, config_file, ["decoding.seed=1"])
    assert message == f"{config_file}: decoding.repeats: expected a whole number, got 'two'"


def test_passes_agree_to_a_share(make):
    assert make("decoding.agree=0.03").decoding.agree == 0.03
    assert make().decoding.agree == 0
    for given in ("3", "-0.1", ".nan", "1"):
        expected = r"decoding.agree: expected a share below 1, such as 0.03, or 0 for all repeats, got "
        assert re.search(expected, error_of(make, f"decoding.agree={given}"))


def test_without_pydantic_the_line_says_what_to_install(make, monkeypatch):
    monkeypatch.setitem(sys.modules, "pydantic", None)
    assert "pip install pydantic" in error_of(make)


def test_a_row_has_one_constraint(make):
    assert make("rows.2.constraint={regex: '[0-9]+'}").rows[2].constraint.regex == "[0-9]+"
    assert make("rows.2.constraint={choice: [a, b]}").rows[2].constraint.choice == ("a", "b")
    for given in ("{}", "{regex: a, json_schema: b}"):
        assert "write one of regex, json_schema and choice" in error_of(make, f"rows.2.constraint={given}")
    assert "nearest: 'regex'" in error_of(make, "rows.2.constraint={regx: a}")

import dataclasses
import errno
import json
from types import SimpleNamespace

import pytest
import yaml
from fakes import FakeModel, Letters
from rich.console import Console

from jaxinfer import LayerKind, Model, ModelConfig, Segment
from jaxinfer.compress import extend_context
from jaxinfer.errors import InputError
from jaxinfer.experiment import Interrupted, compare, load_prompts, passes, results, rows, run, runner
from jaxinfer.experiment.runner import Unwritten


def run_(config, model, resume=None):
    return run(config, model, load_prompts(config.prompts), resume, Console(quiet=True))


def summaries(folder):
    return {one.name: one for one in compare.summarize(results.read_rows(folder))}


def test_rows_are_measured_in_order_and_compared_with_greedy(make):
    model = FakeModel(wrong_under_lookup="z")
    folder = run_(make(), model)
    found = summaries(folder)
    assert list(found) == ["greedy", "sampling", "lookup <8>"]
    assert found["greedy"].identical == "2/2"
    assert found["sampling"].identical == "n/a"
    assert found["lookup <8>"].identical == "2/2"  # the prompt that holds "z" does not emit it within four tokens
    assert found["greedy"].decode == pytest.approx(10.0)
    assert found["lookup <8>"].speedup == pytest.approx(2.0)
    assert found["lookup <8>"].tokens_per_step == pytest.approx(2.0)
    assert found["greedy"].bandwidth == pytest.approx(11_000)
    assert found["greedy"].prefill == pytest.approx((5 + 10) / 1.0)
    assert (found["greedy"].weight_bytes, found["greedy"].cache_bytes, found["greedy"].temp_bytes) == (1000, 200, 30)
    assert found["greedy"].compile_seconds == pytest.approx(2 * 2.0)  # each of two batches, once


def test_what_is_measured_beside_a_row_is_kept_in_it(make):
    """Behind each of its timed passes, and once: what an interrupted run has is not measured again."""
    model, asked = FakeModel(), []

    def beside(record):
        asked.append((record["name"], len(model.calls)))
        return {"tokens": sum(p["emitted"] for p in record["prompts"])}

    config = make("decoding.agree=0.03")  # which ends no row early that has something beside it
    folder = run(config, model, load_prompts(config.prompts), None, Console(quiet=True), beside)
    kept = results.read_rows(folder)
    repeats = config.decoding.repeats
    for row in kept:
        assert row["beside"] == [{"tokens": sum(p["emitted"] for p in row["prompts"])}] * repeats
    assert [name for name, _ in asked] == [row["name"] for row in kept for _ in range(repeats)]
    assert len({calls for _, calls in asked}) == len(asked)  # each behind calls of its own
    run(config, model, load_prompts(config.prompts), folder, Console(quiet=True), beside)
    assert len(asked) == len(kept) * repeats


def test_outputs_that_differ_are_counted(make):
    found = summaries(run_(make("decoding.max_new_tokens=9"), FakeModel(wrong_under_lookup="z")))
    assert found["lookup <8>"].identical == "1/2"


def test_every_pass_draws_from_seeds_that_do_not_depend_on_batching(make):
    alone, together = FakeModel(), FakeModel()
    run_(make("decoding.seed=5"), alone)
    run_(make("decoding.seed=5", "decoding.batch=2"), together)
    lookup = [call for call in alone.calls if call[0] == "lookup"]
    one, other = ("lookup", 1, (5,)), ("lookup", 1, (6,))
    assert lookup == [one, one, other, other, *([one, other] * 2)]  # each that compiles is run again
    assert [call for call in together.calls if call[0] == "lookup"] == [("lookup", 2, (5, 6))] * 4


def test_a_machine_that_slows_down_changes_no_speedup(make):
    found = summaries(run_(make(), FakeModel(slow_from=8)))
    assert found["lookup <8>"].decode == pytest.approx(found["greedy"].decode)
    assert found["lookup <8>"].speedup == pytest.approx(2.0)
    assert found["greedy"].speedup == 1.0


def test_the_first_call_of_a_program_is_in_no_measured_time(make):
    for repeats in (1, 3):
        found = summaries(run_(make(f"decoding.repeats={repeats}"), FakeModel(slow_at_first=True)))
        assert found["greedy"].decode == pytest.approx(10.0)
        assert found["lookup <8>"].decode == pytest.approx(20.0)


def test_passes_end_once_two_agree(make):
    def passes(folder):
        return {row["name"]: (len(row["decode_rates"]), row["settled"]) for row in results.read_rows(folder)}

    steady = passes(run_(make("decoding.agree=0.03", "decoding.repeats=5"), FakeModel()))
    assert {*steady.values()} == {(2, True)}
    # Greedy's two passes take six calls. Lookup's first is fast beside a greedy that is slow, and then both are slow.
    slowing = passes(run_(make("decoding.agree=0.03"), FakeModel(slow_from=18)))
    assert slowing["greedy"] == (2, True)
    assert slowing["lookup <8>"] == (3, True)
    assert {*passes(run_(make(), FakeModel())).values()} == {(3, False)}  # unless it is asked for
    assert {*passes(run_(make("decoding.agree=0.03", "decoding.repeats=1"), FakeModel())).values()} == {(1, False)}


def test_passes_agree_by_what_their_baselines_took_beside_them():
    assert passes.agree([10.0, 20.0], [5.0, 10.2], 0.03)  # the machine was twice as fast, for both
    assert not passes.agree([10.0, 20.0], [5.0, 10.4], 0.03)
    assert not passes.agree([10.0, 20.0, 20.0], [5.0, 10.0, 11.0], 0.03)  # the newest two
    assert passes.agree([10.0, 30.0, 31.0], [5.0, 5.0, 5.1], 0.03)
    assert not passes.agree([10.0], [5.0], 0.03)
    assert not passes.agree([10.0, 10.0], [5.0, 5.0], 0.0)
    assert not passes.agree([10.0, 10.0], [5.0, 0.0], 0.03)


def test_every_prompt_leaves_a_record(make):
    row = results.read_rows(run_(make(), FakeModel()))[2]
    assert row["prompts"][0] == {
        "family": "config",
        "prompt": "abcdef",
        "output": "fedc",
        "tokens": [ord(letter) for letter in "fedc"],
        "prompt_tokens": 6,
        "steps": 2,
        "emitted": 4,
        "guessed": 2,
        "runs": [0, 0, 2],
        "proposed": 4,
        "accepted": 2,
    }


def test_without_a_greedy_row_a_reference_is_measured_first(make):
    config = make(
        "rows=[{name: a, method: lookup}, {name: b, method: lookup, policy: dense}, {name: c, method: sample}]"
    )
    plan = rows.plan(config)
    assert [row.name for row in plan] == ["greedy (reference)", "greedy (reference) 2", "a", "b", "c"]
    assert plan[1].policy == {"name": "dense", "capacity": None}
    assert summaries(run_(config, FakeModel()))["b"].identical == "2/2"


def test_penalties_change_what_greedy_is(make):
    plan = rows.plan(
        make("rows.2.sampling={temperature: 0, repetition_penalty: 1.2}", "rows.1.sampling.repetition_penalty=1.3")
    )
    assert [row.name for row in plan] == ["greedy (reference)", "greedy", "sampling", "lookup <8>"]
    assert plan[0].method == {"name": "sample"}
    assert plan[0].sampling == {"temperature": 0.0, "repetition_penalty": 1.2}


def test_bans_and_biases_change_what_greedy_is_and_truncations_do_not(make):
    bans = "no_repeat_ngram: 2, logit_bias: {5: -1}, bad_words: [[1, 2]]"
    plan = rows.plan(make(f"rows.2.sampling={{temperature: 0, top_n_sigma: 1, typical_p: 0.9, {bans}}}"))
    assert [row.name for row in plan] == ["greedy (reference)", "greedy", "sampling", "lookup <8>"]
    given = {"no_repeat_ngram": 2, "logit_bias": [(5, -1.0)], "bad_words": [(1, 2)]}
    assert plan[0].sampling == {"temperature": 0.0, **given}
    assert rows.baseline(plan[3], plan) is plan[0]
    plan = rows.plan(make("rows.2.sampling={temperature: 0, top_n_sigma: 1, bad_words: []}"))
    assert rows.baseline(plan[2], plan).name == "greedy"


def test_a_constraint_changes_what_greedy_is(make):
    plan = rows.plan(make("rows.2.constraint={regex: a+}", "rows.1.constraint={regex: b}"))
    assert [row.name for row in plan[:2]] == ["greedy (reference)", "greedy (reference) 2"]
    assert rows.baseline(plan[4], plan).constraint == plan[4].constraint
    assert rows.baseline(plan[2], plan) is plan[2]


def test_an_interruption_keeps_the_finished_rows_and_resuming_skips_them(make):
    config, model = make(), FakeModel(interrupt_at=10)  # eight calls for greedy: within the second
    with pytest.raises(Interrupted) as stop:
        run_(config, model)
    folder = stop.value.folder
    assert (stop.value.done, stop.value.total) == (1, 3)
    assert [row["name"] for row in results.read_rows(folder)] == ["greedy"]
    assert "| greedy" in (folder / "table.md").read_text()
    assert "1 of 3 rows" in (folder / "report.html").read_text()

    again = FakeModel()
    assert run_(config, again, resume=folder) == folder
    assert [method for method, *_ in again.calls] == [
        *["sample", "sample", "greedy", "greedy"] * 2,  # what compiles is run again
        *["sample", "greedy", "sample", "greedy"] * 2,
        *["lookup", "lookup", "greedy"] * 2,
        *["lookup", "greedy", "lookup", "greedy"] * 2,
    ]
    assert list(summaries(folder)) == ["greedy", "sampling", "lookup <8>"]
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.yaml",
        "report.html",
        "results.jsonl",
        "rows.jsonl",
        "table.md",
        "versions.json",
    ]


def test_a_torn_last_line_is_measured_again(make):
    config = make()
    folder = run_(config, FakeModel())
    path = folder / "rows.jsonl"
    path.write_text(path.read_text()[:-40])
    assert [row["name"] for row in results.read_rows(folder)] == ["greedy", "sampling"]
    again = FakeModel()
    run_(config, again, resume=folder)
    compiling = ["lookup", "lookup", "greedy", "greedy"] * 2
    assert [method for method, *_ in again.calls] == compiling + ["lookup", "greedy", "lookup", "greedy"] * 2
    assert [json.loads(line)["name"] for line in path.read_text().splitlines()] == ["greedy", "sampling", "lookup <8>"]


def test_a_longer_context_has_room_for_longer_prompts(make):
    short = FakeModel(config=ModelConfig("llama", 150, 48, 80, 6, 2, 16, (Segment((LayerKind(),), 2),), 12))
    with pytest.raises(InputError, match="this model takes at most 8"):
        run_(make(), short)
    folder = run_(make("model.context={kind: yarn, factor: 2}"), short)
    assert len(results.read_rows(folder)) == 3
    assert "with 2 times its context (yarn positions)" in (folder / "table.md").read_text()
    assert yaml.safe_load((folder / "config.yaml").read_text())["model"]["context"] == {"kind": "yarn", "factor": 2.0}
    longer = runner.extended(short, make("model.context={kind: yarn, factor: 2}").model)
    assert longer.config == extend_context(short, "yarn", 2.0).config != short.config


@pytest.mark.parametrize(
    ("model", "overrides", "expected"),
    [
        (FakeModel(tokenizer=None), (), "model.source: 'smollm2-135m' has no tokenizer"),
        (
            FakeModel(tokenizer=SimpleNamespace(has_chat=False)),
            ("prompts.chat=true",),
            "prompts.chat: 'smollm2-135m' has no chat template; set prompts.chat=false",
        ),
        (
            FakeModel(config=SimpleNamespace(max_positions=12, vocab_size=1000)),
            (),
            "prompts: prompt 1 has 11 tokens; with decoding.max_new_tokens=4 this model takes at most 8",
        ),
        (
            FakeModel(config=ModelConfig("gpt2", 150, 8, 8, 2, 2, 4, (Segment((LayerKind(rope=None),), 1),), 64)),
            ("model.context={kind: yarn, factor: 4}",),
            "model.context: fake has no rotary positions to scale",
        ),
    ],
)
def test_what_does_not_fit_the_model_is_one_line_and_nothing_is_written(make, tmp_path, model, overrides, expected):
    with pytest.raises(InputError) as caught:
        run_(make(*overrides), model)
    assert str(caught.value) == expected
    assert not (tmp_path / "runs").exists()


def test_a_full_disk_keeps_what_is_finished_and_says_so(make, tmp_path):
    """No file may grow beyond a few bytes from the second row on, as the system has it."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    class Filling(FakeModel):
        def generate(self, *given, **options):
            if len(self.calls) == 15:
                resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
            return super().generate(*given, **options)

    try:
        with pytest.raises(Unwritten, match="1 of 3 rows are done") as stop:
            run_(make(), Filling())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    folder = stop.value.folder
    assert stop.value.errno == errno.EFBIG
    assert stop.value.filename == str(folder)
    assert list(summaries(folder)) == ["greedy"]
    assert "1 of 3 rows" in (folder / "report.html").read_text()
    names = ["config.yaml", "report.html", "results.jsonl", "rows.jsonl", "table.md", "versions.json"]
    assert sorted(path.name for path in folder.iterdir()) == names
    run_(make(), FakeModel(), resume=folder)
    assert list(summaries(folder)) == ["greedy", "sampling", "lookup <8>"]


class Known(Letters):
    """Characters whose numbers are below the small vocabulary of the models here."""

    def encode(self, text):
        return [ord(letter) % 32 for letter in text]

    def decode(self, ids):
        return "".join(chr(64 + i) for i in ids)


def small(vocab=32, positions=64, layers=2):
    shape = {"d_model": 16, "d_ff": 32, "n_heads": 2, "n_kv_heads": 1, "head_dim": 8, "max_positions": positions}
    cfg = ModelConfig("llama", vocab_size=vocab, segments=(Segment((LayerKind(),), layers),), **shape)
    return dataclasses.replace(Model.random(cfg), tokenizer=Known())


@pytest.mark.parametrize(
    ("overrides", "extras", "expected"),
    [
        (
            ["rows.2.method={name: speculative}"],
            {"draft": lambda: small(vocab=31)},
            "row 'lookup <8>': the draft model random has a vocabulary of 31 tokens and random one of 32",
        ),
        (["rows.2.method={name: self_speculative, skip: [7]}"], {}, "row 'lookup <8>': skip: layer 7 is not there"),
        (["rows.2.method={name: speculative}"], {}, "row 'lookup <8>': method Speculative needs draft"),
        (["rows.2.policy={name: dense, capacity: 4}"], {}, "greedy (reference)': policy capacity=4 is too small"),
        (["rows.0.policy={name: window, capacity: 13}"], {}, "row 'greedy': policy capacity=13 is too small"),
        (["rows.1.policy={name: paged, pool: 1, block: 16}", "decoding.batch=2"], {}, "policy pool=1 blocks of 16"),
        (["rows.1.sampling.bad_words=[[99]]"], {}, "row 'sampling': bad_words holds token id 99: ids go from 0 to 31"),
        (["rows.1.sampling.logit_bias={32: 1}"], {}, "row 'sampling': logit_bias holds token id 32"),
        (["rows.2.method.width=65"], {}, "scores 65 tokens a step, and the context of random is 64 tokens"),
        (["rows.2.method.ngram=100"], {}, "row 'lookup <8>': ngram=100 is more than the context of random holds"),
        (["rows.2.policy={name: paged, block: 8192}"], {}, "(reference)': policy block=8192 is beyond the context"),
        (["rows.2.constraint={regex: '['}"], {}, "row"),
        (["rows.2.constraint={json_schema: /nowhere.json}"], {}, "/nowhere.json"),
    ],
)
def test_every_row_is_checked_before_anything_is_measured_or_written(make, tmp_path, overrides, extras, expected):
    needs = ["extras.draft=any"] if "speculative}" in overrides[0] else []
    model = small().attach(**{name: given() for name, given in extras.items()})
    with pytest.raises(InputError) as caught:
        run_(make(*needs, *overrides), model)
    assert expected in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_a_capacity_that_is_just_enough_is_enough(make):
    model, enough = small(), ["rows=[{name: greedy, method: greedy, policy: {name: window, capacity: 14}}]"]
    config = make(*enough, "decoding.repeats=1")  # 11 tokens and 4 new ones, of which the last has no slot
    assert len(results.read_rows(run_(config, model))) == 1

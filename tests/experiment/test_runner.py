import json
from types import SimpleNamespace

import pytest
import yaml
from fakes import FakeModel
from rich.console import Console

from jaxinfer import LayerKind, ModelConfig, Segment
from jaxinfer.errors import InputError
from jaxinfer.experiment import Interrupted, compare, load_prompts, results, run, runner
from jaxinfer.transform import extend_context


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
    assert found["greedy"].compile_seconds == pytest.approx(4 * 2 * 2.0)  # four passes of two batches


def test_what_is_measured_beside_a_row_is_kept_in_it(make):
    """Behind each of its timed passes, and once: what an interrupted run has is not measured again."""
    model, asked = FakeModel(), []

    def beside(record):
        asked.append((record["name"], len(model.calls)))
        return {"tokens": sum(p["emitted"] for p in record["prompts"])}

    config = make()
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
    assert lookup == [("lookup", 1, (5,)), ("lookup", 1, (6,))] * 4
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
    plan = runner.plan(config)
    assert [row.name for row in plan] == ["greedy (reference)", "greedy (reference) 2", "a", "b", "c"]
    assert plan[1].policy == {"name": "dense", "capacity": None}
    assert summaries(run_(config, FakeModel()))["b"].identical == "2/2"


def test_penalties_change_what_greedy_is(make):
    plan = runner.plan(
        make("rows.2.sampling={temperature: 0, repetition_penalty: 1.2}", "rows.1.sampling.repetition_penalty=1.3")
    )
    assert [row.name for row in plan] == ["greedy (reference)", "greedy", "sampling", "lookup <8>"]
    assert plan[0].method == {"name": "sample"}
    assert plan[0].sampling == {"temperature": 0.0, "repetition_penalty": 1.2}


def test_bans_and_biases_change_what_greedy_is_and_truncations_do_not(make):
    bans = "no_repeat_ngram: 2, logit_bias: {5: -1}, bad_words: [[1, 2]]"
    plan = runner.plan(make(f"rows.2.sampling={{temperature: 0, top_n_sigma: 1, typical_p: 0.9, {bans}}}"))
    assert [row.name for row in plan] == ["greedy (reference)", "greedy", "sampling", "lookup <8>"]
    given = {"no_repeat_ngram": 2, "logit_bias": [(5, -1.0)], "bad_words": [(1, 2)]}
    assert plan[0].sampling == {"temperature": 0.0, **given}
    assert runner.baseline(plan[3], plan) is plan[0]
    plan = runner.plan(make("rows.2.sampling={temperature: 0, top_n_sigma: 1, bad_words: []}"))
    assert runner.baseline(plan[2], plan).name == "greedy"


def test_a_constraint_changes_what_greedy_is(make):
    plan = runner.plan(make("rows.2.constraint={regex: a+}", "rows.1.constraint={regex: b}"))
    assert [row.name for row in plan[:2]] == ["greedy (reference)", "greedy (reference) 2"]
    assert runner.baseline(plan[4], plan).constraint == plan[4].constraint
    assert runner.baseline(plan[2], plan) is plan[2]


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
        *["sample", "sample"],
        *["sample", "sample", "greedy", "greedy"] * 3,
        *["lookup", "lookup"],
        *["lookup", "lookup", "greedy", "greedy"] * 3,
    ]
    assert list(summaries(folder)) == ["greedy", "sampling", "lookup <8>"]
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.yaml",
        "report.html",
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
    assert [method for method, *_ in again.calls] == ["lookup"] * 2 + ["lookup", "lookup", "greedy", "greedy"] * 3
    assert [json.loads(line)["name"] for line in path.read_text().splitlines()] == ["greedy", "sampling", "lookup <8>"]


def test_a_longer_context_has_room_for_longer_prompts(make):
    short = FakeModel(config=ModelConfig("llama", 97, 48, 80, 6, 2, 16, (Segment((LayerKind(),), 2),), 12))
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
            FakeModel(config=SimpleNamespace(max_positions=12)),
            (),
            "prompts: prompt 1 has 11 tokens; with decoding.max_new_tokens=4 this model takes at most 8",
        ),
        (
            FakeModel(config=ModelConfig("gpt2", 9, 8, 8, 2, 2, 4, (Segment((LayerKind(rope=None),), 1),), 64)),
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

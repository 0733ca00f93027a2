"""The script that lets a method and greedy decoding write the same text in turn."""

import json

import pytest
import scripts

import jaxinfer
from jaxinfer.errors import InputError
from jaxinfer.experiment import load_config
from jaxinfer.experiment.prepare import prepare
from jaxinfer.experiment.schema import RowSpec

side_by_side = scripts.load("side_by_side")


def config(folder, **values):
    file = folder / "side_by_side.yaml"
    base = {
        "name": "side_by_side",
        "model": "smollm2-135m",
        "decoding": {"max_new_tokens": 20, "repeats": 2},
        "rows": [{"name": "greedy", "method": "greedy"}, {"name": "lookup", "method": "lookup"}],
        "output": str(folder / "runs"),
    }
    file.write_text(json.dumps(base | values))
    return str(file)


class Clock:
    """A stream of pieces that notes whose turn it was."""

    def __init__(self, name, pieces, turns):
        self.name, self.left, self.turns = name, pieces, turns

    def __next__(self):
        if self.left == 0:
            raise StopIteration
        self.left -= 1
        self.turns.append(self.name)
        return "piece"


@pytest.mark.parametrize(("first", "order"), [(0, "gmgmgg"), (1, "mgmggg")])
def test_both_take_turns_to_their_ends(first, order):
    turns = []
    pieces = {jaxinfer.Greedy: ("g", 4), jaxinfer.Lookup: ("m", 2)}
    side_by_side.in_turn(lambda method: Clock(*pieces[type(method)], turns), jaxinfer.Lookup(), first)
    assert "".join(turns) == order


def test_the_seconds_of_a_pass_are_those_of_all_its_prompts():
    counts = {"steps": 10, "guessed": 4, "emitted": 15, "identical": True}
    found = [
        counts | {"seconds": [[4.0, 2.0], [3.0, 3.0], [6.0, 4.0]]},
        counts | {"seconds": [[2.0, 2.0], [3.0, 1.0], [1.0, 1.0]], "identical": False},
    ]
    row = side_by_side.summary("lookup", found)
    assert row["passes"] == pytest.approx([6 / 4, 6 / 4, 7 / 5])
    assert row["by_prompt"] == pytest.approx([13 / 9, 6 / 4])
    assert row["speedup"] == pytest.approx(1.5)
    assert (row["steps"], row["guessed"], row["tokens_per_step"]) == (20, 8, 1.5)
    assert (row["identical"], row["prompts"]) == (1, 2)


def test_counts_and_seconds_are_those_of_the_model(smollm2, tmp_path):
    spec = load_config(config(tmp_path))
    row = RowSpec("adaptive", {"name": "adaptive", "break_even": 1.2, "method": {"name": "lookup", "width": 4}})
    prompt = [1, 2, 3, 4, 1, 2, 3, 4, 1, 2]
    found = side_by_side.of_prompt(smollm2, prepare(smollm2, row, [prompt], spec.decoding), prompt, spec)
    method = jaxinfer.Adaptive(jaxinfer.Lookup(width=4), break_even=1.2)
    stats = smollm2.generate([prompt], max_new_tokens=20, method=method).stats
    assert (found["steps"], found["guessed"]) == (stats.steps[0], stats.guessed[0])
    assert found["emitted"] == 20
    assert found["identical"]
    assert len(found["seconds"]) == 2
    assert all(second > 0 for one in found["seconds"] for second in one)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"decoding": {"batch": 2}}, r"decoding\.batch=2: must be 1"),
        ({"rows": [{"name": "greedy", "method": "greedy"}]}, "rows: hold no method"),
        (
            {"rows": [{"name": "warm", "method": "sample", "sampling": {"temperature": 0.7}}]},
            r"rows\.0\.sampling: must be left out: 'warm'",
        ),
    ],
)
def test_what_greedy_decoding_cannot_be_beside_is_named(values, message, tmp_path):
    with pytest.raises(InputError, match=message):
        scripts.run("side_by_side", config(tmp_path, **values))
    assert not (tmp_path / "runs").exists()


def test_a_run_leaves_its_table_and_the_seconds_of_every_prompt(tmp_path):
    prompts = ["Say hello.", "Count to ten: one, two, three."]
    model = {"source": "smollm2-135m", "dtype": "float32"}
    decoding = {"max_new_tokens": 10, "repeats": 1}
    scripts.run("side_by_side", config(tmp_path, model=model, prompts=prompts, decoding=decoding))
    (folder,) = (tmp_path / "runs").iterdir()
    found = json.loads((folder / "results.json").read_text())
    assert [row["name"] for row in found["rows"]] == ["lookup"]  # greedy's own row is left out
    assert (found["rows"][0]["identical"], len(found["prompts"]["lookup"])) == (2, 2)
    assert "lookup" in (folder / "table.md").read_text()

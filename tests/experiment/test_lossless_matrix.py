"""The kind lossless_matrix on random weights: what it finds, a method that lies, and what it refuses."""

import dataclasses
import json
from dataclasses import dataclass
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import scripts

import jaxinfer
from jaxinfer import METHODS, InputError, Lookup
from jaxinfer.experiment import Prompt, kinds

CONFIG = str(scripts.ROOT / "configs" / "lossless_matrix.yaml")
PROMPTS = "prompts.source=[abcabcab,hello hello,xyxyxyxyxyxyxy]"
ONE_MODEL = ("models=[tiny]", "prompts.per_family=null", PROMPTS, "policies=[window]", "max_new_tokens=12")


@pytest.fixture(scope="module")
def script():
    return scripts.load("lossless_matrix")


@pytest.fixture
def loads(monkeypatch, tiny_gemma):
    """The model that is loaded, and how often it was."""
    letters = SimpleNamespace(
        stop_ids=(),
        has_chat=False,
        encode=lambda text: [ord(c) % 97 for c in text],
        decode=str,
        strips_first_space=False,
    )
    calls = []
    model = dataclasses.replace(tiny_gemma, tokenizer=letters)
    monkeypatch.setattr(jaxinfer, "load", lambda source, dtype: calls.append(source) or model)
    return calls


@dataclass(frozen=True)
class Liar(Lookup):
    """Says the id above the right one in the first place of its text, and claims to be lossless."""

    lossless: ClassVar[bool] = True

    def verify(self, ctx, state, draft, output, logits):
        verdict = super().verify(ctx, state, draft, output, logits)
        lies = (state.steps == 0)[:, None] & (np.arange(verdict.emit.shape[1]) == 0)
        return dataclasses.replace(verdict, emit=(verdict.emit + lies) % logits.shape[-1])


@pytest.fixture
def liar():
    """The name of a method that lies."""
    METHODS.add("liar", Liar)
    yield "liar"
    METHODS.remove("liar")


def run(script, tmp_path, methods, *more):
    overrides = (f"methods={json.dumps(methods)}", f"output={tmp_path}", *more)
    code = scripts.run("lossless_matrix", CONFIG, *ONE_MODEL, *overrides)
    (folder,) = tmp_path.iterdir()
    lines = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    rows = [row for line in lines for row in line["rows"]]
    return code, [row for row in rows if "method" in row], [row for row in rows if "greedy" in row]


def test_a_method_that_lies_is_found_and_an_interrupted_run_goes_on(
    script, tmp_path, monkeypatch, loads, tiny_gemma, liar
):
    methods = {"lookup": "lookup", "liar": liar}
    real = script.one_cell
    monkeypatch.setattr(script, "one_cell", lambda *args: real(*args) if len(loads) == 1 else pytest.fail("again"))
    code, cells, texts = run(script, tmp_path, methods, "batches=[3,1]")
    assert code == 1
    assert [(cell["method"], cell["batch"], cell["rows"]) for cell in cells] == [
        ("lookup", 3, 3),
        ("lookup", 1, 1),
        ("liar", 3, 3),
        ("liar", 1, 1),
    ]
    assert [len(cell["wrong"]) for cell in cells] == [0, 0, 3, 1]
    assert len(texts) == 3  # whatever the batch, the method and the policy
    prompt = [ord(c) % 97 for c in "abcabcab"]
    (wrong,) = [w for w in cells[2]["wrong"] if w["prompt"] == prompt]
    logits = np.asarray(tiny_gemma.logits([prompt]))[0, -1]
    best = int(logits.argmax())
    assert wrong["at"] == 0
    assert wrong["margin"] == pytest.approx(logits[best] - logits[(best + 1) % 97], abs=1e-4)
    (folder,) = tmp_path.iterdir()
    assert "0/3" in (folder / "table.md").read_text()

    lines = (folder / "rows.jsonl").read_text().splitlines()
    (folder / "rows.jsonl").write_text("\n".join(lines[:-2]) + "\n")  # the liar's cells
    ran = []
    monkeypatch.setattr(script, "one_cell", lambda *args: ran.append(args) or real(*args))
    code, again, _ = run(script, tmp_path, methods, "batches=[3,1]", "--resume")
    assert (code, len(ran)) == (1, 2)
    assert [cell["wrong"] for cell in again] == [cell["wrong"] for cell in cells]


def test_a_mesh_is_a_column_and_its_texts_are_those_of_one_device(script, tmp_path, loads):
    meshes = 'meshes=[null,"data=1,tensor=1"]'
    code, cells, texts = run(script, tmp_path, {"lookup": "lookup"}, "batches=[3]", meshes)
    assert (code, len(texts)) == (0, 3)
    assert [(cell["mesh"], cell["wrong"]) for cell in cells] == [("one device", []), ("data=1,tensor=1", [])]
    (folder,) = tmp_path.iterdir()
    assert "| tiny  | data=1,tensor=1 | window | lookup |" in (folder / "table.md").read_text()


def test_the_config_covers_every_lossless_method_and_each_batch_every_family(script):
    config = kinds.read(CONFIG).config
    methods = script.methods_of(config)
    assert [kind for name, (_, kind) in methods.items() if name.startswith("medusa")] == ["medusa", "hydra"]
    lossless = {cls for cls in METHODS.values() if cls().lossless}
    assert {type(method) for method, _ in methods.values()} == lossless
    families = [Prompt(f"{family}", f"{family}{i}") for family in "abcdef" for i in range(2)]
    order = script.in_turn(families)
    texts = [[ord(prompt.family)] * 400 for prompt in order]
    for first in range(12):
        ((*rows,),) = script.batches_of(config, 8, texts, first)
        assert {prompt[0] for prompt, _ in rows} == set(map(ord, "abcdef"))
        assert {len(prompt) for prompt, _ in rows} == {320}
        assert len(script.batches_of(config, 1, texts, first)) == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("policies=[quantized]", "policies: 'quantized' rounds keys and values"),
        ("policies=[nothing]", "'nothing' is no policy; valid: dense, "),
        ("meshes=[{dta: 2}]", "meshes.0: a mesh has no axis 'dta'; nearest: 'data'"),
        ("batches=[0]", "batches: 0 must be a whole number from 1, or 'ragged'"),
        ("texts=0", "texts=0 must be at least 1"),
        ("methods.tree.lenience=0.5", "methods.tree: .* is lossy"),
        ("methods.both={name: fallback, second: medusa}", "methods.both: .* needs heads within"),
    ],
)
def test_a_config_that_makes_no_sense(script, tmp_path, override, message):
    with pytest.raises(InputError, match=message):
        scripts.run("lossless_matrix", CONFIG, override, f"output={tmp_path}")
    assert not list(tmp_path.iterdir())


def test_a_text_that_goes_on_where_greedys_ends_has_no_margin(script):
    (wrong,) = script.compare(None, [([1], 3)], [[5, 6]], {"[1]": [5, 6, 7]})
    assert wrong == {"prompt": [1], "length": 1, "at": None, "margin": None}
    cell = {"wrong": [wrong, wrong | {"margin": 0.5}], "rows": 3, "tokens_per_step": 1.5}
    assert script.shown(cell) == "1/3 margin inf (1.50)"

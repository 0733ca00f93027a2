"""The script that times decode steps by their width, over batch sizes."""

import json

import pytest
import scripts

from jaxinfer import Jacobi, Lookup
from jaxinfer.checkpoint import presets
from jaxinfer.errors import InputError
from jaxinfer.experiment.schema import ModelSpec

SMALL = presets.SHAPES["llama-2-7b"].replace(vocab_size=131, d_model=64, d_ff=128, n_heads=2, n_kv_heads=1, head_dim=32)


@pytest.fixture
def when_it_pays(monkeypatch):
    monkeypatch.setitem(presets.SHAPES, "small", SMALL)
    return scripts.load("when_it_pays")


def config(folder, **values):
    file = folder / "when_it_pays.yaml"
    base = {"name": "pays", "model": "random:small", "live": 5, "rounds": 1, "steps": 2, "output": str(folder / "runs")}
    file.write_text(json.dumps(base | values))
    return str(file)


def test_a_chain_pays_from_where_its_tokens_are_worth_its_time(when_it_pays):
    spec = when_it_pays.Config("pays", ModelSpec("random:small"), widths=(1, 4, 2))
    rows = when_it_pays.of_batch(spec, {1: 2.0, 4: 5.0, 8: 9.0, 2: 6.0}, 3)
    assert [(row["batch"], row["width"], row["ratio"]) for row in rows] == [(3, 1, 1.0), (3, 2, 3.0), (3, 4, 2.5)]
    assert rows[1]["pays_from"] is None  # three times the time for two tokens
    a = rows[2]["pays_from"]
    assert 1 + a + a**2 + a**3 == pytest.approx(2.5)


def test_a_method_pays_for_its_guesses_too(when_it_pays, monkeypatch):
    asked = []

    def guesses(model, method, batches):
        asked.append((model, method, batches))
        return 1.0 if isinstance(method, Lookup) else 6.0

    monkeypatch.setattr(when_it_pays, "propose_seconds", guesses)
    methods = {"lookup": Lookup(width=8, ngram=5, min_ngram=2, narrow=4), "jacobi": Jacobi(width=4)}
    rows = when_it_pays.of_methods(methods, "model", {1: 2.0, 4: 4.0, 8: 7.0}, 3, [[1], [2, 2]])
    assert asked == [("model", method, [[[1], [2, 2], [1]]]) for method in methods.values()]
    assert [(row["method"], row["width"], row["tokens"]) for row in rows] == [
        ("lookup", 4, 2.5),
        ("lookup", 8, 4.0),
        ("jacobi", 4, 5.0),
    ]
    assert [row["share"] for row in rows] == [0.5, pytest.approx(3 / 7), None]  # five of four tokens: never
    assert when_it_pays.methods_table(rows).rows == (
        ("lookup", "4", "2.50 (50%)"),
        ("lookup", "8", "4.00 (43%)"),
        ("jacobi", "4", "5.00 (never)"),
    )


def test_methods_are_measured_on_a_real_model(when_it_pays, tmp_path):
    """Two rows, of one prompt: the time of their guesses is added to that of the steps over them."""
    extras = {"draft": {"source": "smollm2-135m", "dtype": "float32", "layers": [0, 29]}}
    methods = {"speculative": {"name": "speculative", "width": 3}}
    scripts.run(
        "when_it_pays",
        config(
            tmp_path,
            model={"source": "smollm2-135m", "dtype": "float32"},
            prompts=["What is 2 + 2?"],
            batches=[2],
            widths=[1, 3],
            methods=methods,
            extras=extras,
        ),
    )
    (folder,) = (tmp_path / "runs").iterdir()
    found = json.loads((folder / "results.json").read_text())
    one, three = (row["seconds"] for row in found["widths"])
    (row,) = found["methods"]
    assert (row["batch"], row["method"], row["width"]) == (2, "speculative", 3)
    assert row["guesses"] > 0
    assert row["tokens"] == pytest.approx((three + row["guesses"]) / one)


def test_every_batch_and_width_is_measured_and_drawn(when_it_pays, tmp_path):
    scripts.run("when_it_pays", config(tmp_path, batches=[2, 1], widths=[3, 1]))
    (folder,) = (tmp_path / "runs").iterdir()
    rows = json.loads((folder / "results.json").read_text())["widths"]
    assert [(row["batch"], row["width"]) for row in rows] == [(2, 1), (2, 3), (1, 1), (1, 3)]
    assert all(row["seconds"] > 0 for row in rows)
    assert all("<svg" in (folder / name).read_text() for name in ("cost.svg", "acceptance.svg"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"widths": [2, 4]}, "must hold 1"),
        ({"batches": [0]}, r"batches=\[0\]"),
        ({"steps": 0}, "steps=0"),
        ({"methods": {"mine": "lokup"}}, r"methods\.mine: unknown method 'lokup'"),
        ({"methods": {"mine": "greedy"}}, r"methods\.mine: makes no guesses"),
        ({"methods": {"mine": "speculative"}}, r"methods\.mine: needs extras\.draft"),
        ({"methods": {"mine": "lookup"}}, "'random:small' has no tokenizer"),
    ],
)
def test_numbers_that_cannot_be_measured_are_named(when_it_pays, tmp_path, values, message):
    with pytest.raises(InputError, match=message):
        scripts.run("when_it_pays", config(tmp_path, **values))
    assert not (tmp_path / "runs").exists()

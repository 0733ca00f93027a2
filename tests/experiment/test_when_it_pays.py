"""The script that times decode steps by their width, over batch sizes."""

import json

import pytest
import scripts

from jaxinfer import shapes
from jaxinfer.errors import InputError
from jaxinfer.experiment.schema import ModelSpec

SMALL = shapes.LLAMA2_7B.replace(vocab_size=131, d_model=64, d_ff=128, n_heads=2, n_kv_heads=1, head_dim=32)


@pytest.fixture
def when_it_pays(monkeypatch):
    monkeypatch.setitem(shapes.SHAPES, "small", SMALL)
    return scripts.load("when_it_pays")


def config(folder, **values):
    file = folder / "when_it_pays.yaml"
    base = {"name": "pays", "model": "random:small", "live": 5, "rounds": 1, "steps": 2, "output": str(folder / "runs")}
    file.write_text(json.dumps(base | values))
    return str(file)


def test_a_chain_pays_from_where_its_tokens_are_worth_its_time(when_it_pays, monkeypatch):
    asked = []

    def seconds(model, widths, batch, live, rounds, steps):
        asked.append((widths, batch, live, rounds, steps))
        return {1: 2.0, 4: 5.0, 2: 6.0}

    monkeypatch.setattr(when_it_pays, "step_seconds", seconds)
    spec = when_it_pays.Config("pays", ModelSpec("random:small"), widths=(1, 4, 2))
    rows = when_it_pays.of_batch(spec, None, 3)
    assert asked == [((1, 4, 2), 3, 256, 5, 12)]
    assert [(row["batch"], row["width"], row["ratio"]) for row in rows] == [(3, 1, 1.0), (3, 2, 3.0), (3, 4, 2.5)]
    assert rows[1]["pays_from"] is None  # three times the time for two tokens
    a = rows[2]["pays_from"]
    assert 1 + a + a**2 + a**3 == pytest.approx(2.5)


def test_every_batch_and_width_is_measured_and_drawn(when_it_pays, tmp_path):
    when_it_pays.main(config(tmp_path, batches=[2, 1], widths=[3, 1]))
    (folder,) = (tmp_path / "runs").iterdir()
    rows = json.loads((folder / "results.json").read_text())
    assert [(row["batch"], row["width"]) for row in rows] == [(2, 1), (2, 3), (1, 1), (1, 3)]
    assert all(row["seconds"] > 0 for row in rows)
    assert all("<svg" in (folder / name).read_text() for name in ("cost.svg", "acceptance.svg"))


@pytest.mark.parametrize(
    ("values", "message"),
    [({"widths": [2, 4]}, "must hold 1"), ({"batches": [0]}, r"batches=\[0\]"), ({"steps": 0}, "steps=0")],
)
def test_numbers_that_cannot_be_measured_are_named(when_it_pays, tmp_path, values, message):
    with pytest.raises(InputError, match=message):
        when_it_pays.main(config(tmp_path, **values))
    assert not (tmp_path / "runs").exists()

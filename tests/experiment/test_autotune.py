"""The table of block sizes: what the script writes is what the kernels run with."""

import json

import jax
import jax.numpy as jnp
import pytest
import scripts
import yaml

from jaxinfer import InputError
from jaxinfer.kernels import blocks, dispatch, matmul, tpu
from jaxinfer.layers.linear import matmul as linear
from jaxinfer.weights.formats import FORMATS

pytestmark = pytest.mark.quick

OTHER = {"TPU v9": {"matmul": {"int8 8": {"outputs": 256, "depth": 64, "basis": "measured: elsewhere"}}}}


@pytest.fixture
def autotune():
    return scripts.load("autotune")


@pytest.fixture
def config(tmp_path):
    def write(**changes):
        given = {
            "name": "tiny",
            "candidates": {
                "tpu": {
                    "matmul": {"outputs": [128], "depth": [32, 64]},
                    "attention": {"rows": [16], "block": [128], "heads": [1, 2]},
                }
            },
            "attention": {"heads": 4, "kv_heads": 2, "width": 64, "batch": 1, "live": 128, "tokens": 128},
            "matmul": {"outputs": 384, "inputs": 256},
            "classes": ["int8 8", "int4 8", "decode"],
            "rounds": 1,
            "steps": 1,
            "interpret": True,
            "table": str(tmp_path / "blocks.yaml"),
            "output": str(tmp_path / "runs"),
        } | changes
        file = tmp_path / "tiny.yaml"
        file.write_text(json.dumps(given))
        return str(file)

    return write


def steps(layers, outputs, inputs):
    """How many blocks of outputs the kernel makes of a product, under the table in use."""
    weight = FORMATS["int8"].encode(jnp.ones((layers, outputs, inputs)))

    def product(x, weight):
        with dispatch.use("pallas", target="tpu"):
            return linear(x, weight, (outputs, inputs), layer=jnp.int32(0))

    equations = jax.make_jaxpr(product)(jnp.ones((1, inputs), jnp.bfloat16), weight).eqns
    (call,) = (eqn for eqn in equations if eqn.primitive.name == "pallas_call")
    return call.params["grid_mapping"].grid


def test_the_kernels_run_with_what_was_measured(autotune, config, tmp_path, capsys):
    table = tmp_path / "blocks.yaml"
    table.write_text(yaml.safe_dump(OTHER))
    assert steps(1, 384, 256) == (1,)
    scripts.run("autotune", config())
    written = yaml.safe_load(table.read_text())
    assert written.pop("TPU v9") == OTHER["TPU v9"]
    assert set(written) == {"tpu"}
    found = written["tpu"]
    assert set(found["matmul"]) == {"int8 8", "int4 8"}
    assert found["matmul"]["int8 8"]["outputs"] == 128
    assert found["matmul"]["int4 8"]["depth"] in (32, 64)
    assert found["attention"]["decode"]["heads"] in (1, 2)
    assert found["matmul"]["int4 8"]["basis"].startswith("measured: interpreted, ")
    (folder,) = (tmp_path / "runs").iterdir()
    tried = json.loads((folder / "results.json").read_text())["classes"]["matmul int4 8"]
    assert [one["depth"] for one in tried] == [32, 64]
    assert all(one["seconds"] > 0 for one in tried)
    assert "of 2; 0 refused; plain XLA takes" in capsys.readouterr().err
    with blocks.use(table):
        assert steps(1, 384, 256) == (3,)
        assert tpu.Plan.of(1, 2, 2, 1024, 64, 2).block == 128
        assert blocks.sizes("tpu", "matmul", "int8 64") == {"outputs": 512, "depth": 512}  # the package's
    assert steps(1, 384, 256) == (1,)
    assert tpu.Plan.of(1, 2, 2, 1024, 64, 2).block == 1024


def test_what_does_not_compile_or_gives_other_numbers_is_refused_and_nothing_written(
    autotune, config, tmp_path, monkeypatch, capsys
):
    def fails(*_):
        raise ValueError("out of VMEM\nand more")

    monkeypatch.setattr(matmul, "by_kernel", fails)
    scripts.run("autotune", config(classes=["int8 8"], kernels=["matmul"]))
    assert "matmul int8 8: no candidate runs; ValueError: out of VMEM" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setattr(autotune, "OFF", 0.0)  # no sum is exact
    scripts.run("autotune", config(classes=["int8 8"], kernels=["matmul"]))
    assert "matmul int8 8: no candidate runs; its numbers are off by" in capsys.readouterr().err
    assert not (tmp_path / "blocks.yaml").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"interpret": False}, r"no TPU or GPU \(cpu\): there is nothing to tune here"),
        ({"table": str(blocks.TABLE)}, "table must name another file than the package's"),
        ({"kernels": ["mlp"]}, "kernels.0: 'mlp' is none of attention, matmul"),
        ({"classes": ["int3 8"]}, "classes.0: 'int3 8' is none of"),
        ({"target": "gpu"}, "candidates.gpu.attention: must give numbers from 1 for block, stages"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(autotune, config, tmp_path, changes, words):
    with pytest.raises(InputError, match=words):
        scripts.run("autotune", config(**changes))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1]", "the table: must be a mapping"),
        ("tpu: {matmul: {int3 8: {outputs: 1, depth: 1, basis: 'reasoned: x'}}}", "tpu.matmul.int3 8: is none of"),
        ("tpu: {matmul: {int8 8: {outputs: 1, depth: 1, basis: guessed}}}", "basis: must begin with 'measured:'"),
        ("tpu: {matmul: {int8 8: {outputs: 0, depth: 1, basis: 'reasoned: x'}}}", "outputs: must be a whole number"),
        (
            "tpu: {matmul: {int8 8: {outputs: 1, basis: 'reasoned: x'}}}",
            "must have basis and outputs, depth or outputs, stages",
        ),
        ("tpu: {", "no table of block sizes"),
    ],
)
def test_a_table_is_checked(tmp_path, text, words):
    file = tmp_path / "blocks.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=words):
        blocks.read(file)


def test_the_package_has_sizes_for_every_class():
    for (platform, kernel), sizes in blocks.SIZES.items():
        for shapes in blocks.CLASSES[kernel]:
            found = blocks.sizes(platform, kernel, shapes)
            assert set(found) == set(sizes)

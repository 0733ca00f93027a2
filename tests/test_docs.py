"""What the documents show works: their code runs, their commands are tested, their links lead somewhere."""

import re
from pathlib import Path

import numpy as np
import pytest

import jaxinfer
from jaxinfer.checkpoint import families

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
INSTALL = 'pip install -e ".[demo,gemma,test]"'


def python_blocks(path):
    return re.findall(r"```python\n(.*?)```", path.read_text(), flags=re.DOTALL)


def defined(name):
    """What CONTRIBUTING.md defines under this name."""
    block = next(
        block for block in python_blocks(ROOT / "CONTRIBUTING.md") if re.search(rf"^(class )?{name}\b", block, re.M)
    )
    # Dataclasses look their module up by name.
    scope = {"__name__": __name__}
    exec(block, scope)
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


def test_example_of_the_readme_runs(smollm2, monkeypatch, capsys):
    (example,) = python_blocks(ROOT / "README.md")
    monkeypatch.setattr(jaxinfer, "load", lambda name: {"smollm2-135m": smollm2}[name], raising=False)
    exec(example, {"__name__": __name__})
    assert capsys.readouterr().out.strip()


def test_tested_commands_are_those_of_the_readme():
    readme = (ROOT / "README.md").read_text()
    script = (ROOT / ".ci" / "run").read_text()
    assert f"{INSTALL} && pytest" in readme
    assert INSTALL.removeprefix("pip install ") in script
    assert re.search(r"^pytest\b", script, re.MULTILINE)


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

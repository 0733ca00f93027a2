"""Every family against transformers: small random models, from the files that tests/golden/make.py wrote.

The files alone show that we compute what transformers computed, where torch is not installed. Where it is, it reads the
same models live, and it reads back what we export.
"""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import jaxinfer
from jaxinfer.checkpoint import save_folder
from jaxinfer.checkpoint.loading import load_checkpoint

GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.npz"))


class Golden:
    """One file: a model folder made of it, our model, and what transformers computed."""

    def __init__(self, file: Path, folder: Path):
        arrays = np.load(file)
        tensors = {key.removeprefix("tensor:"): x for key, x in arrays.items() if key.startswith("tensor:")}
        (folder / "config.json").write_text(str(arrays["config"]))
        save_file(
            {key: x.astype(np.float32) / 64 for key, x in tensors.items()},
            folder / "model.safetensors",
            metadata={"format": "pt"},
        )
        self.folder = folder
        self.ours = jaxinfer.load(str(folder), dtype="float32")
        self.prompts = [arrays[f"prompt:{i}"].tolist() for i in range(len(arrays["new"]))]
        self.logits = [arrays[f"logits:{i}"] for i in range(len(self.prompts))]
        self.new = arrays["new"].tolist()
        self.attention = "sdpa" if "falcon" in file.stem else "eager"  # as in tests/golden/make.py

    def in_torch(self, folder=None):
        """The model in transformers, from its folder or another, and what it says about loading it."""
        torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
        options = dict(dtype=torch.float32, attn_implementation=self.attention, output_loading_info=True)
        model, info = transformers.AutoModelForCausalLM.from_pretrained(folder or self.folder, **options)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        return model.eval()


@pytest.fixture(scope="module", params=GOLDEN, ids=lambda file: file.stem)
def golden(request, tmp_path_factory):
    return Golden(request.param, tmp_path_factory.mktemp("golden"))


def torch_logits(model, ids):
    """float32[T, V] of one row, alone and without a cache."""
    import torch

    with torch.inference_mode():
        return model(torch.tensor([ids]), use_cache=False).logits[0].numpy()


def assert_close(found, expected):
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def test_logits(golden):
    """Rows are padded on the right; what follows a token must not reach it."""
    longest = max(map(len, golden.prompts))
    found = np.asarray(golden.ours.logits([ids + [0] * (longest - len(ids)) for ids in golden.prompts]))
    for row, ids, expected in zip(found, golden.prompts, golden.logits, strict=True):
        assert_close(row[: len(ids)], expected)


def test_greedy(golden):
    """From the cache, on ragged rows, beyond windows of 8: the tokens that transformers chose without a cache."""
    assert golden.ours.generate(golden.prompts, max_new_tokens=32).tokens == golden.new


def test_transformers_still_says_so(golden):
    """Live: logits of each prompt with its continuation, whose choices are then transformers' own."""
    theirs = golden.in_torch()
    for ids, new, expected in zip(golden.prompts, golden.new, golden.logits, strict=True):
        found = torch_logits(theirs, ids + new)
        assert_close(found[: len(ids)], expected)
        assert found[len(ids) - 1 : -1].argmax(axis=1).tolist() == new


def test_export(golden, tmp_path):
    """transformers reads what we write, and finds in it the weights that it read from the original."""
    save_folder(load_checkpoint(golden.folder), tmp_path / "out", shard_bytes=40_000)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    found, expected = (golden.in_torch(folder).state_dict() for folder in (tmp_path / "out", golden.folder))
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        # Gemma's norms lose a bit in 1 + w; OPT's first two positions stand for no token.
        skipped = 2 if name.endswith("embed_positions.weight") else 0
        np.testing.assert_allclose(found[name][skipped:], weight[skipped:], rtol=0, atol=1e-6, err_msg=name)
    again = json.loads((tmp_path / "out" / "config.json").read_text())
    assert again["model_type"] == json.loads((golden.folder / "config.json").read_text())["model_type"]
    assert_close(torch_logits(golden.in_torch(tmp_path / "out"), golden.prompts[2]), golden.logits[2])


def test_files_of_a_family_are_small():
    sizes = Counter()
    for file in GOLDEN:
        sizes[json.loads(str(np.load(file)["config"]))["model_type"]] += file.stat().st_size
    assert len(sizes) == 27
    assert max(sizes.values()) <= 200_000, sizes.most_common(1)

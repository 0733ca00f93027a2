import pytest
import yaml

from jaxinfer.experiment import load_config

CONFIG = {
    "name": "trial",
    "model": "smollm2-135m",
    "prompts": {"source": ["abcdef", "uvwxyz <b>&"], "chat": False},
    "decoding": {"max_new_tokens": 4, "repeats": 3},
    "rows": [
        {"name": "greedy", "method": "greedy"},
        {"name": "sampling", "method": "sample", "sampling": {"temperature": 0.7}},
        {"name": "lookup <8>", "method": {"name": "lookup", "width": 8}},
    ],
}


@pytest.fixture
def config_file(tmp_path):
    """A config of three rows whose runs go below tmp_path."""
    path = tmp_path / "trial.yaml"
    path.write_text(yaml.safe_dump({**CONFIG, "output": str(tmp_path / "runs")}))
    return path


@pytest.fixture
def make(config_file):
    """The experiment of `config_file` under some overrides."""
    return lambda *overrides: load_config(config_file, overrides)

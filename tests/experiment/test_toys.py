"""A weight format, a method, a policy and a kind of experiment, each a file of a user, in one `jaxinfer run`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jaxinfer

ROOT = Path(jaxinfer.__file__).parents[1]
FORMAT = '''
"""Signs and the mean magnitude of an output."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import struct

from jaxinfer.weights.contract import WeightFormat
from jaxinfer.weights.formats import FORMATS
from jaxinfer.weights.qtensor import QTensor


@struct.dataclass
class SignWeight(QTensor):
    codes: jax.Array
    scale: jax.Array


@dataclass(frozen=True)
class Signs(WeightFormat):
    def encode(self, w, n_in=1):
        outer, inputs = w.shape[: w.ndim - n_in], w.shape[w.ndim - n_in :]
        w = w.reshape(*outer, -1).astype(jnp.float32)
        return SignWeight(self, inputs, jnp.sign(w).astype(jnp.int8), jnp.abs(w).mean(axis=-1))

    def decode(self, weight):
        return (weight.codes * weight.scale[..., None]).reshape(*weight.codes.shape[:-1], *weight.inputs)


FORMATS.add("signs", Signs())
'''
METHOD = '''
"""Guess that the newest token comes again."""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp

from jaxinfer import METHODS
from jaxinfer.decoding.contract import DecodeMethod, Draft, Verdict
from jaxinfer.decoding.sampling.acceptance import accept


@dataclass(frozen=True)
class Repeat(DecodeMethod):
    width: int = 4
    samples: ClassVar[bool] = True

    def propose(self, ctx, state):
        tokens = jnp.repeat(state.pending[:, None], self.width, axis=1)
        return Draft(tokens, size=jnp.full_like(state.n, self.width))

    def verify(self, ctx, state, draft, output, logits):
        return Verdict(*accept(state, draft, logits))


METHODS.add("repeat", Repeat)
'''
POLICY = '''
"""Every token, in slots that are stored with the sign turned."""

from dataclasses import dataclass

from jaxinfer import POLICIES, Dense


@dataclass(frozen=True)
class Turned(Dense):
    def encode(self, x):
        return -super().encode(x)

    def decode(self, stored, dtype):
        return super().decode(-stored, dtype)


POLICIES.add("turned", Turned)
'''
KIND = '''
"""Count the steps of methods on one prompt, each under each policy."""

from dataclasses import dataclass

from jaxinfer import METHODS, POLICIES
from jaxinfer.experiment import KINDS, Kind, Table
from jaxinfer.experiment.schema import ModelSpec
from jaxinfer.host.values import FORBID_UNKNOWN_KEYS


@dataclass(frozen=True)
class Config:
    name: str
    model: ModelSpec
    methods: tuple[str, ...]
    policies: tuple[str, ...]
    output: str = "runs"

    __pydantic_config__ = FORBID_UNKNOWN_KEYS


def measure(item, run):
    method, policy = item
    found = run.model.generate([[1, 2, 3, 4]], max_new_tokens=8, method=METHODS[method](), policy=POLICIES[policy]())
    return {"method": method, "policy": policy, "weights": run.model.weights, "tokens": found.tokens[0]}


KINDS.add(
    "steps",
    Kind(
        Config,
        items=lambda config, prompts: {f"{m} under {p}": (m, p) for m in config.methods for p in config.policies},
        measure=measure,
        table=lambda rows: Table.of(rows, {"method": "{method}", "policy": "{policy}"}, "steps"),
    ),
)
'''
CONFIG = """
kind: steps
name: toys
plugins: [mine/signs.py, mine/repeat.py, mine/turned.py, mine/steps.py]
model: {source: smollm2-135m, weights: signs}
methods: [greedy, repeat]
policies: [dense, turned]
"""


def test_four_files_of_a_users_own_run_together(tmp_path, smollm2):
    (mine := tmp_path / "mine").mkdir()
    for name, text in {"signs": FORMAT, "repeat": METHOD, "turned": POLICY, "steps": KIND}.items():
        (mine / f"{name}.py").write_text(text.lstrip())
    (tmp_path / "toys.yaml").write_text(CONFIG)
    command = [sys.executable, "-m", "jaxinfer.cli", "run", "toys.yaml", f"output={tmp_path / 'runs'}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    [folder] = (tmp_path / "runs").iterdir()
    rows = [row for line in (folder / "rows.jsonl").read_text().splitlines() for row in json.loads(line)["rows"]]
    assert [(row["method"], row["policy"]) for row in rows] == [
        (method, policy) for method in ("greedy", "repeat") for policy in ("dense", "turned")
    ]
    assert {row["weights"] for row in rows} == {"signs"}
    assert len({tuple(row["tokens"]) for row in rows}) == 1  # the method is lossless, and so is the policy
    assert len(rows[0]["tokens"]) == 8
    plain = smollm2.generate([[1, 2, 3, 4]], max_new_tokens=8, ignore_eos=True).tokens[0]
    assert rows[0]["tokens"] != plain  # the format is not

"""Configs and overrides with anything anywhere: an experiment, or one line."""

import copy
import json

import pytest
import yaml
from conftest import CONFIG
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxinfer.errors import InputError
from jaxinfer.experiment import Experiment, load_config, results
from jaxinfer.experiment.train_heads import Training, check
from jaxinfer.experiment.typed import read_as

pytestmark = pytest.mark.quick

WHOLE = {
    **CONFIG,
    "model": {"source": "a", "dtype": "float32", "weights": "int8", "context": {"kind": "yarn", "factor": 2.0}},
    "prompts": {"source": ["a"], "limit": 1, "per_family": 1, "chat": False},
    "extras": {"draft": {"source": "a", "layers": [0], "extras": {"draft": {"source": "b"}}}},
    "output": "runs",
}
WHOLE["rows"] = [
    {
        "name": "a",
        "method": {"name": "adaptive", "method": {"name": "lookup", "width": 4}},
        "policy": {"name": "paged", "capacity": 64, "pool": 4},
        "sampling": {"temperature": 0.5, "logit_bias": {3: 1.0}, "bad_words": [[1, 2]]},
        "constraint": {"regex": "a"},
    },
    *CONFIG["rows"],
]
HEADS = {"model": "a", "output": "b", "data": {"samples": 3, "prompts": "quickstart"}, "training": {"steps": 3}}
NUMBERS = [-1, 0, 1, 2**31, 2**63, -(2**63), 1e308, -0.5, float("nan"), float("inf")]
TEXTS = ["", " ", "x", "lookup", "a" * 5000, "\x00", "~nouser", "../..", "a/b", "\u2028", "\ud800", "1e9"]
TREES = [None, True, [], [[]], {}, {"name": "greedy"}, {1: 2}, {"": ""}, [None]]
VALUES = st.sampled_from([*NUMBERS, *TEXTS, *TREES])
KEYS = st.sampled_from([None, None, None, "x", "nam", 7, "a" * 5000])
ENDS = st.sampled_from(["", "", "", ".x", ".", "." * 3, ".0", ".9999999999999", "a" * 5000, "\x00", "\u0661"])


def places(tree, path=()):
    """The path of every value in a tree."""
    yield path
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in entries:
        yield from places(value, (*path, key))


def put(tree, path, value, new_key):
    """The tree with `value` at a path, under the key `new_key` if there is one."""
    tree = copy.deepcopy(tree)
    here = tree
    for key in path[:-1]:
        here = here[key]
    if new_key is None or isinstance(here, list):
        here[path[-1]] = value
    else:
        here[new_key] = here.pop(path[-1])
    return tree


def outcome(read):
    """Give what is read, or the line of its refusal."""
    try:
        return read(), None
    except InputError as error:
        return None, str(error)


@settings(derandomize=True, max_examples=150, deadline=None, database=None)
@given(st.data())
def test_a_config_with_anything_anywhere_is_an_experiment_or_one_line(tmp_path_factory, data):
    file = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    tree = WHOLE
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from([path for path in places(tree) if path]))
        tree = put(
            tree, path, data.draw(VALUES), data.draw(st.sampled_from([None, None, None, "x", "nam", 7, "a" * 5000]))
        )
    file.write_text(yaml.safe_dump(tree))
    found, problem = outcome(lambda: load_config(file))
    if problem is None:
        assert isinstance(found, Experiment)
        yaml.safe_dump(results.mapping_of(found))  # what its run folder holds
    else:
        assert problem.startswith(str(file))
        assert "\n" not in problem
        assert len(problem) < 600


@settings(derandomize=True, max_examples=150, deadline=None, database=None)
@given(st.data())
def test_overrides_with_anything_anywhere_are_kept_or_named_in_one_line(tmp_path_factory, data):
    file = tmp_path_factory.getbasetemp() / "whole.yaml"
    file.write_text(yaml.safe_dump(WHOLE))
    path = ".".join(map(str, data.draw(st.sampled_from([path for path in places(WHOLE) if path]))))
    path += data.draw(ENDS)
    value = data.draw(VALUES)
    text = data.draw(st.sampled_from(["[" * 100, "{a: &a [*a]}", "9" * 5000, "!!x y", "'"]))
    text = data.draw(st.sampled_from([json.dumps(value), str(value), text]))
    found, problem = outcome(lambda: load_config(file, [f"{path}={text}"]))
    assert (found is None) == (problem is not None)
    if problem is not None:
        assert "\n" not in problem
        assert len(problem) < 700
        assert problem.startswith((f"override {f'{path}={text}'!r}"[:50], str(file)))


@settings(derandomize=True, max_examples=150, deadline=None, database=None)
@given(st.data())
def test_a_training_with_anything_anywhere_is_one_or_one_line(tmp_path_factory, data):
    file = tmp_path_factory.getbasetemp() / "heads.yaml"
    path = data.draw(st.sampled_from([path for path in places(HEADS) if path]))
    file.write_text(yaml.safe_dump(put(HEADS, path, data.draw(VALUES), data.draw(st.sampled_from([None, None, "x"])))))

    def read():
        found = read_as(Training, file)
        check(found, str(file))
        return found

    _, problem = outcome(read)
    assert problem is None or "\n" not in problem


def test_a_name_that_is_too_long_for_a_folder_is_refused(make):
    with pytest.raises(InputError, match="name: at most 100 characters"):
        make(f"name={'a' * 101}")

"""Files that add to a registry: all of what they add, or nothing, and one line where they fail."""

import sys

import pytest

from jaxinfer.errors import InputError
from jaxinfer.host import plugins
from jaxinfer.host.registry import Registry

pytestmark = pytest.mark.quick


@pytest.fixture
def toys(monkeypatch):
    """A registry that plug-in files find as `toys.TOYS`."""
    registry = Registry("toy", {"ball": 1})
    module = type(sys)("toys")
    module.TOYS = registry
    monkeypatch.setitem(sys.modules, "toys", module)
    return registry


def write(tmp_path, text):
    (file := tmp_path / "mine.py").write_text("from toys import TOYS\n" + text)
    return file


def test_a_file_adds_and_runs_once(toys, tmp_path):
    file = write(
        tmp_path, "from dataclasses import dataclass\n@dataclass\nclass Kite:\n    x: int\nTOYS.add('kite', Kite)"
    )
    plugins.load(["mine.py", file], tmp_path)
    plugins.load([str(file)])
    assert list(toys) == ["ball", "kite"]
    assert toys.find("kite", "toy")(3).x == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("TOYS.add('ball', 2)", r"mine.py: line 2: toy 'ball' is registered already"),
        ("TOYS.add('kite', 2)\nTOYS.add('kite', 3)", r"mine.py: line 3: toy 'kite' is registered already"),
        ("TOYS.add('kite', 2)\n1 / 0", r"mine.py: line 3: ZeroDivisionError: division by zero"),
        (
            "TOYS.add('kite', 2)\nimport nothing_of_this_name",
            r"line 3: ModuleNotFoundError: ",
        ),
        ("def f(:\n  pass", r"mine.py: line 2: SyntaxError: "),
        ("TOYS.add('a b', 2)", r"mine.py: line 2: toy 'a b': a name has letters"),
        ("TOYS.add(3, 2)", r"mine.py: line 2: toy 3: a name has"),
    ],
)
def test_a_file_that_fails_adds_nothing(toys, tmp_path, text, message):
    file = write(tmp_path, text)
    for _ in range(2):  # it was not taken for loaded
        with pytest.raises(InputError, match=message) as caught:
            plugins.load([file])
        assert "\n" not in str(caught.value)
        assert dict(toys) == {"ball": 1}
        assert toys not in [registry for registry, _ in Registry.added]


def test_files_that_cannot_be_read(tmp_path):
    for named, message in [
        (tmp_path / "none.py", r"plugins: .*none.py: no such file"),
        (tmp_path, r"plugins: .*: is a folder"),
        ("\0", r"plugins: .*NUL"),
    ]:
        with pytest.raises(InputError, match=message):
            plugins.load([named])


def test_a_name_that_is_not_there(toys):
    with pytest.raises(InputError, match=r"row 1: 'bal' must be one of ball; nearest: 'ball'"):
        toys.find("bal", "row 1")
    for other in (None, 3, "", []):
        with pytest.raises(InputError, match="must be one of ball"):
            toys.find(other, "row 1")

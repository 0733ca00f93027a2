"""The language of docstrings: a summary says what there is or what is done, and does not open like a question."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "jaxinfer"
OPENINGS = {"What", "How", "Whether", "Where", "Who", "Which", "Why"}
FILES = [*sorted(PACKAGE.rglob("*.py")), *sorted((ROOT / "experiments").glob("*.py"))]
pytestmark = pytest.mark.quick


def docstrings(source):
    """The first line and the text of each docstring in a module: its own, of its classes and of its functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield node.body[0].lineno, text


def opens_wrongly(text):
    return text.split()[0].rstrip(".,:;") in OPENINGS


def test_no_docstring_opens_like_a_question():
    assert len(FILES) > 250
    wrong = [
        f"{file.relative_to(ROOT)}:{line}: {text.splitlines()[0]}"
        for file in FILES
        for line, text in docstrings(file.read_text(encoding="utf-8"))
        if opens_wrongly(text)
    ]
    assert wrong == []


@pytest.mark.parametrize("opening", sorted(OPENINGS))
def test_each_opening_is_found(opening):
    found = list(docstrings(f'def f():\n    """{opening} it is."""\n'))
    assert found == [(2, f"{opening} it is.")]
    assert opens_wrongly(found[0][1])
    assert not opens_wrongly(f"Tell {opening.lower()} it is.")

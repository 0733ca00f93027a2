"""The plan of the package: rooms that import downwards only, files of a size to read, few things at the top."""

import ast
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import jaxinfer

PACKAGE = Path(jaxinfer.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
START_UP = ("__init__.py", "cli/app.py", "cli/analyze.py", "cli/commands.py")  # which import JAX only once it is needed
pytestmark = pytest.mark.quick


def imports(node, inside=False):
    """Each import of the package's own modules, and whether it stands in a function."""
    for child in ast.iter_child_nodes(node):
        within = inside or isinstance(child, (ast.FunctionDef, ast.Lambda))
        modules = [child.module or ""] if isinstance(child, ast.ImportFrom) else []
        modules += [name.name for name in child.names] if isinstance(child, ast.Import) else []
        yield from ((module, within) for module in modules if module.split(".")[0] == "jaxinfer")
        yield from imports(child, within)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_the_package_imports_itself_at_the_top_of_its_files(file):
    if str(file.relative_to(PACKAGE)) in START_UP:
        return
    tree = ast.parse(file.read_text())
    assert [module for module, within in imports(tree) if within] == []
    assert "TYPE_CHECKING" not in file.read_text() or not [
        node for node in ast.walk(tree) if isinstance(node, ast.If) and [*imports(node)]
    ], "an import for annotations alone hides a circle"


def test_rooms_import_downwards_only():
    code = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, timeout=120)
    assert done.returncode == 0, done.stdout


def test_files_can_be_read_in_one_sitting():
    lengths = {str(file.relative_to(PACKAGE)): len(file.read_text().splitlines()) for file in FILES}
    assert {name: n for name, n in lengths.items() if n > 350} == {}
    assert statistics.median(lengths.values()) < 150


def test_few_files_stand_at_the_top():
    root = PACKAGE.parent
    assert len([entry for entry in PACKAGE.iterdir() if entry.is_file()]) <= 7
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=root, timeout=60).stdout.split()
    if listed:
        assert len({name for name in listed if "/" not in name}) <= 7

"""The three streams of a command: closed, full, undecodable. In processes, for nothing else has them."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
JAXINFER = f"{shlex.quote(sys.executable)} -m jaxinfer.cli"


def shell(line):
    """(exit code, standard output, standard error) of a line of shell in which jaxinfer is the command."""
    line = line.replace("jaxinfer", JAXINFER)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = ["bash", "-o", "pipefail", "-c", line]
    done = subprocess.run(command, capture_output=True, cwd=ROOT, env=environment, timeout=120, check=False)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.mark.parametrize(
    ("line", "code", "error"),
    [
        ("jaxinfer list >&-", 1, "standard output: is closed"),
        ("jaxinfer --version >/dev/full", 1, "standard output: No space left on device"),
        ("jaxinfer --version 1</dev/null", 1, "standard output: Bad file descriptor"),
        ("jaxinfer list >/dev/full", 1, "standard output: No space left on device"),
        ("jaxinfer generate - <&-", 2, "the prompt is empty"),
        ("printf 'a\\xff' | jaxinfer generate -", 2, "standard input: is not UTF-8 text (character 1)"),
        ("jaxinfer run $(printf 'a\\xff')", 2, "argument 2: is not UTF-8 text: a\\udcff"),
        ("jaxinfer generate hi --model $(printf '\\xed\\xa0\\x80')", 2, "argument 4: is not UTF-8 text"),
    ],
)
def test_a_stream_that_cannot_be_used_is_one_line(line, code, error):
    found, out, err = shell(line)
    assert (found, out) == (code, "")
    assert err.startswith(f"error: {error}")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("jaxinfer --version 2>&-", 0),
        ("jaxinfer --version 2>/dev/full", 0),
        ("jaxinfer --version <&-", 0),
        ("jaxinfer nope 2>/dev/full", 2),
        ("jaxinfer nope 2>&-", 2),
    ],
)
def test_what_cannot_be_said_on_standard_error_changes_nothing(line, code):
    found, out, err = shell(line)
    assert (found, err) == (code, "")
    assert out == ("jaxinfer 0.1.0\n" if code == 0 else "")


def test_a_reader_that_leaves_early_ends_a_command_quietly():
    code, _, err = shell("jaxinfer list | true")
    assert (code, err) == (1, "")

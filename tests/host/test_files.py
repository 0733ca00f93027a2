"""Files that users name: what is read of them and what is refused, and what is written whole or not at all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxinfer.errors import InputError, shown, shown_text
from jaxinfer.host.files import draft_of, new_folder, parse_json, path_of, read_json, read_text, sweep, write_atomic

pytestmark = pytest.mark.quick


def test_reads_a_text_whole(tmp_path):
    (tmp_path / "a.txt").write_bytes("één\r\n".encode())
    assert read_text(tmp_path / "a.txt") == "één\r\n"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none", "no such file"),
        ("folder", "is a folder"),
        ("pipe", "is a pipe or a device"),
        ("latin", r"is not UTF-8 text \(byte 1\)"),
        ("large", "has 11 bytes, and at most 10 are read"),
    ],
)
def test_refuses_what_is_no_text(tmp_path, name, message):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "latin").write_bytes(b"a\xe9")
    (tmp_path / "large").write_bytes(b"x" * 11)
    with pytest.raises(InputError, match=f"--text: .*{name}: {message}"):
        read_text(tmp_path / name, "--text", most=10)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no devices")
def test_does_not_read_a_device():
    with pytest.raises(InputError, match="/dev/zero: is a pipe or a device"):
        read_text("/dev/zero")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("a\0b", "NUL"),
        ("a\ud800", "half a character"),
        ("~no-such-user-here/x", "no such user"),
        ("x" * 5000, "File name too long"),
        (None, "must be a path"),
        (b"x", "must be a path"),
    ],
)
def test_refuses_what_is_no_path(path, message):
    with pytest.raises(InputError, match=message) as caught:
        path_of(path, "--model")
    assert len(str(caught.value)) < 300
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 200_000, "is nested too deep"),
        ('{"a": NaN}', "NaN is not a number of JSON"),
        ("1" * 10_000, "is not valid JSON"),
        ("{", "is not valid JSON"),
        (b'"\xff"', "is not valid JSON"),
    ],
)
def test_refuses_what_is_no_json(text, message):
    with pytest.raises(InputError, match=f"^x.json: {message}|^x.json: is not valid JSON: {message}"):
        parse_json(text, "x.json")


def test_a_json_object_is_an_object(tmp_path):
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(InputError, match=r"a.json: must hold a JSON object, not \[1\]"):
        read_json(tmp_path / "a.json")


def test_names_are_cut_and_printable():
    assert shown_text("a" * 500) == "a" * 98 + "..." + "a" * 98
    assert shown_text("a\nb\x1b") == r"a\nb\x1b"
    assert len(shown("b" * 500)) <= 60

    class Bad:
        def __repr__(self):
            raise ValueError

    assert shown(Bad()) == "a Bad"


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    class Stop(Exception):
        pass

    def stopped():
        with new_folder(tmp_path / "deep" / "out") as draft:
            (draft / "part").write_text("x")
            raise Stop

    with pytest.raises(Stop):
        stopped()
    assert list((tmp_path / "deep").iterdir()) == []
    with new_folder(tmp_path / "deep" / "out") as draft:
        (draft / "part").write_text("x")
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["out"]
    with pytest.raises(InputError, match="already exists"), new_folder(tmp_path / "deep" / "out"):
        pass


KILLED = """
import os, signal, sys
from pathlib import Path
from jaxinfer.host.files import draft_of, new_folder
draft_of(Path(sys.argv[1]) / "file").write_text("half")
with new_folder(Path(sys.argv[1]) / "out") as draft:
    (draft / "part").write_text("x")
    print("ready", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_is_swept(tmp_path):
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False, capture_output=True)
    assert len(list(tmp_path.iterdir())) == 2  # a file and a folder, both with names that begin with a dot
    own = draft_of(tmp_path / "mine")
    own.write_text("being written")
    (tmp_path / "not.ours.tmp").write_text("a user's")
    sweep(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {own.name, "not.ours.tmp"}


def test_a_text_is_replaced_whole(tmp_path):
    write_atomic(tmp_path / "new" / "a", "one")
    write_atomic(tmp_path / "new" / "a", "two")
    assert (tmp_path / "new" / "a").read_text() == "two"
    assert len(list((tmp_path / "new").iterdir())) == 1

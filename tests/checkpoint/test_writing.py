"""Files are written whole or not at all: signals, full disks, places that cannot be written. With real processes."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import jaxinfer
from jaxinfer.checkpoint import convert, export, save_checkpoint
from jaxinfer.checkpoint.loading import load_checkpoint
from jaxinfer.errors import InputError
from jaxinfer.host.files import draft_of, refuse_existing

ROOT = Path(jaxinfer.__file__).parent.parent

# The command, which a signal reaches as soon as parameters are being written, and again a little later.
INTERRUPTED = """
import os, signal, sys, threading, time
import orbax.checkpoint as ocp
from jaxinfer.cli import commands as cli
number, times, source, destination = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:5]
begun, finish = threading.Event(), ocp.StandardCheckpointer.wait_until_finished

def waited(checkpointer):
    begun.set()
    time.sleep(0.2)
    finish(checkpointer)

def send():
    begun.wait()
    for _ in range(times):
        os.kill(os.getpid(), number)
        time.sleep(0.02)

ocp.StandardCheckpointer.wait_until_finished = waited
threading.Thread(target=send, daemon=True).start()
sys.argv = ["jaxinfer", "convert", source, destination]
cli.main()
"""


@pytest.mark.parametrize(("name", "times"), [("SIGINT", 1), ("SIGTERM", 2), ("SIGKILL", 1)])
def test_a_signal_while_parameters_are_written(source, tmp_path, name, times):
    number = getattr(signal, name)
    arguments = [str(int(number)), str(times), str(source), str(tmp_path / "out")]
    ended = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == {"SIGINT": 130, "SIGTERM": 143, "SIGKILL": -signal.SIGKILL}[name]
    assert ended.stderr == ""
    left = os.listdir(tmp_path)
    assert len(left) == (1 if name == "SIGKILL" else 0)
    convert(source, tmp_path / "out")
    assert os.listdir(tmp_path) == ["out"]
    load_checkpoint(tmp_path / "out")


def test_in_other_threads_signals_are_left_alone(source, tmp_path):
    """A library that is called in a server's thread must not touch what the server does with signals."""
    from concurrent.futures import ThreadPoolExecutor

    before = signal.getsignal(signal.SIGTERM)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(convert, source, tmp_path / "out").result()
    assert signal.getsignal(signal.SIGTERM) is before
    convert(source, tmp_path / "again")
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.fixture
def small_files():
    """No file of more than 200 kB can be written."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("write", [convert, export])
def test_files_that_may_not_be_so_large(source, tmp_path, small_files, write):
    with pytest.raises(InputError, match=r"out: cannot be written: File too large$"):
        write(source, tmp_path / "out")
    time.sleep(0.1)
    assert os.listdir(tmp_path) == []


@pytest.fixture
def full_disk(tmp_path):
    """A disk of 400 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)]
    try:
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("a file system cannot be mounted here")
    except FileNotFoundError:
        pytest.skip("there is no mount")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk(source, full_disk):
    ended = subprocess.run(
        [sys.executable, "-m", "jaxinfer.cli", "convert", str(source), str(full_disk / "out")],
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == f"error: {full_disk}/out: cannot be written: No space left on device\n"
    assert os.listdir(full_disk) == []
    with pytest.raises(InputError, match=r"out: cannot be written: No space left on device$"):
        export(source, full_disk / "out")
    assert os.listdir(full_disk) == []


@pytest.mark.parametrize("write", [convert, export])
def test_places_that_cannot_be_written_are_found_before_the_model_is_loaded(tmp_path, source, monkeypatch, write):
    monkeypatch.setattr("jaxinfer.checkpoint.conversion.load_checkpoint", lambda *_, **__: pytest.fail("it was loaded"))
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.iterdir())
    for place, message in [
        (source, "already exists"),
        (tmp_path, "already exists"),
        (tmp_path / "file", "already exists"),
        (tmp_path / "folder", "already exists"),
        (tmp_path / "dangling", "already exists"),
        ("", "already exists"),
        (tmp_path / "file" / "below", "cannot be written: Not a directory"),
        (tmp_path / "dangling" / "below" / "it", "cannot be written: "),
        (tmp_path / ("x" * 250), "cannot be written: File name too long"),
        (tmp_path / ("x" * 300), "is no path: File name too long"),
        ("/proc/nothing/here", "cannot be written: "),
        ("~no-such-user-here/x", "no such user"),
        ("a\0b", "holds a NUL"),
        (None, "must be a path"),
    ]:
        with pytest.raises(InputError, match=message) as caught:
            write(source, place)
        assert len(str(caught.value)) < 400
    assert sorted(tmp_path.iterdir()) == before


def test_a_place_that_another_process_may_not_write(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    (tmp_path / "closed").mkdir(mode=0o555)
    with pytest.raises(InputError, match="cannot be written: Permission denied"):
        refuse_existing(tmp_path / "closed" / "out")


def test_what_a_process_of_the_same_number_left_is_no_obstacle(source, tmp_path):
    """In containers the next process has the number of the one that was killed."""
    left = draft_of(tmp_path / "out")
    (left / "params").mkdir(parents=True)
    (left / "params" / "half").write_text("x")
    save_checkpoint(load_checkpoint(source), tmp_path / "out")
    assert os.listdir(tmp_path) == ["out"]


def test_nothing_is_printed_by_orbax(source, tmp_path, capfd):
    convert(source, tmp_path / "out")
    load_checkpoint(tmp_path / "out")
    assert capfd.readouterr() == ("", "")

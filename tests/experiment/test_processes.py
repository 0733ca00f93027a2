"""`jaxinfer run` in processes of its own, on the stand-in model: locks, interruptions, kills."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxinfer.experiment import results
from jaxinfer.host import files

HERE = Path(__file__).parent
# As pip writes it, but for the model, and a dot on standard output once Ctrl-C has to be heard: before typer is read.
PROGRAM = f"""
import os, signal, sys, time
class Watch:
    def find_spec(name, *_):
        if name == "typer" and signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            os.write(1, b".")
sys.meta_path.insert(0, Watch)
from jaxinfer.cli.__main__ import main
sys.path += [{str(HERE)!r}]
import jaxinfer.host.interrupts
def load(*_):
    from fakes import FakeModel
    class Slow(FakeModel):
        def generate(self, *given, **options):
            time.sleep(float(os.environ["SECONDS"]))
            return super().generate(*given, **options)
    return Slow()
import jaxinfer
jaxinfer.load = load
main()
"""


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Starts a command line, each call of whose model takes so many seconds. What is left of it ends with the test."""
    program = tmp_path / "jaxinfer"
    program.write_text(PROGRAM)
    monkeypatch.setenv("PYTHONPATH", str(HERE.parents[1]))
    started = []
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # or a child would inherit that it is ignored

    def call(seconds, *arguments):
        monkeypatch.setenv("SECONDS", str(seconds))
        command = [sys.executable, str(program), *map(str, arguments)]
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen(command, text=True, **pipes))
        assert started[-1].stdout.read(1) == "."
        return started[-1]

    yield call
    signal.signal(signal.SIGINT, before)
    for process in started:
        process.kill()
        process.communicate()


def wait_for(condition, process):
    """Wait until `condition` gives something, which is given back, while a process runs."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if found := condition():
            return found
        if process.poll() is not None:
            pytest.fail(f"ended early: {process.communicate()}")
        time.sleep(0.02)
    pytest.fail("took too long")


def test_a_run_is_killed_resumed_by_one_at_a_time_terminated_and_finished(start, config_file, tmp_path):
    runs, few = tmp_path / "runs", ("decoding.repeats=1",)

    def rows():
        return [row["name"] for folder in runs.glob("trial-*") for row in results.read_rows(folder)]

    first = start(0.05, "run", config_file, *few)
    wait_for(rows, first)
    first.kill()
    first.wait()
    [folder] = runs.iterdir()
    assert rows() == ["greedy"]
    left = folder / f".rows.jsonl.{files._HOST}-{first.pid}.tmp"  # as if it had been killed while it wrote
    left.write_text("{")

    second = start(1.0, "run", config_file, *few, "--resume", folder)
    wait_for(lambda: not left.exists(), second)
    third = start(0, "run", config_file, *few, "--resume", folder)
    out, err = third.communicate(timeout=60)
    assert (third.returncode, out) == (2, "")
    assert err.count("\n") == 1
    assert f"{folder}: another run is writing it (process {second.pid}); wait for its end" in err
    wait_for(lambda: len(rows()) == 2, second)
    second.terminate()
    out, err = second.communicate(timeout=60)
    assert (second.returncode, out) == (128 + signal.SIGTERM, ""), err
    assert f"2 of 3 rows are done; to go on: jaxinfer run {config_file} decoding.repeats=1 --resume {folder}\n" in err
    assert "Traceback" not in err
    names = ["config.yaml", "report.html", "results.jsonl", "rows.jsonl", "table.md", "versions.json"]
    assert sorted(path.name for path in folder.iterdir()) == names

    fourth = start(0, "run", config_file, *few, "--resume")
    out, err = fourth.communicate(timeout=60)
    assert fourth.returncode == 0
    assert "row 3 of 3: lookup <8>: compiling" in err
    assert rows() == ["greedy", "sampling", "lookup <8>"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert [path.name for path in runs.iterdir()] == [folder.name]


@pytest.mark.parametrize("delay", [0.0, 0.1, 0.3, 0.6, 1.0, 1.5, 2.5])
def test_ctrl_c_is_heard_whenever_it_comes_and_says_nothing(start, config_file, delay):
    process = start(60, "run", config_file)
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "Exception ignored" not in err
    # If it had begun to measure, it says how to go on, and what it was doing.
    assert not err or "interrupted: 0 of 3 rows are done; to go on:" in err


def test_ctrl_c_that_gets_lost_in_a_finalizer_comes_again(tmp_path):
    program = tmp_path / "jaxinfer"
    program.write_text(
        "import signal, time\nfrom jaxinfer.host import interrupts, process\n"
        "class Trap:\n    def __del__(self):\n        signal.raise_signal(signal.SIGINT)\n"
        "def call():\n    interrupts.ready()\n    Trap()\n    time.sleep(60)\n"
        "process.guard(call)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    done = subprocess.run([sys.executable, program], capture_output=True, env=environment, timeout=30, check=False)
    signal.signal(signal.SIGINT, before)
    assert (done.returncode, done.stderr) == (130, b"")


def test_an_interrupted_program_does_not_wait_for_its_libraries(tmp_path):
    """XLA's threads go on computing: with the memory that they use freed before them, processes ended in SIGSEGV."""
    program = tmp_path / "jaxinfer"
    program.write_text(
        "import atexit, os, signal\nfrom jaxinfer.host import interrupts, process\n"
        "atexit.register(os.write, 2, b'late')\n"
        "def call():\n    interrupts.ready()\n    print('kept')\n    signal.raise_signal(15)\n    input()\n"
        "process.guard(call)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
    done = subprocess.run([sys.executable, program], capture_output=True, env=environment, timeout=30, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (128 + signal.SIGTERM, b"kept\n", b"")

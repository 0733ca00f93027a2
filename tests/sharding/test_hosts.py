"""Two processes of four virtual devices each, over loopback: the tokens of one device, and how such a run ends."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxinfer import InputError
from jaxinfer.cli import processes as options
from jaxinfer.host import places, processes

ROOT = Path(__file__).parents[2]
MODEL = """
import dataclasses, json, sys, os
import numpy as np
import jaxinfer
from jaxinfer import LayerKind, Model, ModelConfig, Segment
from jaxinfer.host import processes
from jaxinfer.sharding import MeshShape
local, whole = LayerKind("local", window=8), LayerKind()
SHAPE = ModelConfig("llama", 96, 32, 64, 8, 4, 8, (Segment((local, whole), 1),), 256, qk_norm="head")
"""
TOKENS = (
    MODEL
    + """
with processes.together(coordinator=sys.argv[1], process=int(sys.argv[2]), processes=2) as several:
    import jax
    from jaxinfer import Lookup, Paged, Speculative
    from jaxinfer.compress import quantize_weights
    assert several and len(jax.devices()) == 8 and len(jax.local_devices()) == 4
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 96, n).tolist() for n in (20, 3, 7, 11)]
    model = Model.random(SHAPE)
    drafted = quantize_weights(model, "int8").attach(draft=Model.random(SHAPE, seed=1))
    cases = [
        ("data=2,tensor=4", model, dict(method=Lookup(width=4), policy=Paged(block=16, pool=20), logprobs=2)),
        ("tensor=8", drafted, dict(method=Speculative(width=3), prompt_logprobs=1)),
    ]
    for written, plain, chosen in cases:
        mesh = MeshShape.of(written).on()
        spread = plain.shard(mesh)
        if plain is drafted:
            spread = spread.attach(draft=plain.extras["draft"].shard(mesh))
        for new in (12, 9):
            found = spread.generate(prompts, max_new_tokens=new, seed=3, **chosen)
            want = plain.generate(prompts, max_new_tokens=new, seed=3, **chosen) if processes.is_first() else None
            if want:
                assert found.stats.steps == want.stats.steps
                assert found.stats.weight_bytes >= want.stats.weight_bytes  # more KV heads, for tensor=8
            for name in ("tokens", "logprobs", "prompt_logprobs"):
                mine = getattr(found, name)
                for a, b in zip(mine or (), processes.of_first(want and getattr(want, name)) or (), strict=True):
                    assert np.allclose(a, b, atol=1e-4), (written, chosen, name)
    tokens = np.array([prompts[0]])
    logits = np.asarray(spread.logits(tokens))
    assert not processes.is_first() or np.allclose(logits, plain.logits(tokens), atol=1e-4)
    up = model.shard(MeshShape.of("data=2,tensor=4").on()).params["segment_0"]["layer_0"]["mlp"]["up"]["kernel"]
    assert not up.is_fully_addressable and {s.data.shape for s in up.addressable_shards} == {(1, 16, 32)}
    print("equal", flush=True)
    print("not said", file=sys.stderr) if processes.index() else None
"""
)
WAITING = """
import os, sys, time
from jaxinfer.host import processes
with processes.together(coordinator=sys.argv[1], process=int(sys.argv[2]), processes=2):
    import jax, numpy as np
    from jaxinfer.sharding import Sharding, MeshShape, across
    layout = Sharding(MeshShape.of("data=8").on(), MeshShape.of("data=8").rules)
    x = layout.place(np.arange(8.0), ("batch",))
    for step in range(1000):
        assert across.fetch(jax.jit(lambda x: x + x.sum())(x))[0] == 28
        open(sys.argv[3] + sys.argv[2], "w").close()
        time.sleep(0.05)
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture
def start(tmp_path):
    """Starts the two processes of a program: one of its own, or, given no text, the command."""
    started = []
    env = os.environ | {
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4",
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAXINFER_CACHE": "off",
        "PYTHONPATH": str(ROOT),
    }

    def call(program, *arguments, which=(0, 1), place=lambda address, number: [address, str(number)]):
        file = tmp_path / "jaxinfer"
        file.write_text(program)
        address = f"127.0.0.1:{free_port()}"
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        made = [
            subprocess.Popen(
                [sys.executable, str(file), *place(address, number), *map(str, arguments)], env=env, text=True, **pipes
            )
            for number in which
        ]
        started.extend(made)
        return made

    yield call
    for process in started:
        process.kill()
        process.communicate()


def ended(process, timeout=240):
    """What a process has said, and its exit code."""
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


def test_two_processes_give_the_tokens_of_one_device_and_the_first_alone_speaks(start):
    first, second = map(ended, start(TOKENS))
    assert first[0] == second[0] == 0, (first[2][-3000:], second[2][-3000:])
    assert first[1] == "equal\n"
    assert second[1:] == ("", "")


@pytest.mark.parametrize("gone", [1, 0])
def test_a_process_that_is_killed_ends_the_run_on_the_other_with_one_line(start, tmp_path, gone):
    both = start(WAITING, tmp_path / "at")
    until = time.monotonic() + 60
    while not all((tmp_path / f"at{number}").exists() for number in (0, 1)):
        assert time.monotonic() < until
        assert [one.poll() for one in both] == [None, None], [ended(one) for one in both]
        time.sleep(0.05)
    both[gone].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    code, out, err = ended(both[1 - gone], timeout=30)
    assert time.monotonic() - killed < 10
    assert (code, out, err) == (1, "", f"error: process {gone} of 2 is gone\n")


COMMAND = (
    MODEL
    + """
from jaxinfer.cli.__main__ import main
class Letters:
    has_chat, strips_first_space, stop_ids = False, False, ()
    def encode(self, text):
        return [ord(letter) % 96 for letter in text]
    def decode(self, ids, skip_special=True):
        return "".join(chr(32 + i) for i in ids)
    def token_bytes(self, id, skip_special=True):
        return bytes([32 + id])
def load(*_, **__):
    model = dataclasses.replace(Model.random(SHAPE), tokenizer=Letters())
    return model.shard(MeshShape.of(os.environ["MESH"]).on()) if "MESH" in os.environ else model
jaxinfer.load = load
main()
"""
)


def placed(address, number):
    return ["--coordinator", address, "--process", str(number), "--processes", "2", "--join-timeout", "60"]


def test_the_command_in_two_processes_prints_and_writes_once(start, tmp_path, monkeypatch):
    grid = {
        "name": "hosts",
        "output": str(tmp_path / "runs"),
        "model": "smollm2-135m",
        "prompts": {"source": ["abcdef", "uvwxyz"], "chat": False},
        "decoding": {"max_new_tokens": 5, "repeats": 2},
        "axes": {"mesh": [{"data": 2, "tensor": 4}], "method": ["greedy", "lookup"]},
    }
    (tmp_path / "grid.yaml").write_text(json.dumps(grid))
    first, second = map(ended, start(COMMAND, "run", tmp_path / "grid.yaml", place=placed))
    assert first[0] == second[0] == 0, (first[2][-3000:], second[2][-3000:])
    assert second[1:] == ("", "")
    assert first[1].count("lookup") == 1
    [folder] = (tmp_path / "runs").iterdir()
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert [row["status"] for row in rows] == ["done"] * 2
    assert [row["identical"] for row in rows] == [2] * 2
    assert {row["mesh"] for row in rows} == {"data=2,tensor=4"}


def test_what_all_processes_do_wrong_is_said_once_and_what_one_does_with_its_number(start):
    wrong = [ended(one) for one in start(COMMAND, "generate", "abc", "--policy", "nosuch", place=placed)]
    assert [code for code, _, _ in wrong] == [2, 2]
    assert wrong[0][2].startswith("error: ")
    assert "nosuch" in wrong[0][2]
    assert wrong[0][2].count("\n") == 1
    assert wrong[1][1:] == ("", "")

    def differently(address, number):
        return [*placed(address, number), "generate", "abc", "--seed", str(number)]

    first, second = map(ended, start(COMMAND, place=differently))
    assert first[0] == second[0] == 2
    assert first[2].startswith("error: process 1: has other arguments than process 0"), first
    assert second[2].startswith("error: process 1: has other arguments than process 0")
    assert first[2].count("\n") == second[2].count("\n") == 1


@pytest.mark.parametrize("number", [0, 1])
def test_a_coordinator_that_does_not_answer_is_one_line_with_its_address(start, number):
    waits = ["--processes", "2", "--join-timeout", "2", "generate", "abc"]
    [process] = start(
        COMMAND,
        *waits,
        which=(number,),
        place=lambda address, number: ["--coordinator", address, "--process", str(number)],
    )
    code, out, err = ended(process, timeout=60)
    address = process.args[process.args.index("--coordinator") + 1]
    assert (code, out) == (2, "")
    by = "process 1: " if number else ""
    assert err.startswith(f"error: {by}coordinator {address}"), err
    assert err.count("\n") == 1


@pytest.mark.quick
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"coordinator": "a:1"}, "--process, --processes: must be given with --coordinator"),
        ({"processes": 2}, "--coordinator, --process: must be given with --processes"),
        ({"coordinator": "a", "process": 0, "processes": 2}, "--coordinator='a' must be HOST:PORT"),
        ({"coordinator": "a:99999", "process": 0, "processes": 2}, "must be HOST:PORT"),
        ({"coordinator": "a:1", "process": 2, "processes": 2}, "--process=2 must be below --processes=2"),
        ({"coordinator": "a:1", "process": -1, "processes": 2}, "--process=-1 must be a whole number, 0 or above"),
    ],
    ids=str,
)
def test_a_place_that_is_incomplete_or_cannot_be_is_one_line(given, expected, monkeypatch):
    for name in places.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match="^" + expected.replace("(", r"\(") if expected[0] == "-" else expected):
        places.place_of(**given)


@pytest.mark.quick
def test_a_place_is_found_in_the_environment_and_nowhere_on_an_ordinary_machine(monkeypatch):
    for name in places.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert places.place_of() is None
    assert places.place_of(processes=1) is None
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "10.0.0.1:8476")
    monkeypatch.setenv("JAX_PROCESS_ID", "1")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "4")
    assert places.place_of() == places.Place("10.0.0.1:8476", 1, 4)
    assert places.place_of(process=3) == places.Place("10.0.0.1:8476", 3, 4)
    monkeypatch.setenv("JAX_PROCESS_ID", "one")
    with pytest.raises(InputError, match="JAX_PROCESS_ID='one' must be a whole number"):
        places.place_of()


@pytest.mark.quick
@pytest.mark.parametrize("tasks", [1, 8])
def test_a_job_step_of_slurm_is_found_and_one_task_is_none(monkeypatch, tasks):
    for name in places.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    step = {"JOB_ID": 5000, "STEP_NODELIST": "node[003-006],other1", "NTASKS": tasks, "PROCID": 2, "LOCALID": 0}
    for name, value in step.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    found = places.place_of()
    if tasks == 1:
        assert found is None
    else:
        port = 5000 % 4096 + 65535 - 4096 + 1
        assert found == places.Place(f"node003:{port}", 2, 8, (0,))


@pytest.mark.quick
def test_hosts_of_a_tpu_pod_are_found(monkeypatch):
    from jax._src.clusters import cloud_tpu_cluster, cluster

    for name in places.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for module in (cloud_tpu_cluster, cluster):
        monkeypatch.setattr(module, "running_in_cloud_tpu_vm", True)
    monkeypatch.setattr(cloud_tpu_cluster, "get_tpu_env_value_from_metadata", lambda key: None)
    monkeypatch.setattr(socket, "gethostbyname", lambda host: "10.0.0.1")
    monkeypatch.setattr(cloud_tpu_cluster, "get_metadata", lambda key: ("", 404))
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "t0,t1,t2,t3")
    monkeypatch.setenv("TPU_WORKER_ID", "3")
    found = places.place_of()
    assert found is not None
    assert (found.process, found.processes, found.devices) == (3, 4, None)
    assert found.coordinator.startswith("t0:")


@pytest.mark.quick
def test_what_each_process_has_for_itself_is_no_argument_that_they_share():
    given = ["--coordinator", "a:1", "--process=1", "--processes", "2", "generate", "--seed", "3", "--join-timeout=5"]
    assert options.shared(given) == ["generate", "--seed", "3"]


@pytest.mark.quick
def test_one_process_is_a_run_of_its_own():
    assert processes.count() == 1
    assert processes.is_first()
    assert processes.of_first([1]) == [1]
    processes.barrier()
    processes.check_alike(["anything"])
    assert processes.leave(0, "a line") == "a line"

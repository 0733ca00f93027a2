"""Rows over the workers of a cluster: units, deaths and retries on workers that are invented; Ray, where it is."""

import itertools
import json
import socket
import sys
from pathlib import Path

import pytest
import yaml
from fakes import FakeModel

import jaxinfer
from jaxinfer import InputError
from jaxinfer.experiment import command, load_config, load_prompts, passes, results, runner
from jaxinfer.experiment.executors import ray
from jaxinfer.experiment.executors.bench import Bench
from jaxinfer.experiment.executors.spread import TRIES, Died, Spread
from jaxinfer.experiment.executors.task import Task
from jaxinfer.experiment.rows import ROWS
from jaxinfer.experiment.runner import Interrupted

pytestmark = pytest.mark.quick

GRID = {
    "name": "spread",
    "model": "smollm2-135m",
    "prompts": {"source": ["abcdef", "uvwxyz"], "chat": False},
    "decoding": {"max_new_tokens": 4, "repeats": 1},
    "axes": {
        "weights": [None, "int8", "int4"],
        "method": ["greedy", {"name": "looked up", "method": {"name": "lookup", "width": 4}}],
    },
}
NAMES = [f"{weights} / {method}" for weights in ("full", "int8", "int4") for method in ("greedy", "looked up")]


@pytest.fixture
def file(tmp_path):
    """A file with the grid under some changes."""

    def write(**changes):
        path = tmp_path / "grid.yaml"
        path.write_text(yaml.safe_dump({**GRID, "output": str(tmp_path / "runs"), **changes}))
        return path

    return write


@pytest.fixture
def loaded(monkeypatch):
    """Notes the weights of the models that are loaded."""
    made = []

    def load(source, dtype=None, weights=None, tokenizer=None):
        made.append(weights)
        return FakeModel(weights=weights)

    monkeypatch.setattr(jaxinfer, "load", load)
    monkeypatch.setattr(passes, "peak_rss", lambda: 1)
    return made


class Pool:
    """Workers of this process, w0, w1, ...; the one that began last answers first.

    dies: how often the worker dies that measures a row of this name. machines: after so many deaths none is left.
    """

    def __init__(self, task, size=2, dies=None, machines=10**9, interrupt_at=None):
        self.task, self.size, self.dies, self.machines = task, size, dict(dies or {}), machines
        self.made, self.sent, self.benches, self.asked, self.closed = itertools.count(), [], {}, {}, False
        self.interrupt_at = interrupt_at

    def room(self):
        return min(self.size, self.machines)

    def start(self):
        if self.machines <= len(self.asked):
            return None
        worker = f"w{next(self.made)}"
        self.benches[worker] = Bench(self.task)
        return worker

    def send(self, worker, name, finished):
        self.sent.append((worker, name, [line["name"] for line in finished]))
        self.asked[worker] = name, json.loads(json.dumps(finished))

    def wait(self, workers):
        if len(self.sent) == self.interrupt_at:
            raise KeyboardInterrupt
        worker = list(workers)[-1]
        name, finished = self.asked.pop(worker)
        if self.dies.get(name, 0):
            self.dies[name] -= 1
            self.machines -= 1
            return worker, Died("killed")
        return worker, json.loads(json.dumps(self.benches[worker].measure(name, finished)))

    def close(self):
        self.closed = True


@pytest.fixture
def spread_over(monkeypatch):
    """Lets `--on ray` mean a pool of invented workers; the list of those that were opened."""
    opened = []

    def use(**options):
        monkeypatch.setattr(ray, "RayPool", lambda task, address: opened.append(Pool(task, **options)) or opened[-1])
        return opened

    return use


def measured(tmp_path):
    """Rows by name and figures that no clock gives, in the order of results.jsonl."""
    [folder] = (tmp_path / "runs").iterdir()
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    times = ("date", "commit")
    return folder, [{key: value for key, value in line.items() if key not in times} for line in lines]


def test_rows_on_a_cluster_are_those_of_this_machine_in_the_same_order(file, loaded, spread_over, tmp_path, capsys):
    assert command.run_config(str(file()), []) == 0
    here, table = measured(tmp_path), capsys.readouterr().out
    here[0].rename(tmp_path / "here")
    pools = spread_over()
    assert command.run_config(str(file()), [], on="ray") == 0
    folder, lines = measured(tmp_path)
    assert [line["name"] for line in lines] == NAMES
    assert lines == here[1]
    assert capsys.readouterr().out == table
    assert (folder / "table.md").read_text() == (tmp_path / "here/table.md").read_text()
    [pool] = pools
    assert pool.closed
    finished = [row["name"] for row in results.read_rows(folder)]
    assert finished != NAMES  # the workers answered in another order
    by_unit = {}
    for worker, name, _ in pool.sent:
        by_unit.setdefault(name.split(" / ")[0], set()).add(worker)
    assert [len(workers) for workers in by_unit.values()] == [1, 1, 1]  # what is loaded stays on a machine
    assert len({worker for worker, _, _ in pool.sent}) == 2


def test_a_worker_that_dies_costs_its_row_a_retry_and_then_the_row_fails_by_name(file, loaded, spread_over, tmp_path):
    [] = pools = spread_over(dies={NAMES[0]: TRIES - 1, NAMES[2]: TRIES})
    assert command.run_config(str(file()), [], on="ray") == 1
    folder, lines = measured(tmp_path)
    assert [line["name"] for line in lines if line["status"] == "done"] == [name for name in NAMES if name != NAMES[2]]
    [failed] = [line for line in lines if line["status"] == "failed"]
    assert failed["name"] == NAMES[2]
    assert failed["weights"] == "int8"
    assert failed["error"].startswith(f"its worker died {TRIES} times, the last time on w")
    tried = [name for _, name, _ in pools[0].sent]
    assert [tried.count(name) for name in NAMES] == [TRIES, 1, TRIES, 1, 1, 1]
    workers = [worker for worker, name, _ in pools[0].sent if name == NAMES[0]]
    assert len(set(workers)) == TRIES  # each try is another worker's

    again = spread_over()
    assert command.run_config(str(file()), [str(folder)], resume=True, on="ray") == 0
    assert [name for _, name, _ in again[1].sent] == [NAMES[2]]
    assert [line["name"] for line in measured(tmp_path)[1]] == NAMES


def test_what_is_finished_is_kept_when_it_is_interrupted_or_no_machine_is_left(
    file, loaded, spread_over, tmp_path, capsys
):
    pools = spread_over(interrupt_at=4)
    with pytest.raises(Interrupted):
        command.run_config(str(file()), [], on="ray")
    folder, lines = measured(tmp_path)
    assert pools[0].closed
    assert 0 < len(lines) < 6
    assert "--on ray --resume" in capsys.readouterr().err.replace("\n", " ")
    spread_over(size=1, machines=1, dies=dict.fromkeys(NAMES, 1))
    with pytest.raises(OSError, match=r"no machine of the cluster is left; . of 6 rows are done; to go on: .*--on ray"):
        command.run_config(str(file()), [str(folder)], resume=True, on="ray")
    spread_over()
    assert command.run_config(str(file()), [str(folder)], resume=True, on="ray") == 0
    assert [line["name"] for line in measured(tmp_path)[1]] == NAMES


def test_rows_with_one_reference_stay_together_and_are_given_what_is_finished(file, loaded, tmp_path):
    config = load_config(file(quality={"divergence": False}))
    items = ROWS.items(config, ())
    assert set(ROWS.units(config, items).values()) == {NAMES[0]}
    plain = load_config(file(axes={}, rows=[{"name": "a", "method": "greedy"}, {"name": "b", "method": "lookup"}]))
    assert ROWS.units(plain, ROWS.items(plain, ())) == {"a": "a", "b": "b"}
    config, pools = load_config(file()), []
    one = Spread(lambda task: pools.append(Pool(task, size=1)) or pools[-1])
    runner.measure(ROWS, config, None, load_prompts(config.prompts), executor=one)
    assert [finished for _, _, finished in pools[0].sent] == [NAMES[:done] for done in range(6)]


def test_a_task_carries_its_plugins_and_prompts(file, tmp_path, loaded):
    plugin = tmp_path / "plugin.py"
    plugin.write_text("MARK = 1\n")
    config = load_config(file())
    task = Task.of(config, load_prompts(config.prompts), {"plugins": [str(plugin)]})
    assert task.plugins == (("0_plugin.py", plugin.read_text()),)
    plugin.unlink()
    kind, read, prompts, model, ready = Bench(task).opened
    assert (kind, read, model) == (ROWS, config, None)
    assert [prompt.text for prompt in prompts] == ["abcdef", "uvwxyz"]
    assert len(ready.points) == 6
    other = [(name, "0.0") if name == "jax" else (name, version) for name, version in task.software]
    assert task.unlike(task.software) is None
    assert task.unlike(other).startswith("jax 0.0, here ")


@pytest.mark.parametrize(
    ("on", "expected"),
    [
        ("slurm", "--on: 'slurm' is none of here, ray, ray://HOST:PORT"),
        ("ray:", "is none of here, ray"),
        ("ray://", "is none of here, ray"),
    ],
)
def test_an_executor_that_there_is_not_is_one_line(file, loaded, on, expected):
    with pytest.raises(InputError, match=expected):
        command.run_config(str(file()), [], on=on)


def test_a_kind_that_is_measured_on_one_machine_is_one_line(tmp_path, loaded):
    config = Path(__file__).parents[2] / "configs/step_time.yaml"
    with pytest.raises(InputError, match="a config of this kind is measured on one machine"):
        command.run_config(str(config), [f"output={tmp_path}"], on="ray")
    assert not list(tmp_path.iterdir())


def test_ray_that_is_missing_names_the_extra(file, loaded, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"jaxinfer\[ray\] is needed for --on ray: pip install jaxinfer\[ray\]"):
        command.run_config(str(file()), [], on="ray")


@pytest.mark.parametrize("address", ["127.0.0.1:0", "host:port", ":1"])
def test_an_address_of_ray_that_cannot_be_is_one_line(file, loaded, monkeypatch, address):
    monkeypatch.setitem(sys.modules, "ray", object())
    with pytest.raises(InputError, match="must be ray://HOST:PORT"):
        command.run_config(str(file()), [], on=f"ray://{address}")


def test_an_address_of_ray_that_does_not_answer_is_one_line(file, loaded, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", object())
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(
        InputError, match=f"--on: ray://127.0.0.1:{port} does not answer within 10 s: Connection refused"
    ):
        command.run_config(str(file()), [], on=f"ray://127.0.0.1:{port}")

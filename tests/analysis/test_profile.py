"""The profiler's events, and the program that they tell of."""

import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinfer.analysis import profile
from jaxinfer.analysis.profile import Event, Execution, executions, shares
from jaxinfer.errors import InputError

pytestmark = pytest.mark.quick

SLEEP = 0.03


def noted(name, begin, length, **stats):
    return SimpleNamespace(name=name, start_ns=begin, duration_ns=length, stats=list(stats.items()))


def plane(name, *events):
    return SimpleNamespace(name=name, lines=[SimpleNamespace(name="line", events=list(events))])


def ran(name, begin, length, run=1, **stats):
    return noted(name, begin, length, hlo_op=name, hlo_module="jit_f", program_id=3, run_id=run, **stats)


def test_moments_are_shared_and_add_up():
    events = (Event("while", 0, 10), Event("a", 1, 5), Event("b", 3, 7), Event("a", 8, 9))
    found = shares(Execution("jit_f", events), around={"while"})
    assert found.instructions == {"a": pytest.approx(2 + 1 + 1), "b": pytest.approx(1 + 2)}
    assert found.counts == {"a": 2, "b": 1}
    assert found.between == pytest.approx(1 + 1 + 1)
    assert sum(found.instructions.values()) + found.between == pytest.approx(10)


def test_an_instruction_lasts_until_its_result_is_there():
    host = plane("/host:CPU", ran("a", 0, 2, _p=7), noted("end: a", 9, 1, _c=7), ran("b", 20, 5))
    (found,) = executions([host])
    assert found.program == "jit_f"
    assert [(e.name, round(e.begin * 1e9), round(e.end * 1e9)) for e in found.events] == [("a", 0, 9), ("b", 20, 25)]
    assert found.seconds == pytest.approx(25e-9)


def test_runs_are_apart_and_in_order():
    first, second = executions([plane("/host:CPU", ran("a", 50, 1, run=2), ran("a", 0, 1, run=1))])
    assert (first.begin, second.begin) == (0, pytest.approx(50e-9))


def test_what_a_device_noted_comes_before_what_the_host_did():
    (found,) = executions([plane("/host:CPU", ran("launch", 0, 1)), plane("/device:GPU:0", ran("kernel", 5, 9))])
    assert [event.name for event in found.events] == ["kernel"]


def test_names_are_those_of_the_compiled_text_and_the_slow_one_stands_out():
    def slow(x):
        time.sleep(SLEEP)
        return x

    def f(x):
        y = jax.pure_callback(slow, jax.ShapeDtypeStruct(x.shape, x.dtype), x @ x)
        return jax.lax.fori_loop(0, 5, lambda i, y: jnp.sin(y) @ x, y)

    x = jnp.ones((64, 64))
    compiled = jax.jit(f).lower(x).compile()
    jax.block_until_ready(compiled(x))
    with profile.traced() as runs:
        for _ in range(2):
            jax.block_until_ready(compiled(x))
    mine = [run for run in runs if run.program == "jit_f"]
    assert len(mine) == 2
    text = compiled.as_text()
    found = shares(mine[0], {name for name in found_names(mine[0]) if name.startswith("while")})
    assert all(f"%{name} " in text or f" {name} " in text for name in found.instructions)
    name, seconds = max(found.instructions.items(), key=lambda item: item[1])
    assert "callback" in name or "custom-call" in name
    assert SLEEP <= seconds < 4 * SLEEP
    assert max(found.counts.values()) == 5
    assert sum(found.instructions.values()) + found.between == pytest.approx(mine[0].seconds)


def found_names(run):
    return {event.name for event in run.events}


def test_a_trace_is_written_for_people(tmp_path):
    with profile.profile_to(tmp_path / "trace"):
        jax.block_until_ready(jax.jit(jnp.sin)(np.ones(8)))
    assert list((tmp_path / "trace").rglob("*.xplane.pb"))
    with pytest.raises(InputError, match="profile"), profile.profile_to("a\0b"):
        pass

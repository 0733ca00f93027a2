"""Comparing two things in turn, and what memory allows."""

import itertools
from types import SimpleNamespace

import pytest

from jaxinfer.analysis import measure
from jaxinfer.analysis.measure import alternate

pytestmark = pytest.mark.quick


def test_measures_in_turn_and_compares_within_a_round():
    order, seconds = [], iter([9.0, 9.0, 1.0, 2.0, 10.0, 30.0, 2.0, 8.0])

    def measured(name):
        def once():
            order.append(name)
            return next(seconds)

        return once

    found = alternate("t", ("a", "b"), measured("a"), measured("b"), rounds=3, rest=0.0)
    assert order == ["a", "b"] * 4
    assert (found.first, found.second) == ([1.0, 10.0, 2.0], [2.0, 30.0, 8.0])
    assert found.ratios == [2.0, 3.0, 4.0]
    assert found.ratio == 3.0


def test_read_bandwidth_counts_the_bytes_of_the_best_sweep(monkeypatch):
    """A clock that ticks a millisecond at each look: a sweep takes one, the bytes are those of the array."""
    ticks = itertools.count()
    monkeypatch.setattr(measure, "SWEEP", 1 << 22)
    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=lambda: 1e-3 * next(ticks)))
    assert measure.read_bandwidth(rounds=2) == pytest.approx((1 << 22) / 1e-3, rel=0.01)

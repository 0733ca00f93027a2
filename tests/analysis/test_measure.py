"""Comparing two things in turn."""

from jaxinfer.analysis.measure import alternate


def test_measures_in_turn_and_compares_within_a_round():
    order, seconds = [], iter([9.0, 9.0, 1.0, 2.0, 10.0, 30.0, 2.0, 8.0])

    def measure(name):
        def once():
            order.append(name)
            return next(seconds)

        return once

    found = alternate("t", ("a", "b"), measure("a"), measure("b"), rounds=3, rest=0.0)
    assert order == ["a", "b"] * 4
    assert (found.first, found.second) == ([1.0, 10.0, 2.0], [2.0, 30.0, 8.0])
    assert found.ratios == [2.0, 3.0, 4.0]
    assert found.ratio == 3.0

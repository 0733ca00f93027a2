"""Automata of numbers within bounds: against exact arithmetic."""

import re
from fractions import Fraction

import pytest

from jaxinfer.decoding.constraints.grammar.numbers import bounded, machine_of_number, multiples, text_of

pytestmark = pytest.mark.quick

VALUES = [
    Fraction(x) for x in ("0", "1", "-1", "9", "10", "99", "-10", "0.5", "-0.5", "0.05", "12.05", "-100.001", "1234")
]
TEXTS = {text_of(a + b) for a in VALUES for b in map(Fraction, ("0", "0.001", "-0.001", "1", "-1", "0.1"))}
TEXTS |= {text + ("0" if "." in text else ".0") for text in TEXTS}
TEXTS |= {"-0", "-0.0", "05", "1.", "1e3", ".5", "-", ""}


def is_plain(text):
    return re.fullmatch(r"-?(0|[1-9]\d*)(\.\d+)?", text) is not None


def test_bounds():
    for bound in VALUES:
        for above in (True, False):
            for strict in (True, False):
                machine = bounded(bound, above, strict)
                for text in TEXTS:
                    expected = is_plain(text)
                    if expected and Fraction(text) == bound:
                        expected = not strict
                    elif expected:
                        expected = (Fraction(text) > bound) == above
                    assert machine.matches(text) == expected, (bound, above, strict, text)


def test_multiples():
    for of in map(Fraction, ("1", "2", "3", "7", "0.5", "0.01", "0.25", "1.5", "12", "2.5", "10")):
        machine = multiples(of)
        for text in TEXTS:
            expected = is_plain(text) and (Fraction(text) / of).denominator == 1
            assert machine.matches(text) == expected, (of, text)


def test_a_number_is_written_exactly():
    assert text_of(Fraction(12345678901234567890123)) == "12345678901234567890123"
    assert text_of(Fraction("1e300")) == "1e+300"
    assert text_of(Fraction(10**400)) == "1" + "0" * 400
    assert [text_of(Fraction(x)) for x in ("0", "-2.50", "7.0")] == ["0", "-2.5", "7"]
    whole = machine_of_number(
        (("int", True), ("bound", Fraction("-1.5"), True, False), ("multiple", Fraction("0.5"), True))
    )
    assert [x for x in range(-3, 3) if whole.matches(str(x))] == [-1, 0, 1, 2]
    assert not whole.matches("-0")

"""Patterns as automata: against Python's `re` on every short text, what is refused, and limits kept in time."""

import itertools
import re
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxinfer import InputError
from jaxinfer.decoding.constraints.grammar.pattern import machine_of
from jaxinfer.decoding.constraints.grammar.utf8 import over_bytes

LETTERS = "ab1é☃𝄞\n"
TEXTS = ["".join(text) for size in range(5) for text in itertools.product(LETTERS, repeat=size)]
PATTERNS = [
    "(a|b)*ab?",
    "^a|b$",
    "a{2,3}b{0}",
    "(?:ab){0,2}1*",
    "[^a]",
    "a.b",
    r"\d+",
    "x?(a|)b",
    "(^a)*b$",
    "a^b",
    "^$",
]
PATTERNS += ["^$", "(a$|b)1?", "é[à-ü]?", r"[^\x00-\x7f]+", "☃|𝄞+", "a**", "(a|a)*b", "(?i:A)b", r"\u00e9|[\w-]"]


@pytest.mark.parametrize("search", [False, True])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_what_re_matches(pattern, search):
    machine = machine_of(pattern, "re2", search)
    table, final = over_bytes(machine) if machine else ([[-1] * 256], [False])
    python = re.compile(pattern.replace("$", r"\Z").replace("a**", "(?:a*)*"), re.ASCII)
    for text in TEXTS:
        expected = bool(python.search(text) if search else python.fullmatch(text))
        state = 0
        for byte in text.encode():
            state = table[state][byte] if state >= 0 else state
        assert machine.matches(text) == expected, text
        assert (state >= 0 and bool(final[state])) == expected, text


def test_the_two_dialects():
    """Digits and words are ASCII in both (RE2, ECMA-262); spaces, and what a dot is, differ."""
    for dialect in ("re2", "ecma"):
        assert not machine_of(r"\d", dialect).matches("٣")
        assert not machine_of(r"\w", dialect).matches("é")
        assert machine_of(r"\p{L}\p{Nd}", dialect).matches("é٣")
    assert [machine_of(r"\s", dialect).matches("\u00a0") for dialect in ("re2", "ecma")] == [False, True]
    assert [machine_of(".", dialect).matches("\r") for dialect in ("re2", "ecma")] == [True, False]
    assert machine_of("[^]", "ecma").matches("\n")
    assert machine_of("[]a]", "re2").matches("]")
    assert machine_of(r"\ud834\udd1e", "ecma").matches("𝄞")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a{100000}", "60,000 parts"),
        ("((a{100}){100}){100}", "60,000 parts"),
        ("(){1000000}", "60,000 parts"),
        ("(a|b)*a(a|b){20}", "16,000 states"),
        ("(a?){3000}a{3000}", "too ambiguous"),
        (".{3000}", "16,000 states"),
        ("|".join(f"w{i}" for i in range(20_000)), "at most 60,000 are read"),
        ("(" * 5000 + ")" * 5000, "nested more than 100 deep"),
    ],
    ids=range(8),
)
def test_a_limit_is_told_before_it_costs(pattern, expected):
    start = time.thread_time()
    with pytest.raises(InputError, match=expected):
        over_bytes(machine_of(pattern))
    assert time.thread_time() - start < 15  # seconds of this thread, whatever else the machine does


@settings(max_examples=300, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(st.sampled_from("ab[](){}*+?|^$\\.-,:=!<>Pxupdswbi019\ud800é"), max_size=14), st.booleans())
def test_any_text_is_read_or_refused(pattern, ecma):
    """Python and this match the same, where both take a pattern without what only one of them has."""
    try:
        machine = machine_of(pattern, "ecma" if ecma else "re2")
    except InputError:
        return
    try:
        python = re.compile(pattern, re.ASCII)
    except (re.error, OverflowError, FutureWarning):
        return
    if re.search(r"\\[pxuPsSbB]|\$|\[\^?\]|\+\+|\?\+|\*\+|\}\+|\{,|\(\?", pattern) or (ecma and "." in pattern):
        return
    for text in ("", "a", "b", "ab", "aab", "0", "-", "é", "a{", "[", "]"):
        assert machine.matches(text) == bool(python.fullmatch(text)), text

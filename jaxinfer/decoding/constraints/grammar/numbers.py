"""The texts of JSON numbers within bounds, and of multiples, as automata.

Numbers are written plainly: no sign before zero in a whole number, no exponent where the value is bounded.
"""

import functools
import math
from fractions import Fraction

import numpy as np

from jaxinfer.decoding.constraints.grammar.combine import both, minus
from jaxinfer.decoding.constraints.grammar.machine import DEAD, MOST_STATES, Machine, classes, trimmed
from jaxinfer.decoding.constraints.grammar.parts import words
from jaxinfer.decoding.constraints.grammar.pattern import machine_of
from jaxinfer.errors import InputError

WHOLE = r"(?:0|-?[1-9][0-9]*)"
PLAIN = r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?"
_POWER = r"(?:[0-9]{1,2}|[12][0-9]{2}|30[0-7])"  # so that a float holds it
ANY_NUMBER = rf"{PLAIN}|-?[0-9](?:\.[0-9]+)?[eE][+-]?{_POWER}"
_DIGITS = "0123456789"


def digits_of(value: Fraction) -> tuple[str, str] | None:
    """Split a number that is not negative into the digits before and after the point; None if these have no end."""
    rest, twos, fives = value.denominator, 0, 0
    while rest % 2 == 0:
        rest, twos = rest // 2, twos + 1
    while rest % 5 == 0:
        rest, fives = rest // 5, fives + 1
    if rest != 1:
        return None
    places = max(twos, fives)
    whole, part = divmod(value.numerator * 10**places // value.denominator, 10**places)
    return str(whole), str(part).zfill(places) if places else ""


def text_of(value: Fraction) -> str:
    """Describe how a number is written."""
    digits = digits_of(abs(value))
    assert digits is not None
    sign = "-" if value < 0 else ""
    plain = sign + ".".join(x for x in digits if x)
    short = repr(float(value)) if abs(value) < 10**308 else plain
    return short if len(plain) > 22 and Fraction(short) == value else plain


def _longer(digits: str) -> str:
    return f"[1-9][0-9]{{{len(digits)},}}"


def _beyond(digits: str, above: bool) -> list[str]:
    """Give patterns of as many digits whose number is greater, or less; only a lone first digit may be 0."""
    ways = []
    for i, x in enumerate(digits):
        low = 1 if i == 0 and len(digits) > 1 else 0
        some = _DIGITS[int(x) + 1 :] if above else _DIGITS[low : int(x)]
        if some:
            ways.append(f"{digits[:i]}[{some}][0-9]{{{len(digits) - i - 1}}}")
    return ways


def _magnitude(bound: Fraction, above: bool, strict: bool) -> str:
    """Give the pattern of numbers without a sign on one side of a bound from 0."""
    digits = digits_of(bound)
    assert digits is not None
    whole, part = digits
    ways = _beyond(whole, above)
    if above:
        ways.append(_longer(whole))
    elif len(whole) > 1:
        ways += ["0", f"[1-9][0-9]{{0,{len(whole) - 2}}}"]
    ways = [rf"(?:{'|'.join(ways)})(?:\.[0-9]+)?"] if ways else []
    same = rf"{whole}\."  # then the digits after the point decide
    for i, x in enumerate(part):
        some = _DIGITS[int(x) + 1 :] if above else _DIGITS[: int(x)]
        if some:
            ways.append(f"{same}{part[:i]}[{some}][0-9]*")
        if not above and i > 0:
            ways.append(same + part[:i])  # ends early: less
    if not above and part:
        ways.append(whole)
    if above:
        ways.append(f"{same}{part}0*[1-9][0-9]*")
    if not strict:
        ways.append(f"{same}{part}0*" if part else rf"{whole}(?:\.0+)?")
    return "|".join(ways)


@functools.lru_cache(256)
def bounded(bound: Fraction, above: bool, strict: bool) -> Machine:
    """Give the numbers above a bound, or below it; the bound itself only if not `strict`."""
    if digits_of(abs(bound)) is None:
        raise InputError(f"{bound} is no decimal number")
    if bound < 0 or (bound == 0 and not above and not strict):
        inner = _magnitude(-bound, not above, strict)
        pattern = f"-(?:{inner})" + (rf"|{PLAIN[2:]}" if above else "")
        if bound == 0:
            pattern += r"|0(?:\.0+)?"
    else:
        pattern = _magnitude(bound, above, strict)
        if not above:
            pattern += rf"|-{PLAIN[2:]}" if bound > 0 else ""
            if bound == 0:
                pattern = r"-(?:0\.0*[1-9][0-9]*|[1-9][0-9]*(?:\.[0-9]+)?)"
        elif bound == 0 and not strict:
            pattern += r"|-0(?:\.0+)?"
    return both(machine_of(pattern), machine_of(PLAIN))


@functools.lru_cache(64)
def multiples(of: Fraction) -> Machine:
    """Give the plain numbers that are a whole number of times `of`, a positive one. Raises InputError if too fine."""
    digits = digits_of(of)
    if digits is None:
        raise InputError(f"{of} is no decimal number")
    places = len(digits[1])
    step = of * 10**places
    size = step.numerator
    if size * (places + 1) + 4 > MOST_STATES:
        raise InputError(f"multiples of {float(of):g} need more than the limit of {MOST_STATES:,} states")
    starts, kind, masks = classes([((48 + i, 48 + i),) for i in range(10)] + [((46, 46),), ((45, 45),)])
    column = [mask.bit_length() - 1 for mask in masks]
    # A state is the rest of the digits so far, and how many of them stand after the point: none yet, or 0 to places.
    begin, signed, point = 0, 1, 2 + size * (places + 1)
    table = np.full((point + size, int(kind.max()) + 1), DEAD, np.int32)
    final = np.zeros(len(table), bool)
    rest = np.arange(size)
    for place in range(places + 1):
        rows = 2 + place * size + rest
        final[rows] = rest * 10 ** (places - place) % size == 0
        for digit in range(10):
            if place == 0:
                table[rows, column[digit]] = 2 + (rest * 10 + digit) % size
            elif place < places:
                table[rows, column[digit]] = 2 + (place + 1) * size + (rest * 10 + digit) % size
            elif digit == 0:
                table[rows, column[digit]] = rows
    for digit in range(10):
        table[[begin, signed], column[digit]] = 2 + digit % size
        if places:
            table[point + rest, column[digit]] = 2 + size + (rest * 10 + digit) % size
    if not places:  # zeros may stand after the point: of a multiple alone
        extra = np.full((1, table.shape[1]), DEAD, np.int32)
        extra[0, column[0]] = len(table)
        table, final = np.concatenate([table, extra]), np.append(final, True)
        table[point, column[0]] = len(table) - 1
        table[2, column[10]] = point
    else:
        table[2 + rest, column[10]] = point + rest
    table[begin, column[11]] = signed
    return both(trimmed(Machine(starts, kind, table, final)), machine_of(PLAIN))


@functools.lru_cache(256)
def machine_of_number(atoms: tuple[tuple, ...]) -> Machine:
    """Give the machine of the numbers for which all of a few conditions hold.

    ("int", yes), ("bound", value, above, strict), ("multiple", of, yes), ("among", values).
    """
    lists = [atom[1] for atom in atoms if atom[0] == "among"]
    if lists:
        kept, others = set(lists[0]).intersection(*lists[1:]), [atom for atom in atoms if atom[0] != "among"]
        return words(text_of(x) for x in lists[0] if x in kept and all(_holds(x, atom) for atom in others))
    if not atoms:
        return machine_of(ANY_NUMBER)
    if ("int", True) in atoms:
        # Whole bounds and multiples of whole numbers say the same of whole numbers, in far fewer states.
        atoms = tuple(_for_whole(atom) for atom in atoms)
    found = machine_of(WHOLE if ("int", True) in atoms else PLAIN)
    for atom in atoms:
        if atom[0] == "bound":
            found = both(found, bounded(*atom[1:]))
        elif atom[0] == "multiple":
            found = (both if atom[2] else minus)(found, multiples(atom[1]))
        elif atom == ("int", False):
            found = both(found, machine_of(r"-?(?:0|[1-9][0-9]*)\.[0-9]*[1-9][0-9]*"))
    return found


def _for_whole(atom: tuple) -> tuple:
    if atom[0] == "multiple":
        return ("multiple", Fraction(atom[1].numerator), atom[2])
    if atom[0] != "bound":
        return atom
    _, value, above, strict = atom
    if above:
        return ("bound", Fraction(math.floor(value) + 1 if strict else math.ceil(value)), True, False)
    return ("bound", Fraction(math.ceil(value) - 1 if strict else math.floor(value)), False, False)


def _holds(value: Fraction, atom: tuple) -> bool:
    kind, *rest = atom
    if kind == "int":
        return (value.denominator == 1) == rest[0]
    if kind == "bound":
        bound, above, strict = rest
        return (value > bound if above else value < bound) or (value == bound and not strict)
    return ((value / rest[0]).denominator == 1) == rest[1]

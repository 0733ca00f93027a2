"""Sets of characters: sorted ranges of code points. Half characters (surrogates) are in none of them."""

import functools
import unicodedata
from collections.abc import Iterable

Ranges = tuple[tuple[int, int], ...]  # first and last code point of each, in order, apart from each other

LAST = 0x10FFFF
ANY: Ranges = ((0, 0xD7FF), (0xE000, LAST))
NONE: Ranges = ()


def of(*parts: str | int | tuple[int, int]) -> Ranges:
    """Give the set of characters, given as text, code points and ranges of them."""
    ranges: list[tuple[int, int]] = []
    for part in parts:
        if isinstance(part, str):
            ranges += [(ord(x), ord(x)) for x in part]
        else:
            ranges.append((part, part) if isinstance(part, int) else part)
    return union(ranges)


def union(*sets: Iterable[tuple[int, int]]) -> Ranges:
    """Unite sets. A single set may overlap itself and hold half characters: it is put in order."""
    merged: list[list[int]] = []
    for first, last in sorted(one for ranges in sets for one in ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1][1] = max(merged[-1][1], last)
        else:
            merged.append([first, last])
    whole: list[tuple[int, int]] = []
    for first, last in merged:
        whole += [(max(first, a), min(last, b)) for a, b in ANY if first <= b and last >= a]
    return tuple(whole)


def without(all_: Ranges, some: Ranges) -> Ranges:
    """Take the characters of the second set out of the first."""
    left: list[tuple[int, int]] = []
    for first, last in all_:
        for a, b in some:
            if b < first or a > last:
                continue
            if a > first:
                left.append((first, a - 1))
            first = b + 1
        if first <= last:
            left.append((first, last))
    return tuple(left)


def others(some: Ranges) -> Ranges:
    """Give every character that is not in a set."""
    return without(ANY, some)


DIGIT, WORD = of((48, 57)), of((48, 57), (65, 90), "_", (97, 122))
SPACE = of("\t\n\v\f\r ")
SCRIPT_SPACE = of("\t\n\v\f\r \u00a0\u1680\u2028\u2029\u202f\u205f\u3000\ufeff", (0x2000, 0x200A))  # of ECMA-262
POSIX = {
    "alnum": without(WORD, of("_")),
    "alpha": of((65, 90), (97, 122)),
    "ascii": of((0, 127)),
    "blank": of(" \t"),
    "cntrl": of((0, 31), 127),
    "digit": DIGIT,
    "graph": of((33, 126)),
    "lower": of((97, 122)),
    "print": of((32, 126)),
    "punct": of((33, 47), (58, 64), (91, 96), (123, 126)),
    "space": SPACE,
    "upper": of((65, 90)),
    "word": WORD,
    "xdigit": of((48, 57), (65, 70), (97, 102)),
}
_LONG = {
    "Letter": "L",
    "Cased_Letter": "LC",
    "Uppercase_Letter": "Lu",
    "Lowercase_Letter": "Ll",
    "Titlecase_Letter": "Lt",
    "Modifier_Letter": "Lm",
    "Other_Letter": "Lo",
    "Mark": "M",
    "Nonspacing_Mark": "Mn",
    "Spacing_Mark": "Mc",
    "Enclosing_Mark": "Me",
    "Number": "N",
    "Decimal_Number": "Nd",
    "digit": "Nd",
    "Letter_Number": "Nl",
    "Other_Number": "No",
    "Punctuation": "P",
    "punct": "P",
    "Symbol": "S",
    "Separator": "Z",
    "Space_Separator": "Zs",
    "Other": "C",
}


@functools.cache
def _categories() -> dict[str, list[tuple[int, int]]]:
    found: dict[str, list[tuple[int, int]]] = {}
    first, before = 0, unicodedata.category("\0")
    for point in range(1, LAST + 2):
        now = unicodedata.category(chr(point)) if point <= LAST else ""
        if now != before:
            found.setdefault(before, []).append((first, point - 1))
            first, before = point, now
    return found


@functools.cache
def category(name: str) -> Ranges | None:
    """Give the characters of a general category of Unicode, such as L, Lu or Letter; None if Unicode has it not."""
    name = name.removeprefix("General_Category=").removeprefix("gc=")
    if name == "Any":
        return ANY
    if name == "ASCII":
        return POSIX["ascii"]
    short = _LONG.get(name, name)
    kinds = ("Lu", "Ll", "Lt") if short == "LC" else [x for x in _categories() if x == short or x[0] == short]
    return union(*(_categories()[kind] for kind in kinds)) if kinds else None


@functools.cache
def _cased() -> list[tuple[int, Ranges]]:
    """Give the letters that come in two cases, and what is the same but for its case."""
    found = []
    for point in range(LAST + 1):
        x = chr(point)
        same = {y for y in (x.lower(), x.upper(), x.title()) if len(y) == 1} - {x}
        if same:
            found.append((point, of(*(ord(y) for y in same))))
    return found


def any_case(some: Ranges) -> Ranges:
    """Give the set with what differs from its characters only by case."""
    if all(last < 128 for _, last in some):
        letters = [chr(x) for first, last in some for x in range(first, last + 1) if chr(x).isalpha()]
        return union(some, of("".join(letters).swapcase()))
    return union(some, *(same for point, same in _cased() if any(a <= point <= b for a, b in some)))

r"""Regular expressions: read, in one of two dialects, and built as automata.

"re2" is what `Constraint.regex` reads: the syntax of RE2, in which \d, \w and \s are ASCII and a dot is no line feed.
"ecma" is that of JSON Schema, ECMA-262 with its flag u: \d and \w are ASCII, \s is not. What is no regular language,
or would have to look around, is refused by name: references, look-around, word boundaries.
"""

import functools
from dataclasses import dataclass, replace
from typing import Any

from jaxinfer.decoding.constraints.grammar import chars
from jaxinfer.decoding.constraints.grammar.chars import Ranges
from jaxinfer.decoding.constraints.grammar.machine import MOST_PARTS, Machine, TooLarge
from jaxinfer.decoding.constraints.grammar.parts import Parts, build
from jaxinfer.errors import InputError, shown_text

MOST_NESTED = 100  # brackets in brackets
_SIMPLE = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v"}
_RE2_ONLY = {"a": "\a"}


@dataclass(frozen=True)
class _Flags:
    ignore_case: bool = False
    dot_all: bool = False


@functools.lru_cache(256)
def machine_of(pattern: str, dialect: str = "re2", search: bool = False) -> Machine:
    """Give the machine of the texts that a pattern matches as a whole, or with `search` anywhere.

    Raises InputError for a pattern that cannot be read, TooLarge for one that outgrows the limits.
    """
    tree = _Reader(pattern, dialect).read()

    def add(parts: Parts, start: int) -> int:
        if not search:
            return _add(parts, start, tree)
        parts.move(start, chars.ANY, start)
        end = parts.skip(_add(parts, parts.skip(start), tree))
        parts.move(end, chars.ANY, end)
        return end

    return build(add)


def _add(parts: Parts, start: int, tree: Any) -> int:
    kind, *rest = tree
    if kind == "set":
        return parts.chars(start, rest[0])
    if kind in ("start", "end"):
        return parts.guard(start, kind)
    if kind == "cat":
        for child in rest[0]:
            start = _add(parts, start, child)
        return start
    if kind == "alt":
        end = parts.part()
        for child in rest[0]:
            parts.skip(_add(parts, parts.skip(start), child), end)
        return end
    child, least, most = rest
    for _ in range(least):
        start = _add(parts, parts.skip(start), child)
    if most is None:
        loop = parts.skip(start)
        parts.skip(_add(parts, parts.skip(loop), child), loop)
        return parts.skip(loop)
    end = parts.part()
    for _ in range(most - least):
        parts.skip(start, end)
        start = _add(parts, parts.skip(start), child)
    parts.skip(start, end)
    return end


class _Reader:
    """Recursive descent over the text of a pattern."""

    def __init__(self, pattern: str, dialect: str):
        self.text, self.at, self.ecma, self.depth = pattern, 0, dialect == "ecma", 0
        if len(pattern) > MOST_PARTS:
            raise TooLarge(f"has {len(pattern):,} characters, and at most {MOST_PARTS:,} are read")
        for place, x in enumerate(pattern):
            if 0xD800 <= ord(x) < 0xE000:
                raise InputError(f"character {place + 1} is half a character (a lone surrogate)")

    def read(self) -> Any:
        tree = self.alternatives(_Flags())
        if self.at < len(self.text):
            raise self.error("a ) without a ( before it")
        return tree

    def error(self, message: str, at: int | None = None) -> InputError:
        return InputError(f"at character {(self.at if at is None else at) + 1}: {message}")

    def peek(self, text: str) -> bool:
        return self.text.startswith(text, self.at)

    def take(self, text: str) -> bool:
        if not self.peek(text):
            return False
        self.at += len(text)
        return True

    def alternatives(self, flags: _Flags) -> Any:
        self.depth += 1
        if self.depth > MOST_NESTED:
            raise self.error(f"brackets are nested more than {MOST_NESTED} deep")
        ways: list[list[Any]] = [[]]
        while self.at < len(self.text) and not self.peek(")"):
            if self.take("|"):
                ways.append([])
            elif not self.ecma and self.is_flags():
                flags = self.flags(flags, ")")
            else:
                ways[-1].append(self.repeated(self.atom(flags)))
        self.depth -= 1
        trees = [way[0] if len(way) == 1 else ("cat", way) for way in ways]
        return trees[0] if len(trees) == 1 else ("alt", trees)

    def is_flags(self) -> bool:
        """Tell whether flags for what follows stand here, such as (?i)."""
        if not self.peek("(?"):
            return False
        return self.text[self.at + 2 : self.text.find(")", self.at)].replace("-", "").isalpha()

    def flags(self, flags: _Flags, end: str) -> _Flags:
        self.at += 2
        on = True
        while not self.take(end):
            x = self.text[self.at : self.at + 1]
            if x == "-":
                on = False
            elif x == "i":
                flags = replace(flags, ignore_case=on)
            elif x == "s":
                flags = replace(flags, dot_all=on)
            else:
                raise self.error(f"flag {shown_text(x)!r}: only i and s are supported, as in (?i)")
            self.at += 1
        return flags

    def repeated(self, tree: Any) -> Any:
        while True:
            begin = self.at
            if self.take("*"):
                counts: tuple[int, int | None] = (0, None)
            elif self.take("+"):
                counts = (1, None)
            elif self.take("?"):
                counts = (0, 1)
            elif (found := self.counted()) is not None:
                counts = found
            else:
                return tree
            if self.peek("+"):
                raise self.error("possessive repeats are not supported: leave out the second +")
            self.take("?")  # lazy: which texts match does not depend on it
            least, most = counts
            if most is not None and most < least:
                raise self.error("a repeat whose most is less than its least", begin)
            tree = ("repeat", tree, least, most)

    def counted(self) -> tuple[int, int | None] | None:
        """Give the numbers of {2}, {2,} or {2,3}; None if there are none here: then { is a character."""
        end = self.text.find("}", self.at, self.at + 30) if self.peek("{") else -1
        if end < 0:
            return None
        least, comma, most = self.text[self.at + 1 : end].partition(",")
        if not (least.isascii() and least.isdigit()) or (most and not (most.isascii() and most.isdigit())):
            return None
        if max(len(least), len(most)) > 9:
            raise self.error("a repeat of more than 9 digits")
        self.at = end + 1
        return int(least), (int(most) if most else None) if comma else int(least)

    def atom(self, flags: _Flags) -> Any:
        begin, x = self.at, self.text[self.at]
        if x == "(":
            return self.group(flags)
        if x in "*+?" or (x == "{" and self.counted() is not None):
            raise self.error("a repeat of nothing", begin)
        self.at += 1
        if x == "[":
            return ("set", self.folded(self.bracket(flags), flags))
        if x == ".":
            if flags.dot_all:
                return ("set", chars.ANY)
            return ("set", chars.others(chars.of("\n\r\u2028\u2029" if self.ecma else "\n")))
        if x in "^$":
            return ("start",) if x == "^" else ("end",)
        if x == "\\":
            if self.text[self.at : self.at + 1] in ("A", "z", "Z") and not self.ecma:
                self.at += 1
                return ("start",) if self.text[self.at - 1] == "A" else ("end",)
            return ("set", self.folded(self.escape(False), flags))
        return ("set", self.folded(chars.of(x), flags))

    def folded(self, some: Ranges, flags: _Flags) -> Ranges:
        return chars.any_case(some) if flags.ignore_case else some

    def group(self, flags: _Flags) -> Any:
        begin = self.at
        if self.peek("(?"):
            for sign in ("(?=", "(?!", "(?<=", "(?<!"):
                if self.peek(sign):
                    raise self.error(f"look-around {sign}...) is not supported: say what may come instead")
            if self.peek("(?>"):
                raise self.error("atomic groups (?>...) are not supported: use (?:...)")
            if self.peek("(?P=") or self.peek("(?("):
                raise self.error("references to groups are not supported")
            if self.take("(?:"):
                pass
            elif self.take("(?P<") or self.take("(?<"):
                end = self.text.find(">", self.at)
                if end < 0 or not self.text[self.at : end].isidentifier():
                    raise self.error("the name of a group must be a word, as in (?<name>...)", begin)
                self.at = end + 1
            elif self.text.find(":", self.at) > 0 and not self.ecma:
                flags = self.flags(flags, ":")
            else:
                raise self.error("(? must be followed by : or <name>")
        else:
            self.at += 1
        tree = self.alternatives(flags)
        if not self.take(")"):
            raise self.error("a ( without a ) after it", begin)
        return ("cat", [tree])

    def bracket(self, flags: _Flags) -> Ranges:
        """Give the set of [...], whose first bracket is taken."""
        begin, inverted, found, first = self.at - 1, self.take("^"), [], True
        while first or not self.peek("]"):
            if self.at >= len(self.text):
                raise self.error("a [ without a ] after it", begin)
            if first and self.ecma and self.peek("]"):
                break
            first = False
            low = self.member()
            if self.peek("-") and self.text[self.at + 1 : self.at + 2] not in ("]", ""):
                self.at += 1
                high = self.member()
                one, other = _single(low), _single(high)
                if one is None or other is None or other < one:
                    raise self.error("a range must lead from one character to a later one, as in [a-z]")
                low = chars.of((one, other))
            found.append(low)
        self.at += 1
        some = self.folded(chars.union(*found), flags)
        return chars.others(some) if inverted else some

    def member(self) -> Ranges:
        if not self.ecma:
            for sign in ("&&", "--", "~~"):
                if self.peek(sign):
                    raise self.error(f"{sign} within [] is not supported: write out which characters are meant")
            if self.peek("[:"):
                end = self.text.find(":]", self.at)
                name = self.text[self.at + 2 : end] if end > 0 else ""
                if name.removeprefix("^") not in chars.POSIX:
                    raise self.error(f"no such class: [:{shown_text(name, 20)}:], as in [[:alpha:]]")
                self.at = end + 2
                some = chars.POSIX[name.removeprefix("^")]
                return chars.others(some) if name.startswith("^") else some
        self.at += 1
        return self.escape(True) if self.text[self.at - 1] == "\\" else chars.of(self.text[self.at - 1])

    def escape(self, within: bool) -> Ranges:
        """Read what stands after a backslash, which is taken."""
        begin, x = self.at - 1, self.text[self.at : self.at + 1]
        if not x:
            raise self.error("a backslash at the end", begin)
        self.at += 1
        sets = {"d": chars.DIGIT, "w": chars.WORD, "s": chars.SCRIPT_SPACE if self.ecma else chars.SPACE}
        if x.lower() in sets:
            return sets[x] if x.islower() else chars.others(sets[x.lower()])
        if x in _SIMPLE or (x in _RE2_ONLY and not self.ecma):
            return chars.of((_SIMPLE | _RE2_ONLY)[x])
        if x == "b" and within:
            return chars.of("\b")
        if x in "bB":
            raise self.error(f"word boundaries \\{x} are not supported", begin)
        if x in "xu":
            return chars.of(self.hexadecimal(x, begin))
        if x == "c" and self.ecma and self.text[self.at : self.at + 1].isascii() and self.text[self.at].isalpha():
            self.at += 1
            return chars.of(ord(self.text[self.at - 1]) % 32)
        if x in "pP":
            return self.category(x, begin)
        if x == "0" and not self.text[self.at : self.at + 1].isdigit():
            return chars.of(0)
        if x in "123456789k":
            raise self.error(f"references such as \\{x} are not supported", begin)
        if x.isalnum():
            raise self.error(f"\\{shown_text(x)} is not supported", begin)
        return chars.of(x)

    def hexadecimal(self, x: str, begin: int) -> int:
        end = self.text.find("}", self.at) if self.peek("{") else self.at + (2 if x == "x" else 4)
        digits = self.text[self.at : end].removeprefix("{")
        self.at = end + (self.text[self.at : self.at + 1] == "{")
        point = int(digits, 16) if _is_hexadecimal(digits) else -1
        if x == "u" and 0xD800 <= point < 0xDC00 and self.peek("\\u") and _is_hexadecimal(self.text[end + 2 : end + 6]):
            low = int(self.text[end + 2 : end + 6], 16)  # the other half of the character
            if 0xDC00 <= low < 0xE000:
                self.at += 6
                return 0x10000 + ((point - 0xD800) << 10) + low - 0xDC00
        if not 0 <= point <= chars.LAST or 0xD800 <= point < 0xE000:
            raise self.error(f"\\{x} must be followed by the number of a character, as in \\x41 or \\u00e9", begin)
        return point

    def category(self, x: str, begin: int) -> Ranges:
        end = self.text.find("}", self.at) if self.peek("{") else self.at + 1
        name = self.text[self.at : end].removeprefix("{") if end > 0 else ""
        inverted = (x == "P") != name.startswith("^")
        some = chars.category(name.removeprefix("^"))
        if some is None:
            raise self.error(
                f"\\{x}{{{shown_text(name, 20)}}} is no general category of Unicode, such as \\p{{L}}", begin
            )
        self.at = end + self.text.startswith("}", end)
        return chars.others(some) if inverted else some


def _single(some: Ranges) -> int | None:
    return some[0][0] if len(some) == 1 and some[0][0] == some[0][1] else None


def _is_hexadecimal(digits: str) -> bool:
    return 0 < len(digits) <= 8 and all(x in "0123456789abcdefABCDEF" for x in digits)

"""Bounds what a chat template costs: steps, characters and time, counted as it runs, refused before they are spent."""

import re
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextvars import ContextVar
from functools import wraps
from typing import Any

from jaxinfer.errors import shown

MOST_TEXT = 1 << 24  # characters of a text that it makes, and of the chat
MOST_MADE = 1 << 27  # characters of all texts that it makes, which it may keep
MOST_HEAVY = 1 << 20  # characters of a text for filters that read it over and over
MOST_STEPS = 2_000_000  # passes of loops, calls, elements of the lists that it makes
MOST_SECONDS = 20.0
CALL = 10  # what a call costs, in steps
MOST_WIDTH = 10_000  # what a text is filled up to, or indented by
MOST_BITS = 4096  # of a whole number
MOST_COMPARED = 1 << 28  # characters of a text times those of what is looked for at its end
_WIDENING = frozenset(["center", "ljust", "rjust", "zfill", "expandtabs", "to_bytes", "indent", "wordwrap", "batch"])
_WIDENING |= {"slice", "truncate", "round", "tojson"}
_HEAVY = frozenset(["striptags", "urlize", "wordwrap", "pprint"])
_AT_ENDS = frozenset(["strip", "lstrip", "rstrip", "trim", "rfind", "rindex", "rsplit", "rpartition"])


class Budget:
    """Counts what a rendering may still do."""

    def __init__(self) -> None:
        self.steps, self.made, self.deadline = 0, 0, time.monotonic() + MOST_SECONDS

    def spend(self, steps: int) -> None:
        before = self.steps >> 8
        self.steps += steps
        if self.steps > MOST_STEPS:
            raise security_error(f"it takes more than {MOST_STEPS:,} steps")
        if self.steps >> 8 != before and time.monotonic() > self.deadline:
            raise security_error(f"it takes more than {MOST_SECONDS:g} seconds")

    def holds(self, characters: int) -> None:
        if characters > MOST_TEXT:
            raise security_error(f"it makes a text of more than {MOST_TEXT:,} characters")

    def weigh(self, value: Any) -> Any:
        """Return the value. Counts the elements of lists and mappings, all that they hold included, as if copied."""
        if isinstance(value, str | bytes):
            self.holds(len(value))
            self.spend(len(value) >> 10)
            self.made += len(value)
            if self.made > MOST_MADE:
                raise security_error(f"it makes texts of more than {MOST_MADE:,} characters")
        elif isinstance(value, list | tuple | dict):
            self.holds(self.characters(value))
        elif isinstance(value, int) and value.bit_length() > MOST_BITS:
            raise security_error(f"it makes a number of more than {MOST_BITS} bits")
        return value

    def characters(self, value: Any) -> int:
        """Estimate how long the text of a value is."""
        if isinstance(value, str):
            return len(value)
        if not isinstance(value, list | tuple | dict):
            return 8
        self.spend(len(value) + 1)
        parts: Iterable[Any] = [*value, *value.values()] if isinstance(value, dict) else value
        total = 0
        for part in parts:
            total += self.characters(part)
            self.holds(total)
        return total

    def count(self, values: Any) -> Any:
        """Give what a loop goes over, each element a step."""
        if isinstance(values, Sized):
            self.spend(len(values))
            return values
        return self._counted(values)

    def _counted(self, values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            self.spend(1)
            yield value


BUDGET: ContextVar[Budget] = ContextVar("jaxinfer_template_budget")


def budget_now() -> Budget:
    """Give that of the rendering under way; a new one while a template is compiled, which computes its constants."""
    return BUDGET.get(None) or Budget()


def security_error(message: str) -> Exception:
    """Name what Jinja raises for what a sandbox does not allow."""
    from jinja2.exceptions import SecurityError

    return SecurityError(message)


def _bounded_widths(arguments: Iterable[Any]) -> None:
    for x in arguments:
        if isinstance(x, int) and not isinstance(x, bool) and abs(x) > MOST_WIDTH:
            raise security_error(f"it fills a text up to {shown(x)} places; at most {MOST_WIDTH:,}")


def _bounded_format(text: Any, values: Any) -> None:
    """Refuse a format in which a number, which may be a width, is large, or is to be taken from the values.

    Each place for a value may take the longest of them.
    """
    text = str(text)
    numbers = re.findall(r"\d+", text)
    if any(len(number) > 4 for number in numbers) or re.search(r"%[^a-zA-Z%]*\*", text):
        raise security_error("it formats to a width of more than 9,999 places")
    places = text.count("%") + text.count("{")
    budget_now().holds(len(text) + sum(map(int, numbers)) + places * budget_now().characters(values))


def _bounded_search(text: Any, sought: Any) -> None:
    """Refuse what Python looks for from the end of a text, or among characters, in a time that is their product."""
    if isinstance(text, str | bytes) and isinstance(sought, str | bytes) and len(text) * len(sought) > MOST_COMPARED:
        raise security_error(f"it looks for a text of {len(sought):,} characters at the end of another")


def _bounded_replacement(text: Any, old: Any, new: Any) -> None:
    text, old, new = str(text), str(old), str(new)
    times = text.count(old) if old else len(text) + 1
    budget_now().holds(len(text) + times * max(0, len(new) - len(old)))


def _bounded_join(separator: Any, values: Any) -> Any:
    """Return the values to join, all of them there, once their text is known to be small."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        return values
    values = [*budget_now().count(values)]
    budget_now().holds(len(str(separator)) * len(values) + budget_now().characters(values))
    return values


def _bounded_arguments(name: str, values: list[Any], named: dict[str, Any]) -> list[Any]:
    """Return the arguments of a filter, the value first, once they are known to make nothing large."""
    budget, text = budget_now(), values[0] if values else ""
    if name in _WIDENING:
        _bounded_widths([*values[1:], *named.values()])
    if name in _HEAVY:
        if budget.characters(text) > MOST_HEAVY:
            raise security_error(f"it uses {name} on a text of more than {MOST_HEAVY:,} characters")
        budget.holds(len(str(text)) * (1 + budget.characters([*values[1:], *named.values()])))
    if name == "indent":
        width = values[1] if len(values) > 1 else named.get("width", 4)
        budget.holds(str(text).count("\n") * (len(width) if isinstance(width, str) else abs(int(width))))
    if name == "format":
        _bounded_format(text, [*values[1:], *named.values()])
    if name == "sum" and not isinstance(values[2] if len(values) > 2 else named.get("start", 0), int | float):
        raise security_error("it sums up what are no numbers")
    if name == "trim" and (chars := values[1] if len(values) > 1 else named.get("chars")):
        _bounded_search(text, chars)
    if name == "replace" and len(values) >= 3:
        _bounded_replacement(*values[:3])
    if name == "join":
        return [_bounded_join(values[1] if len(values) > 1 else named.get("d", ""), text), *values[1:]]
    return values


def guarded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter of Jinja whose result is weighed, and whose arguments cannot make it large."""
    own = 1 if hasattr(function, "jinja_pass_arg") else 0  # the environment or context comes first

    @wraps(function)  # with the mark that says so
    def guarded(*arguments: Any, **named: Any) -> Any:
        budget_now().spend(1)
        values = _bounded_arguments(name, [*arguments[own:]], named)
        return budget_now().weigh(function(*arguments[:own], *values, **named))

    return guarded


def operation(operator: str, left: Any, right: Any) -> None:
    """Refuse what would be too large, before it is computed."""
    budget = budget_now()
    if operator == "*":
        for many, value in ((left, right), (right, left)):
            if isinstance(many, int) and isinstance(value, str | bytes | list | tuple):
                budget.holds(max(0, many) * len(value))
    if operator == "+" and isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
        budget.holds(len(left) + len(right))
    if operator == "%" and isinstance(left, str):
        _bounded_format(left, right)
    powers = operator == "**" and isinstance(left, int) and isinstance(right, int)
    if powers and max(2, abs(left)).bit_length() * max(0, right) > MOST_BITS:
        raise security_error(f"it makes a number of more than {MOST_BITS} bits")


def checked_call(function: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...]:
    """Return the arguments of a call, or of a loop that calls itself, whose passes are counted."""
    from jinja2.runtime import LoopContext

    budget = budget_now()
    budget.spend(CALL)
    if isinstance(function, LoopContext):
        return (budget.count(arguments[0]), *arguments[1:]) if arguments else arguments
    bound = getattr(function, "__wrapped__", function)  # Jinja wraps `format`
    owner, name = getattr(bound, "__self__", None), getattr(bound, "__name__", "")
    if isinstance(owner, str | bytes | int):
        if name in _WIDENING:
            _bounded_widths([*arguments, *named.values()])
        if name in ("format", "format_map"):
            _bounded_format(owner, [*arguments, *named.values()])
        if name in ("translate", "maketrans"):
            raise security_error(f"it uses {name}")
        if name == "expandtabs" and isinstance(owner, str):
            budget.holds(len(owner) + owner.count("\t") * int(next(iter([*arguments, *named.values()]), 8)))
        if name in _AT_ENDS and arguments:
            _bounded_search(owner, arguments[0])
        if name == "replace" and len(arguments) >= 2:
            _bounded_replacement(owner, *arguments[:2])
        if name == "join" and arguments:
            arguments = (_bounded_join(owner, arguments[0]),)
        if isinstance(owner, str | bytes):
            budget.spend(len(owner) >> 6)
    return arguments

"""A sandbox for chat templates: Jinja programs from strangers, bounded in steps, in memory and in time.

Jinja's own sandbox keeps a template from reaching anything but its variables. This one also bounds what it does with
them: every pass of a loop and every call is a step, and every text and list that it makes has to be small before it is
made. What is bounded does not depend on the machine; the time limit beyond it is the last resort.
"""

import json
import re
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import cache, lru_cache
from typing import Any

from jaxinfer.checkpoint.template_bounds import (
    BUDGET,
    Budget,
    budget_now,
    checked_call,
    guarded_filter,
    operation,
    security_error,
)
from jaxinfer.errors import InputError, shown
from jaxinfer.host.files import shown_error
from jaxinfer.host.optional import require

MOST_SOURCE = 1 << 18  # characters of a template
_UNKNOWN = ("lipsum",)  # globals of Jinja that transformers' templates do not use


def render(source: Any, variables: dict[str, Any]) -> str:
    """Render the text that a template makes of variables, which are plain data.

    Raises InputError if it is no template, fails, refuses, or wants more than the bounds of `template_bounds`.
    """
    if not isinstance(source, str):
        raise InputError(f"the chat template must be a text (a Jinja template), not {shown(source)}")
    if len(source) > MOST_SOURCE:
        raise InputError(f"the chat template has {len(source):,} characters; at most {MOST_SOURCE:,} are read")
    require("jinja2", "for chat templates")
    token = BUDGET.set(Budget())
    try:
        return _compiled(source).render(**variables)
    except RecursionError:
        raise InputError("the chat template failed: it calls itself, or is nested, too deep") from None
    except MemoryError:
        raise InputError("the chat template failed: it needs too much memory") from None
    except Exception as error:  # of the template: whatever its operations raise
        raise InputError(f"the chat template failed: {shown_error(error)}") from None
    finally:
        BUDGET.reset(token)


@lru_cache(maxsize=8)  # a chat is rendered at each turn, a corpus for each prompt
def _compiled(source: str) -> Any:
    return _environment().from_string(source)


def strftime_now(form: str) -> str:
    """Return the time now in the words of `strftime`, in which no number may stand: glibc takes it as a width."""
    if not isinstance(form, str) or len(form) > 200 or re.search(r"%[^a-zA-Z%]*\d\d", form):
        raise security_error(f"strftime_now takes a short format of dates, not {shown(form)}")
    return datetime.now().strftime(form)


def _tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    # Jinja's own filter escapes HTML characters.
    form = {"ensure_ascii": ensure_ascii, "indent": indent, "separators": separators, "sort_keys": sort_keys}
    if indent is None:
        return json.dumps(value, **form)
    pieces, total = [], 0
    for piece in json.JSONEncoder(**form).iterencode(value):
        pieces.append(piece)
        total += len(piece)
        budget_now().holds(total)
    return "".join(pieces)


@cache
def _environment() -> Any:
    import jinja2
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace
    from jinja2.visitor import NodeTransformer

    class Generation(Extension):
        """`{% generation %}`: the part of a turn that the assistant wrote, which is rendered like any other."""

        tags = {"generation"}  # noqa: RUF012  (the base class has it as an attribute of an instance)

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return nodes.CallBlock(self.call_method("_same"), [], [], body).set_lineno(line)

        def _same(self, caller: Callable[[], str]) -> str:
            return caller()

    def through(name: str, node: Any) -> Any:
        return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno, environment=node.environment)

    class Counting(NodeTransformer):
        """Sends what loops go over, and every list that is made, through the budget."""

        def visit_For(self, node: Any) -> Any:
            self.generic_visit(node)
            node.iter = through("_counted", node.iter)
            return node

        def visit_List(self, node: Any) -> Any:
            return through("_weighed", self.generic_visit(node))

        visit_Dict = visit_List

        def visit_Tuple(self, node: Any) -> Any:
            self.generic_visit(node)
            return through("_weighed", node) if node.ctx == "load" else node

        def visit_Concat(self, node: Any) -> Any:
            self.generic_visit(node)
            return through("_joined", nodes.List(node.nodes, lineno=node.lineno, environment=node.environment))

    def check_name(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise security_error(f"a name in a namespace must not begin with an underscore: {shown(name)}")

    class PlainNamespace(Namespace):
        """A namespace none of whose names begins with an underscore."""

        def __init__(*given: Any, **named: Any) -> None:
            self, *values = given
            attributes = dict(*values, **named)
            for name in attributes:
                check_name(name)
            Namespace.__init__(self, attributes)

        def __repr__(self) -> str:
            return "<Namespace>"  # not what it holds, which may be namespaces that hold one another

        def __setitem__(self, name: str, value: Any) -> None:
            check_name(name)
            Namespace.__setitem__(self, name, value)

    class Bounded(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(["+", "*", "**", "%"])

        def _parse(self, *source: Any) -> Any:
            return Counting().visit(super()._parse(*source))

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            operation(operator, left, right)
            return budget_now().weigh(super().call_binop(context, operator, left, right))

        def call(__self, __context: Any, __obj: Any, *arguments: Any, **named: Any) -> Any:
            arguments = checked_call(__obj, arguments, named)
            return budget_now().weigh(super().call(__context, __obj, *arguments, **named))

        @staticmethod
        def concat(parts: Iterable[str]) -> str:
            budget, held, total = budget_now(), [], 0
            for part in parts:
                held.append(part)
                total += len(part)
                budget.holds(total)
            budget.spend(len(held) + (total >> 10))
            return "".join(held)

    def raise_exception(message: str):
        raise jinja2.TemplateError(message)

    def joined(values: list[Any]) -> str:
        return "".join(map(str, values))

    environment = Bounded(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    environment.filters["tojson"] = _tojson
    for name, function in list(environment.filters.items()):
        environment.filters[name] = guarded_filter(name, function)
    environment.filters["_counted"] = lambda values: budget_now().count(values)
    environment.filters["_weighed"] = lambda value: budget_now().weigh(value)
    environment.filters["_joined"] = guarded_filter("_joined", joined)
    for name in _UNKNOWN:
        environment.globals.pop(name, None)
    environment.globals["namespace"] = PlainNamespace
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    return environment

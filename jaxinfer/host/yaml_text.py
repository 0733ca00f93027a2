"""YAML of users, read in bounded time: plain data, or one line that says what is wrong with it."""

import re
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from jaxinfer.errors import InputError, shown, shown_text
from jaxinfer.host.files import shown_error

MOST_BYTES = 1 << 20  # of a document: the reader takes some seconds for so many
MOST_NODES = 100_000  # scalars, lists and mappings, each counted as often as an alias names it
DEEPEST = 50  # lists and mappings in one another
LARGEST = 2**64  # whole numbers are smaller, negative ones too
MERGE = "tag:yaml.org,2002:merge"
_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map")} | {MERGE}


def parse(text: str, where: str) -> Any:
    """Read one YAML document as dicts, lists, texts, numbers, true, false and null.

    Dates are texts. Raises InputError, which names the line, for a syntax error, a key given twice, an anchor that
    holds itself, other tags, and what is too large, too deep or no text.
    """
    if len(text) > MOST_BYTES:
        raise InputError(f"{where}: has {len(text):,} characters, and at most {MOST_BYTES:,} are read")
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = shown_text(" ".join((getattr(error, "problem", None) or str(error)).split()))
        raise InputError(f"{where}{line}: not valid YAML: {problem}") from None
    except RecursionError:
        raise InputError(f"{where}: not valid YAML: is nested too deep") from None
    except (ValueError, LookupError, OverflowError) as error:  # such as an escape that stands for no character
        raise InputError(f"{where}: not valid YAML: {shown_error(error)}") from None


class _Loader(yaml.SafeLoader):
    """SafeLoader of bounded documents that also reads `1e-3` as a number (YAML 1.2) and rejects a key given twice."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = self._count = 0
        self._sizes: dict[Any, int] = {}  # by node, how many it stands for

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Give the next node, once it is known to be one that is read."""
        alias = self.check_event(yaml.AliasEvent)
        event = self.peek_event()
        self._depth += 1
        before = self._count
        if self._depth > DEEPEST:
            raise _error("is nested too deep", event)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if alias:
            if node not in self._sizes:  # which it is once it has been read to its end
                raise _error(f"the anchor {shown(event.anchor)} holds itself", event)
            self._count += self._sizes[node]
        else:
            self._count += 1
            self._sizes[node] = self._count - before
            if node.tag not in _TAGS:
                raise _error(f"the tag {shown(node.tag)} is not read", event)
            if isinstance(node, yaml.MappingNode):
                _check_keys(node)
        if self._count > MOST_NODES:
            raise _error(f"holds more than {MOST_NODES:,} values", event)
        return node

    def flatten_mapping(self, node: Any) -> None:
        """Put what `<<` names into a mapping: its own keys count, then the first that is merged. (PyYAML 6.0.4's own
        takes keys of one character from the wrong one.)"""
        merged: dict[str, Any] = {}
        for key, value in node.value:
            for source in [] if key.tag != MERGE else value.value if isinstance(value, yaml.SequenceNode) else [value]:
                if not isinstance(source, yaml.MappingNode):
                    raise _error("<<: expected a mapping, or a list of them", source)
                self.flatten_mapping(source)
                for pair in source.value:
                    merged.setdefault(pair[0].value, pair)
        own = [pair for pair in node.value if pair[0].tag != MERGE]
        for key, _ in own:
            merged.pop(key.value, None)
        node.value = [*merged.values(), *own]

    def construct_int(self, node: Any) -> int:
        try:
            value = int(self.construct_yaml_int(node))
        except ValueError:  # of thousands of digits, or none
            value = LARGEST
        if abs(value) >= LARGEST:
            raise _error(f"{shown_text(node.value, 40)} is no whole number of up to 64 bits", node)
        return value

    def construct_text(self, node: Any) -> str:
        text = str(self.construct_scalar(node))
        try:
            text.encode()
        except UnicodeEncodeError:
            raise _error("a text holds half a character (a lone surrogate)", node) from None
        return text


def _check_keys(node: yaml.MappingNode) -> None:
    seen = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise _error("a key is a list or a mapping", key)
        if key.tag.rpartition(":")[2] in ("null", "bool", "float"):
            raise _error(f"the key {shown(key.value)} is no text: write it in quotes", key)
        if key.value in seen and key.tag != MERGE:
            raise _error(f"{shown(key.value)} is given twice", key)
        seen.add(key.value)


def _error(problem: str, at: Any) -> ConstructorError:
    return ConstructorError(None, None, problem, at.start_mark)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_int)
_Loader.add_constructor("tag:yaml.org,2002:str", _Loader.construct_text)
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in pairs if tag in _TAGS]  # not dates, and not "="
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)

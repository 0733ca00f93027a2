"""JSON with something wrong, for the fuzz tests of what reads it."""

import json

from hypothesis import strategies as st

VALUES = [None, True, -1, 0, 1, 1.5, -0.5, 10**6, 2**31, 2**63, 10**400, 1e308, "", "x" * 500, "Infinity", "-Infinity"]
VALUES += [[], [[]], [1], [None] * 3, {}, {"a": 1}, {"kind": "yarn"}, "softmax", "int8", "\ud800", float("inf")]


def places(value, at=()):
    """The paths of all values in a tree."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for name, item in inside for place in places(item, (*at, name)))]


def damaged(data, values):
    """A copy in which one or two fields are changed, dropped or added."""
    values = json.loads(json.dumps(values))
    for _ in range(data.draw(st.integers(1, 2))):
        found = places(values)[1:]
        if not found:
            break
        *parents, last = data.draw(st.sampled_from(found))
        holder = values
        for name in parents:
            holder = holder[name]
        match data.draw(st.sampled_from(["change", "change", "drop", "add"])):
            case "change":
                holder[last] = data.draw(st.sampled_from(VALUES))
            case "drop":
                del holder[last]
            case "add" if isinstance(holder, dict):
                holder["added"] = 1
    return values

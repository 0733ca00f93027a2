"""Find how often a loop runs, and which branch of a conditional counts."""

import re
from collections.abc import Mapping, Sequence

from jaxinfer.analysis.hlo.parse import Computation, Instruction, Module

_KNOWN = re.compile(r'known_trip_count\\?"\s*:\s*\{\s*\\?"n\\?"\s*:\s*\\?"?(\d+)')

Trips = Mapping[str, float | Sequence[float]]
"""Numbers of runs of loops, by the end of their `op_name` or by their name. Of several loops in one computation that
one key is the end of, each takes the next number of a sequence, in the order in which they stand."""


def given_trips(trips: Trips, where: Computation, loop: Instruction) -> float | None:
    """Look a loop up. The longest key that fits counts; None: no key does."""

    def fits(key: str, instruction: Instruction) -> bool:
        return key == instruction.name or f"/{instruction.op_name}".endswith(f"/{key}")

    keys = [key for key in trips if fits(key, loop)]
    if not keys:
        return None
    key = max(keys, key=len)
    found = trips[key]
    if not isinstance(found, Sequence):
        return float(found)
    alike = [x.name for x in where.instructions.values() if x.opcode == "while" and fits(key, x)]
    return float(found[alike.index(loop.name) % len(found)])


def known_trips(module: Module, where: Computation, loop: Instruction) -> float | None:
    """Read how often a loop runs: from what the compiler notes, else from its condition, a bound that is a constant.

    None where neither says so, as for a loop that ends when its data say.
    """
    if found := _KNOWN.search(loop.rest):
        return float(found.group(1))
    condition, body = (module.computations.get(name) for key in ("condition", "body") for name in loop.calls(key))
    if condition is None or body is None:
        return None
    compare, values = _through(module, condition, condition.root, {})
    if compare is None or compare.opcode != "compare" or len(values) != 2:
        return None
    counter = _element(values[0])
    direction = compare.attributes.get("direction")
    bound = _constant(values[1])
    if bound is None and (index := _element(values[1])) is not None and _passed_on(body, index):
        bound = _initial(where, loop, index)
    if counter is None or bound is None or direction not in ("LT", "LE"):
        return None
    begin, step = _initial(where, loop, counter), _step(module, body, counter)
    if begin is None or not step or step < 0:
        return None
    return float(max(0, -(-(bound + (direction == "LE") - begin) // step)))


def _through(
    module: Module, where: Computation, instruction: Instruction, given: Mapping[str, Instruction]
) -> tuple[Instruction | None, list[Instruction]]:
    """Look into a fusion of one operation: that operation, and the values outside that it takes."""
    operands = [given.get(x.name, x) for x in where.operands(instruction)]
    while instruction.opcode in ("fusion", "call") and (inner := module.called(instruction)):
        inside = dict(zip((x.name for x in inner[0].parameters), operands, strict=False))
        where, instruction = inner[0], inner[0].root
        operands = [inside.get(x.name, x) for x in where.operands(instruction)]
    return instruction, operands


def _constant(instruction: Instruction) -> int | None:
    text = instruction.literal.strip()
    return int(text) if instruction.opcode == "constant" and re.fullmatch(r"-?\d+", text) else None


def _element(instruction: Instruction) -> int | None:
    if instruction.opcode != "get-tuple-element":
        return None
    return next(iter(instruction.integers("index")), None)


def _passed_on(body: Computation, index: int) -> bool:
    """Tell whether a loop leaves an element of what it carries as it is."""
    operands = body.operands(body.root)
    return body.root.opcode == "tuple" and index < len(operands) and _element(operands[index]) == index


def _initial(where: Computation, loop: Instruction, index: int) -> int | None:
    carried = where.operands(loop)
    if not carried or carried[0].opcode != "tuple" or index >= len(where.operands(carried[0])):
        return None
    value = where.operands(carried[0])[index]
    while value.opcode in ("copy", "bitcast") and where.operands(value):
        value = where.operands(value)[0]
    return _constant(value)


def _step(module: Module, body: Computation, index: int) -> int | None:
    operands = body.operands(body.root)
    if body.root.opcode != "tuple" or index >= len(operands):
        return None
    add, values = _through(module, body, operands[index], {})
    if add is None or add.opcode != "add":
        return None
    plain = [body.operands(x)[0] if x.opcode == "copy" and body.operands(x) else x for x in values]
    steps = [found for found in map(_constant, plain) if found is not None]
    return steps[0] if steps and index in map(_element, plain) else None

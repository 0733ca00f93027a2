"""Read the text of a compiled XLA program into frozen data: modules, computations, instructions and their shapes.

The text is that of `jax.stages.Compiled.as_text()`, for CPU, GPU or TPU: HLO after optimization. Its grammar has no
version. What is not known is kept as it stands, in `Instruction.rest`.
"""

import functools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxinfer.errors import InputError

BITS = {"pred": 8, "token": 0, "opaque": 0, "s2": 2, "u2": 2, "s4": 4, "u4": 4, "bf16": 16, "c64": 64, "c128": 128}
_CALLERS = "calls|to_apply|body|condition|branch_computations|true_computation|false_computation|called_computations"
_CALLED = re.compile(rf"\b({_CALLERS})=(?:\{{([^}}]*)\}}|%?([\w.\-]+))")
_INSTRUCTION = re.compile(r"\s*(ROOT )?%?([\w.\-]+) = ")
_OPCODE = re.compile(r"\s*([\w\-]+)\(")
_NAME = re.compile(r"%([\w.\-]+)")
_OP_NAME = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
_SOURCE = re.compile(r'source_file="([^"]*)"(?: source_line=(\d+))?')
_FRAME = re.compile(r"stack_frame_id=(\d+)")
_ARRAY = re.compile(r"([a-z]\w*)\[([^\]]*)\]")
_COMMENT = re.compile(r"/\*[^*]*\*/")
_ALIAS = re.compile(r"\{([\d, ]*)\}: \((\d+), \{([\d, ]*)\}")
_DONOR = re.compile(r"\((\d+), \{([\d, ]*)\}\)")


@dataclass(frozen=True)
class Shape:
    """The shape of a value. A tuple has `elements`, and nothing else."""

    dtype: str
    dims: tuple[int, ...] = ()
    layout: str = ""  # as written, tiling included: `1,0:T(8,128)`
    elements: tuple["Shape", ...] | None = None

    @property
    def size(self) -> int:
        """Count the numbers of an array; of a tuple, those of all its arrays."""
        return math.prod(self.dims) if self.elements is None else sum(part.size for part in self.elements)

    @functools.cached_property
    def bytes(self) -> int:
        """Count bytes, without the padding of a tiled layout."""
        if self.elements is not None:
            return sum(part.bytes for part in self.elements)
        return (self.size * bits_of(self.dtype) + 7) // 8

    def arrays(self) -> Iterator["Shape"]:
        """Give the arrays of a tuple, in order, or the array itself."""
        for part in () if self.elements is None else self.elements:
            yield from part.arrays()
        if self.elements is None:
            yield self

    def __str__(self) -> str:
        if self.elements is not None:
            return f"({', '.join(map(str, self.elements))})"
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"


@dataclass(frozen=True)
class Instruction:
    """One instruction. `called` names the computations that it calls, by attribute: `calls`, `body`, `condition`."""

    name: str
    shape: Shape
    opcode: str
    operands: tuple[str, ...]
    literal: str  # between the parentheses, as written: the value of a constant, the number of a parameter
    called: tuple[tuple[str, tuple[str, ...]], ...]
    op_name: str  # of the metadata: the path of scopes and modules to the JAX primitive; "" where there is none
    source: str  # `file:line` of the user's code; "" where the text does not say
    rest: str  # the attributes as they are written
    root: bool = False

    @functools.cached_property
    def attributes(self) -> Mapping[str, str]:
        """Give the attributes by name, each as it is written."""
        return dict(_attributes(self.rest))

    def calls(self, attribute: str) -> tuple[str, ...]:
        """Name the computations under one attribute."""
        return next((names for key, names in self.called if key == attribute), ())

    @property
    def callees(self) -> tuple[str, ...]:
        """Name all computations that it calls."""
        return tuple(name for _, names in self.called for name in names)

    def integers(self, attribute: str) -> tuple[int, ...]:
        """Read an attribute that lists whole numbers, `{0,2}`; () where it is missing."""
        return tuple(map(int, re.findall(r"-?\d+", self.attributes.get(attribute, ""))))


@dataclass(frozen=True)
class Computation:
    """A computation: instructions by name, in the order of the text, which is the order they run in if scheduled."""

    name: str
    instructions: Mapping[str, Instruction]
    entry: bool = False

    @functools.cached_property
    def root(self) -> Instruction:
        """Give the instruction whose value is the result."""
        found = [x for x in self.instructions.values() if x.root]
        return found[0] if found else list(self.instructions.values())[-1]

    @functools.cached_property
    def parameters(self) -> tuple[Instruction, ...]:
        """Give the parameters in the order of their numbers."""
        found = [x for x in self.instructions.values() if x.opcode == "parameter"]
        return tuple(sorted(found, key=lambda x: int(x.literal)))

    @functools.cached_property
    def users(self) -> Mapping[str, tuple[Instruction, ...]]:
        """Give the instructions that take each value, by its name."""
        found: dict[str, list[Instruction]] = {name: [] for name in self.instructions}
        for instruction in self.instructions.values():
            for name in dict.fromkeys(instruction.operands):
                if name in found:
                    found[name].append(instruction)
        return {name: tuple(users) for name, users in found.items()}

    def operands(self, instruction: Instruction) -> tuple[Instruction, ...]:
        """Give the instructions whose values one takes."""
        return tuple(self.instructions[name] for name in instruction.operands if name in self.instructions)


@dataclass(frozen=True)
class Module:
    """A compiled program."""

    name: str
    computations: Mapping[str, Computation]
    entry: Computation
    aliases: Mapping[tuple[int, ...], tuple[int, tuple[int, ...]]]  # index of the result -> (parameter, index within)
    donors: tuple[int, ...] = ()  # parameters that were donated and that no result takes over
    attributes: str = field(default="", repr=False)  # the head of the text

    def called(self, instruction: Instruction) -> tuple[Computation, ...]:
        """Give the computations that an instruction calls."""
        return tuple(self.computations[name] for name in instruction.callees if name in self.computations)

    def instructions(self) -> Iterator[tuple[Computation, Instruction]]:
        """Give every instruction, fused ones too, with its computation."""
        for computation in self.computations.values():
            for instruction in computation.instructions.values():
                yield computation, instruction


def bits_of(dtype: str) -> int:
    """Count the bits of a number: `f32` 32, `s4` 4, `f8e4m3fn` 8, `pred` 8 as it is stored."""
    if dtype in BITS:
        return BITS[dtype]
    found = re.match(r"[a-z]+(\d+)", dtype)
    return int(found.group(1)) if found else 0


@functools.lru_cache(maxsize=65536)
def shape_of(text: str) -> Shape:
    """Read a shape: `f32[2,3]{1,0:T(8,128)}` or a tuple of such."""
    text = text.strip()
    if text.startswith("("):
        return Shape("tuple", elements=tuple(shape_of(part) for part in _split(_COMMENT.sub("", text)[1:-1])))
    found = _ARRAY.match(text)
    if found is None:
        return Shape(text.partition("[")[0])
    dims = tuple(int(dim.strip().removeprefix("<=")) for dim in found.group(2).split(",") if dim.strip())
    return Shape(found.group(1), dims, text[found.end() :].strip("{}"))


def _split(text: str) -> list[str]:
    """Split at the commas that stand in no bracket and in no string."""
    parts, depth, start, quoted = [], 0, 0, False
    for found in re.finditer(r'\\.|[(){}\[\],"]', text):
        mark = found.group()
        if mark == '"':
            quoted = not quoted
        elif quoted or mark.startswith("\\"):
            continue
        elif mark in "({[":
            depth += 1
        elif mark in ")}]":
            depth -= 1
        elif depth == 0:
            parts.append(text[start : found.start()])
            start = found.end()
    parts.append(text[start:])
    return [part for part in map(str.strip, parts) if part]


def _attributes(text: str) -> Iterator[tuple[str, str]]:
    for part in _split(text):
        key, equals, value = part.partition("=")
        if equals:
            yield key.strip(), value.strip()


def _closing(text: str, start: int) -> int:
    """Find the parenthesis that closes the one at `start`. What stands in strings is passed over."""
    depth, quoted = 0, False
    for found in re.compile(r'\\.|[()"]').finditer(text, start):
        mark = found.group()
        if mark == '"':
            quoted = not quoted
        elif mark == "(" and not quoted:
            depth += 1
        elif mark == ")" and not quoted:
            depth -= 1
            if depth == 0:
                return found.start()
    return len(text)


def _instruction(line: str, frames: Mapping[str, str]) -> Instruction | None:
    head = _INSTRUCTION.match(line)
    if head is None:
        return None
    end = _closing(line, head.end()) + 1 if line[head.end()] == "(" else line.find(" ", head.end())
    layout = re.compile(r"\{[^}]*\}").match(line, end)  # TPU's text may have a space within a layout
    opcode = _OPCODE.match(line, layout.end() if layout else end)
    if end <= 0 or opcode is None:
        return None
    close = _closing(line, opcode.end() - 1)
    inner, rest = line[opcode.end() : close], line[close + 1 :].removeprefix(", ")
    is_leaf = opcode.group(1) in ("constant", "parameter")
    operands = () if is_leaf else tuple(_NAME.findall(inner)) or tuple(x.split()[-1] for x in _split(inner))
    op_name, source = _OP_NAME.search(rest), _SOURCE.search(rest)
    frame = _FRAME.search(rest)
    place = f"{source.group(1)}:{source.group(2) or 0}" if source else frames.get(frame.group(1), "") if frame else ""
    called: tuple[Any, ...] = ()
    if "=%" in rest or "={%" in rest or "computation" in rest:
        found = ((key, many, one) for key, many, one in _CALLED.findall(rest))
        called = tuple((key, (one,) if one else tuple(re.findall(r"[\w.\-]+", many))) for key, many, one in found)
    return Instruction(
        name=head.group(2),
        shape=shape_of(line[head.end() : end]),
        opcode=opcode.group(1),
        operands=operands,
        literal=inner,
        called=called,
        op_name=op_name.group(1).replace("\\'", "'").replace('\\"', '"') if op_name else "",
        source=place,
        rest=rest,
        root=head.group(1) is not None,
    )


def _frames(lines: list[str]) -> Mapping[str, str]:
    """Read the tables at the head of newer texts: `file:line` by stack frame."""
    tables: dict[str, dict[str, str]] = {}
    table: dict[str, str] = {}
    for line in lines:
        if line in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"):
            table = tables.setdefault(line, {})
        elif row := re.match(r"(\d+) (.*)", line):
            table[row.group(1)] = row.group(2)

    def entry(text: str, key: str) -> str:
        found = re.search(rf"{key}=(\d+)", text)
        return found.group(1) if found else ""

    files, places = tables.get("FileNames", {}), tables.get("FileLocations", {})
    found = {}
    for frame, text in tables.get("StackFrames", {}).items():
        place = places.get(entry(text, "file_location_id"), "")
        name = files.get(entry(place, "file_name_id"), "").strip('"')
        if name:
            found[frame] = f"{name}:{entry(place, 'line') or 0}"
    return found


def parse(text: str) -> Module:
    """Read the text of a compiled program. Raises InputError for a text that holds no HLO module."""
    lines = text.splitlines()
    begin = next((i for i, line in enumerate(lines) if line.startswith("HloModule")), None)
    if begin is None:
        raise InputError("this is no HLO text: no line begins with HloModule, as that of compiled.as_text() does")
    head, tables, name, is_entry = lines[begin], list[str](), "", False
    computations: dict[str, Computation] = {}
    entry: Computation | None = None
    inside: dict[str, Instruction] | None = None
    frames: Mapping[str, str] | None = None
    for line in lines[begin + 1 :]:
        if inside is not None and name:
            if line.startswith("}"):  # `}, execution_thread="sparsecore"` for what another core runs
                computations[name] = Computation(name, inside, is_entry)
                entry = computations[name] if is_entry else entry
                inside = None
            elif found := _instruction(line, frames or {}):
                inside[found.name] = found
        elif line.rstrip().endswith("{") and (opening := re.match(r"\s*(ENTRY )?%?([\w.\-]+)", line)):
            frames = _frames(tables) if frames is None else frames
            is_entry, name, inside = opening.group(1) is not None, opening.group(2), {}
        else:
            tables.append(line)
    if not computations:
        raise InputError("this HLO text holds no computation: it ends after its head")
    aliases = {
        tuple(map(int, re.findall(r"\d+", result))): (int(number), tuple(map(int, re.findall(r"\d+", within))))
        for result, number, within in _ALIAS.findall(_braced(head, "input_output_alias="))
    }
    donors = tuple(int(number) for number, _ in _DONOR.findall(_braced(head, "buffer_donor=")))
    title = head.removeprefix("HloModule").strip().partition(",")[0]
    return Module(title, computations, entry or list(computations.values())[-1], aliases, donors, head)


def _braced(text: str, key: str) -> str:
    """Give what stands in the braces after a key; "" where the key is missing."""
    start = text.find(key + "{")
    if start < 0:
        return ""
    depth = 0
    for found in re.finditer(r"[{}]", text[start:]):
        depth += 1 if found.group() == "{" else -1
        if depth == 0:
            return text[start + len(key) + 1 : start + found.start()]
    return text[start:]

"""Count the operations of a single HLO instruction from its shapes.

A multiply-add is two operations. An elementwise instruction is one for each number of its result, comparisons, selects
and conversions too, as XLA's own count has it (`HloCostAnalysis`); exp, tanh and their like are counted apart. What
only moves numbers is none.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from jaxinfer.analysis.hlo.parse import Computation, Instruction, Module, Shape

_TRANSCENDENTAL = (
    "acos acosh asin asinh atan atan2 atanh cbrt cosh cosine erf exponential exponential-minus-one log log-plus-one "
    "logistic power rsqrt sine sinh sqrt tan tanh"
)
_ELEMENTWISE = (
    "abs add and ceil clamp clz compare complex convert count-leading-zeros divide floor imag is-finite maximum "
    "minimum multiply negate not or popcnt real reduce-precision remainder round-nearest-afz round-nearest-even select "
    "shift-left shift-right-arithmetic shift-right-logical sign stochastic-convert subtract xor"
)
TRANSCENDENTAL, ELEMENTWISE = frozenset(_TRANSCENDENTAL.split()), frozenset(_ELEMENTWISE.split())
MATMUL_TARGETS = re.compile(r"matmul|gemm|\bdot\b", re.IGNORECASE)
_IDLE = ("AllocateBuffer", "Sharding", "MoveToHost", "MoveToDevice")  # custom calls that compute nothing
CONVOLUTION_TARGETS = re.compile(r"conv", re.IGNORECASE)


@dataclass(frozen=True)
class Operations:
    """Operations by kind."""

    matmul: float = 0.0  # of products and convolutions, two a multiply-add
    elementwise: float = 0.0
    transcendental: float = 0.0

    def __add__(self, other: "Operations") -> "Operations":
        return Operations(
            self.matmul + other.matmul,
            self.elementwise + other.elementwise,
            self.transcendental + other.transcendental,
        )

    def __mul__(self, times: float) -> "Operations":
        return Operations(self.matmul * times, self.elementwise * times, self.transcendental * times)


def operations(module: Module, where: Computation, instruction: Instruction) -> Operations | None:
    """Count those of one instruction, without those of computations that are fused, looped over or called.

    None: it does something that its text does not tell, as a kernel of another compiler.
    """
    if instruction.opcode in TRANSCENDENTAL:
        return Operations(transcendental=instruction.shape.size)
    if instruction.opcode in ELEMENTWISE:
        return Operations(elementwise=instruction.shape.size)
    rule = _RULES.get(instruction.opcode)
    return Operations() if rule is None else rule(module, where, instruction)


def applied(module: Module, instruction: Instruction) -> Operations:
    """Count those of one application of the computation of a reduction, a scatter or a map."""
    total = Operations()
    for name in instruction.calls("to_apply"):
        if name in module.computations:
            for inner in module.computations[name].instructions.values():
                total += operations(module, module.computations[name], inner) or Operations()
    return total


def _shapes(where: Computation, instruction: Instruction) -> list[Shape]:
    return [operand.shape for operand in where.operands(instruction)]


def _dot(module: Module, where: Computation, instruction: Instruction) -> Operations | None:
    left = _shapes(where, instruction)[:1]
    if not left:
        return None
    contracted = math.prod(left[0].dims[axis] for axis in instruction.integers("lhs_contracting_dims"))
    return Operations(matmul=2.0 * instruction.shape.size * contracted)


def _convolution(module: Module, where: Computation, instruction: Instruction) -> Operations | None:
    """Count two for each product of a kernel's number and an input's that is there: padding is not.

    A TPU writes batched products as convolutions whose window runs over the batch: of each of its places one input is
    there, so the same rule counts them.
    """
    shapes, labels = _shapes(where, instruction), instruction.attributes.get("dim_labels", "")
    found = re.match(r"(\w+)_(\w+)->(\w+)", labels)
    if found is None or len(shapes) < 2:
        return None
    inputs, kernels, outputs = found.groups()
    result = next(instruction.shape.arrays())
    window = dict(part.partition("=")[::2] for part in instruction.attributes.get("window", "").strip("{}").split())

    def numbers(key: str, default: str) -> list[list[int]]:
        rank = sum(label.isdigit() for label in inputs)
        text = window.get(key) or "x".join([default] * rank)
        return [[int(x) for x in part.split("_")] for part in text.split("x") if part]

    pairs = 1
    columns = (numbers(*x) for x in (("stride", "1"), ("pad", "0_0"), ("lhs_dilate", "1"), ("rhs_dilate", "1")))
    for axis, (stride, pad, spread, step) in enumerate(zip(*columns, strict=True)):
        label = str(axis)
        given, size, out = (
            shape.dims[labels.index(label)]
            for shape, labels in ((shapes[0], inputs), (shapes[1], kernels), (result, outputs))
        )
        pairs *= _pairs(given, size, out, stride[0], pad[0], spread[0], step[0])
    batch, features = (result.dims[outputs.index(label)] for label in "bf")
    width = shapes[1].dims[kernels.index("i")]
    groups = int(instruction.attributes.get("batch_group_count", "1"))
    return Operations(matmul=2.0 * batch * features * width * pairs / groups)


def _pairs(given: int, size: int, out: int, stride: int, low: int, spread: int, step: int) -> int:
    """Count the places of a result and of a kernel, along one axis, at which a number of the input stands."""
    count, last = 0, (given - 1) * spread
    for k in range(size):
        first = k * step - low
        if spread == 1:
            begin, end = -(first // stride) if first < 0 else 0, (last - first) // stride
            count += max(0, min(end, out - 1) - max(begin, 0) + 1)
        else:
            places = (first + i * stride for i in range(out))
            count += sum(0 <= place <= last and place % spread == 0 for place in places)
    return count


def _reduce(module: Module, where: Computation, instruction: Instruction) -> Operations:
    given = _shapes(where, instruction)
    taken = given[0].size - next(instruction.shape.arrays()).size if given else 0
    return applied(module, instruction) * max(taken, 0)


def _reduce_window(module: Module, where: Computation, instruction: Instruction) -> Operations:
    size = re.search(r"size=([\dx]+)", instruction.attributes.get("window", ""))
    width = math.prod(map(int, size.group(1).split("x"))) if size else 1
    return applied(module, instruction) * (next(instruction.shape.arrays()).size * (width - 1))


def _map(module: Module, where: Computation, instruction: Instruction) -> Operations:
    return applied(module, instruction) * instruction.shape.size


def _scatter(module: Module, where: Computation, instruction: Instruction) -> Operations:
    given = _shapes(where, instruction)
    return applied(module, instruction) * given[-1].size if given else Operations()


def _sort(module: Module, where: Computation, instruction: Instruction) -> Operations:
    shape, axis = next(instruction.shape.arrays()), instruction.integers("dimensions")
    length = shape.dims[axis[0]] if axis and shape.dims else shape.size
    return Operations(elementwise=shape.size * max(1.0, math.log2(max(length, 2))))


def _top_k(module: Module, where: Computation, instruction: Instruction) -> Operations:
    return Operations(elementwise=sum(shape.size for shape in _shapes(where, instruction)[:1]))


def _fft(module: Module, where: Computation, instruction: Instruction) -> Operations:
    length = math.prod(instruction.integers("fft_length")) or 1
    return Operations(elementwise=5.0 * instruction.shape.size * math.log2(max(length, 2)))


def _custom_call(module: Module, where: Computation, instruction: Instruction) -> Operations | None:
    target = target_of(instruction)
    if estimate := estimate_of(instruction):
        return Operations(matmul=estimate[0], transcendental=estimate[1])
    if CONVOLUTION_TARGETS.search(target) and "dim_labels" in instruction.attributes:
        return _convolution(module, where, instruction)
    if MATMUL_TARGETS.search(target):
        return _product(where, instruction)
    if target.lower() in ("topk", "__topk"):
        return _top_k(module, where, instruction)
    return None if instruction.shape.bytes and target not in _IDLE else Operations()


def _product(where: Computation, instruction: Instruction) -> Operations | None:
    """Count those of a product by a library: from its contracted axes if they are written, else from sizes.

    Of a[b, m, k] and b[b, k, n] into c[b, m, n], sizes alone give k = sqrt(|a| |b| / |c| b).
    """
    given, result = _shapes(where, instruction), next(instruction.shape.arrays())
    if len(given) < 2 or not result.size:
        return None
    config = instruction.attributes.get("backend_config", "").replace('\\"', '"')
    axes = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', config)
    numbers = [int(x) for x in re.findall(r"\d+", axes.group(1))] if axes else []
    if numbers and max(numbers) < len(given[0].dims):
        return Operations(matmul=2.0 * result.size * math.prod(given[0].dims[axis] for axis in numbers))
    batch = math.prod(result.dims[:-2])
    return Operations(matmul=2.0 * result.size * round(math.sqrt(given[0].size * given[1].size / result.size / batch)))


def target_of(instruction: Instruction) -> str:
    """Name what a custom call calls."""
    return instruction.attributes.get("custom_call_target", "").strip('"')


def estimate_of(instruction: Instruction) -> tuple[float, float, float] | None:
    """Read the estimate that a Pallas kernel was given: operations, transcendentals, bytes. None if it has none."""
    config = instruction.attributes.get("backend_config", "").replace('\\"', '"')
    if "cost_estimate" not in config:
        return None
    found = dict(re.findall(r'"(flops|transcendentals|bytes_accessed)":\s*"?(\d+)', config))
    keys = ("flops", "transcendentals", "bytes_accessed")
    return (float(found.get(keys[0], 0)), float(found.get(keys[1], 0)), float(found.get(keys[2], 0)))


_RULES: dict[str, Callable[[Module, Computation, Instruction], Operations | None]] = {
    "dot": _dot,
    "ragged-dot": _dot,
    "convolution": _convolution,
    "reduce": _reduce,
    "reduce-window": _reduce_window,
    "map": _map,
    "scatter": _scatter,
    "sort": _sort,
    "topk": _top_k,
    "fft": _fft,
    "custom-call": _custom_call,
}

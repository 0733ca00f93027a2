"""Calibration: how far operators stay from their roofline on a machine, by what they are and how large.

A bare roofline is off by 1.5 to 2 against real engines. What a machine was measured at is a table of points, which a
CSV file holds; between them the analyzer interpolates, so settings that were not measured are predicted too.
"""

import csv
import dataclasses
import io
import itertools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from jaxinfer.analysis.roofline.operator import Operator
from jaxinfer.errors import InputError, shown
from jaxinfer.host.files import read_bytes, write_atomic

REST = "rest"
"""The class of what is no operator of the roofline: bookkeeping, sampling, dispatch, the host."""


@dataclass(frozen=True)
class Point:
    """A measurement of one class of operators in one call: all of them, in all layers.

    weights: the format that the model's weights had. tokens: of the call, over all rows. size: of attention the tokens
    that the last of a row sees, of others the operations of a token. bound, seconds: of the roofline and of the clock.
    """

    kind: str
    weights: str
    tokens: float
    size: float
    bound: float
    seconds: float


@dataclass(frozen=True)
class Calibration:
    """Points of a machine. `slowdown` interpolates between them, in the logarithms of tokens and size."""

    hardware: str
    points: tuple[Point, ...]
    weights: str = "float32"

    def for_weights(self, weights: str) -> "Calibration":
        """Give the calibration for weights of a format. Raises InputError where none was measured."""
        known = sorted({point.weights for point in self.points})
        if weights not in known:
            raise InputError(f"weights={shown(weights)} were not measured on {self.hardware}: {', '.join(known)}")
        return dataclasses.replace(self, weights=weights)

    @cached_property
    def _tables(self) -> Mapping[str, Mapping[float, list[tuple[float, float]]]]:
        """By class and size: tokens and slowdowns, in logarithms, rising."""
        found: dict[str, dict[float, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
        for point in self.points:
            if point.weights == self.weights:
                value = math.log(point.seconds / point.bound) if point.bound else point.seconds
                found[point.kind][math.log(point.size)].append((math.log(point.tokens), value))
        return {kind: {size: sorted(row) for size, row in rows.items()} for kind, rows in found.items()}

    def slowdowns(self, made: Sequence[Operator]) -> Mapping[str, float]:
        """Give the time of a call's operators over their roofline, by their class: 1 for one that was not measured."""
        sizes = sizes_of(made)
        tokens = made[0].tokens
        return {
            kind: math.exp(self._value(kind, tokens, size)) if kind in self._tables else 1.0
            for kind, size in sizes.items()
        }

    def rest(self, tokens: float, context: float) -> float:
        """Give the seconds of a call that no operator accounts for."""
        return max(self._value(REST, tokens, context), 0.0) if REST in self._tables else 0.0

    def _value(self, kind: str, tokens: float, size: float) -> float:
        rows = self._tables[kind]
        by_size = sorted((where, between(row, math.log(tokens))) for where, row in rows.items())
        return between(by_size, math.log(size))


def sizes_of(made: Sequence[Operator]) -> dict[str, float]:
    """Give the sizes of a call's classes by which points differ, beside their tokens."""
    found: dict[str, float] = defaultdict(float)
    for one in made:
        found[one.kind] += (one.ops or one.bytes or one.wire) * one.layers / one.tokens
    return {kind: made[0].context if kind == "attention" else size for kind, size in found.items()}


def between(points: Sequence[tuple[float, float]], x: float) -> float:
    """Interpolate linearly between points (x, y) of rising x; of equal ones the mean; beyond the ends as at the end."""
    merged: dict[float, list[float]] = defaultdict(list)
    for at, value in points:
        merged[at].append(value)
    rows = [(at, sum(values) / len(values)) for at, values in sorted(merged.items())]
    if x <= rows[0][0]:
        return rows[0][1]
    for (a, one), (b, other) in itertools.pairwise(rows):
        if x <= b:
            return one + (other - one) * (x - a) / (b - a)
    return rows[-1][1]


COLUMNS = tuple(field.name for field in dataclasses.fields(Point))


def save(calibration: Calibration, path: str | Path) -> None:
    """Write a calibration as CSV: a line names the machine, and one each point follows."""
    write_atomic(Path(path), as_csv(calibration))


def as_csv(calibration: Calibration) -> str:
    """Give a calibration as the text of a CSV file."""
    text = io.StringIO()
    text.write(f"# {calibration.hardware}\n")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    rows.writerows(dataclasses.astuple(point) for point in calibration.points)
    return text.getvalue()


def load(path: str | Path) -> Calibration:
    """Read what `save` wrote. Raises InputError, which names the file and the line, for what is no calibration."""
    lines = read_bytes(path, "calibration").decode("utf-8", errors="replace").splitlines()
    title = lines.pop(0).removeprefix("#").strip() if lines and lines[0].startswith("#") else Path(path).stem
    if not lines or tuple(lines[0].split(",")) != COLUMNS:
        raise InputError(f"{path}: expected a line of columns {','.join(COLUMNS)}")
    first = 3 if len(lines) else 2
    points = [_point(row, f"{path}: line {number}") for number, row in enumerate(csv.reader(lines[1:]), start=first)]
    if not points:
        raise InputError(f"{path}: holds no points")
    return Calibration(title, tuple(points), points[0].weights)


def _point(row: Sequence[str], where: str) -> Point:
    if len(row) != len(COLUMNS):
        raise InputError(f"{where}: has {len(row)} values, expected {len(COLUMNS)}")
    kind, weights, *texts = row
    values = []
    for name, text in zip(COLUMNS[2:], texts, strict=True):
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        least = 0.0 if name == "bound" or (name == "seconds" and kind == REST) else math.ulp(0.0)
        if not least <= value < math.inf:
            raise InputError(f"{where}: {name} must be a positive number, got {shown(text)}")
        values.append(value)
    return Point(kind, weights, *values)

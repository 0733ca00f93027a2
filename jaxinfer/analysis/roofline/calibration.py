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
class Place:
    """The place of a call among others of its machine, by which its slowness is looked up.

    width: operations of its products a token, which tells a model's size. tokens: of the call, over all rows. context:
    the tokens that the last of a row sees.
    """

    stage: str  # prefill or decode: 8 rows of one token and one row of 8 are as many tokens, and not as slow
    width: float
    tokens: float
    context: float

    @classmethod
    def of(cls, made: Sequence[Operator], decoding: bool) -> "Place":
        """Give the place of a call that these operators are of."""
        tokens = float(made[0].tokens)
        width = sum(float(one.ops * one.layers) for one in made if one.kind == "linear") / tokens
        return cls("decode" if decoding else "prefill", width, tokens, float(made[0].context))


@dataclass(frozen=True)
class Point:
    """A measurement of one class of operators in one call: all of them, in all layers.

    weights: the format that the model's weights had. stage, width, tokens, context: see `Place`. bound, seconds: of the
    roofline and of the clock.
    """

    kind: str
    weights: str
    stage: str
    width: float
    tokens: float
    context: float
    bound: float
    seconds: float


Rows = list[tuple[float, float]]  # of a coordinate's logarithm, and the logarithm of a slowdown there


@dataclass(frozen=True)
class Calibration:
    """Points of a machine. `slowdowns` interpolates between them, in the logarithms of width, tokens and context.

    Innermost between contexts of the same tokens, then between these, and last between models.
    """

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
    def _tables(self) -> Mapping[tuple[str, str], Mapping[float, Mapping[float, Rows]]]:
        """By class and stage: by width and by tokens, contexts and slowdowns, all in logarithms."""
        found: dict[tuple[str, str], dict[float, dict[float, Rows]]] = {}
        for point in self.points:
            if point.weights == self.weights:
                value = math.log(point.seconds / point.bound) if point.bound else point.seconds
                by_width = found.setdefault((point.kind, point.stage), {})
                rows = by_width.setdefault(math.log(point.width), {}).setdefault(math.log(point.tokens), [])
                rows.append((math.log(point.context), value))
        return found

    def slowdowns(self, made: Sequence[Operator], place: Place) -> Mapping[str, float]:
        """Give the time of a call's operators over their roofline, by their class: 1 for one that was not measured."""
        kinds = dict.fromkeys(one.kind for one in made)
        found = {kind: self._value(kind, place) for kind in kinds}
        return {kind: 1.0 if value is None else math.exp(value) for kind, value in found.items()}

    def rest(self, place: Place) -> float:
        """Give the seconds of a call that no operator accounts for."""
        return max(self._value(REST, place) or 0.0, 0.0)

    def _value(self, kind: str, place: Place) -> float | None:
        widths = self._tables.get((kind, place.stage))
        if widths is None:
            return None
        width, tokens, context = (math.log(x) for x in (place.width, place.tokens, place.context))
        by_width = []
        for where, by_tokens in widths.items():
            rows = [(count, between(contexts, context)) for count, contexts in by_tokens.items()]
            by_width.append((where, between(rows, tokens)))
        return between(by_width, width)


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
    kind, weights, stage, *texts = row
    if stage not in ("prefill", "decode"):
        raise InputError(f"{where}: stage must be prefill or decode, got {shown(stage)}")
    values = []
    for name, text in zip(COLUMNS[3:], texts, strict=True):
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        least = 0.0 if name == "bound" or (name == "seconds" and kind == REST) else math.ulp(0.0)
        if not least <= value < math.inf:
            raise InputError(f"{where}: {name} must be a positive number, got {shown(text)}")
        values.append(value)
    return Point(kind, weights, stage, *values)

"""Numbers that count what is done with them, for the slow and plain counts that formulas are held to."""

import math
import operator


class Tally:
    """A counter of operations. `numbers` makes numbers that count theirs in it."""

    def __init__(self):
        self.ops = 0

    def number(self, value):
        return Counted(value, self)

    def numbers(self, values):
        return [self.number(value) for value in values]


class Counted:
    """A number; each operation on it is one. Multiplying and adding are two."""

    def __init__(self, value, tally):
        self.value, self.tally = float(value), tally

    def _do(self, function, *others):
        self.tally.ops += 1
        values = [one.value if isinstance(one, Counted) else one for one in others]
        return Counted(function(self.value, *values), self.tally)

    def __add__(self, other):
        return self._do(operator.add, other)

    def __sub__(self, other):
        return self._do(operator.sub, other)

    def __mul__(self, other):
        return self._do(operator.mul, other)

    def __truediv__(self, other):
        return self._do(operator.truediv, other)

    def __neg__(self):
        return self._do(operator.neg)

    __radd__ = __add__

    def __rmul__(self, other):
        return self._do(operator.mul, other)

    def exp(self):
        return self._do(math.exp)

    def erf(self):
        return self._do(math.erf)

    def tanh(self):
        return self._do(math.tanh)

    def most(self, other):
        return self._do(max, other)

    def least(self, other):
        return self._do(min, other)

    def inverse_root(self):
        return self._do(lambda value: value**-0.5)

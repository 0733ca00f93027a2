"""One forward of a network, and the operators that all its parts are made of."""

from dataclasses import dataclass

from jaxinfer.analysis.roofline.arithmetic import Number, largest
from jaxinfer.analysis.roofline.operator import Operator
from jaxinfer.analysis.roofline.setting import Setting
from jaxinfer.config import ModelConfig

NORM_OPS = {"rms": 4, "layer": 7}
"""RMS: square, sum, products with the root and the scale; layer: mean, difference and bias besides."""


@dataclass(frozen=True)
class Call:
    """One forward of a network: T tokens of each of B rows, the last of which sees `context` tokens, itself too."""

    config: ModelConfig
    setting: Setting
    tokens: Number
    context: Number
    scored: Number  # tokens of a row that are mapped to the vocabulary
    on_chip: Number
    decoding: bool

    @property
    def rows(self) -> Number:
        return self.setting.rows

    @property
    def held_rows(self) -> Number:
        return self.setting.held_rows

    @property
    def activation(self) -> Number:
        """Give the bytes of an activation."""
        return self.setting.activations / 8

    @property
    def bits(self) -> Number:
        """Give the width of a product's operands: codes of fewer bits are widened to the activations."""
        stored = self.setting.stored_weights
        return largest(stored.bits, self.setting.activations) if stored.operands is None else stored.operands

    def linear(
        self, name: str, layers: Number, ic: Number, oc: Number, share: Number = 1, out: str = "act"
    ) -> Operator:
        """Give x[B T, ic] times W[oc, ic], of which this device has one of `share` parts.

        out: "act", a part of the outputs; "kv", the same, to the cache; "partial", all outputs of a part of the inputs.

        2 B T ic oc operations; the weights with their scales are read once, and the inputs and outputs pass once.
        """
        tokens = self.rows * self.tokens
        kept = tokens * oc * self.setting.stored_kv.bytes(self.config.head_dim) if out == "kv" else 0
        return Operator(
            name,
            "linear",
            layers,
            ops=2 * tokens * ic * oc / share,
            weights=ic * oc * self.setting.stored_weights.bytes(ic) / share,
            read=tokens * ic * self.activation / (share if out == "partial" else 1),
            written=0 if out == "kv" else tokens * oc * self.activation / (1 if out == "partial" else share),
            kv_written=kept / share,
            bits=self.bits,
        )

    def norm(self, name: str, layers: Number, width: Number) -> Operator:
        """Give a norm over rows of so many numbers."""
        numbers = self.rows * self.tokens * width
        moved = numbers * self.activation
        return Operator(
            name, "norm", layers, NORM_OPS[self.config.norm] * numbers, 4 * width, moved, moved, bits=self.bits
        )

    def each(self, name: str, layers: Number, width: Number, ops: Number, read: Number = 1) -> Operator:
        """Give an elementwise operator: `ops` operations for each of `width` numbers a token, and `read` inputs."""
        numbers = self.rows * self.tokens * width
        moved = numbers * self.activation
        return Operator(name, "elementwise", layers, ops * numbers, 0, read * moved, moved, bits=self.bits)

"""The choices of platforms, by name: code asks for one of these choices, and never for the platform.

Each says who takes it and why. Which kernel runs is another table, since that depends on dtypes and shapes as well
(`kernels/dispatch.py`). This one lies below the cache, because a cache policy asks it how numbers are stored.
"""

from dataclasses import dataclass

from jaxinfer.sharding import layouts

PLATFORMS = ("cpu", "gpu", "tpu")


@dataclass(frozen=True)
class Choice:
    """Something that programs for some platforms do and those for others do not."""

    name: str
    platforms: tuple[str, ...]  # that take it
    why: str

    def here(self) -> bool:
        """Tell whether the program being traced takes it; outside of one, whether programs for this machine do."""
        return layouts.platform() in self.platforms


BFLOAT16_AS_BITS = Choice(
    "store bfloat16 as its bits", ("cpu",), "XLA slices and converts an array of bfloat16 by way of a float32 copy"
)
FLOAT8_AS_BITS = Choice(
    "read float8 from its bits", ("cpu",), "XLA slices and converts arrays of float8 one number at a time"
)
ARGMAX_IN_BLOCKS = Choice(
    "look for the largest in blocks", ("cpu",), "XLA finds an argmax one number at a time, and a maximum in vectors"
)
LAYER_VIEWS = Choice(
    "give each layer of a stack as a view", ("cpu",), "XLA copies the slice of a stack before a product may read it"
)
WEIGHT_ON_THE_LEFT = Choice(
    "write the weight on the left of a product of few rows", ("cpu",), "the right operand is packed anew in every call"
)
CONVERT_IN_REGISTERS = Choice(
    "write products of a few rows as elementwise sums", ("cpu",), "a product reads one type: others are copied first"
)
CONVERT_IN_BLOCKS = Choice(
    "convert quantized weights to float32 block by block", ("cpu",), "the converted copy is made; others fuse it away"
)
FEW_TOKENS_A_CALL = Choice(
    "read the prompts of a batch a few tokens of each at a time",
    ("cpu",),
    "what a layer makes of many leaves the cache",
)
GATHER_AHEAD = Choice(
    "gather a layer's weights while the one before it computes",
    ("gpu", "tpu"),
    "the links and the arithmetic work side by side; on a CPU they are the same cores",
)
LAYOUT_OF_VIEWS = Choice(
    "say in which order a view of an array lies in memory",
    ("cpu",),
    "XLA copies an array in which an axis of one is put between others",
)
INDEX_BY_INDEX = Choice(
    "name every axis before the slots when writing to them",
    ("tpu",),
    "XLA turns the whole store round, and back, so that the axes that are named come first",
)
FLOAT32 = Choice("compute in float32 unless told otherwise", ("cpu",), "there are no products of 16 bits")

CHOICES = (
    *(BFLOAT16_AS_BITS, FLOAT8_AS_BITS, ARGMAX_IN_BLOCKS, LAYER_VIEWS, WEIGHT_ON_THE_LEFT, CONVERT_IN_REGISTERS),
    *(CONVERT_IN_BLOCKS, FEW_TOKENS_A_CALL, GATHER_AHEAD, LAYOUT_OF_VIEWS, INDEX_BY_INDEX, FLOAT32),
)

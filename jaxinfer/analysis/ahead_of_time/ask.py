"""The question: a model's shape, a target, a mesh, formats, a load, and which programs."""

from dataclasses import dataclass

from jaxinfer.api import check_dtype
from jaxinfer.cache import CachePolicy
from jaxinfer.config import ModelConfig
from jaxinfer.decoding.contract import DecodeMethod
from jaxinfer.decoding.methods.greedy import Greedy
from jaxinfer.decoding.methods.lookup import Lookup
from jaxinfer.errors import InputError, nearest, shown
from jaxinfer.host.values import whole
from jaxinfer.runtime.request import default_policy
from jaxinfer.sharding import MeshShape
from jaxinfer.sharding.topologies import Slice, slice_of
from jaxinfer.weights.formats import FORMATS

STEPS = ("prefill", "decode", "verify")
GUESSES = Lookup(width=8)  # what a verify step is of where the method makes no guesses


@dataclass(frozen=True)
class Ask:
    """A question to a compiler. Raises InputError for what cannot be asked.

    - target, mesh: such as "v5e:8x8", and axes whose sizes multiply to its devices.
    - weights: a format of `FORMATS`; None: arrays of `dtype`. policy, method: None: those that `generate` takes.
    - batch: rows; context: tokens that a row has room for, its prompt of `prompt` tokens among them (None: half).
    - steps: of `STEPS`. decode: the loop of steps; verify: the same where rows have guesses, those of `method`, or of a
      look-up of 8 where it makes none.
    - pad_heads: heads that the mesh does not divide get companions that are zero.
    """

    config: ModelConfig
    target: str
    mesh: MeshShape
    weights: str | None = None
    policy: CachePolicy | None = None
    method: DecodeMethod | None = None
    batch: int = 1
    context: int = 2048
    prompt: int | None = None
    dtype: str = "bfloat16"
    steps: tuple[str, ...] = ("prefill", "decode")
    pad_heads: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.config, ModelConfig):
            raise InputError(f"config={shown(self.config)} must be a jaxinfer.ModelConfig")
        if not isinstance(self.mesh, MeshShape):
            object.__setattr__(self, "mesh", MeshShape.of(self.mesh))
        found = slice_of(self.target)
        if self.mesh.size != found.size:
            chips = f", {found.target.cores} a chip" if found.target.cores > 1 else ""
            raise InputError(f"mesh {self.mesh} takes {self.mesh.size} devices, and {found} has {found.size}{chips}")
        if self.weights is not None:
            FORMATS.find(self.weights, "weights")
        check_dtype(self.dtype)
        whole(self.batch, "batch", 1)
        whole(self.context, "context", 2, self.config.max_positions)
        if self.prompt is not None:
            whole(self.prompt, "prompt", 1, self.context - 1)
        if not self.steps:
            raise InputError(f"steps: name at least one of {', '.join(STEPS)}")
        for step in self.steps:
            if step not in STEPS:
                raise InputError(f"steps: {shown(step)}{nearest(str(step), STEPS)} must be of {', '.join(STEPS)}")

    @property
    def slice(self) -> Slice:
        return slice_of(self.target)

    @property
    def tokens(self) -> int:
        """Count the tokens of each prompt."""
        return self.context // 2 if self.prompt is None else self.prompt

    @property
    def cache_policy(self) -> CachePolicy:
        return default_policy(self.config, self.policy)

    def method_of(self, step: str) -> DecodeMethod:
        """Give the decode method whose loop a step is of."""
        method = Greedy() if self.method is None else self.method
        return GUESSES if step == "verify" and method.width < 2 else method

"""The work of a generation, and its cost."""

from dataclasses import dataclass, field
from typing import Any

from jaxinfer.network.spreading import bytes_by_device
from jaxinfer.sharding import MeshShape, Sharding


@dataclass(frozen=True)
class Stats:
    """The work of a generation, a value for each row, and its cost."""

    steps: list[int]  # forwards of the target that the row took part in
    guessed: list[int]  # of these, forwards over at least one guess
    runs: list[list[int]]  # how many steps emitted no token, one, two, up to the method's width
    proposed: list[int]  # draft tokens proposed
    accepted: list[int]  # draft tokens accepted
    emitted: list[int]  # new tokens
    prompt_tokens: list[int]
    seconds: dict[str, float]  # "prefill", "decode": running; "compile": compiling, apart from both
    weight_bytes: int  # parameters, those of a draft model or heads among them
    cache_bytes: int  # the whole cache as allocated, and what the method keeps beside it
    temp_bytes: int  # scratch memory of the decode program
    step_bytes: int  # what one decode step has to read: weights, and on average the live part of the cache
    samples: int = 1  # rows of each prompt, which is read once for all of them
    figures: dict[str, list[int]] = field(default_factory=dict)  # what the method counts besides, a value for each row

    mesh: str | None = None  # what the model is spread over, such as data=2,tensor=4
    device_weight_bytes: int | None = None  # on a mesh: of `weight_bytes`, the most that any one device holds
    device_cache_bytes: int | None = None  # likewise of `cache_bytes`

    @property
    def tokens_per_step(self) -> float:
        """Count the new tokens for each forward of the target: 1 for greedy (Spec-Bench's mean accepted tokens)."""
        return sum(self.emitted) / max(sum(self.steps), 1)

    @property
    def prefill_rate(self) -> float:
        """Count prompt tokens per second, over all prompts; the last of a prompt belongs to the first decode step."""
        return sum(n - 1 for n in self.prompt_tokens) / self.samples / max(self.seconds["prefill"], 1e-9)

    @property
    def decode_rate(self) -> float:
        """Count the new tokens per second, over all rows."""
        return sum(self.emitted) / max(self.seconds["decode"], 1e-9)

    @property
    def bandwidth(self) -> float:
        """Count the bytes per second that decoding has to have read at this speed."""
        return self.step_bytes * max(self.steps, default=0) / max(self.seconds["decode"], 1e-9)


def on_mesh(layout: Sharding | None, weights: Any, cache: Any) -> dict[str, Any]:
    """Give the fields of `Stats` that tell of a mesh; none without one."""
    if layout is None:
        return {}
    most = [max(bytes_by_device(tree).values(), default=0) for tree in (weights, cache)]
    mesh = str(MeshShape.of(dict(layout.mesh.shape)))
    return {"mesh": mesh, "device_weight_bytes": most[0], "device_cache_bytes": most[1]}

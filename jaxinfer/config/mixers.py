"""Parts that take the place of others: experts of an MLP, latent attention and carried states of attention."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from jaxinfer.config.checks import positive, whole

Router = Literal["softmax", "topk", "sigmoid", "sinkhorn", "auction", "hash", "expert_choice", "soft"]


@dataclass(frozen=True)
class MoE:
    """A mixture of experts in place of the MLP (Shazeer et al. 2017).

    router, which `jaxinfer.layers.routing` defines:

    - `softmax`: the top_k largest of the softmax over all experts. With top_k 1: Switch (Fedus et al. 2021).
    - `topk`: the softmax over the top_k largest logits (Mixtral).
    - `sigmoid`: the top_k largest sigmoids, for the choice corrected by a bias that keeps loads even (DeepSeek-V3).
    - `sinkhorn`: the top_k largest of an assignment that wants all experts equally (S-BASE, Clark et al. 2022).
    - `auction`: one expert a token, every expert as many tokens as any other, the sum of the logits as large as it can
      be; the gate is a sigmoid (BASE, Lewis et al. 2021). Decode steps take the expert with the largest logit.
    - `hash`: a fixed function of the token's id (Hash Layers, Roller et al. 2021).
    - `expert_choice`: every expert takes as many tokens as it has room for (Zhou et al. 2022). Not causal.
    - `soft`: slots are means of all tokens (Soft MoE, Puigcerver et al. 2023). Not causal.

    dispatch, which `jaxinfer.layers.expert_dispatch` defines: `dropless` computes every token's own experts; `capacity`
    gives each expert at most capacity_factor * tokens * top_k / experts tokens of a batch and drops the rest into the
    residual; `dense` computes all experts for all tokens: the reference.

    With `capacity`, `sinkhorn`, `auction`, `expert_choice` and `soft`, what a token gets depends on the tokens beside
    it. Decode steps, which see few, route each token alone unless `in_decode` is `same`.
    """

    experts: int
    top_k: int
    d_ff: int  # of one expert
    router: Router = "softmax"
    normalize: bool = False  # the gates of a token's experts are made to sum to one
    equal_gates: bool = False  # every chosen expert counts fully (MoEfication, Zhang et al. 2022)
    scale: float = 1.0  # what gates are multiplied by
    groups: int | None = None  # groups of experts, of which a token goes to its best `top_groups` (DeepSeek-V2)
    top_groups: int = 1
    bias: bool = False  # of the router and of the experts (gpt-oss)
    shared_d_ff: int | None = None  # an expert that every token passes through
    shared_gate: bool = False  # the shared expert is multiplied by a sigmoid of the token (Qwen 2 MoE)
    dispatch: Literal["dropless", "capacity", "dense"] = "dropless"
    capacity_factor: float = 1.25
    priority: Literal["order", "gate"] = "order"  # who has a slot: the first tokens, or those with the largest gates
    slots: int = 1  # of an expert in a `soft` mixture
    in_decode: Literal["dropless", "same"] = "dropless"

    def __post_init__(self):
        whole(1, experts=self.experts, d_ff=self.d_ff, shared_d_ff=self.shared_d_ff)
        positive(scale=self.scale, capacity_factor=self.capacity_factor)
        if not 0 < self.top_k <= self.experts:
            raise ValueError(f"top_k={self.top_k} must be between 1 and the number of experts, {self.experts}")
        if self.router == "auction" and (self.top_k != 1 or self.groups is not None):
            raise ValueError(f"an auction gives a token one expert of all: top_k={self.top_k} must be 1, groups=None")
        if self.slots < 1:
            raise ValueError(f"slots={self.slots} must be at least 1")
        if self.groups is None:
            return
        if self.groups < 1 or self.experts % self.groups:
            raise ValueError(f"groups={self.groups} must divide the number of experts, {self.experts}")
        if not 0 < self.top_groups <= self.groups:
            raise ValueError(f"top_groups={self.top_groups} must be between 1 and the number of groups, {self.groups}")
        if self.top_k > self.top_groups * (self.experts // self.groups):
            raise ValueError(f"top_k={self.top_k} experts do not fit into {self.top_groups} of {self.groups} groups")

    @property
    def looks_around(self) -> bool:
        """Tell whether what a token gets depends on the other tokens of the batch."""
        return self.dispatch == "capacity" or self.router in ("sinkhorn", "auction", "expert_choice", "soft")

    def alone(self) -> "MoE":
        """Return the same experts, with every token routed for itself."""
        free: dict[Router, Router] = {"sinkhorn": "softmax", "expert_choice": "softmax", "auction": "sigmoid"}
        router = free.get(self.router, self.router)
        dispatch = "dropless" if self.dispatch == "capacity" else self.dispatch
        return dataclasses.replace(self, router=router, dispatch=dispatch)


@dataclass(frozen=True)
class MLA:
    """Multi-head latent attention (DeepSeek-V2, 2024, section 2.1): the cache holds one short vector a token.

    It is a latent of kv_rank, from which every head makes its own keys and values, and a key of rope_dim that turns and
    that all heads share. `head_dim` of the model is nope_dim + rope_dim.
    """

    kv_rank: int
    nope_dim: int
    rope_dim: int
    v_dim: int
    q_rank: int | None = None  # queries come from a latent too

    def __post_init__(self):
        whole(1, kv_rank=self.kv_rank, nope_dim=self.nope_dim, rope_dim=self.rope_dim, v_dim=self.v_dim)
        whole(1, q_rank=self.q_rank)
        if self.rope_dim % 2:
            raise ValueError(f"rope_dim={self.rope_dim} must be even for rotary positions")


@dataclass(frozen=True)
class SSM:
    """A selective state space in place of attention: Mamba (Gu and Dao 2023) or Mamba-2 (Dao and Gu 2024)."""

    version: Literal[1, 2]
    width: int  # channels that go through a state
    state: int  # numbers that a channel carries
    conv: int = 4  # tokens that the convolution in front of it spans
    dt_rank: int = 1  # Mamba: the rank of the step size
    heads: int = 1  # Mamba-2: the channels of a head share one decay
    groups: int = 1  # Mamba-2: the heads of a group share what goes into the state and what is read off it
    bias: bool = False
    conv_bias: bool = True
    dt_limit: tuple[float, float] = (0.0, float("inf"))

    def __post_init__(self):
        whole(1, width=self.width, state=self.state, conv=self.conv, dt_rank=self.dt_rank)
        whole(1, heads=self.heads, groups=self.groups)
        if not self.dt_limit[0] <= self.dt_limit[1]:  # NaN is neither
            raise ValueError(f"dt_limit={self.dt_limit} must be the lowest number and the highest")
        if self.conv < 2:
            raise ValueError(f"conv={self.conv} must be at least 2")
        if self.version == 2 and (self.width % self.heads or self.heads % self.groups):
            raise ValueError(f"heads={self.heads} must divide width={self.width}, and groups={self.groups} the heads")

    def carried(self, cfg: Any) -> dict[str, tuple[int, ...]]:
        """Return the shapes of a row's state in one layer."""
        if self.version == 1:
            return {"conv": (self.conv - 1, self.width), "ssm": (self.width, self.state)}
        channels = self.width + 2 * self.groups * self.state
        return {"conv": (self.conv - 1, channels), "ssm": (self.heads, self.width // self.heads, self.state)}


@dataclass(frozen=True)
class LinearAttention:
    """Attention with a feature map, elu + 1, in place of the softmax (Katharopoulos et al. 2020)."""

    def carried(self, cfg: Any) -> dict[str, tuple[int, ...]]:
        """Return the shapes of a row's state in one layer: sums over keys and values, and over keys alone."""
        return {"sums": (cfg.n_heads, cfg.head_dim + 1, cfg.head_dim)}

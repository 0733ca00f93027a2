"""Mixtures of experts in place of the MLP."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from jaxinfer.config import ModelConfig, MoE
from jaxinfer.layers import expert_dispatch, routing
from jaxinfer.layers.expert_dispatch import Expert
from jaxinfer.layers.expert_parallel import Spread, Stacks
from jaxinfer.layers.linear import Linear, matmul
from jaxinfer.layers.mlp import MLP, gated
from jaxinfer.weights.layer_stack import parameter, with_layer


@struct.dataclass
class RouterStats:
    """The statistics of a router over the tokens of a forward, padding left out."""

    z_loss: jax.Array  # float32[]
    balance_loss: jax.Array  # float32[]: 1 if balanced; of the likeliest experts where tokens do not choose
    load: jax.Array  # float32[E]: assignments that reached each expert, as a share of all tokens
    dropped: jax.Array  # float32[]: the share of a token's top_k assignments that reached no expert


class Experts(nn.Module):
    """A router, experts, and perhaps an expert that all tokens share. Weights are stacks [layers, experts, out, in]."""

    cfg: ModelConfig
    moe: MoE
    layers: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, x: jax.Array, layer: jax.Array, tokens: jax.Array, live: jax.Array, decoding: bool = False
    ) -> tuple[jax.Array, RouterStats]:
        """Map x[B, T, D], layer i32[] within the stack, tokens i32[B, T], live bool[B, T] -> [B, T, D], statistics."""
        cfg, d = self.cfg, self.cfg.d_model
        moe = self.moe.alone() if decoding and self.moe.in_decode == "dropless" else self.moe
        linear = partial(Linear, dtype=self.dtype, layers=self.layers)
        outputs = moe.experts * (moe.slots if moe.router == "soft" else 1)
        # Every device routes, so what routers hold is split nowhere, and their outputs are no experts to rules.
        router = linear((outputs, d), ("routes", "embed"), bias=moe.bias, out_dtype=jnp.float32, name="router")
        logits = router(x, layer).reshape(-1, outputs)
        bias = self._bias("correction", (moe.experts,), ("routes",))[layer] if self.moe.router == "sigmoid" else None

        spread = Spread.of(x.shape, moe.experts)
        stacks = self._stacks(layer, spread)
        flat, alive = x.reshape(-1, d), live.reshape(-1)
        if moe.router == "soft":
            out, stats = _soft(flat, logits, moe, stacks, spread, alive, decoding and moe.in_decode == "dropless")
        elif moe.router == "expert_choice":
            out, stats = _expert_choice(flat, logits, moe, stacks, spread, alive)
        else:
            out, stats = _token_choice(flat, logits, bias, moe, stacks, spread, tokens.reshape(-1), alive)
        out = out.astype(x.dtype).reshape(x.shape)
        if moe.shared_d_ff is None:
            return out, stats
        shared = MLP(cfg.replace(d_ff=moe.shared_d_ff), self.layers, self.dtype, name="shared")(x, layer)
        if moe.shared_gate:
            shared = shared * jax.nn.sigmoid(linear((1, d), ("one", "embed"), name="shared_gate")(x, layer))
        return out + shared, stats

    def _stacks(self, layer: jax.Array, spread: Spread | None) -> Stacks:
        """Return the stacks of the experts' gated MLPs, and what computes one of them."""
        d, f, n = self.cfg.d_model, self.moe.d_ff, self.moe.experts
        shapes = {"gate": (f, d), "up": (f, d), "down": (d, f)}
        axes = {"gate": ("mlp", "embed"), "up": ("mlp", "embed"), "down": ("embed", "mlp")}
        weights = {name: self._stack(name, shapes[name], axes[name]) for name in shapes}
        laid: dict[str, tuple[str, ...]] = {name: ("layers", "experts", *axes[name]) for name in shapes}
        if self.moe.bias:
            for name in shapes:
                weights[f"{name}_bias"] = self._bias(f"{name}_bias", (n, shapes[name][0]), ("experts", axes[name][0]))
                laid[f"{name}_bias"] = ("layers", "experts", axes[name][0])
        if spread is not None and spread.at_rest:  # gathered layer by layer, and not as stacks
            weights = {name: _stack_of_one(weight, layer) for name, weight in weights.items()}
            layer = jnp.zeros_like(layer)
        return Stacks({**weights, "layer": layer}, {**laid, "layer": ()}, partial(_ffn, self.cfg.activation, shapes))

    def _stack(self, name: str, shape: tuple[int, ...], axes: tuple[str, ...]) -> Any:
        def init(key, shape, dtype):
            return jax.random.normal(key, shape, dtype) * math.sqrt(1 / shape[-1])

        full = (self.layers, self.moe.experts, *shape)
        return parameter(self, name, init, full, ("layers", "experts", *axes), self.dtype)

    def _bias(self, name: str, shape: tuple[int, ...], axes: tuple[str, ...]) -> Any:
        zeros = nn.initializers.zeros
        return parameter(self, name, zeros, (self.layers, *shape), ("layers", *axes), jnp.float32)


def _stack_of_one(weight: Any, layer: jax.Array) -> Any:
    return jax.tree.map(lambda x: x[None], with_layer(weight, layer, lambda own: own))


def _ffn(activation: str, shapes: dict[str, tuple[int, int]], weights: Any, share: jax.Array | None = None) -> Expert:
    """Return one expert's gated MLP of its stacks, as a function of rows [R, D] and the expert i32[].

    share: what its last bias is multiplied by, where the results of several devices are to be added up.
    """

    def ffn(rows: jax.Array, e: jax.Array) -> jax.Array:
        def product(y: jax.Array, name: str) -> jax.Array:
            kernel, layer = weights[name], weights["layer"]
            # On a mesh these may be a part of the experts, and of arrays a part of the width.
            n = jax.tree.leaves(kernel)[0].shape[1]
            shape = kernel.shape[2:] if isinstance(kernel, jax.Array) else shapes[name]
            flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), kernel)
            out = matmul(y, flat, shape, layer=layer * n + e)
            if f"{name}_bias" in weights:
                bias = weights[f"{name}_bias"][layer, e]
                out = out + (bias if share is None or name != "down" else bias * share)
            return out.astype(rows.dtype)

        return product(gated(activation, product(rows, "gate"), product(rows, "up")), "down")

    return ffn


def _token_choice(
    x, logits, bias, moe: MoE, stacks: Stacks, spread: Spread | None, tokens, live
) -> tuple[jax.Array, RouterStats]:
    route = routing.route if spread is None else spread.route
    gates, experts = route(logits, moe, bias, tokens, live)
    kept = jnp.broadcast_to(live[:, None], experts.shape)
    ffn = stacks.ffn(stacks.weights, None)
    if moe.dispatch == "capacity":
        size = expert_dispatch.capacity(len(x), moe)
        by_gate = moe.priority == "gate"
        if spread is None:
            out, kept = expert_dispatch.with_capacity(x, gates, experts, ffn, moe.experts, size, by_gate, live)
        else:  # who has a slot is for all tokens to say; a choice without one is not sent
            by, chosen, alive = (spread.everywhere(y) for y in (gates, experts, live))
            kept = expert_dispatch.within_capacity(by, chosen, alive, moe.experts, size, by_gate)
            out = spread.token_choice(x, gates, jnp.where(kept, experts, moe.experts), stacks)
    elif spread is not None:
        send = {"dropless": spread.token_choice, "dense": spread.dense}[moe.dispatch]
        out = send(x, gates, jnp.where(kept, experts, moe.experts), stacks)
    else:
        compute = {"dropless": expert_dispatch.dropless, "dense": expert_dispatch.dense}[moe.dispatch]
        out = compute(x, gates, experts, ffn, moe.experts)
    n = jnp.maximum(jnp.sum(live), 1)
    load = jnp.sum(jax.nn.one_hot(experts, moe.experts) * kept[..., None], axis=(0, 1)) / n
    balance = routing.load_balance_loss(logits, experts, live)
    return out, RouterStats(routing.z_loss(logits, live), balance, load, 1 - jnp.sum(load) / moe.top_k)


def _expert_choice(x, logits, moe: MoE, stacks: Stacks, spread: Spread | None, live) -> tuple[jax.Array, RouterStats]:
    size = min(expert_dispatch.capacity(len(x), moe), len(x))
    if spread is not None:
        logits, live = spread.everywhere(logits), spread.everywhere(live)
    gates, tokens = routing.expert_choice(logits, size, live)
    gates = jnp.where(gates > 0, 1.0, 0.0) if moe.equal_gates else gates
    if spread is None:
        out = expert_dispatch.chosen_by_experts(x, gates, tokens, stacks.ffn(stacks.weights, None))
    else:
        out = spread.chosen_by_experts(x, gates, tokens, stacks)
    _, likeliest = jax.lax.top_k(logits, moe.top_k)
    n = jnp.maximum(jnp.sum(live), 1)
    load = jnp.sum(live[tokens], axis=1) / n
    chosen = jnp.zeros(len(x), jnp.int32).at[tokens].add(1)
    untaken = jnp.sum(jnp.where(live, jnp.maximum(moe.top_k - chosen, 0), 0)) / (n * moe.top_k)
    balance = routing.load_balance_loss(logits, likeliest, live)
    return out, RouterStats(routing.z_loss(logits, live), balance, load, untaken)


def _soft(
    x, logits, moe: MoE, stacks: Stacks, spread: Spread | None, live, alone: bool
) -> tuple[jax.Array, RouterStats]:
    if spread is not None:
        logits, live = spread.everywhere(logits), spread.everywhere(live)
    ffn = stacks.ffn(stacks.weights, None)
    by_slot = logits.reshape(-1, moe.experts, moe.slots)
    if alone:  # a single token fills every slot: what is left of the mixture is the way back
        gates = jnp.sum(jax.nn.softmax(logits, axis=-1).reshape(by_slot.shape), axis=-1)
        every = jnp.broadcast_to(jnp.arange(moe.experts), gates.shape)
        if spread is None:
            out = expert_dispatch.dense(x, gates, every, ffn, moe.experts)
        else:
            out = spread.dense(x, gates, every, stacks)
    elif spread is None:
        out = expert_dispatch.soft(x, by_slot, ffn, live)
    else:
        out = spread.soft(x, by_slot, stacks, live)
    load = routing.mean(jax.nn.softmax(logits, axis=-1).reshape(by_slot.shape).sum(axis=-1), live)
    everyone = jnp.broadcast_to(jnp.arange(moe.experts), by_slot.shape[:2])
    per_expert = jax.nn.logsumexp(by_slot, axis=-1)
    balance = routing.load_balance_loss(per_expert, everyone, live)
    return out, RouterStats(routing.z_loss(logits, live), balance, load, jnp.float32(0))

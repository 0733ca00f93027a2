"""The operators of an MLP, dense or of experts."""

from collections.abc import Iterator
from dataclasses import replace

from jaxinfer.analysis.roofline.arithmetic import Number, smallest
from jaxinfer.analysis.roofline.call import Call
from jaxinfer.analysis.roofline.operator import Operator
from jaxinfer.config import MoE

ACTIVATION_OPS = {"silu": 4, "gelu": 5, "gelu_tanh": 9, "relu": 1, "relu2": 2, "swiglu_clamped": 10}
"""Operations a number: a silu is a negation, an exponential, a sum and a quotient."""


def dense(call: Call, layers: Number, width: int, suffix: str = "") -> Iterator[Operator]:
    """Give up, gate, activation and down of an MLP of `width` neurons, of which the setting's share is active.

    Neurons that are not active are held and not read (Deja Vu, Liu et al. 2023).
    """
    config, tensor = call.config, call.setting.tensor
    neurons = width * call.setting.active

    def product(name: str, ic: Number, oc: Number, whole: int, out: str) -> Operator:
        one = call.linear(name + suffix, layers, ic, oc, tensor, out)
        held = whole * config.d_model * call.setting.stored_weights.bytes(ic) / tensor
        return replace(one, held=held)

    if config.gated:
        yield product("gate_proj", config.d_model, neurons, width, "act")
    yield product("up_proj", config.d_model, neurons, width, "act")
    yield activation(call, f"mlp_act{suffix}", layers, call.rows * call.tokens * neurons / tensor)
    yield product("down_proj", neurons, config.d_model, width, "partial")


def activation(call: Call, name: str, layers: Number, numbers: Number) -> Operator:
    """Give the activation of so many numbers, and the product with the other half where the MLP is gated."""
    gated, moved = int(call.config.gated), numbers * call.activation
    ops = ACTIVATION_OPS[call.config.activation] + gated
    return Operator(name, "elementwise", layers, ops * numbers, 0, (1 + gated) * moved, moved, bits=call.bits)


def experts(call: Call, moe: MoE, layers: Number) -> Iterator[Operator]:
    """Give router, experts and the shared one. Experts that no token of the batch chose are not read.

    With uniform routing a token leaves an expert alone with probability 1 - k / E, so n tokens touch on average
    E (1 - (1 - k / E)^n) of E experts.
    """
    setting, e, k = call.setting, moe.experts, moe.top_k
    tokens = setting.routed_rows * call.tokens
    yield call.linear("router", layers, call.config.d_model, e)
    if moe.dispatch == "dense":
        touched, assigned = e, tokens * e
    elif setting.routing == "all":
        touched, assigned = smallest(e, tokens * k), tokens * k
    else:
        touched, assigned = e * (1 - (1 - k / e) ** tokens), tokens * k
    share = setting.tensor * setting.expert
    yield from _products(call, moe, layers, touched / share, assigned / share, e / share)
    yield _all_to_all(call, layers, k)
    if moe.shared_d_ff:
        yield from dense(call, layers, moe.shared_d_ff, "[shared]")


def _products(
    call: Call, moe: MoE, layers: Number, touched: Number, assigned: Number, held: Number
) -> Iterator[Operator]:
    """Give the products of `touched` of the `held` experts with `assigned` pairs of token and expert."""
    d, f, moved = call.config.d_model, moe.d_ff, assigned * call.activation

    def product(name: str, ic: int, oc: int) -> Operator:
        size = ic * oc * call.setting.stored_weights.bytes(ic)
        return Operator(
            name,
            "linear",
            layers,
            ops=2 * assigned * ic * oc,
            weights=touched * size,
            read=moved * ic,
            written=moved * oc,
            bits=call.bits,
            held=held * size,
        )

    if call.config.gated:
        yield product("experts_gate", d, f)
    yield product("experts_up", d, f)
    yield activation(call, "experts_act", layers, assigned * f)
    yield product("experts_down", f, d)


def _all_to_all(call: Call, layers: Number, k: int) -> Operator:
    """Give the exchange of tokens with experts elsewhere, there and back: (n - 1) / n of the assignments each way."""
    n = call.setting.expert  # the time is that of two: see `meshes.collective_seconds`
    sent = call.setting.routed_rows * call.tokens * k * call.config.d_model * call.activation / n
    wire = 2 * sent * ((n - 1) / n)
    return Operator("experts_all_to_all", "collective", layers, wire=wire, bits=call.bits, over=("expert", "exchange"))

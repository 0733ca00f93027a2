"""The roofline of an ask: time and memory that the hardware allows, with the links between its devices."""

from dataclasses import replace

import jax
import jax.numpy as jnp

from jaxinfer.analysis import hardware
from jaxinfer.analysis.ahead_of_time.ask import Ask
from jaxinfer.analysis.ahead_of_time.shapes import Program
from jaxinfer.analysis.hardware import Hardware
from jaxinfer.analysis.hardware.system import memory as memory_here
from jaxinfer.analysis.roofline.analysis import Roofline, analyze, timed
from jaxinfer.analysis.roofline.call import Call
from jaxinfer.analysis.roofline.formats import weight_storage
from jaxinfer.analysis.roofline.memory import cache
from jaxinfer.analysis.roofline.memory import memory as memory_of
from jaxinfer.analysis.roofline.network import operators
from jaxinfer.analysis.roofline.setting import Setting, Storage
from jaxinfer.errors import InputError


def device_of(ask: Ask) -> Hardware | None:
    """Give the constants of a device of the target; None for a CPU, of which only a measurement knows them."""
    target = ask.slice.target
    if target.platform == "cpu":
        return None
    found = hardware.get(target.hardware)
    if target.cores == 1:
        return found
    each = target.cores  # devices of a chip, which share its memory, its peak and its links
    rates = {name: rate / each for name, rate in found.flops.items()}
    link = None if found.link is None else found.link / each
    return replace(
        found, bandwidth=found.bandwidth / each, memory=found.memory / each, flops=rates, link=link,
        on_chip=found.on_chip / each,
    )  # fmt: skip


def limit_of(ask: Ask) -> int:
    """Give the bytes of memory of a device; devices of one CPU share what there is."""
    device = device_of(ask)
    return int(memory_here()[0] / ask.slice.chips if device is None else device.memory)


def roofline(ask: Ask, width: int = 1) -> Roofline | None:
    """Analyze what is asked, on a mesh of data, tensor, expert and pipeline; None where the model of it has no answer.

    Of a context axis only the memory of the cache is known, of fully sharded weights only theirs (`predicted`).
    """
    device = device_of(ask)
    if device is None:
        return None
    mesh = ask.mesh.shape
    replicas = mesh.get("data", 1) * mesh.get("fsdp", 1)
    bits = 8 * jnp.dtype(ask.dtype).itemsize
    try:
        setting = Setting(
            batch=ask.batch,
            prompt=ask.tokens,
            generate=ask.context - ask.tokens,
            weights=weight_storage(ask.weights or ask.dtype),
            activations=bits,
            kv=_stored(ask),
            flash=True,
            width=width,
            kv_budget=ask.cache_policy.capacity,
            tensor=mesh.get("tensor", 1),
            pipeline=mesh.get("pipeline", 1),
            data=1 if ask.batch % replicas else replicas,
            expert=mesh.get("expert", 1),
            prompt_logits=False,
        )
        return analyze(ask.config, device, setting)
    except InputError:
        return None


def predicted(ask: Ask, chunk: int | None = None) -> dict[str, float] | None:
    """Give the memory model's bytes of a device, by kind and in all: of a decode step, or of a prefill of so many
    tokens of each row where that takes more. None where there is no model of the mesh.

    fresh: keys and values that a call has made, which the cache takes once all layers have run.
    """
    found = roofline(ask)
    if found is None:
        return None
    calls = [found.call("decode"), *([] if chunk is None else [_chunk(ask, found, chunk)])]
    made = [_parts(ask, found, one) for one in calls]
    return max(made, key=lambda parts: parts["total"])


def _parts(ask: Ask, found: Roofline, call: Call) -> dict[str, float]:
    memory = memory_of(ask.config, found.setting, call, operators(call))
    parts = {name: float(size) for name, size in memory.as_dict().items() if name != "total"}
    parts["fresh"] = float(cache(ask.config, found.setting, call.tokens))
    mesh = ask.mesh.shape
    parts["weights"] /= mesh.get("fsdp", 1)
    rows = ask.batch // found.setting.data
    shared = mesh.get("context", 1) * (mesh.get("expert", 1) if rows % mesh.get("expert", 1) == 0 else 1)
    for name in ("kv", "fresh"):
        parts[name] /= shared
    return {**parts, "total": sum(parts.values())}


def _chunk(ask: Ask, found: Roofline, tokens: int) -> Call:
    """Give the prefill of so many tokens of each row, the last of them that of the prompt."""
    return replace(found.call("prefill"), tokens=tokens, context=ask.tokens, scored=0)


def seconds(ask: Ask, step: str, program: Program) -> tuple[float, float] | None:
    """Give the roofline's seconds of one call of a program's forward, and of these its collectives'."""
    width = 1 if step == "prefill" else _width(ask, step)
    found = roofline(ask, width)
    if found is None:
        return None
    one = _chunk(ask, found, program.tokens) if step == "prefill" else found.call("decode", ask.context - width)
    times = [timed(operator, found.hardware) for operator in operators(one)]
    return sum(x.total for x in times), sum(x.total for x in times if x.bound == "network")


def _width(ask: Ask, step: str) -> int:
    """Give the tokens of a step: those of one without guesses, and of one with all that the method makes."""
    return 1 if step == "decode" else ask.method_of(step).width


def _stored(ask: Ask) -> Storage:
    """Read off what the cache policy stores of a key of one head."""
    heads, width, _ = ask.config.stored
    key = jax.ShapeDtypeStruct((1, heads, 1, width), jnp.dtype(ask.dtype))
    arrays = jax.tree.leaves(jax.eval_shape(ask.cache_policy.encode, key))
    bits = 8 * arrays[0].dtype.itemsize
    whole = sum(8 * x.dtype.itemsize * x.size for x in arrays) / heads
    return Storage(bits, row_scales=whole - bits * width)

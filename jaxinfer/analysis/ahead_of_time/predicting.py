"""The roofline of an ask: time and memory that the hardware allows, with the links between its devices."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from jaxinfer.analysis import hardware
from jaxinfer.analysis.ahead_of_time.ask import Ask
from jaxinfer.analysis.ahead_of_time.shapes import Program
from jaxinfer.analysis.hardware import Hardware
from jaxinfer.analysis.hardware.system import memory as memory_here
from jaxinfer.analysis.roofline.analysis import Roofline, analyze
from jaxinfer.analysis.roofline.call import Call
from jaxinfer.analysis.roofline.formats import weight_storage
from jaxinfer.analysis.roofline.memory import cache
from jaxinfer.analysis.roofline.meshes import Step, axes_of, step
from jaxinfer.analysis.roofline.setting import AXES, Setting, Storage
from jaxinfer.errors import InputError


def device_of(ask: Ask) -> Hardware | None:
    """Give the constants of a device of the target; None for a CPU, of which only a measurement knows them."""
    target = ask.slice.target
    if target.platform == "cpu":
        return None
    found, each = hardware.get(target.hardware), target.cores
    if each == 1:
        return found
    shared: dict[str, Any] = {name: getattr(found, name) / each for name in ("bandwidth", "memory", "on_chip")}
    shared["flops"] = {name: rate / each for name, rate in found.flops.items()}
    shared["link"] = None if found.link is None else found.link / each
    return replace(found, **shared)


def limit_of(ask: Ask) -> int:
    """Give the bytes of memory of a device; devices of one CPU share what there is."""
    device = device_of(ask)
    return int(memory_here()[0] / ask.slice.chips if device is None else device.memory)


def roofline(ask: Ask, width: int = 1) -> Roofline | None:
    """Analyze what is asked on the device and the mesh; None where there is no analysis of such a mesh."""
    device = device_of(ask)
    if device is None:
        return None
    axes: dict[str, Any] = {axis: ask.mesh.shape.get(axis, 1) for axis in AXES}
    if ask.batch % (axes["data"] * axes["fsdp"]):
        axes["data"] = 1  # rows that do not divide are on every replica
    try:
        setting = Setting(
            batch=ask.batch,
            prompt=ask.tokens,
            generate=ask.context - ask.tokens,
            weights=weight_storage(ask.weights or ask.dtype),
            activations=8 * jnp.dtype(ask.dtype).itemsize,
            kv=_stored(ask),
            flash=True,
            width=width,
            kv_budget=ask.cache_policy.capacity,
            prompt_logits=False,
            **axes,
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
    return max((_parts(ask, found, one) for one in calls), key=lambda parts: parts["total"])


def seconds(ask: Ask, step_name: str, program: Program) -> tuple[float, float] | None:
    """Give the roofline's seconds of one call of a program's forward, and of these its collectives'."""
    width = 1 if step_name in ("prefill", "decode") else ask.method_of(step_name).width
    found = roofline(ask, width)
    if found is None:
        return None
    prefill = step_name == "prefill"
    call = _chunk(ask, found, program.tokens) if prefill else found.call("decode", ask.context - width)
    one = _on_mesh(ask, found, call)
    return float(one.seconds), float(one.collectives)


def _chunk(ask: Ask, found: Roofline, tokens: int) -> Call:
    """Give the prefill of so many tokens of each row, the last of them that of the prompt."""
    mine = tokens / ask.mesh.shape.get("context", 1)
    return replace(found.call("prefill"), tokens=mine, context=ask.tokens, scored=0)


def _on_mesh(ask: Ask, found: Roofline, call: Call) -> Step:
    """Give the time and the memory of a call on the mesh, whose axes lie in the slice as its devices are numbered."""
    cores = ask.slice.target.cores
    slice_ = (*map(int, ask.slice.shape.split("x")), *([cores] if cores > 1 else []))
    return step(call, found.hardware, axes_of(found.hardware, slice_, ask.mesh.shape))


def _parts(ask: Ask, found: Roofline, call: Call) -> dict[str, float]:
    memory = _on_mesh(ask, found, call).memory.as_dict()
    parts = {name: float(size) for name, size in memory.items() if name != "total"}
    parts["fresh"] = float(cache(ask.config, found.setting, call.tokens * found.setting.context))
    return {**parts, "total": sum(parts.values())}


def _stored(ask: Ask) -> Storage:
    """Read off what the cache policy stores of a key of one head."""
    heads, width, _ = ask.config.stored
    key = jax.ShapeDtypeStruct((1, heads, 1, width), jnp.dtype(ask.dtype))
    arrays = jax.tree.leaves(jax.eval_shape(ask.cache_policy.encode, key))
    bits = 8 * arrays[0].dtype.itemsize
    whole = sum(8 * x.dtype.itemsize * x.size for x in arrays) / heads
    return Storage(bits, row_scales=whole - bits * width)

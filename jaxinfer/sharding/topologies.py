"""Devices of machines that are not here, to compile for: `devices("v5e:8x8")`, `devices("h200:8")`.

Nothing runs on them. A program is lowered with arguments that are laid out on them (`jax.ShapeDtypeStruct` with a
sharding), and compiled by the compiler of that platform: libtpu (`pip install "jaxinfer[tpu]"`) or the CUDA plugin
(`pip install "jaxinfer[cuda]"`), which need no such machine either. `cpu:8` is eight devices of this machine.
"""

import importlib.util
import os
import re
from dataclasses import dataclass
from typing import Any, Literal

import jax
from jax.experimental import topologies

from jaxinfer.errors import InputError, nearest, shown
from jaxinfer.sharding.meshes import MOST_VIRTUAL, make_virtual

FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16")
MOST_GPUS = 8  # of a machine, between which there is NVLink
_EXTRAS = {"tpu": ("libtpu", "tpu"), "gpu": ("jax_cuda13_plugin", "cuda")}


@dataclass(frozen=True)
class Gpu:
    """The constants of a GPU that XLA compiles by, those of its own descriptions (xla/backends/gpu/target_config)."""

    title: str
    capability: tuple[int, int]
    cores: int  # streaming multiprocessors
    fpus: int  # of each
    bandwidth: int  # bytes/s
    l2: int  # bytes
    clock: float  # GHz
    memory: int  # bytes, as its driver tells them
    shared: int  # bytes of shared memory of a core
    optin: int  # bytes of that which a block may ask for

    @property
    def config(self) -> str:
        """Write it as XLA's `GpuTargetConfigProto`."""
        major, minor = self.capability
        return f"""
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: {self.shared} threads_per_core_limit: 2048 core_count: {self.cores}
  fpus_per_core: {self.fpus} block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {self.bandwidth} l2_cache_size: {self.l2} clock_rate_ghz: {self.clock}
  device_memory_size: {self.memory} shared_memory_per_block_optin: {self.optin}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
runtime_version {{ major: 13 }}
device_description_str: "{self.title}"
"""


@dataclass(frozen=True)
class Target:
    """A kind of device that programs are compiled for. Its memory and rates are those of `analysis.hardware`."""

    name: str
    platform: Literal["tpu", "gpu", "cpu"]
    hardware: str  # the device's name in `analysis.hardware`
    slices: tuple[str, ...]  # of TPUs: chips along each axis; of others: how many devices of one machine
    cores: int = 1  # devices that a chip counts as
    options: tuple[tuple[str, str], ...] = ()  # of libtpu's topology
    gpu: Gpu | None = None

    @property
    def example(self) -> str:
        """Give one of its slices, as it is written."""
        return f"{self.name}:{self.slices[-1] if self.platform == 'gpu' else self.slices[0]}"


def _gpus(name: str, hardware: str, gpu: Gpu) -> Target:
    return Target(name, "gpu", hardware, tuple(map(str, range(1, MOST_GPUS + 1))), gpu=gpu)


_A100: Any = dict(capability=(8, 0), cores=108, fpus=64, l2=41943040, clock=1.41, shared=167936, optin=166912)
_H100: Any = dict(capability=(9, 0), cores=132, fpus=128, l2=52428800, clock=1.98, shared=233472, optin=232448)
_B200: Any = dict(capability=(10, 0), cores=148, fpus=128, l2=132644864, clock=1.965, shared=233472, optin=232448)

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target("v4", "tpu", "tpu-v4", CUBES, options=(("chip_config_name", "megacore"),)),
        Target("v5e", "tpu", "tpu-v5e", FLAT),
        Target("v5p", "tpu", "tpu-v5p", CUBES),
        Target("v6e", "tpu", "tpu-v6e", FLAT),
        Target("tpu7x", "tpu", "tpu-v7", CUBES, cores=2),
        _gpus("a100", "a100-80gb", Gpu("NVIDIA A100-SXM4-80GB", bandwidth=2039 * 10**9, memory=85100068864, **_A100)),
        _gpus(
            "a100-40gb", "a100-40gb", Gpu("NVIDIA A100-SXM4-40GB", bandwidth=1555 * 10**9, memory=42331013120, **_A100)
        ),
        _gpus("h100", "h100-sxm", Gpu("NVIDIA H100 80GB HBM3", bandwidth=3352 * 10**9, memory=84942979072, **_H100)),
        _gpus("h200", "h200", Gpu("NVIDIA H200", bandwidth=4800 * 10**9, memory=151397597184, **_H100)),
        _gpus("b200", "b200", Gpu("NVIDIA B200", bandwidth=7672 * 10**9, memory=191514411008, **_B200)),
        Target("cpu", "cpu", "this-machine", tuple(map(str, range(1, MOST_VIRTUAL + 1)))),
    )
}
"""By name."""

ALIASES = {"v7": "tpu7x", "ironwood": "tpu7x", "trillium": "v6e", "a100-80gb": "a100", "h100-sxm": "h100"}


@dataclass(frozen=True)
class Slice:
    """Devices of one target, together: `v5e:8x8`, `h200:8`."""

    target: Target
    shape: str

    @property
    def chips(self) -> int:
        """Count the chips."""
        count = 1
        for size in self.shape.split("x"):
            count *= int(size)
        return count

    @property
    def size(self) -> int:
        """Count the devices, as JAX does: those of TPU7x are halves of a chip."""
        return self.chips * self.target.cores

    def __str__(self) -> str:
        return f"{self.target.name}:{self.shape}"


def slice_of(name: str) -> Slice:
    """Read `v5e:8x8`, `h200:8`, which is `h200x8` and `h200:1x1x8` too, `h200`, `cpu:8`.

    Raises InputError, with those that exist, for an unknown target or slice.
    """
    if not isinstance(name, str) or not name.strip():
        raise InputError(f"target={shown(name)} must be a text, such as {TARGETS['v5e'].example}; {_known()}")
    family, _, shape = name.strip().lower().replace("_", "-").partition(":")
    if not shape and (found := re.fullmatch(r"(.+?)x(\d+)", family)) and family not in TARGETS:
        family, shape = found.groups()
    target = TARGETS.get(ALIASES.get(family, family))
    if target is None:
        raise InputError(f"target {shown(name)}{nearest(family, (*TARGETS, *ALIASES))}: there is {_known()}")
    if target.platform != "tpu":
        shape = (shape or "1").removeprefix("1x1x").removeprefix("1x")
    if shape not in target.slices:
        near = nearest(shape, target.slices)
        raise InputError(f"target {shown(name)}: {target.name} comes as {_slices(target)}{near}")
    return Slice(target, shape)


def _known() -> str:
    return ", ".join(target.example for target in TARGETS.values())


def _slices(target: Target) -> str:
    if target.platform == "tpu":
        return ", ".join(f"{target.name}:{shape}" for shape in target.slices)
    return f"{target.name}:1 to {target.name}:{target.slices[-1]}"


def missing(name: str) -> str | None:
    """Name the extra that compiling for a target takes; None if it is installed. Raises InputError for no target."""
    platform = slice_of(name).target.platform
    if platform == "cpu":
        return None
    package, extra = _EXTRAS[platform]
    return None if importlib.util.find_spec(package) else f"jaxinfer[{extra}]"


def devices(name: str) -> list[jax.Device]:
    """Return the devices of a target that `slice_of` reads.

    Raises InputError if there is no such target, its compiler is not installed, or this machine shows fewer devices.
    """
    found = slice_of(name)
    extra = missing(name)
    if extra:
        raise InputError(f'compiling for {name!r} takes its compiler: pip install "{extra}"')
    target = found.target
    if target.platform == "cpu":
        return _here(found.chips)
    if target.gpu is not None:
        shape: dict[str, Any] = dict(topology=f"1x1x{found.shape}", target_config=target.gpu.config)
        return list(topologies.get_topology_desc(target.gpu.title, "cuda", **shape).devices)
    # Without these, libtpu looks for the machine it runs on.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # several processes may compile at once
    options: dict[str, Any] = dict(target.options)
    if found.shape == "1x1":  # hosts have four chips unless told otherwise
        options["chips_per_host_bounds"] = (1, 1, 1)
    return list(topologies.get_topology_desc(str(found), "tpu", **options).devices)


def _here(count: int) -> list[jax.Device]:
    """Return devices of this machine's CPU: it shows as many, where JAX has not begun yet."""
    make_virtual(count)
    present = jax.devices("cpu")
    if len(present) < count:
        flag = f"XLA_FLAGS=--xla_force_host_platform_device_count={count}"
        raise InputError(f"target cpu:{count}: this process has {len(present)} CPU devices; {flag} makes {count}")
    return list(present[:count])

"""Devices of machines that are not here, to compile for: `devices("v5e:2x2")`, `devices("h200")`.

Nothing runs on them. A program is lowered with arguments that are laid out on them (`jax.ShapeDtypeStruct` with a
sharding), and compiled by the compiler of that platform: libtpu (`pip install "jax[tpu]"`) or the CUDA plugin
(`pip install "jax[cuda13]"`), which need no such machine either.
"""

import importlib.util
import os
from typing import Any

import jax
from jax.experimental import topologies

from jaxinfer.errors import InputError

_H200 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: 4800000000000 l2_cache_size: 62914560
  clock_rate_ghz: 1.98 device_memory_size: 150754820096 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 } registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
runtime_version { major: 13 }
device_description_str: "NVIDIA H200"
"""

_COMPILERS = {"tpu": ("libtpu", "jax[tpu]"), "gpu": ("jax_cuda13_plugin", "jax[cuda13]")}


def missing(name: str) -> str | None:
    """Name the extra that is needed to compile for a machine of that name; None if it is installed."""
    package, extra = _COMPILERS["gpu" if name.startswith("h200") else "tpu"]
    return None if importlib.util.find_spec(package) else extra


def devices(name: str) -> list[jax.Device]:
    """Return the devices of a TPU slice ("v5e:2x2", "v6e:2x2", "v5p:2x2x1") or of H200 machines ("h200", "h200:1x1x8").

    Raises InputError if the compiler is not installed.
    """
    extra = missing(name)
    if extra:
        raise InputError(f'compiling for {name!r} takes its compiler: pip install "{extra}"')
    if name.startswith("h200"):
        shape: dict[str, Any] = dict(topology=name.partition(":")[2] or "1x1x1", target_config=_H200)
        return list(topologies.get_topology_desc("h200", "cuda", **shape).devices)
    # Without these, libtpu looks for the machine it runs on.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # several processes may compile at once
    return list(topologies.get_topology_desc(name, "tpu").devices)

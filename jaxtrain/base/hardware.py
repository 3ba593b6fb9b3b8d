"""Peak FLOP/s, memory and bandwidth of devices, with sources; a CPU's FLOP/s are measured.

Not here: what a program needs.
"""

import functools
import time
from dataclasses import dataclass

import jax
import jax.numpy as jnp

GB = 10**9


@dataclass(frozen=True)
class Hardware:
    """One device, in the sense of `jax.devices()`."""

    flops: float
    """Peak FLOP/s of dense bf16 matmuls, without sparsity."""
    memory: int
    """Bytes of HBM."""
    bandwidth: float
    """Bytes of HBM per second."""
    source: str


_TPU = "https://docs.cloud.google.com/tpu/docs/"
_A100 = "https://www.nvidia.com/en-us/data-center/a100/"
_H100 = "https://www.nvidia.com/en-us/data-center/h100/"
_H200 = "https://www.nvidia.com/en-us/data-center/h200/"
_HGX = "https://www.nvidia.com/en-us/data-center/hgx/"

_V4 = Hardware(275e12, 32 * GB, 1228e9, _TPU + "v4")
_V5E = Hardware(197e12, 16 * GB, 819e9, _TPU + "v5e")
_V5P = Hardware(459e12, 95 * GB, 2765e9, _TPU + "v5p")
_V6E = Hardware(918e12, 32 * GB, 1640e9, _TPU + "v6e")

KNOWN = {
    "TPU v4": _V4,
    "TPU v5 lite": _V5E,
    "TPU v5e": _V5E,
    "TPU v5": _V5P,
    "TPU v5p": _V5P,
    "TPU v6 lite": _V6E,
    "TPU v6e": _V6E,
    "NVIDIA A100-SXM4-40GB": Hardware(312e12, 40 * GB, 1555e9, _A100),
    "NVIDIA A100-SXM4-80GB": Hardware(312e12, 80 * GB, 2039e9, _A100),
    "NVIDIA H100 PCIe": Hardware(756e12, 80 * GB, 2000e9, _H100),
    "NVIDIA H100 80GB HBM3": Hardware(989e12, 80 * GB, 3350e9, _H100),
    "NVIDIA H200": Hardware(989e12, 141 * GB, 4800e9, _H200),
    "NVIDIA B200": Hardware(2250e12, 180 * GB, 7700e9, _HGX),
}
"""By `device_kind`, from the vendors' data sheets, of which only that of TPU v5e was read again in November 2026.
NVIDIA prints twice the FLOP/s, with sparsity.
"""


def peak_flops(devices: list[jax.Device]) -> float | None:
    """The summed peak FLOP/s of devices; None where one is not in `KNOWN`.

    Simulated devices share the cores of a CPU, so each process counts as one CPU, whose peak is measured in f32.
    """
    if all(device.platform == "cpu" for device in devices):
        return measured_cpu_flops() * len({device.process_index for device in devices})
    known = [KNOWN.get(device.device_kind) for device in devices]
    return None if None in known else sum(each.flops for each in known if each is not None)


@functools.cache
def measured_cpu_flops(size: int = 1024) -> float:
    """FLOP/s of this CPU in the best of three f32 matmuls of `size`² matrices."""
    device = jax.local_devices(backend="cpu")[0]
    x = jax.device_put(jnp.ones((size, size), jnp.float32), device)
    jnp.matmul(x, x).block_until_ready()
    seconds = []
    for _ in range(3):
        since = time.perf_counter()
        jnp.matmul(x, x).block_until_ready()
        seconds.append(time.perf_counter() - since)
    return 2 * size**3 / min(seconds)


def planned_memory(compiled: jax.stages.Compiled) -> dict[str, int]:
    """`peak_memory`: the bytes that the compiler plans on each device for a program; {} where it reports none.

    On a CPU it is the sum of all buffers, since XLA's own peak leaves some out.
    """
    plan = compiled.memory_analysis()
    if plan is None:
        return {}
    if jax.default_backend() != "cpu" and (peak := getattr(plan, "peak_memory_in_bytes", 0)):
        return {"peak_memory": peak}
    outputs = plan.output_size_in_bytes - plan.alias_size_in_bytes
    return {"peak_memory": plan.argument_size_in_bytes + plan.temp_size_in_bytes + outputs}


def peak_memory() -> dict[str, int]:
    """`peak_memory`: the most bytes that any device of this process has used; {} where devices do not report it."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    peaks = [each["peak_bytes_in_use"] for each in stats if each and "peak_bytes_in_use" in each]
    return {"peak_memory": max(peaks)} if peaks else {}

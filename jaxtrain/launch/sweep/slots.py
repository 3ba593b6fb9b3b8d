"""Divides the devices of this host among trials that run at once: GPUs by their numbers, the CPU by its cores.

TPUs are not divided: one trial has all. Not here: other hosts, each of which has a driver of its own.
"""

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jax

from jaxtrain.base.errors import ConfigError

VISIBLE = "CUDA_VISIBLE_DEVICES"

CORES = 2
"""The cores of a trial on a CPU, by default: one for the device, one to read data."""

GPU_MEMORY = 0.9
"""The share of a GPU's memory that the trials on it have together, where it has several."""

OF_ANOTHER_RUN = (
    *("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "JOB_COMPLETION_INDEX"),
    *("OMPI_COMM_WORLD_SIZE", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS"),
)
"""Variables by which a trial would look for the other drivers, as if they were processes of its run."""


@dataclass(frozen=True)
class Slot:
    """The devices of one trial at a time."""

    variables: Mapping[str, str] = field(default_factory=dict)
    """Environment variables that select its devices."""
    cores: frozenset[int] = frozenset()
    """The cores that it may use; all where there are none."""

    def environment(self) -> dict[str, str]:
        """The environment of a trial."""
        return {**{name: value for name, value in os.environ.items() if name not in OF_ANOTHER_RUN}, **self.variables}


def visible_gpus() -> list[str]:
    """The GPUs of NVIDIA that a process may use, as CUDA_VISIBLE_DEVICES names them; jax is not asked, since it would
    take their memory.
    """
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms and not {"cuda", "gpu"} & set(platforms.split(",")):
        return []
    found = sorted(Path("/proc/driver/nvidia/gpus").glob("*"))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name not in ("", "-1")]
    return [str(number) for number in range(len(found))]


def divide(workers: int | None, mesh: Mapping[str, int], gpus: list[str], cores: frozenset[int]) -> list[Slot]:
    """The slots for `workers` trials at once, by default as many as have devices of their own.

    mesh: of the experiment; the product of its sizes is the number of devices of a trial, and with a -1 a trial has
        all, or its share of them.

    Raises ConfigError for more workers than the devices are enough for.
    """
    needed = 1
    for size in mesh.values():
        needed *= size  # negative with a -1
    if not gpus:
        count = workers or (max(1, len(cores) // max(CORES, needed)) if needed > 0 else 1)
        if count > len(cores):
            raise ConfigError(f"--workers {count}: this machine has {len(cores)} cores")
        ordered = sorted(cores)
        each = len(ordered) // count
        return [Slot({}, frozenset(ordered[at * each : (at + 1) * each])) for at in range(count)]
    count = workers or (max(1, len(gpus) // needed) if needed > 0 else 1)
    each = needed if needed > 0 else max(1, len(gpus) // count)
    if each > len(gpus) or (each > 1 and each * count > len(gpus)):
        raise ConfigError(f"--workers {count}: {count} trials of {each} GPUs each, and this machine has {len(gpus)}")
    if each * count <= len(gpus):
        return [_on(gpus[at * each : (at + 1) * each]) for at in range(count)]
    shared = -(-count // len(gpus))
    memory = {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{GPU_MEMORY / shared:.3f}"}
    return [Slot({**_on([gpus[at % len(gpus)]]).variables, **memory}) for at in range(count)]


def simulated_devices(slots: Sequence[Slot]) -> list[jax.Device] | None:
    """As many devices of the CPU as a trial has GPUs, to trace it without these; None without GPUs: a trial sees what
    this process sees.
    """
    gpus = len(slots[0].variables.get(VISIBLE, "").split(",")) if VISIBLE in slots[0].variables else 0
    if not gpus:
        return None
    with contextlib.suppress(RuntimeError):  # jax was used already
        jax.config.update("jax_num_cpu_devices", gpus)
    found = jax.devices("cpu")
    if len(found) < gpus:
        raise ConfigError(
            f"a trial has {gpus} devices, and jax {len(found)} already, since the experiment file uses jax outside its "
            f"function: set XLA_FLAGS=--xla_force_host_platform_device_count={gpus}"
        )
    return found[:gpus]


def _on(gpus: list[str]) -> Slot:
    return Slot({VISIBLE: ",".join(gpus)})

"""The software and settings that must be equal in all processes of a run: else their programs differ, and they would
wait for each other forever.

Not here: the comparison (`server`), and the experiment, which must be equal too.
"""

import importlib.metadata
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxtrain.base.errors import ConfigError
from jaxtrain.base.files import digest

PACKAGES = ("jaxtrain", "jax", "jaxlib", "numpy", "flax", "optax", "orbax-checkpoint", "grain")
"""Packages that are always compared; any others only where both processes have imported them."""

MAY_DIFFER = (
    *(
        "COORDINATOR",
        "PROCESS_ID",
        "NUM_PROCESSES",
        "LOCAL_DEVICE_IDS",
        "CUDA_VISIBLE",
        "ROCM_VISIBLE",
        "ONEAPI_VISIBLE",
    ),
    *("COMPILATION_CACHE", "PERSISTENT_CACHE", "ENABLE_COMPILATION_CACHE", "RAISE_PERSISTENT", "ENABLE_PREEMPTION"),
    *(
        "DUMP_IR",
        "INCLUDE_DEBUG",
        "LOG_",
        "LOGGING_",
        "DEBUG_LOG",
        "EXPLAIN_CACHE",
        "TRACEBACK",
        "TRACER_ERROR",
        "PPRINT",
    ),
    *("COMPILER_DETAILED", "CAPTURED_CONSTANTS", "CROSS_HOST", "DISTRIBUTED_DEBUG", "HLO_SOURCE", "SOURCE_URL"),
    *("INCLUDE_FULL_TRACEBACKS", "CHECK_PROXY", "CPU_COLLECTIVES", "TRANSFER_GUARD"),
)
"""Prefixes, after `JAX_`, of variables and jax options that may differ between processes: ids and addresses, folders of
a host, logging. We set `CPU_COLLECTIVES` ourselves, and transfer guards change no program.
"""

XLA_MAY_DIFFER = ("--xla_dump", "--xla_gpu_dump", "--xla_hlo_profile")

CLOCK_SECONDS = 60
"""A difference of two hosts' clocks above which a warning is printed."""


def process_facts(environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """All facts of this process, by the name that is printed where they differ.

    "packages" holds the versions of imported packages by name; "clock" is the time of day.
    """
    code = [file.read_bytes() for file in sorted(Path(__file__).parent.parent.rglob("*.py"))]
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        "jaxtrain's files": digest(*code, length=16),
        **_variables(environment),
        **{f"jax.config.{name}": str(value) for name, value in jax.config.values.items() if not _may_differ(name)},
        "packages": _packages(),
        "clock": time.time(),
    }


def _may_differ(name: str) -> bool:
    return name.upper().removeprefix("JAX_").startswith(MAY_DIFFER)


def _variables(environment: Mapping[str, str]) -> dict[str, str]:
    variables = {
        name: value
        for name, value in environment.items()
        if name.startswith(("JAX_", "XLA_", "LIBTPU_INIT_ARGS", "NVIDIA_TF32")) and not _may_differ(name)
    }
    flags = [flag for flag in variables.pop("XLA_FLAGS", "").split() if not flag.startswith(XLA_MAY_DIFFER)]
    each = dict(flag.partition("=")[::2] for flag in flags)  # of a repeated flag the last one counts
    return variables | {f"XLA_FLAGS {name}": value or "given" for name, value in each.items()}


def _packages() -> dict[str, str]:
    """Versions of all packages that have been imported."""
    known = importlib.metadata.packages_distributions()
    names = {name for module in [*sys.modules] if "." not in module for name in known.get(module, ())}
    return {name: importlib.metadata.version(name) for name in sorted(names)}


def clock_warnings(ahead: Mapping[str, float]) -> list[str]:
    """A warning for each process whose clock is off. ahead: seconds ahead of process 0's clock, by process name."""
    return [
        f"the clock of {name} is {abs(seconds):.0f} s {'ahead of' if seconds > 0 else 'behind'} that of process 0: "
        "nothing here depends on it, but times in logs and of files will not fit together"
        for name, seconds in ahead.items()
        if abs(seconds) > CLOCK_SECONDS
    ]


def check_same_devices(devices: Sequence[jax.Device]) -> None:
    """Raises ConfigError where a process has other kinds or numbers of devices than process 0. `devices` are those of
    all processes, so all of them raise or none.
    """
    kinds: dict[int, dict[str, int]] = {}
    for device in devices:
        own = kinds.setdefault(device.process_index, {})
        own[device.device_kind] = own.get(device.device_kind, 0) + 1
    first = kinds.get(0, {})
    lines = [
        f"process {process} does not have the devices of process 0; what differs (process 0 → process {process}):\n"
        f"  devices: {_counted(first)} → {_counted(own)}"
        for process, own in sorted(kinds.items())
        if own != first
    ]
    if lines:
        raise ConfigError("\n".join(lines[:3]))


def _counted(kinds: Mapping[str, int]) -> str:
    return ", ".join(f"{count} x {kind}" for kind, count in sorted(kinds.items())) or "none"

"""Starts the distributed runtime: joins the processes, and checks that they run the same.

Not here: where arrays live.
"""

import contextlib
import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxtrain.base.files import digest
from jaxtrain.cluster.environment import detect, read_int
from jaxtrain.cluster.rendezvous import ReportError, join
from jaxtrain.cluster.stop import StopSignal


@contextlib.contextmanager
def join_processes(
    facts: Callable[[], Mapping[str, Any]], deadline: float, report_error: ReportError, stop: StopSignal
) -> Generator[None]:
    """Join the other processes if a launcher started several, and initialise jax.distributed. Call before any use of a
    device.

    facts: what must be equal in every process, besides versions and sources.
    deadline: all processes end within this many seconds of the loss or failure of one, and name it; 0 leaves this to
        jax. JAXTRAIN_JOIN_SECONDS (300) is how long to wait for the last process at the start.
    stop: what all processes stop by together.

    Raises ConfigError where the processes do not run the same, SystemExit where one does not join.
    """
    info = detect(os.environ)
    if info.hint:
        print(f"jaxtrain: {info.hint}", file=sys.stderr)
    if info.coordinator_address is None:
        yield
        return
    others = f"{info.num_processes - 1} others at" if info.process_id == 0 else "the coordinator"
    own = f"process {info.process_id} of {info.num_processes}"
    print(f"{info.launcher}: {own}, waiting for {others} {info.coordinator_address}", file=sys.stderr)
    join_seconds = read_int(os.environ, "JAXTRAIN_JOIN_SECONDS", 300)
    client = join(info, {**_versions(), **facts()}, join_seconds, deadline, stop)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM for itself
    jax.distributed.initialize(
        info.coordinator_address,
        info.num_processes,
        info.process_id,
        info.local_device_ids,
        cluster_detection_method="deactivate",  # it would take one GPU a process where we take all
        initialization_timeout=join_seconds,
        heartbeat_timeout_seconds=max(100, 3 * int(deadline)),  # later than ours: jax exits from C++ without a name
    )
    stop.report = lambda error: client.report_failure(error, report_error)
    try:
        yield
    except BaseException as error:
        client.report_failure(error, report_error)
        raise
    client.finish()


def _versions() -> dict[str, str]:
    """What must be equal in every process besides the experiment: Python, packages, and a hash of our sources."""
    code = [file.read_bytes() for file in sorted(Path(__file__).parent.parent.rglob("*.py"))]
    names = ("jaxtrain", "jax", "jaxlib", "numpy", "flax", "optax", "orbax-checkpoint", "grain")
    versions = {name: importlib.metadata.version(name) for name in names}
    return {"python": platform.python_version(), **versions, "jaxtrain's files": digest(*code, length=16)}


def is_first_process() -> bool:
    """Whether this is process 0, which alone writes the run folder and prints."""
    return jax.process_index() == 0


def broadcast_from_first(number: int) -> int:
    """Process 0's number, in every process; also a barrier."""
    return number if jax.process_count() == 1 else int(multihost_utils.broadcast_one_to_all(np.int64(number)))

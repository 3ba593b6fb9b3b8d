"""Starts the distributed runtime: joins the processes, and checks that they run the same software and experiment.

Not here: where arrays live.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Generator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxtrain.cluster.environment import ProcessInfo, detect, read_int
from jaxtrain.cluster.facts import check_same_devices, process_facts
from jaxtrain.cluster.rendezvous import ReportError, join
from jaxtrain.cluster.stop import StopSignal
from jaxtrain.cluster.watchdog import Watchdog

NO_DEADLINE = 10**6


@contextlib.contextmanager
def join_processes(
    facts: Callable[[], Mapping[str, Any]],
    deadline: float,
    report_error: ReportError,
    stop: StopSignal,
    deadlines: Mapping[str, float] | None = None,
) -> Generator[None]:
    """Join the other processes if a launcher started several, and initialise jax.distributed. Call before any use of a
    device.

    facts: returns what must be equal in all processes, besides versions and sources.
    deadline: all processes end within this many seconds of the loss or failure of one, and name it; 0 leaves this to
        jax.
    stop: the signal by which all processes stop at the same step.
    deadlines: seconds by phase, for a `Watchdog` that runs within this context, also for a single process. "join" is
        how long to wait for the last process to join; the variable JAXTRAIN_JOIN_SECONDS overrides it.

    Raises ConfigError where facts differ between processes, Retry where a process does not join.
    """
    info, deadlines = detect(os.environ), deadlines or {}
    join_seconds = read_int(os.environ, "JAXTRAIN_JOIN_SECONDS", int(deadlines.get("join", 300)) or NO_DEADLINE)
    own = 0 if info.coordinator_address is None else info.process_id
    # Joining has timeouts of its own, which name the missing process. The watchdog's is for hangs between them.
    with (
        Watchdog({**deadlines, "join": 2 * join_seconds + 60}, lambda: (0, "join"), own) as dog,
        _with_others(info, facts, deadline, report_error, stop, join_seconds, dog),
    ):
        dog.progress = lambda: stop.progress()
        yield


@contextlib.contextmanager
def _with_others(
    info: ProcessInfo,
    facts: Callable[[], Mapping[str, Any]],
    deadline: float,
    report_error: ReportError,
    stop: StopSignal,
    join_seconds: int,
    dog: Watchdog,
) -> Generator[None]:
    if info.hint:
        print(f"jaxtrain: {info.hint}", file=sys.stderr)
    if info.coordinator_address is None:
        yield
        return
    others = f"{info.num_processes - 1} others at" if info.process_id == 0 else "the coordinator"
    own = f"process {info.process_id} of {info.num_processes}"
    print(f"{info.launcher}: {own}, waiting for {others} {info.coordinator_address}", file=sys.stderr)
    client = join(info, {**process_facts(), **facts()}, join_seconds, deadline, stop)
    dog.ask_others, dog.leave = client.report_overdue, client.leave
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # it would replace our handler of SIGTERM
    jax.distributed.initialize(
        info.coordinator_address,
        info.num_processes,
        info.process_id,
        info.local_device_ids,
        cluster_detection_method="deactivate",  # it would give one GPU to a process that takes all
        initialization_timeout=join_seconds,
        heartbeat_timeout_seconds=max(100, 3 * int(deadline)),  # after ours: jax exits from C++ and names no process
    )
    stop.report = lambda error: client.report_failure(error, report_error)
    try:
        check_same_devices(jax.devices())
        yield
    except BaseException as error:
        client.report_failure(stop.cause(error), report_error)
        raise
    # Here heartbeats still notice a killed process; at interpreter exit this call would wait minutes for it.
    jax.distributed.shutdown()
    client.finish()


def is_first_process() -> bool:
    """Whether this is process 0, which alone writes the run folder and prints."""
    return jax.process_index() == 0


def broadcast_from_first(number: int) -> int:
    """The number that process 0 passes, in every process; also a barrier."""
    return number if jax.process_count() == 1 else int(multihost_utils.broadcast_one_to_all(np.int64(number)))


def least_over_processes(number: int) -> int:
    """The smallest number that any process passes, in every process; also a barrier."""
    return number if jax.process_count() == 1 else int(multihost_utils.process_allgather(np.int64(number)).min())

"""Starts the distributed runtime: joins the processes, checks that they run the same, and handles stop signals.

Not here: where arrays live.
"""

import contextlib
import importlib.metadata
import os
import platform
import signal
import sys
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, ClassVar, Self

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxtrain.base.errors import ExitCode
from jaxtrain.base.files import digest
from jaxtrain.cluster.environment import detect, read_int
from jaxtrain.cluster.rendezvous import ReportError, join


@contextlib.contextmanager
def join_processes(
    facts: Callable[[], Mapping[str, Any]], deadline: float, report_error: ReportError
) -> Generator["StopSignal"]:
    """Join the other processes if a launcher started several, and initialise jax.distributed. Call before any use of a
    device.

    facts: what must be equal in every process, besides versions and sources.
    deadline: all processes end within this many seconds of the loss or failure of one, and name it; 0 leaves this to
        jax. JAXTRAIN_JOIN_SECONDS (300) is how long to wait for the last process at the start.

    Raises ConfigError where the processes do not run the same, SystemExit where one does not join.
    """
    info = detect(os.environ)
    if info.hint:
        print(f"jaxtrain: {info.hint}", file=sys.stderr)
    if info.coordinator_address is None:
        yield StopSignal()
        return
    others = f"{info.num_processes - 1} others at" if info.process_id == 0 else "the coordinator"
    own = f"process {info.process_id} of {info.num_processes}"
    print(f"{info.launcher}: {own}, waiting for {others} {info.coordinator_address}", file=sys.stderr)
    join_seconds = read_int(os.environ, "JAXTRAIN_JOIN_SECONDS", 300)
    client = join(info, {**_versions(), **facts()}, join_seconds, deadline)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        info.coordinator_address,
        info.num_processes,
        info.process_id,
        info.local_device_ids,
        cluster_detection_method="deactivate",  # it would take one GPU a process where we take all
        initialization_timeout=join_seconds,
        heartbeat_timeout_seconds=max(100, 3 * int(deadline)),  # later than ours: jax exits from C++ without a name
    )
    stop = StopSignal(lambda error: client.report_failure(error, report_error))
    client.progress = lambda: stop.progress()
    try:
        yield stop
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


def least_over_processes(number: int) -> int:
    """The smallest of the processes' numbers, in every process; also a barrier."""
    return number if jax.process_count() == 1 else int(multihost_utils.process_allgather(np.int64(number)).min())


class StopSignal:
    """A request to stop between two steps: Ctrl-C, SIGTERM, SIGUSR1, an observer's. A second Ctrl-C stops at once."""

    CODES: ClassVar = {
        signal.SIGINT: ExitCode.INTERRUPTED,
        signal.SIGTERM: ExitCode.RETRY,
        signal.SIGUSR1: ExitCode.RETRY,
    }

    def __init__(self, on_error: Callable[[BaseException], None] | None = None) -> None:
        """`on_error` is called with an error first of all, since closing anything may wait for the other processes."""
        self._on_error = on_error
        self.code = ExitCode.FINISHED
        """The exit code of a run that stops on a signal; FINISHED while none has come."""
        self.reason: str | None = None
        """Why the run ends early by its own rule, with the exit code FINISHED; set in process 0."""
        self.progress: Callable[[], tuple[int, str]] = lambda: (0, "start")
        """The step and the phase that the run is in."""

    def __enter__(self) -> Self:
        self._previous = {number: signal.signal(number, self._receive) for number in self.CODES}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and self._on_error is not None:
            self._on_error(error)
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.code and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.code = self.code or self.CODES[signal.Signals(number)]

    def requested(self, step: int, *every: int) -> bool:
        """Whether to stop after this step: the same answer in every process.

        Each process receives its own signals, so several agree by a collective, after each step that one of `every`
        divides.
        """
        if jax.process_count() == 1:
            return bool(self.code or self.reason)
        if all(step % each for each in every):
            return False
        own = np.array([int(self.code), int(self.reason is not None)])
        code, early = multihost_utils.process_allgather(own).max(axis=0).tolist()
        self.code = ExitCode(code) or self.code  # a signal may have arrived during the collective
        return code > 0 or early > 0

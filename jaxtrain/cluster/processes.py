"""Which processes take part in a run, and what they agree on. Not here: where arrays live."""

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

from jaxtrain.base.files import digest
from jaxtrain.cluster.environment import detect, number_of
from jaxtrain.cluster.rendezvous import EARLY, meet

INTERRUPTED = 130
"""The exit code of a run that stopped because of Ctrl-C."""

Tell = Callable[[BaseException], int]
"""Says an error to a person, and gives the exit code."""


@contextlib.contextmanager
def together(facts: Callable[[], Mapping[str, Any]], watch: float, tell: Tell) -> Generator["Stop"]:
    """Join the other processes if a launcher started several, all with the same `facts`; call before touching a device.

    With `watch`, all end within so many seconds when one is lost, with a message that names it, and when one fails;
    0 leaves this to jax. JAXTRAIN_JOIN_SECONDS is how long the first waits for the last.
    """
    place = detect(os.environ)
    if place.hint:
        print(f"jaxtrain: {place.hint}", file=sys.stderr)
    if place.address is None:
        yield Stop()
        return
    whom = f"{place.count - 1} others at" if place.process == 0 else "the coordinator"
    which = f"process {place.process} of {place.count}"
    print(f"{place.found}: {which}, waiting for {whom} {place.address}", file=sys.stderr)
    seconds = number_of(os.environ, "JAXTRAIN_JOIN_SECONDS", 300)
    members = meet(place, {**_versions(), **facts()}, seconds, watch)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        place.address,
        place.count,
        place.process,
        place.devices,
        cluster_detection_method="deactivate",  # it would take one GPU a process where we take all
        initialization_timeout=seconds,
        heartbeat_timeout_seconds=max(100, 3 * int(watch)),  # jax ends a process from C++: it comes second
    )
    stop = Stop(lambda error: members.failed(error, tell))
    members.progress = lambda: stop.progress()
    try:
        yield stop
    except BaseException as error:
        members.failed(error, tell)
        raise
    members.finished()


def _versions() -> dict[str, str]:
    """What must be the same in every process besides the experiment."""
    code = [file.read_bytes() for file in sorted(Path(__file__).parent.parent.rglob("*.py"))]
    names = ("jaxtrain", "jax", "jaxlib", "numpy", "flax", "optax", "orbax-checkpoint", "grain")
    versions = {name: importlib.metadata.version(name) for name in names}
    return {"python": platform.python_version(), **versions, "jaxtrain's files": digest(*code, length=16)}


def first() -> bool:
    """Whether this process is the one that writes the run folder and speaks."""
    return jax.process_index() == 0


def same_everywhere(number: int) -> int:
    """Process 0's number, in every process."""
    return number if jax.process_count() == 1 else int(multihost_utils.broadcast_one_to_all(np.int64(number)))


class Stop:
    """A wish to stop, noticed between steps: Ctrl-C, SIGTERM or SIGUSR1. A second Ctrl-C stops at once."""

    SIGNALS: ClassVar = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: EARLY, signal.SIGUSR1: EARLY}

    def __init__(self, failed: Callable[[BaseException], None] | None = None) -> None:
        """`failed` hears of an error before anything is closed, which might wait for the other processes."""
        self._failed = failed
        self.code = 0
        """The exit code of a run that stopped by this wish; 0 before there is one."""
        self.progress: Callable[[], tuple[int, str]] = lambda: (0, "start")
        """The step and the phase that the run is in."""

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._hear) for number in self.SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and self._failed is not None:
            self._failed(error)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.code and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.code = self.code or self.SIGNALS[signal.Signals(number)]

    def wanted(self, step: int, every: int) -> bool:
        """Whether to stop after this step: the same answer in every process.

        Where there are several they agree after each `every`-th step, since each hears its own signal.
        """
        if jax.process_count() > 1 and step % every == 0:
            agreed = int(multihost_utils.process_allgather(np.array(self.code)).max())
            self.code = agreed or self.code  # a signal may have come while they agreed
            return agreed > 0
        return self.code > 0 and jax.process_count() == 1

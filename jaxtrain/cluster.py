"""Which processes take part in a run, and what they agree on. Not here: where arrays live."""

import os
import signal
import sys
from types import FrameType, TracebackType
from typing import ClassVar, Self

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxtrain.launchers import detect

EARLY, INTERRUPTED = 75, 130
"""Exit codes of a run that stopped before its last step: run the same command again (EX_TEMPFAIL), or Ctrl-C."""


def join() -> None:
    """Join the other processes if the environment names them; alone otherwise. Call before touching a device."""
    place = detect(os.environ)
    if place.hint:
        print(f"jaxtrain: {place.hint}", file=sys.stderr)
    if place.address is None:
        return
    whom = f"{place.count - 1} others at" if place.process == 0 else "the coordinator"
    print(
        f"{place.found}: process {place.process} of {place.count}, waiting for {whom} {place.address}", file=sys.stderr
    )
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        place.address, place.count, place.process, place.devices, cluster_detection_method="deactivate"
    )


def first() -> bool:
    """Whether this process is the one that writes the run folder and speaks."""
    return jax.process_index() == 0


def same_everywhere(number: int) -> int:
    """Process 0's number, in every process."""
    return number if jax.process_count() == 1 else int(multihost_utils.broadcast_one_to_all(np.int64(number)))


class Stop:
    """A wish to stop, noticed between steps: Ctrl-C, SIGTERM or SIGUSR1. A second Ctrl-C stops at once."""

    SIGNALS: ClassVar = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: EARLY, signal.SIGUSR1: EARLY}

    def __init__(self) -> None:
        self.code = 0
        """The exit code of a run that stopped by this wish; 0 before there is one."""

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._hear) for number in self.SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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

"""Which processes take part in a run, and what they agree on. Not here: where arrays live."""

import os
import signal
from types import FrameType, TracebackType
from typing import Self

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxtrain.errors import ConfigError

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
"""host:port of process 0, how many processes there are, and which one this is; all or none must be set."""


def join() -> None:
    """Join the other processes if the environment names them; alone otherwise. Call before touching a device."""
    given = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    if not given:
        return
    missing = [name for name in VARIABLES if name not in given]
    if missing:
        raise ConfigError(f"the environment has {', '.join(given)} but not {', '.join(missing)}: set all three or none")
    address, count, process = given.values()
    if not (count.isdigit() and process.isdigit() and int(process) < int(count)):
        raise ConfigError(f"JAX_PROCESS_ID={process} must be a number below JAX_NUM_PROCESSES={count}")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, int(count), int(process))


def first() -> bool:
    """Whether this process is the one that writes the run folder and speaks."""
    return jax.process_index() == 0


def same_everywhere(number: int) -> int:
    """Process 0's number, in every process."""
    return number if jax.process_count() == 1 else int(multihost_utils.broadcast_one_to_all(np.int64(number)))


class Stop:
    """A wish to stop (Ctrl-C, or SIGTERM from a scheduler), noticed between steps. A second Ctrl-C stops at once."""

    def __init__(self, every: int) -> None:
        """Where there are several processes they agree after each `every`-th step, since each hears its own signal."""
        self._every, self._heard = every, False

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._hear) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self._heard and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._heard = True

    def wanted(self, step: int) -> bool:
        """Whether to stop after this step: the same answer in every process."""
        if jax.process_count() == 1:
            return self._heard
        return step % self._every == 0 and bool(multihost_utils.process_allgather(np.array(self._heard)).any())

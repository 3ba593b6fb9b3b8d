"""A job as processes on this machine, on simulated devices or shares of its GPUs. Not here: other machines."""

import math
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Literal, Self

from jaxtrain.base.errors import ConfigError
from jaxtrain.cluster.rendezvous import EARLY
from jaxtrain.launch.job import Job

GRACE = 10.0
"""Seconds that the other processes have to end once one has failed."""

LAST = 15
"""So many lines of the log of a process that failed are shown."""


@dataclass(frozen=True, kw_only=True)
class Local(Job):
    """Processes on this machine, each with a log; what the first one prints is shown."""

    processes: int = 1
    """How many."""
    devices: int = 1
    """Of each process."""
    platform: Literal["cpu", "gpu"] = "cpu"
    """Simulated devices, or GPUs that are here."""
    restarts: int = 0
    """How often it is started again after it was interrupted, or a process died."""
    program: str = f"{sys.executable} -m jaxtrain"
    """How jaxtrain is called."""

    def size(self) -> tuple[int, int]:
        """As it says."""
        return self.processes, self.processes * self.devices

    def environment(self, process: int, port: int) -> dict[str, str]:
        """The variables of one process."""
        own = {**os.environ, **self.env}
        if self.processes > 1:
            own["JAX_COORDINATOR_ADDRESS"] = f"127.0.0.1:{port}"
            own["JAX_NUM_PROCESSES"], own["JAX_PROCESS_ID"] = str(self.processes), str(process)
        if self.platform == "cpu":
            others = re.sub(r"--xla_force_host_platform_device_count=\d+", "", own.get("XLA_FLAGS", ""))
            own["XLA_FLAGS"] = f"{others} --xla_force_host_platform_device_count={self.devices}".strip()
            return {**own, "JAX_PLATFORMS": "cpu"}
        given = own.get("CUDA_VISIBLE_DEVICES")
        here = given.split(",") if given else [str(number) for number in range(self.processes * self.devices)]
        if len(here) < self.processes * self.devices:
            raise ConfigError(f"CUDA_VISIBLE_DEVICES={given} has {len(here)} GPUs, not {self.processes * self.devices}")
        mine = here[process * self.devices : (process + 1) * self.devices]
        return {**own, "CUDA_VISIBLE_DEVICES": ",".join(mine)}


def run(job: Local) -> int:
    """Run the job to its end: 0, or the code of the first process that failed, 128 and its number for a signal."""
    logs = job.folder / "logs"
    try:
        logs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"the run folder {job.folder} cannot be written: {error.strerror or error}") from error
    with _Signals() as signals:
        for start in range(job.restarts + 1):
            code = _once(job, [logs / f"process-{number}.log" for number in range(job.processes)], signals)
            if signals.heard or not (code == EARLY or code > 128) or start == job.restarts:
                return code
            print(f"jaxtrain: exit code {code}, so it is started again", file=sys.stderr)
    return code


class _Signals:
    """Ctrl-C and signals of a scheduler go on to the processes, which the terminal does not reach, once each."""

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen] = []
        self.heard = False

    def __enter__(self) -> Self:
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
        self._before = {number: signal.signal(number, self._hear) for number in numbers}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.send(signal.SIGKILL)  # nothing is left where this fails
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.heard = True
        self.send(number)

    def send(self, number: int) -> None:
        """To every process that still runs."""
        for process in self.processes:
            process.send_signal(number)


def _once(job: Local, logs: Sequence[Path], signals: _Signals) -> int:
    """Start all processes and show what the first one prints until all have ended; once one fails the others must."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    signals.processes.clear()
    code, deadline = 0, math.inf
    with logs[0].open("a+", errors="replace") as shown:
        for number, path in enumerate(logs):
            with path.open("ab") as log:
                started = subprocess.Popen(
                    job.command,
                    env=job.environment(number, port),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            signals.processes.append(started)
        while True:
            running = any([process.poll() is None for process in signals.processes])
            print(shown.read(), end="", flush=True)
            codes = [process.returncode or 0 for process in signals.processes]
            if not code and any(codes):
                number, failed = next((number, code) for number, code in enumerate(codes) if code)
                code = failed if failed > 0 else 128 - failed
                deadline = time.monotonic() + GRACE
                _tell(number, failed, logs[number])
            if not running:
                return code
            if time.monotonic() > deadline:
                signals.send(signal.SIGKILL)
            time.sleep(0.05)


def _tell(number: int, code: int, log: Path) -> None:
    how = f"exit code {code}" if code > 0 else f"killed by {signal.Signals(-code).name}"
    lines = [] if number == 0 else log.read_text(errors="replace").splitlines()[-LAST:]
    print(f"jaxtrain: process {number}: {how}; its log is {log}", *lines, sep="\n", file=sys.stderr)

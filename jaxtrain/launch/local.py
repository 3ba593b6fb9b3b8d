"""Runs a job as processes on this machine, each with a log file, on simulated CPU devices or shares of the GPUs.

The machine must have the GPUs for `--platform gpu`, nothing else for `cpu`. Not here: other machines.
"""

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

from jaxtrain.base.errors import ConfigError, cannot_write
from jaxtrain.base.ranges import NonNegativeInt, PositiveInt
from jaxtrain.launch.job import Job, should_restart

GRACE_SECONDS = 10.0
"""How long the other processes may run on once one has failed; then they are killed."""

LOG_LINES = 15
"""How many of the last lines of a failed process's log are printed."""


@dataclass(frozen=True, kw_only=True)
class Local(Job):
    """Processes on this machine, each with a log file; the output of the first is printed too."""

    processes: PositiveInt = 1
    """Number of processes."""
    devices: PositiveInt = 1
    """Devices of each process."""
    platform: Literal["cpu", "gpu"] = "cpu"
    """Simulated CPU devices, or this machine's GPUs."""
    restarts: NonNegativeInt = 0
    """How often to restart after a preemption, or when a process dies."""
    program: str = f"{sys.executable} -m jaxtrain"
    """The command that runs jaxtrain."""

    def size(self) -> tuple[int, int]:
        """The numbers of processes, and of the devices of all of them together."""
        return self.processes, self.processes * self.devices

    def environment(self, process: int, port: int) -> dict[str, str]:
        """The environment variables of one process, if process 0 listens on `port`."""
        variables = {**os.environ, **self.env}
        if self.processes > 1:
            variables["JAX_COORDINATOR_ADDRESS"] = f"127.0.0.1:{port}"
            variables["JAX_NUM_PROCESSES"], variables["JAX_PROCESS_ID"] = str(self.processes), str(process)
        if self.platform == "cpu":
            flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", variables.get("XLA_FLAGS", ""))
            variables["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={self.devices}".strip()
            return {**variables, "JAX_PLATFORMS": "cpu"}
        needed, visible = self.processes * self.devices, variables.get("CUDA_VISIBLE_DEVICES")
        gpus = visible.split(",") if visible else [str(number) for number in range(needed)]
        if len(gpus) < needed:
            raise ConfigError(f"CUDA_VISIBLE_DEVICES={visible} has {len(gpus)} GPUs, not {needed}")
        own = gpus[process * self.devices : (process + 1) * self.devices]
        return {**variables, "CUDA_VISIBLE_DEVICES": ",".join(own)}


def run_job(job: Local) -> int:
    """Run a job to its end, restarts included. Returns 0, or the exit code of the first process that failed.

    A process that was killed by a signal counts as exit code 128 + its number, as in a shell.
    """
    folder = job.folder / "logs"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(f"the run folder {job.folder}", error) from error
    logs = [folder / f"process-{process}.log" for process in range(job.processes)]
    with Processes() as processes:
        code = _run_once(job, logs, processes)
        for restart in range(1, job.restarts + 1):
            if processes.signalled or not should_restart(code):
                break
            print(f"jaxtrain: exit code {code}: restart {restart} of {job.restarts}", file=sys.stderr)
            code = _run_once(job, logs, processes)
    return code


class Processes:
    """The running processes. Signals to this process go on to them; at the end all that are left are killed.

    They are in sessions of their own, so that Ctrl-C in the terminal reaches them only once.
    """

    def __init__(self) -> None:
        self.running: list[subprocess.Popen] = []
        self.signalled = 0
        """The signal that has asked for the end, after which nothing is restarted; 0 while none has."""

    def __enter__(self) -> Self:
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
        self._previous = {number: signal.signal(number, self._forward) for number in numbers}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.send(signal.SIGKILL)
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _forward(self, number: int, frame: FrameType | None) -> None:
        self.signalled = number
        self.send(number)

    def send(self, number: int) -> None:
        """Send a signal to every process that has not ended."""
        for process in self.running:
            process.send_signal(number)


def _run_once(job: Local, logs: Sequence[Path], processes: Processes) -> int:
    """Start all processes and wait for them, printing the log of the first. Once one fails, the others must end."""
    port = _free_port()
    processes.running.clear()
    exit_code, deadline = 0, math.inf
    with logs[0].open("a+", errors="replace") as first_log:
        for number, path in enumerate(logs):
            processes.running.append(_start_process(job, number, port, path))
        while True:
            codes = [process.poll() for process in processes.running]  # None for those that run
            print(first_log.read(), end="", flush=True)
            failed = [(number, code) for number, code in enumerate(codes) if code]
            if failed and not exit_code:
                number, code = failed[0]
                exit_code = code if code > 0 else 128 - code
                deadline = time.monotonic() + GRACE_SECONDS
                _print_failure(number, code, logs[number])
            if None not in codes:
                return exit_code
            if time.monotonic() > deadline:
                processes.send(signal.SIGKILL)
            time.sleep(0.05)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _start_process(job: Local, number: int, port: int, path: Path) -> subprocess.Popen:
    with path.open("ab") as log:
        return subprocess.Popen(
            job.command,
            env=job.environment(number, port),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _print_failure(number: int, code: int, log: Path) -> None:
    how = f"exit code {code}" if code > 0 else f"killed by {signal.Signals(-code).name}"
    # The log of process 0 was printed already.
    lines = [] if number == 0 else log.read_text(errors="replace").splitlines()[-LOG_LINES:]
    print(f"jaxtrain: process {number}: {how}; its log is {log}", *lines, sep="\n", file=sys.stderr)

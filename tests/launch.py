"""Runs `jaxtrain` in processes of its own, for tests that kill one or need several. Not a test."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import tiny
from conftest import QUICK

from jaxtrain.program import Program
from jaxtrain.runs.checkpoints import Checkpoints
from jaxtrain.runs.json_lines import read_lines

HERE = Path(__file__).parent
KILLED = """
import os, signal, sys
from pathlib import Path
from jaxtrain.runs.{module} import {kind}

original = {kind}.{method}


def killed(self, step, *rest):
    result = original(self, step, *rest)
    if step == {step}:
        Path(sys.argv[sys.argv.index("--run") + 1]).with_name("gone").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return result


{kind}.{method} = killed
from jaxtrain.cli.main import main

main()
"""


STUCK = """
import sys, time
from pathlib import Path
from jaxtrain.data import reading

original = reading.to_device


def stuck(*arguments):
    for number, batch in enumerate(original(*arguments), 1):
        if number == {step}:
            Path(sys.argv[sys.argv.index("--run") + 1]).with_name("gone").touch()
            time.sleep(1000)
        yield batch


reading.to_device = stuck
from jaxtrain.cli.main import main

main()
"""
RESTORING = """
import sys, time
from pathlib import Path
from jaxtrain.runs.checkpoints import Checkpoints


def restoring(self, *rest):
    Path(sys.argv[sys.argv.index("--run") + 1]).with_name("gone").touch()
    time.sleep(1000)


Checkpoints.restore = restoring
from jaxtrain.cli.main import main

main()
"""
FAILING = """
from jaxtrain.runs.journal import Journal

original = Journal.trained


def failing(self, step, *rest):
    original(self, step, *rest)
    if step == {step}:
        raise {error}


Journal.trained = failing
from jaxtrain.cli.main import main

main()
"""
OTHER_VERSION = """
import importlib.metadata

original = importlib.metadata.version
importlib.metadata.version = lambda name: "0.10.1" if name == "jax" else original(name)
from jaxtrain.cli.main import main

main()
"""


def killed(step: int, during: str = "step", by: str = "SIGKILL") -> str:
    """A program that sends itself a signal after `step` was trained, or while it is being saved."""
    kind, method = {"step": ("Journal", "trained"), "save": ("Checkpoints", "save")}[during]
    module = {"step": "journal", "save": "checkpoints"}[during]
    return KILLED.format(kind=kind, method=method, module=module, step=step).replace("SIGKILL", by)


def free_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def environment(devices: int = 1, process: int | None = None, processes: int = 1, port: int = 0) -> dict[str, str]:
    """The environment of one of several processes, each with `devices` simulated devices."""
    own = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {QUICK}"}
    if process is None:
        return own
    return {
        **own,
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(processes),
        "JAX_PROCESS_ID": str(process),
    }


def start(
    function: str,
    run: Path,
    *flags: str,
    program: str | None = None,
    devices: int = 1,
    process: int | None = None,
    processes: int = 1,
    port: int = 0,
) -> subprocess.Popen[str]:
    """`jaxtrain train tests/tiny.py:function --run run` in a process, or another program with these arguments.

    devices, process, processes, port: arguments of `environment`.
    """
    how = ["-m", "jaxtrain"] if program is None else ["-c", program]
    return subprocess.Popen(
        [sys.executable, *how, "train", f"{HERE / 'tiny.py'}:{function}", "--run", str(run), *flags],
        env=environment(devices, process, processes, port),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def train(function: str, run: Path, *flags: str, devices: int = 1, processes: int = 1) -> str:
    """The same in real processes, to the end; what the first one printed."""
    port = free_port()
    ids = [None] if processes == 1 else range(processes)
    started = [
        start(function, run, *flags, devices=devices, process=process, processes=processes, port=port)
        for process in ids
    ]
    printed = [process.communicate(timeout=240)[0] for process in started]
    assert [process.returncode for process in started] == [0] * processes, "\n".join(printed)
    return printed[0]


def train_killed(function: str, run: Path, step: int, during: str, devices: int = 1) -> None:
    """The same command, killed with -9 after `step` was trained, or while it is being saved."""
    process = start(function, run, program=killed(step, during), devices=devices)
    printed = process.communicate(timeout=240)[0]
    assert process.returncode == -9, printed


def losses(run: Path) -> dict[int, float]:
    """The training loss by step, from the run folder; no step may be there twice, or before an earlier one."""
    lines = [line for line in read_lines(run / "metrics.jsonl") if line["split"] == "train"]
    steps = [line["step"] for line in lines]
    assert steps == sorted(set(steps))
    return {line["step"]: line["loss"] for line in lines}


def relative_difference(run: Path, other: Path) -> float:
    """The largest relative difference of two runs' losses; they must have the same steps."""
    own, others = losses(run), losses(other)
    assert own.keys() == others.keys()
    assert len(own) > 0
    return max(abs(own[step] - others[step]) / abs(others[step]) for step in own)


def final_leaves(run: Path, step: int, function: str, devices: int) -> list[np.ndarray]:
    """Every leaf of the state saved at `step`, as numpy arrays, PRNG keys as their words."""
    program = Program(getattr(tiny, function)(), jax.devices()[:devices])
    with Checkpoints(run / "checkpoints", read_only=True) as checkpoints:
        state, _ = checkpoints.restore(program.state, step)
    words = [
        jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        for x in jax.tree.leaves(state)
    ]
    return [np.asarray(x) for x in words]

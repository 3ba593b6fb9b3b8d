"""Writes a batch script for sbatch, which runs one srun and requeues its job until the training has finished.

The cluster must have a file system that all nodes share, for the run folder and the code, and must allow users to
requeue their jobs. Processes find each other by the variables of srun. Before the time limit SLURM sends SIGUSR1: the
training saves a checkpoint and exits with 75, and the job goes back into the queue.
"""

import shlex
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import tyro

from jaxtrain.base.errors import ExitCode
from jaxtrain.base.ranges import NonNegativeInt, PositiveInt, Range
from jaxtrain.launch.job import FATAL, SHOULD_RESTART, ClusterJob

TASK = (
    'trap : USR1 TERM; "$@"; code=$?; '
    f"case $code in {' | '.join(map(str, FATAL))}) code=$((code + 200)) ;; {ExitCode.RETRY:d}) sleep 5 ;; esac; "
    "exit $code"
)
"""The shell around each process. It receives the signals too, and must wait for the exit code of the training."""

BATCH_SCRIPT = """\
mkdir -p {folder}/logs
# srun kills all tasks when one fails, and returns the highest of their exit codes. So an exit code that forbids a
# restart gets 200 added, to be higher than those of the tasks that are killed next, and a task that stops early (75)
# waits, so that the others can save too. The shell of each task ignores the signals, which the training handles.
task={task}
srun {options} bash -c "$task" task \\
    {command}
code=$?
((code > 200)) && exit $((code - 200))
if (({should_restart})); then
    if ((${{SLURM_RESTART_COUNT:-0}} >= {restarts})); then
        echo "exit code $code: not requeued, since it was restarted {restarts} times already"
    else
        echo "exit code $code: requeued"
        scontrol requeue "$SLURM_JOB_ID"
    fi
fi
exit $code
"""


@dataclass(frozen=True, kw_only=True)
class Slurm(ClusterJob):
    """A batch script for SLURM, which requeues its job until the training has finished."""

    submission = ("sbatch",)
    log: ClassVar[str] = "process-%t.log"
    """The log of each task of srun, below the folder."""

    nodes: PositiveInt = 1
    """Number of nodes."""
    processes: PositiveInt = 1
    """Processes of each node; one can use all GPUs of its node."""
    gpus: NonNegativeInt = 0
    """GPUs of each node; without these each process is one CPU device."""
    cpus: PositiveInt | None = None
    """CPUs of each process."""
    memory: str | None = None
    """Memory of each node: 64G."""
    time: str | None = None
    """Time limit of each start: 12:00:00."""
    notice: Annotated[int, Range(at_least=0, at_most=65535, hint="as sbatch wants")] = 120
    """Seconds before the time limit at which the training saves a checkpoint and stops, to resume in the next start."""
    setup: tuple[str, ...] = ()
    """Shell commands to run first: "module load cuda" "source .venv/bin/activate"."""
    options: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE …")] = ()
    """Further options of sbatch: partition=gpu account=lab exclusive."""

    def size(self) -> tuple[int, int]:
        """Every process has a share of its node's GPUs, or one CPU device."""
        return self.nodes * self.processes, self.nodes * (self.gpus or self.processes)

    def array(self) -> dict[str, Any]:
        """Options of sbatch that a job of several tasks has instead."""
        return {}

    def render(self, head: str) -> str:
        """The batch script."""
        values = {
            "job-name": self.title,
            "nodes": self.nodes,
            "ntasks-per-node": self.processes,
            "gpus-per-node": self.gpus or None,
            "cpus-per-task": self.cpus,
            "mem": self.memory,
            "time": self.time,
            "signal": f"USR1@{self.notice}",
            "output": "slurm-%x-%j.log",
            "open-mode": "append",
            **self.array(),
        }
        options = [f"{name}={value}" for name, value in values.items() if value is not None]
        lines = [f"#SBATCH --{option}" for option in (*options, "requeue", *self.options)]
        folder = shlex.quote(str(self.folder))
        steps = ["--kill-on-bad-exit", "--open-mode=append", f"--output={folder}/logs/{self.log}"]
        if self.cpus:
            steps.append(f"--cpus-per-task={self.cpus}")  # srun no longer inherits it from sbatch
        script = BATCH_SCRIPT.format(
            folder=folder,
            task=shlex.quote(TASK),
            options=" ".join(steps),
            command=shlex.join(self.command),
            restarts=self.restarts,
            should_restart=SHOULD_RESTART,
        )
        return (
            "\n".join(["#!/usr/bin/env bash", head, *lines, "", *self.exports(), *self.setup]).rstrip() + "\n" + script
        )

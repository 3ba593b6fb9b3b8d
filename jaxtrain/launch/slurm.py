"""A job as a batch script for SLURM."""

import shlex
from dataclasses import dataclass
from typing import Annotated

import tyro

from jaxtrain.launch.job import AGAIN, Written

TASK = 'trap : USR1 TERM; "$@"; code=$?; case $code in 1 | 2) code=$((code + 200)) ;; 75) sleep 5 ;; esac; exit $code'

SCRIPT = """\
mkdir -p {folder}/logs
# srun ends all tasks when one fails, and gives the highest of their codes: a mistake (1, 2) must outrank the deaths
# that follow it, and where all stop early (75) each leaves the others time to end. The shell in each task hears the
# signals too, and waits for what the training makes of them.
task={task}
srun {options} bash -c "$task" task \\
    {command}
code=$?
((code > 200)) && exit $((code - 200))
if (({again})); then
    if ((${{SLURM_RESTART_COUNT:-0}} >= {restarts})); then
        echo "exit code $code; restarted {restarts} times already, so not again"
    else
        echo "exit code $code: to be run again"
        scontrol requeue "$SLURM_JOB_ID"
    fi
fi
exit $code
"""


@dataclass(frozen=True, kw_only=True)
class Slurm(Written):
    """A batch script for SLURM, which puts itself back into the queue until the training is finished."""

    submission = ("sbatch",)

    nodes: int = 1
    """How many."""
    processes: int = 1
    """Of each node; one can have all the GPUs of its node."""
    gpus: int = 0
    """Of each node; without them each process is one CPU device."""
    cpus: int | None = None
    """Of each process."""
    memory: str | None = None
    """Of each node: 64G."""
    time: str | None = None
    """The time limit of one start: 12:00:00."""
    notice: int = 120
    """So many seconds before the time limit the training saves and stops, to go on in its next start."""
    setup: tuple[str, ...] = ()
    """Lines of shell before it: "module load cuda" "source .venv/bin/activate"."""
    options: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE …")] = ()
    """Other options of sbatch: partition=gpu account=lab exclusive."""

    def size(self) -> tuple[int, int]:
        """Every process has its share of the GPUs, or one CPU device."""
        return self.nodes * self.processes, self.nodes * (self.gpus or self.processes)

    def render(self, head: str) -> str:
        """The script."""
        asked = {
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
        }
        options = [f"{name}={value}" for name, value in asked.items() if value is not None]
        lines = [f"#SBATCH --{option}" for option in (*options, "requeue", *self.options)]
        folder = shlex.quote(str(self.folder))
        steps = ["--kill-on-bad-exit", "--open-mode=append", f"--output={folder}/logs/process-%t.log"]
        if self.cpus:
            steps.append(f"--cpus-per-task={self.cpus}")  # a step no longer takes it from its job
        script = SCRIPT.format(
            folder=folder,
            task=shlex.quote(TASK),
            options=" ".join(steps),
            command=shlex.join(self.command),
            restarts=self.restarts,
            again=AGAIN,
        )
        return (
            "\n".join(["#!/usr/bin/env bash", head, *lines, "", *self.exports(), *self.setup]).rstrip() + "\n" + script
        )

"""Sweeps on clusters: an array of SLURM or an Indexed Job of Kubernetes, each task of which is a driver.

All drivers work on one folder, which they must share, and need no connection to each other. Not here: the drivers.
"""

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

import tyro

from jaxtrain.base.errors import ConfigError
from jaxtrain.base.ranges import PositiveInt
from jaxtrain.experiment.experiment import Experiment
from jaxtrain.launch.job import FATAL, ClusterJob
from jaxtrain.launch.kubernetes import Kubernetes
from jaxtrain.launch.slurm import Slurm
from jaxtrain.launch.sweep.slots import CORES, Slot, divide
from jaxtrain.launch.sweep.wanted import Wanted

AnyWanted = Annotated[Wanted, tyro.conf.arg(name="")]
Hidden = tyro.conf.Suppress[PositiveInt]


@dataclass(frozen=True, kw_only=True)
class Drivers(ClusterJob):
    """What the sweeps of all platforms have. `run` is the sweep's folder."""

    wanted: AnyWanted = field(default_factory=Wanted)
    run: Path | None = None
    """The sweep's folder, shared by all drivers; sweeps/NAME by default, on Kubernetes NAME below --mount."""
    drivers: PositiveInt = 4
    """Tasks of the array, or pods of the Job."""
    workers: PositiveInt | None = None
    """How many trials each driver runs at once; by default as many as it has devices for."""

    @property
    def command(self) -> tuple[str, ...]:
        """The command line of a driver. It does not wait for trials of others, so that a task without work ends."""
        own = ["--out", str(self.folder), "--no-wait", *([f"--workers={self.workers}"] if self.workers else [])]
        rest = ["--", *self.flags] if self.flags else []
        return (*shlex.split(self.program), "sweep", self.experiment, *own, *self.wanted.words(), *rest)

    def cores(self) -> int:
        """The cores of a driver that are known to be there."""
        return max(CORES, self.workers or 0)

    def slots(self, experiment: Experiment) -> list[Slot]:
        """The slots of each driver. Raises ConfigError for more than its devices are enough for."""
        gpus = [str(number) for number in range(getattr(self, "gpus", 0))]
        return divide(self.workers, experiment.layout.mesh, gpus, frozenset(range(self.cores())))


@dataclass(frozen=True, kw_only=True)
class SlurmSweep(Drivers, Slurm):
    """An array of SLURM, each task of which is a driver of one sweep and is requeued until no trial is left for it."""

    log: ClassVar[str] = "driver-%a.log"

    nodes: Hidden = 1
    processes: Hidden = 1

    @property
    def folder(self) -> Path:
        """The sweep's folder on the hosts."""
        return self.run or Path("sweeps") / self.title

    def cores(self) -> int:
        return self.cpus or super().cores()

    def array(self) -> dict[str, Any]:
        """One task a driver; the log of each has its number."""
        return {"array": f"0-{self.drivers - 1}", "output": "slurm-%x-%A_%a.log"}


@dataclass(frozen=True, kw_only=True)
class KubernetesSweep(Drivers, Kubernetes):
    """An Indexed Job of Kubernetes (1.29 or later), each pod of which is a driver of one sweep; needs no JobSet."""

    hosts: tyro.conf.Suppress[PositiveInt | None] = None

    def __post_init__(self) -> None:
        """Raises ConfigError for a slice of TPUs of several hosts, which a trial of a sweep cannot have."""
        hosts, _ = self.size()
        if hosts > 1:
            raise ConfigError(f"--tpu {self.tpu} has {hosts} hosts: a trial of a sweep has devices of one host")

    def manifest(self) -> dict[str, Any]:
        """The Job. A pod that fails is restarted up to its backoff limit; one that is evicted, always."""
        fatal = {"containerName": "train", "operator": "In", "values": [*FATAL]}
        rules: list[dict[str, Any]] = [
            {"action": "FailIndex", "onExitCodes": fatal},
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        ]
        namespace = {"namespace": self.namespace} if self.namespace else {}
        return {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": self.title, **namespace},
            "spec": {
                "completionMode": "Indexed",
                "completions": self.drivers,
                "parallelism": self.drivers,
                "backoffLimitPerIndex": self.restarts,
                "podFailurePolicy": {"rules": rules},
                "template": {"spec": self.pod()},
            },
        }

    def environment(self) -> dict[str, str]:
        """Only the job's own variables: drivers do not connect to each other."""
        return dict(self.env)

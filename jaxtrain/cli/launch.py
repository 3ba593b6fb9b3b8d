"""The verbs that start a run on a cluster, or here in several processes. Not here: the jobs themselves."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, TypeVar

import tyro

from jaxtrain.base.errors import ConfigError
from jaxtrain.cli.flags import parse
from jaxtrain.cli.terminal import output_not_needed
from jaxtrain.cli.verbs import Verbs
from jaxtrain.experiment.experiment import Experiment
from jaxtrain.launch.job import ClusterJob, Job, check_devices, submit
from jaxtrain.launch.kubernetes import Kubernetes
from jaxtrain.launch.local import Local, run_job
from jaxtrain.launch.slurm import Slurm
from jaxtrain.launch.sweep.jobs import KubernetesSweep, SlurmSweep
from jaxtrain.launch.sweep.wanted import Read, check_all, use_the_cpu
from jaxtrain.launch.tpu import TpuVm

VERBS = Verbs(
    "Run an experiment on many machines, or here in several processes. Flags of `jaxtrain train` come after `--`."
)

AnyJob = TypeVar("AnyJob", bound=Job)
AnySweep = TypeVar("AnySweep", SlurmSweep, KubernetesSweep)
Flat = tyro.conf.arg(name="")


@dataclass(frozen=True)
class TrainFlags:
    """The flags after the job's own flags."""

    train_flags: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="-- --FIELD VALUE …")] = ()
    """Flags of `jaxtrain train`, after two dashes."""


Rest = Annotated[TrainFlags, Flat]


@VERBS.verb
def slurm(job: Annotated[Slurm, Flat], rest: Rest) -> None:
    """Print a batch script for SLURM, write it with --out, or submit it with --submit."""
    _write(_checked(job, rest.train_flags))


@VERBS.verb
def k8s(job: Annotated[Kubernetes, Flat], rest: Rest) -> None:
    """Print a JobSet for Kubernetes, write it with --out, or submit it with --submit."""
    _write(_checked(job, rest.train_flags))


@VERBS.verb
def tpu(job: Annotated[TpuVm, Flat], rest: Rest) -> None:
    """Print a script for all workers of a TPU VM, write it with --out, or run it with --submit."""
    _write(_checked(job, rest.train_flags))


@VERBS.verb
def slurm_sweep(job: Annotated[SlurmSweep, Flat], rest: Rest) -> None:
    """Print an array for SLURM whose tasks share the trials of a sweep, write it with --out, or --submit it."""
    _write(_checked_sweep(job, rest.train_flags))


@VERBS.verb
def k8s_sweep(job: Annotated[KubernetesSweep, Flat], rest: Rest) -> None:
    """Print a Job for Kubernetes whose pods share the trials of a sweep, write it with --out, or --submit it."""
    _write(_checked_sweep(job, rest.train_flags))


@VERBS.verb
def local(job: Annotated[Local, Flat], rest: Rest) -> int:
    """Run an experiment in processes on this machine."""
    output_not_needed()
    return run_job(_checked(job, rest.train_flags))


def plain_experiment(experiment: str, train_flags: Sequence[str]) -> tuple[Experiment, Read]:
    """The experiment that all trials of a sweep have before their own values, and how to read more flags."""
    use_the_cpu()
    if any(flag.split("=")[0] in ("--run", "--verify", "--check-export") for flag in train_flags):
        raise ConfigError("give no --run, --verify or --check-export after `--`: every trial has a run of its own")

    def read(words: Sequence[str]) -> Experiment:
        return parse(experiment, [*train_flags, *words]).experiment

    return read([]), read


def _checked(job: AnyJob, train_flags: Sequence[str]) -> AnyJob:
    """The job with its training flags, after checking that the experiment fits the job's devices."""
    if any(flag.split("=")[0] == "--run" for flag in train_flags):
        raise ConfigError("give --run before `--`: all processes and restarts share it")
    job = replace(job, flags=tuple(train_flags))
    fields = [flag for flag in train_flags if flag != "--verify"]
    print(f"{job.title}: {check_devices(job, parse(job.experiment, fields).experiment)}", file=sys.stderr)
    return job


def _checked_sweep(job: AnySweep, train_flags: Sequence[str]) -> AnySweep:
    """The job with its training flags, after checking all that its drivers would refuse."""
    base, read = plain_experiment(job.experiment, train_flags)
    slots = job.slots(base)
    space, _ = check_all(job.wanted, base, read, slots)
    job = replace(job, flags=tuple(train_flags))
    print(f"{job.title}: {len(space)} trials, {job.drivers} drivers of {len(slots)} at once", file=sys.stderr)
    return job


def _write(job: ClusterJob) -> None:
    command = ["jaxtrain", *(word for word in sys.argv[1:] if word != "--submit")]
    text = job.render(f"# Written by: {shlex.join(command)}")
    if job.out is not None:
        try:
            job.out.write_text(text)
        except OSError as error:
            raise ConfigError(f"--out {job.out} cannot be written: {error.strerror or error}") from error
        print(job.out)
    if job.submit:
        print(submit(job.submission, text))
    elif job.out is None:
        print(text, end="")

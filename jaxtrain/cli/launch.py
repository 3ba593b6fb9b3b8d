"""The verb `jaxtrain launch slurm | k8s | tpu | local`. Not here: what a platform is told."""

import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

import tyro

from jaxtrain.base.errors import ConfigError, nearest
from jaxtrain.experiment.experiment import Experiment
from jaxtrain.launch.job import ClusterJob, Job, check_devices, submit
from jaxtrain.launch.kubernetes import Kubernetes
from jaxtrain.launch.local import Local, run_job
from jaxtrain.launch.slurm import Slurm
from jaxtrain.launch.tpu import TpuVm

USAGE = """\
jaxtrain launch slurm EXPERIMENT --nodes 2 --gpus 8 [-- --FIELD VALUE …]      a batch script for SLURM
jaxtrain launch k8s EXPERIMENT --image I --claim C --hosts 2 --gpus 8 [-- …]  a JobSet for Kubernetes; --tpu v5e:4x4
jaxtrain launch tpu EXPERIMENT --vm NAME --zone Z --tpu v5e:4x4 [-- …]        a script for all workers of a TPU VM
jaxtrain launch local EXPERIMENT --processes 4 --devices 2 [-- …]             run it here, in so many processes

The first three print what they would submit; --out FILE writes it, --submit submits it."""

PLATFORMS: dict[str, type[Job]] = {"slurm": Slurm, "k8s": Kubernetes, "tpu": TpuVm, "local": Local}


def launch(arguments: Sequence[str], parse: Callable[[Sequence[str]], Experiment]) -> None:
    """`jaxtrain launch`; `parse` gives the experiment of the arguments of `jaxtrain train`."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE)
        return
    platform, *own = arguments
    if platform not in PLATFORMS:
        raise ConfigError(f"there is no platform {platform!r}{nearest(platform, PLATFORMS)}\n\n{USAGE}")
    cut = own.index("--") if "--" in own else len(own)
    flags = tuple(own[cut + 1 :])
    if any(flag.split("=")[0] == "--run" for flag in flags):
        raise ConfigError("give --run before `--`: all processes and restarts share it")
    job = tyro.cli(PLATFORMS[platform], args=own[:cut], prog=f"jaxtrain launch {platform}")
    job = replace(job, flags=flags)
    plan = check_devices(job, parse([job.experiment, *flags]))
    print(f"{job.title}: {plan}", file=sys.stderr)
    if isinstance(job, Local):
        sys.exit(run_job(job))
    if isinstance(job, ClusterJob):
        _write(job, arguments)


def _write(job: ClusterJob, arguments: Sequence[str]) -> None:
    again = [word for word in arguments if word != "--submit"]
    text = job.render(f"# Written by: {shlex.join(['jaxtrain', 'launch', *again])}")
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

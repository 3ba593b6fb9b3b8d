"""`train --verify`: verifies an experiment in a process of its own before training. Not here: how it is verified."""

import math
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence

from jaxtrain.analysis.verify import meshes_like, named
from jaxtrain.base.errors import ExitCode
from jaxtrain.cluster.environment import detect
from jaxtrain.experiment.experiment import Experiment
from jaxtrain.experiment.verified import is_verified


def verify_first(experiment: Experiment, words: Sequence[str]) -> ExitCode:
    """FINISHED if the experiment is verified on the axes of its mesh, in an earlier run or now on simulated devices.

    words: the command line of `train`. Of several processes the first one verifies before it joins the others, which
    wait for it.
    """
    meshes = meshes_like(experiment.layout.mesh)
    if detect(os.environ).process_id or not meshes or is_verified(experiment, meshes[0]):
        return ExitCode.FINISHED
    shown = [named(mesh) for mesh in meshes]
    print(f"--verify: one step on {', '.join(shown)}, beside one device", file=sys.stderr, flush=True)
    flags = ["--devices", str(math.prod(meshes[0].values())), "--updates", "1", "--meshes", *shown]
    # On the CPU: the accelerator is for this process.
    done = subprocess.run(
        [sys.executable, "-m", "jaxtrain", "verify", *fields(words), *flags],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == ExitCode.FINISHED:
        print(done.stdout.splitlines()[-1], file=sys.stderr)
        return ExitCode.FINISHED
    print(done.stdout + done.stderr, file=sys.stderr)
    print("jaxtrain: --verify failed, so nothing was trained or written", file=sys.stderr)
    return ExitCode.USER_ERROR if done.returncode == ExitCode.USER_ERROR else ExitCode.FAILED


def fields(words: Sequence[str]) -> Iterator[str]:
    """The words of a `train` command line that name the experiment and set its fields: all but --run and --verify."""
    rest = iter(words[words.index("train") + 1 :])
    for word in rest:
        if word == "--run":
            next(rest, None)
        elif word != "--verify" and not word.startswith("--run="):
            yield word

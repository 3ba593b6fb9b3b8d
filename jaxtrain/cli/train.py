"""The verbs that take an experiment: train, explain, memory, verify, verify-resume. Not here: what they do."""

import functools
import shlex
import sys
from pathlib import Path
from typing import Annotated

import jax
import tyro

from jaxtrain.base.errors import ConfigError, ExitCode
from jaxtrain.cli.flags import Fields
from jaxtrain.cli.terminal import report_error
from jaxtrain.cluster.stop import signals_of_command
from jaxtrain.experiment.experiment import config_facts
from jaxtrain.experiment.fit import fit


def train(
    experiment: Fields,
    run: Path | None = None,
    verify: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    check_export: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> int:
    """Train an experiment, or resume its run.

    Args:
        run: The run's folder; a new one under runs/ by default.
        verify: First compare a step with one device, as `jaxtrain verify` does, on small meshes with the same axes;
            once for an experiment and a version of jax.
        check_export: First lower its prediction with its preprocessing, as `jaxtrain export` will; end with code 2
            and the reason where that cannot be done.
    """
    from jaxtrain.cli.first import verify_first
    from jaxtrain.cluster.processes import join_processes
    from jaxtrain.train import train as train_to_the_end

    config, origin = experiment.experiment, experiment.origin
    if verify and (failed := verify_first(config, sys.argv[1:])):
        return failed
    if check_export:
        from jaxtrain.deploy.export import check_export as check

        check(fit(config))
    facts, limits = (lambda: config_facts(config, origin.file)), vars(config.runtime.deadlines)
    with (
        signals_of_command() as stop,
        join_processes(facts, config.runtime.deadline, report_error, stop, limits),
    ):
        made, state = train_to_the_end(config, run, origin, stop)
    done = int(state.step)
    if done == config.steps or stop.code == ExitCode.FINISHED:  # an observer may have ended it
        return ExitCode.FINISHED
    again = shlex.join(["jaxtrain", *sys.argv[1:], *([] if run else ["--run", str(made.folder)])])
    print(f"stopped after step {done} of {config.steps}; resume with:\n{again}", file=sys.stderr)
    return stop.code


def explain(experiment: Fields, devices: int | None = None) -> None:
    """Show on which devices every array of an experiment would live.

    Args:
        devices: Number of devices; those of this machine by default.
    """
    from jaxtrain.analysis.explain import explain as describe

    if devices is not None and devices < 1:
        raise ConfigError(f"--devices {devices}: give a number of devices, at least 1")
    print(describe(fit(experiment.experiment), devices or jax.device_count()))


def memory(
    experiment: Fields, devices: int | None = None, brief: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
) -> None:
    """Show what takes the memory of a train step, and which changes would save most, without running a step.

    Args:
        devices: Number of simulated devices; those of this machine by default.
        brief: In three lines.
    """
    from jaxtrain.analysis.memory import account
    from jaxtrain.analysis.verify import simulate

    if devices is not None and devices < 1:
        raise ConfigError(f"--devices {devices}: give a number of devices, at least 1")
    many = devices is not None and devices > 1
    print(account(fit(experiment.experiment), simulate(devices) if many and devices else jax.devices(), brief))


def verify(
    experiment: Fields,
    devices: int = 8,
    meshes: tuple[str, ...] = (),
    strict: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    updates: int = 5,
) -> int:
    """Train an experiment, made small, on every mesh of simulated devices, and compare with one device.

    Two verdicts on each mesh: whether it trains as one device does, else the command fails; and whether it sends no
    more than needed, else there is a warning with the lines that send it.

    Args:
        devices: How many devices to simulate.
        meshes: Meshes such as "data 2 tensor 4", or "fsdp" alone for all devices; every one that fits by default.
        strict: Also fail where more is sent than needed.
        updates: How many updates to compare.
    """
    from jaxtrain.analysis.verify import read_mesh, simulate
    from jaxtrain.analysis.verify import verify as compare
    from jaxtrain.experiment.verified import remember_verified

    if updates < 1:
        raise ConfigError(f"--updates {updates}: give at least 1")
    config, chosen_meshes = fit(experiment.experiment), [read_mesh(words, devices) for words in meshes]
    passed = functools.partial(remember_verified, config)
    right = compare(config, simulate(devices), chosen_meshes, strict, updates, passed)
    return ExitCode.FINISHED if right else ExitCode.FAILED


def verify_resume(experiment: Fields, kills: int = 20, kill_seed: int = 0, mesh: str = "data 2") -> int:
    """Train an experiment, made small, kill it at random moments in every phase, resume it, and compare it bitwise with
    a run that is not killed.

    Every kill starts a process, which takes about 5 s: 20 take two minutes.

    Args:
        kills: How often to kill. One kill in four is a SIGTERM, the others are SIGKILL.
        kill_seed: Seed of the random moments.
        mesh: Also resume on this mesh of simulated devices, and show the difference; "" for none.
    """
    from jaxtrain.analysis.verify import read_mesh
    from jaxtrain.analysis.verify_resume import follow_plan
    from jaxtrain.analysis.verify_resume import verify_resume as compare

    if kills < 1:
        raise ConfigError(f"--kills {kills}: give at least 1")
    other, config = read_mesh(mesh, 2) if mesh else {}, fit(experiment.experiment)
    code = follow_plan(config, experiment.origin)
    if code is not None:
        return code
    command = [sys.executable, "-m", "jaxtrain", *sys.argv[1:]]
    return ExitCode.FINISHED if compare(config, command, kills, kill_seed, other) else ExitCode.FAILED

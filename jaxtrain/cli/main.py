"""The command line: verbs, as functions whose parameters are flags. Not here: their implementation."""

import contextlib
import functools
import io
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import jax
import tyro

from jaxtrain.base.cache import cache
from jaxtrain.base.errors import ConfigError, ExitCode
from jaxtrain.base.tracebacks import keep_tracebacks_in
from jaxtrain.cli.checkpoints import VERBS as CHECKPOINTS
from jaxtrain.cli.data import VERBS as DATA
from jaxtrain.cli.deploy import evaluate, export, predict
from jaxtrain.cli.failures import is_exit_of_yours
from jaxtrain.cli.flags import HELP, Fields, chosen, own_errors, registry
from jaxtrain.cli.generate import generate
from jaxtrain.cli.launch import VERBS as LAUNCH
from jaxtrain.cli.replay import replay
from jaxtrain.cli.sweep import sweep
from jaxtrain.cli.terminal import report_error, report_stray_errors, show_tracebacks, standard_streams, use_utf8
from jaxtrain.cli.verbs import Verbs
from jaxtrain.cluster.stop import signals_of_command
from jaxtrain.experiment.experiment import config_facts
from jaxtrain.experiment.fit import fit

VERBS = Verbs(
    "Trains JAX experiments, and reads their run folders.\n\n"
    "Every verb has --help; after an experiment's file it lists every field of the experiment. --debug shows the "
    "traceback of every error. Exit codes: 0 finished, 1 damaged data or a bug, 2 user error, 3 does not "
    "fit into memory, 4 diverged, 75 stopped early (run the same command again), 130 Ctrl-C."
)

TYRO_COMPLETES_NO_FILES = {
    "in completions:\n        print": "in completions or ['__TYRO_COMPLETE_FILES__']:\n        print",
    'compgen -f -- "$cur"': 'compgen -f -- "${COMP_WORDS[COMP_CWORD]}"',
    "complete -F": "complete -o filenames -F",
}
"""Replacements in the scripts of tyro 1.0, which complete no file names for positional arguments."""


@VERBS.verb
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


@VERBS.verb
def explain(experiment: Fields, devices: int | None = None) -> None:
    """Show on which devices every array of an experiment would live.

    Args:
        devices: Number of devices; those of this machine by default.
    """
    from jaxtrain.analysis.explain import explain as describe

    if devices is not None and devices < 1:
        raise ConfigError(f"--devices {devices}: give a number of devices, at least 1")
    print(describe(fit(experiment.experiment), devices or jax.device_count()))


@VERBS.verb
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


@VERBS.verb
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


@VERBS.verb
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


VERBS.verb(evaluate)
VERBS.verb(predict)
VERBS.verb(export)
VERBS.verb(generate)
VERBS.verb(replay)
VERBS.verb(sweep)
VERBS.group("checkpoints", CHECKPOINTS)
VERBS.group("data", DATA)
VERBS.group("launch", LAUNCH)


@VERBS.verb
def completion(shell: Annotated[Literal["bash", "zsh", "fish"], tyro.conf.Positional]) -> None:
    """Print a script that makes a shell complete verbs, flags and files.

    Install it once for each shell, and again after an update:

    bash: jaxtrain completion bash > ~/.local/share/bash-completion/completions/jaxtrain

    zsh: jaxtrain completion zsh > ~/.zfunc/_jaxtrain, with `fpath+=~/.zfunc` before `compinit` in ~/.zshrc

    fish: jaxtrain completion fish > ~/.config/fish/completions/jaxtrain.fish

    Args:
        shell: Which one.
    """
    with contextlib.redirect_stdout(io.StringIO()) as script, contextlib.suppress(SystemExit):
        VERBS.app().cli(prog="jaxtrain", args=["--tyro-write-completion", shell, "-"], registry=registry(None))
    text = script.getvalue()
    for old, new in TYRO_COMPLETES_NO_FILES.items():
        text = text.replace(old, new)
    print(text, end="")


def main() -> None:
    """Run the verb that the command line names; exits with an `ExitCode` if that is not 0."""
    use_utf8()
    own = sys.argv[1 : sys.argv.index("--")] if "--" in sys.argv else sys.argv[1:]  # of `launch`, not of its job
    words = [word for word in own if word != "--debug"] + sys.argv[len(own) + 1 :]
    show_tracebacks("--debug" in own)
    keep_tracebacks_in(None)
    report_stray_errors()
    with standard_streams(), signals_of_command() as stop:
        stop.importing = False
        try:
            _cache_programs()
            code = run(words)
        except (Exception, KeyboardInterrupt) as error:  # of any kind: the user gets a short message
            code = report_error(stop.cause(error))
        except SystemExit as error:
            if not is_exit_of_yours(error):
                raise
            code = report_error(error)
    if code:
        sys.exit(code)


def run(words: Sequence[str]) -> int:
    """Parse the flags, whose defaults are the values of the named experiment, and call the verb."""
    path, verb = VERBS.find(words)
    rest = words[len(path) :]
    takes_experiment = Fields in getattr(verb, "__annotations__", {}).values()
    rules = registry(chosen(rest, " ".join(path)) if takes_experiment else None)
    if (isinstance(verb, Verbs) and not rest) or not {*HELP}.isdisjoint(rest):
        words = [*path, *HELP[:1]]  # tyro's help leaves out the words that come before it
    app, config = VERBS.app(path), (tyro.conf.PositionalMetavarFromFieldName,)
    with own_errors():
        return app.cli(prog="jaxtrain", description=VERBS.help, args=words, registry=rules, config=config) or 0


def _cache_programs() -> None:
    # Compiled programs are cached on disk, so that a second start takes seconds.
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache("programs")))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)

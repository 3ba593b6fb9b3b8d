"""What every platform needs to know of a training, and the check that its devices fit the experiment.

`jaxtrain train` finds the other processes by itself (`cluster.environment`), and its exit code says whether running the
same command again would help (`ExitCode`). So a platform only has to start processes, and to restart them. All hosts
must see the same run folder, and have jaxtrain and the experiment's file at the same path.
Not here: the formats of the platforms.
"""

import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from jaxtrain.analysis.explain import explain
from jaxtrain.base.errors import ConfigError, ExitCode
from jaxtrain.base.ranges import Checked, NonNegativeInt
from jaxtrain.experiment.experiment import Experiment

OWN_ABOVE_128 = tuple(int(code) for code in ExitCode if code > 128)
"""Exit codes that look like deaths by a signal, and are chosen by the command itself."""

FATAL = tuple(int(code) for code in ExitCode if ExitCode.FINISHED < code < ExitCode.RETRY)
"""Exit codes after which a restart would only fail again."""

SHOULD_RESTART = f"code == {ExitCode.RETRY:d} || code > 128" + "".join(f" && code != {code}" for code in OWN_ABOVE_128)
"""`should_restart` as an arithmetic expression of bash."""


def should_restart(code: int) -> bool:
    """Whether to restart a training that ended with `code`: if it asks for that, or was killed by a signal, but not by
    Ctrl-C (130) or since nobody reads what it prints (141), which no scheduler does and a restart does not cure.
    """
    return code == ExitCode.RETRY or (code > 128 and code not in OWN_ABOVE_128)


@dataclass(frozen=True, kw_only=True)
class Job(Checked):
    """A training on some platform. Subclasses add what only their platform needs; every field is a flag."""

    experiment: Annotated[str, tyro.conf.Positional]
    """file.py[:function], at its path on the hosts; flags of `jaxtrain train` come after `--`."""
    run: Path | None = None
    """The run folder, shared by all hosts and all restarts; runs/NAME by default."""
    name: str | None = None
    """The job's name on the platform; that of the experiment by default."""
    restarts: NonNegativeInt = 20
    """How often to restart after a preemption, or when a process dies."""
    program: str = "jaxtrain"
    """The command that runs jaxtrain on the hosts, such as `uv run jaxtrain`."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Environment variables of every process: --env NAME VALUE …"""
    flags: tyro.conf.Suppress[tuple[str, ...]] = ()
    """Flags of `jaxtrain train`."""

    def size(self) -> tuple[int, int]:
        """The numbers of processes, and of the devices of all of them together."""
        raise NotImplementedError

    @property
    def title(self) -> str:
        """The job's name in lower-case letters, digits and dashes, which every platform accepts."""
        file, _, function = self.experiment.partition(":")
        given = self.name or "-".join([Path(file).stem, *([function] if function else [])])
        title = re.sub(r"[^a-z0-9]+", "-", given.lower()).strip("-")
        if not re.fullmatch(r"[a-z][a-z0-9-]{0,39}", title):
            raise ConfigError(f"--name {given!r}: give at most 40 letters, digits and dashes, a letter first")
        return title

    @property
    def folder(self) -> Path:
        """The run folder on the hosts."""
        return self.run or Path("runs") / self.title

    @property
    def command(self) -> tuple[str, ...]:
        """The command line of every process."""
        return (*shlex.split(self.program), "train", self.experiment, "--run", str(self.folder), *self.flags)


def check_devices(job: Job, experiment: Experiment) -> str:
    """The job's processes and mesh as text. Raises ConfigError where the experiment does not fit its devices."""
    processes, devices = job.size()
    for name in job.env:
        if not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise ConfigError(f"--env {name}: not a valid name of an environment variable")
    if devices > 1 and experiment.layout.one_device:
        raise ConfigError(
            f"layout.mesh: {dict(experiment.layout.mesh)} is one device, but the job has {devices}: "
            'set {"data": -1} to use all of them'
        )
    mesh = explain(experiment, devices).splitlines()[0]
    return f"{processes} process{'es' if processes > 1 else ''}, {mesh}"


@dataclass(frozen=True, kw_only=True)
class ClusterJob(Job):
    """A job that is written as a text for a platform, and submitted by one of its programs."""

    submission: ClassVar[tuple[str, ...]]
    """The command that takes the text on its standard input."""

    out: Path | None = None
    """The file to write the job to; standard output by default."""
    submit: bool = False
    """Submit the job."""

    def render(self, head: str) -> str:
        """The text; `head` is a comment for its first lines."""
        raise NotImplementedError

    def exports(self) -> list[str]:
        """The job's environment variables as lines of a shell script."""
        return [f"export {name}={shlex.quote(value)}" for name, value in self.env.items()]


def submit(command: Sequence[str], text: str) -> str:
    """Pass a job to a platform's program; returns its output. Raises ConfigError where it is missing or refuses."""
    if shutil.which(command[0]) is None:
        raise ConfigError(f"{command[0]} is not installed here: write the job with --out FILE and submit it elsewhere")
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConfigError(f"{shlex.join(command)} failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout.strip()

"""What a training asks of any platform, and whether it can be had. Not here: how a platform is asked.

`jaxtrain train` finds the other processes by itself and says by its exit code what to do: 0 it is finished, 75 run the
same command again, 1 or 2 running it again would not help. So a platform only starts processes, and starts them again.
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
from jaxtrain.base.errors import ConfigError
from jaxtrain.cluster.rendezvous import EARLY
from jaxtrain.experiment.experiment import Experiment

AGAIN = f"code == {EARLY} || code > 128 && code != 130"
"""When a training is started again, in the words of a shell: it stopped early or was killed, but not by Ctrl-C."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A training as it is asked for; each platform adds what only it knows."""

    experiment: Annotated[str, tyro.conf.Positional]
    """file.py[:function], as the processes see it; flags of `jaxtrain train` come after `--`."""
    run: Path | None = None
    """The run's folder, which all hosts must see and every restart goes on with; runs/NAME by default."""
    name: str | None = None
    """What the platform calls the job; that of the experiment by default."""
    restarts: int = 20
    """How often it is started again after it was interrupted, or a process died."""
    program: str = "jaxtrain"
    """How jaxtrain is called there, such as `uv run jaxtrain`."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Variables for every process: --env NAME VALUE …"""
    flags: tyro.conf.Suppress[tuple[str, ...]] = ()
    """Those of `jaxtrain train`."""

    def size(self) -> tuple[int, int]:
        """How many processes there are, and how many devices all of them have."""
        raise NotImplementedError

    @property
    def title(self) -> str:
        """The name in small letters, digits and dashes, which every platform takes."""
        file, _, function = self.experiment.partition(":")
        given = self.name or "-".join([Path(file).stem, *([function] if function else [])])
        title = re.sub(r"[^a-z0-9]+", "-", given.lower()).strip("-")
        if not re.fullmatch(r"[a-z][a-z0-9-]{0,39}", title):
            raise ConfigError(f"--name {given!r}: give a name of at most 40 letters, digits and dashes, a letter first")
        return title

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.run or Path("runs") / self.title

    @property
    def command(self) -> tuple[str, ...]:
        """What every process runs."""
        return (*shlex.split(self.program), "train", self.experiment, "--run", str(self.folder), *self.flags)


def check(job: Job, experiment: Experiment) -> str:
    """The mesh that the job would have, in words. Raises ConfigError where the experiment does not fit its devices."""
    processes, devices = job.size()
    if processes < 1 or devices < 1 or job.restarts < 0:
        raise ConfigError("hosts, processes and devices must be at least 1, and --restarts at least 0")
    for name in job.env:
        if not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise ConfigError(f"--env {name}: that is no name of a variable")
    if devices > 1 and not experiment.layout.mesh:
        raise ConfigError(f'layout.mesh: {{}} is one device, but the job asks for {devices}: say {{"data": -1}}')
    mesh = explain(experiment, devices).splitlines()[0]
    return f"{processes} process{'es' if processes > 1 else ''}, {mesh}"


@dataclass(frozen=True, kw_only=True)
class Written(Job):
    """A job that is written down for a platform, and given to a program of it."""

    submission: ClassVar[tuple[str, ...]]
    """The program that takes the text."""

    out: Path | None = None
    """The file to write it to; it is printed by default."""
    submit: bool = False
    """Also submit it."""

    def render(self, head: str) -> str:
        """The text; `head` is a comment."""
        raise NotImplementedError

    def exports(self) -> list[str]:
        """The job's variables as lines of a shell script."""
        return [f"export {name}={shlex.quote(value)}" for name, value in self.env.items()]


def submit(command: Sequence[str], text: str) -> str:
    """What a platform's own program answers to `text`. Raises ConfigError where it is not here, or refuses."""
    if shutil.which(command[0]) is None:
        raise ConfigError(f"there is no {command[0]} on this machine: write a file with --out, and submit it elsewhere")
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConfigError(f"{shlex.join(command)} refused: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout.strip()

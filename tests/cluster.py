"""A real SLURM of one machine, in a folder of its own, for the tests that submit jobs. Not a test."""

import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "salloc", "scontrol", "scancel")

CONF = """
ClusterName=here
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={daemon}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
# No control groups, which a container may not have.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=0,sched_interval=1
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2
JobRequeue=1
KillWait=3
NodeName=localhost NodeHostname={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def until(true: Callable[[], bool], seconds: float, what: Callable[[], str]) -> None:
    """Poll until `true()`; after `seconds` fail with the message `what()`."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, what()
        time.sleep(0.05)


class Slurm:
    """The daemons of a SLURM cluster, which run while this context is open."""

    def __init__(self, folder: Path) -> None:
        missing = [name for name in PROGRAMS if shutil.which(name) is None]
        assert not missing, f"{', '.join(missing)} missing: apt-get install slurm-wlm munge"
        self.folder, self.environment = folder, {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        # `jaxtrain` is this tree's, run by this Python.
        (folder / "bin").mkdir()
        program = folder / "bin" / "jaxtrain"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m jaxtrain "$@"\n')
        program.chmod(0o755)
        self.environment["PATH"] = f"{program.parent}:{os.environ['PATH']}"

    def __enter__(self) -> Self:
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        (self.folder / "key").write_bytes(os.urandom(128))
        (self.folder / "key").chmod(0o400)
        with socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", 0))
            other.bind(("127.0.0.1", 0))
            conf = CONF.format(
                host=socket.gethostname().partition(".")[0],
                user=getpass.getuser(),
                folder=self.folder,
                controller=one.getsockname()[1],
                daemon=other.getsockname()[1],
            )
        (self.folder / "slurm.conf").write_text(conf)
        here = {name: self.folder / f"munge.{name}" for name in ("socket", "pid", "seed")}
        munge = [
            f"--{option}={self.folder / name}" for option, name in (("key-file", "key"), ("log-file", "munge.log"))
        ]
        munge += [
            f"--{option}={here[name]}"
            for option, name in (("socket", "socket"), ("pid-file", "pid"), ("seed-file", "seed"))
        ]
        self._daemons: list[subprocess.Popen] = []
        self._start("munged", "--force", "--foreground", *munge)
        until(here["socket"].exists, 10, lambda: "munged made no socket")
        self._start("slurmctld", "-D")
        self._start("slurmd", "-D")
        until(
            lambda: "idle" in self("sinfo", "-h", "-o", "%T"), 30, lambda: (self.folder / "slurmctld.out").read_text()
        )
        return self

    def _start(self, name: str, *options: str) -> None:
        with (self.folder / f"{name}.out").open("w") as out:
            daemon = subprocess.Popen(
                [name, *options], env=self.environment, stdout=out, stderr=out, stdin=subprocess.DEVNULL
            )
        self._daemons.append(daemon)

    def __exit__(self, *_: object) -> None:
        self("scancel", "--state=RUNNING", f"--user={getpass.getuser()}")
        self("scancel", f"--user={getpass.getuser()}")
        for daemon in reversed(self._daemons):
            daemon.terminate()
            daemon.wait(20)

    def __call__(self, *command: str, check: bool = False, cwd: Path | None = None) -> str:
        """What a command prints."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=120, check=False, cwd=cwd
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def job(self, number: str) -> dict[str, str]:
        """The fields of `scontrol show job`."""
        words = self("scontrol", "-o", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

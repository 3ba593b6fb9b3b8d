"""TPU slices; writes a shell script that runs a training on all workers of an existing TPU VM by ssh.

The machine that runs the script must have gcloud, authorised for the TPU VM's project. The workers must have the code
in the same directory, and a shared file system for the run folder, such as a mounted bucket. Workers find each other by
the VM's metadata server. Each restarts its own process in a loop that outlives the ssh connection; a restarted process
waits until all the others have restarted too.
"""

import math
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from jaxtrain.base.errors import ConfigError, nearest
from jaxtrain.launch.job import SHOULD_RESTART, ClusterJob

GKE_ACCELERATORS = {
    "v4": "tpu-v4-podslice",
    "v5e": "tpu-v5-lite-podslice",
    "v5p": "tpu-v5p-slice",
    "v6e": "tpu-v6e-slice",
    "tpu7x": "tpu7x",
}
"""GKE's name of each TPU generation."""

SHAPES_2D = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
"""Topologies of v5e and v6e."""

SHAPES_3D = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")
"""Topologies of the others; those of which all sides are multiples of 4 exist too."""


@dataclass(frozen=True)
class Slice:
    """A TPU slice: chips of one generation in one topology."""

    kind: str
    shape: str
    hosts: int
    """Each runs one process."""
    chips: int
    """Chips of each host."""
    devices: int
    """jax devices of all hosts: two a chip in the seventh generation, else one."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """The slice of a text such as `v5e:4x4`. Raises ConfigError for one that does not exist."""
        kind, _, shape = text.partition(":")
        if kind not in GKE_ACCELERATORS:
            close = nearest(kind, GKE_ACCELERATORS)
            raise ConfigError(f"--tpu {text}: there is no TPU {kind!r}{close}. Give a generation and shape: v5e:4x4")
        if kind in ("v5e", "v6e"):
            if shape not in SHAPES_2D:
                raise ConfigError(f"--tpu {text}: the shapes of {kind} are {', '.join(SHAPES_2D)}")
        elif shape not in SHAPES_3D and not _multiples_of_4(shape):
            raise ConfigError(
                f"--tpu {text}: the shapes of {kind} are {', '.join(SHAPES_3D)} and multiples of 4 such as 4x4x8"
            )
        total = math.prod(map(int, shape.split("x")))
        chips = {"1x1": 1, "2x4": 8}.get(shape, 4)  # these two are on a single host, all others on hosts of 4
        return cls(kind, shape, total // chips, chips, total * (2 if kind == "tpu7x" else 1))


def _multiples_of_4(shape: str) -> bool:
    return bool(re.fullmatch(r"\d+x\d+x\d+", shape)) and all(int(x) and int(x) % 4 == 0 for x in shape.split("x"))


SSH_SCRIPT = """
set -euo pipefail
on() {{ {ssh} --worker="$1" --command="$2"; }}
worker=$(
    cat <<'WORKER'
cd {directory} && mkdir -p {folder}/logs
loop={loop}
nohup setsid bash -c "$loop" >>{folder}/logs/$HOSTNAME.log 2>&1 </dev/null &
WORKER
)
case "${{1:-start}}" in
start) on all "$worker" ;;
log) on 0 {log} ;;
stop) on all {stop} ;;
*) echo "bash $0 [start|log|stop]" >&2 && exit 2 ;;
esac
"""

WORKER_METADATA = """\
meta=http://metadata.google.internal/computeMetadata/v1/instance/attributes
about() {{ curl -sf -H "Metadata-Flavor: Google" "$meta/$1"; }}
first=$(about worker-network-endpoints | cut -d, -f1)
export JAX_COORDINATOR_ADDRESS=${{first##*:}}:{port} JAX_NUM_PROCESSES={hosts}
export JAX_PROCESS_ID=$(about agent-worker-number)
"""
"""Shell commands for the JAX_ variables of a worker. The first endpoint is an address, or `name:id:address`."""

PORT = 8476

WORKER_LOOP = """
# The training inherits the lock, so that a second loop cannot start before it has exited.
exec 9>>{lock} && flock -n 9 || {{ echo "already running on this worker" && exit 1; }}
echo $$ >{lock}
{setup}for ((start = 0; start <= {restarts}; start++)); do
    {command}
    code=$?
    echo "exit code $code of start $start"
    (({should_restart})) || exit $code
done
"""


@dataclass(frozen=True, kw_only=True)
class TpuVm(ClusterJob):
    """A script that runs the training on all workers of a TPU VM by ssh: `bash FILE [start|log|stop]`."""

    submission = ("bash", "-s", "start")

    vm: str
    """The name of an existing TPU VM."""
    zone: str
    """Its zone: us-west4-a."""
    tpu: str
    """Its slice: v5e:4x4."""
    project: str | None = None
    """Its project; by default that of gcloud's configuration."""
    directory: Path = Path("jaxtrain")
    """The directory of the code on each worker. A relative --run is below it: mount a bucket there."""
    setup: tuple[str, ...] = ()
    """Shell commands to run first: "source .venv/bin/activate"."""

    def size(self) -> tuple[int, int]:
        """One process a host."""
        slice = Slice.parse(self.tpu)
        return slice.hosts, slice.devices

    def render(self, head: str) -> str:
        """The shell script."""
        folder, lock = shlex.quote(str(self.folder)), f"/tmp/jaxtrain-{self.title}.pid"
        hosts, _ = self.size()
        metadata = WORKER_METADATA.format(port=PORT, hosts=hosts) if hosts > 1 else ""
        project = [f"--project={self.project}"] if self.project else []
        loop = WORKER_LOOP.format(
            lock=lock,
            setup="".join([metadata, *(f"{line}\n" for line in (*self.exports(), *self.setup))]),
            restarts=self.restarts,
            should_restart=SHOULD_RESTART,
            command=shlex.join(self.command),
        )
        script = SSH_SCRIPT.format(
            ssh=shlex.join(["gcloud", "compute", "tpus", "tpu-vm", "ssh", self.vm, f"--zone={self.zone}", *project]),
            directory=shlex.quote(str(self.directory)),
            folder=folder,
            loop=shlex.quote(loop),
            log=shlex.quote(f"cd {shlex.quote(str(self.directory))} && tail -n 50 -F {folder}/logs/$HOSTNAME.log"),
            stop=shlex.quote(f'kill -TERM -- "-$(cat {lock})"'),
        )
        return f"#!/usr/bin/env bash\n{head}\n{script}"

"""Slices of TPUs, and a job as a script that runs it on all workers of a TPU VM that is there already."""

import math
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from jaxtrain.base.errors import ConfigError, nearest
from jaxtrain.launch.job import AGAIN, Written

KINDS = {
    "v4": "tpu-v4-podslice",
    "v5e": "tpu-v5-lite-podslice",
    "v5p": "tpu-v5p-slice",
    "v6e": "tpu-v6e-slice",
    "tpu7x": "tpu7x",
}
"""What GKE calls each generation."""

FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
"""The slices of v5e and v6e."""

SMALL = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")
"""The slices of the others: small ones, and those whose sides are multiples of 4."""


@dataclass(frozen=True)
class Slice:
    """A slice of TPUs."""

    kind: str
    shape: str
    hosts: int
    """Each has one process."""
    chips: int
    """Of each host."""
    devices: int
    """What jax counts in all: two a chip in the seventh generation."""

    @classmethod
    def of(cls, text: str) -> Self:
        """The slice that `v5e:4x4` names. Raises ConfigError for one that there is not."""
        kind, _, shape = text.partition(":")
        if kind not in KINDS:
            raise ConfigError(f"--tpu {text}: there is no TPU {kind!r}{nearest(kind, KINDS)}, such as v5e:4x4")
        if kind in ("v5e", "v6e"):
            if shape not in FLAT:
                raise ConfigError(f"--tpu {text}: the shapes of {kind} are {', '.join(FLAT)}")
        elif shape not in SMALL and not _multiples_of_4(shape):
            raise ConfigError(f"--tpu {text}: the shapes of {kind} are {', '.join(SMALL)} and multiples of 4 as 4x4x8")
        total = math.prod(map(int, shape.split("x")))
        chips = {"1x1": 1, "2x4": 8}.get(shape, 4)  # four, but for those that one host holds whole
        return cls(kind, shape, total // chips, chips, total * (2 if kind == "tpu7x" else 1))


def _multiples_of_4(shape: str) -> bool:
    return bool(re.fullmatch(r"\d+x\d+x\d+", shape)) and all(int(x) and int(x) % 4 == 0 for x in shape.split("x"))


SCRIPT = """
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

METADATA = """\
meta=http://metadata.google.internal/computeMetadata/v1/instance/attributes
about() {{ curl -sf -H "Metadata-Flavor: Google" "$meta/$1"; }}
first=$(about worker-network-endpoints | cut -d, -f1)
export JAX_COORDINATOR_ADDRESS=${{first##*:}}:{port} JAX_NUM_PROCESSES={hosts}
export JAX_PROCESS_ID=$(about agent-worker-number)
"""
"""How a worker of a TPU VM learns of the others: the first endpoint is an address, or `name:id:address`."""

PORT = 8476

LOOP = """
# A training that still ends keeps the lock, and a restart waits for it.
exec 9>>{lock} && flock -n 9 || {{ echo "it runs here already" && exit 1; }}
echo $$ >{lock}
{setup}for ((start = 0; start <= {restarts}; start++)); do
    {command}
    code=$?
    echo "exit code $code of start $start"
    (({again})) || exit $code
done
"""


@dataclass(frozen=True, kw_only=True)
class TpuVm(Written):
    """A script that runs the training on all workers of a TPU VM by ssh; `bash FILE log` and `bash FILE stop` too."""

    submission = ("bash", "-s", "start")

    vm: str
    """The name of a TPU VM that is there already."""
    zone: str
    """Where it is: us-west4-a."""
    tpu: str
    """Its slice: v5e:4x4."""
    project: str | None = None
    """gcloud's own by default."""
    directory: Path = Path("jaxtrain")
    """Where the code is on each worker; --run is below it, if it is not an absolute path, so mount a bucket there."""
    setup: tuple[str, ...] = ()
    """Lines of shell before it: "source .venv/bin/activate"."""

    def size(self) -> tuple[int, int]:
        """One process a host."""
        return Slice.of(self.tpu).hosts, Slice.of(self.tpu).devices

    def render(self, head: str) -> str:
        """The script."""
        folder, lock = shlex.quote(str(self.folder)), f"/tmp/jaxtrain-{self.title}.pid"
        hosts = Slice.of(self.tpu).hosts
        metadata = METADATA.format(port=PORT, hosts=hosts) if hosts > 1 else ""
        project = [f"--project={self.project}"] if self.project else []
        loop = LOOP.format(
            lock=lock,
            setup="".join([metadata, *(f"{line}\n" for line in (*self.exports(), *self.setup))]),
            restarts=self.restarts,
            again=AGAIN,
            command=shlex.join(self.command),
        )
        script = SCRIPT.format(
            ssh=shlex.join(["gcloud", "compute", "tpus", "tpu-vm", "ssh", self.vm, f"--zone={self.zone}", *project]),
            directory=shlex.quote(str(self.directory)),
            folder=folder,
            loop=shlex.quote(loop),
            log=shlex.quote(f"cd {shlex.quote(str(self.directory))} && tail -n 50 -F {folder}/logs/$HOSTNAME.log"),
            stop=shlex.quote(f'kill -TERM -- "-$(cat {lock})"'),
        )
        return f"#!/usr/bin/env bash\n{head}\n{script}"

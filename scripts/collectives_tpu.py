"""The collectives of the train step as compiled for a TPU slice, against the textbook; no TPU is needed.

    uv run --with 'libtpu==0.0.42.*' python scripts/collectives_tpu.py           # v5e:2x4, or give another of 8 chips
    uv run --with 'libtpu==0.0.42.*' python scripts/collectives_tpu.py v6e:2x4 "tensor 8" "data 2 fsdp 2 tensor 2"

The compiler comes with libtpu (200 MB; 0.0.42 is that of jax 0.10.2) and takes one to three minutes a mesh.
"""

import os
import sys
import time
from pathlib import Path

# Before jax is imported: its own devices stay CPUs, and libtpu asks no metadata server, takes no lock, writes no logs.
os.environ.update(
    JAX_PLATFORMS="cpu",
    TPU_SKIP_MDS_QUERY="1",
    ALLOW_MULTIPLE_LIBTPU_LOAD="1",
    TPU_ACCELERATOR_TYPE="v5litepod-8",
    TPU_WORKER_HOSTNAMES="localhost",
    TPU_LOG_DIR="disabled",
    TPU_STDERR_LOG_LEVEL="3",
    TPU_MIN_LOG_LEVEL="3",
)

from jax.experimental import topologies

from jaxtrain import Program
from jaxtrain.collectives import collectives, counted, textbook
from jaxtrain.loading import load_code
from jaxtrain.models import Blocks, Precision

scripts = load_code(Path(__file__).with_name("collectives.py"))

IGNORED = 64 * 1024
"""Norms' scales, and a softmax's maximum and sum, of the larger model below."""

BLOCKS = Blocks(width=1024, layers=4, heads=8, mlp=3072, precision=Precision(compute="bfloat16"))


def main(topology: str = "v5e:2x4", *meshes: str) -> None:
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    print(f"{topology}, {len(devices)} devices")
    print(scripts.HEADER)
    for layout in scripts.MESHES:
        if meshes and scripts.named(layout) not in meshes:
            continue
        started = time.monotonic()
        program = Program(scripts.experiment(layout, BLOCKS, vocab=8192, length=512), devices)
        text = program.lower().compile().as_text() or ""
        found = counted(collectives(text, program.mesh.shape, IGNORED))
        scripts.report(
            scripts.named(layout), found, textbook(program.experiment, program.mesh, accelerator=True), IGNORED
        )
        print(f"{'':26} compiled in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main(*sys.argv[1:])

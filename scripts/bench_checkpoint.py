"""Measures checkpoints: how long a save holds the training up, verifying, and opening a folder of 1,000.

    python scripts/bench_checkpoint.py                 500 MB, 3 pairs
    python scripts/bench_checkpoint.py --mb 100 --pairs 2 --check

Pairs: the same state is saved asynchronously (until the call returns) and then waited for (until it is durable), in
turn. What is durable has its checksums: of each array from the bytes in memory, of each file as finished.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from jaxtrain.experiment import Retention
from jaxtrain.experiment.saved import faults
from jaxtrain.runs.checkpoints import Checkpoints
from jaxtrain.runs.retention import saving


def state_of(megabytes: int) -> dict[str, jax.Array]:
    rows = megabytes * 1_000_000 // (20 * 4 * 1000)
    return {f"w{number}": jax.random.normal(jax.random.key(number), (rows, 1000)) for number in range(20)}


def seconds(act) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=500)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--check", action="store_true", help="exit code 1 where a target is missed")
    parser.add_argument("--dir", type=Path, default=None, help="where to write; a temporary folder by default")
    flags = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=flags.dir))
    state = jax.block_until_ready(state_of(flags.mb))
    size = sum(x.nbytes for x in state.values())
    stalls, whole = [], []
    with Checkpoints(folder / "big", Retention(last=1)) as checkpoints:
        checkpoints.save(1, {"x": jnp.ones(8)}, {})  # the first save imports what it needs
        checkpoints.wait()
        for step in range(2, 2 + flags.pairs):
            start = time.perf_counter()
            stall = seconds(lambda step=step: checkpoints.save(step, state, {}))
            checkpoints.wait()
            stalls.append(stall)
            whole.append(time.perf_counter() - start)
    last = folder / "big" / str(1 + flags.pairs)
    read = sum(path.stat().st_size for path in last.rglob("*") if path.is_file())
    verifying = min(seconds(lambda: list(faults(last))) for _ in range(3))
    abstract = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=SingleDeviceSharding(jax.devices()[0]))
        for name, x in state.items()
    }
    with Checkpoints(folder / "big", read_only=True) as checkpoints:
        restoring = seconds(lambda: jax.block_until_ready(checkpoints.restore(abstract)))
    with Checkpoints(folder / "many") as checkpoints:
        checkpoints.save(1, {"x": jnp.ones(8)}, {}, None)
        checkpoints.wait()
    for step in range(2, 1001):
        shutil.copytree(folder / "many" / "1", folder / "many" / str(step))
        (folder / "many" / str(step) / "metrics").mkdir()
        (folder / "many" / str(step) / "metrics" / "metrics").write_text(json.dumps({"t/loss": 1 / step}))

    def opened() -> None:
        with Checkpoints(folder / "many", Retention(last=1000, best="t/loss")) as many:
            assert (many.latest(), many.best()) == (1000, 999)

    (folder / "many" / "1000" / "metrics" / "metrics").unlink()
    (folder / "many" / "1000" / "metrics").rmdir()
    opening = min(seconds(opened) for _ in range(3))
    assert not saving(last).exists()
    shutil.rmtree(folder)
    ratio = statistics.median(stall / total for stall, total in zip(stalls, whole, strict=True))
    rate = read / verifying / 1e9
    rows = [
        (f"stall per asynchronous save of {size / 1e6:.0f} MB, median", f"{statistics.median(stalls):.3f} s", ""),
        ("until durable, with all checksums, median", f"{statistics.median(whole):.2f} s", ""),
        ("stall / until durable, median of pairs", f"{ratio:.1%}", "≤ 5 %"),
        ("verify, one core", f"{rate:.2f} GB/s", "≥ 1 GB/s"),
        ("verify and restore", f"{restoring:.2f} s", ""),
        ("open 1,000 checkpoints, newest and best", f"{opening:.3f} s", "< 1 s"),
    ]
    print(f"{os.cpu_count()} cores, {jax.devices()[0].platform}, jax {jax.__version__}")
    for what, found, target in rows:
        print(f"| {what} | {found} | {target} |")
    if flags.check and not (ratio <= 0.05 and rate >= 1 and opening < 1):
        sys.exit(1)


if __name__ == "__main__":
    main()

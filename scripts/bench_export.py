"""Measures bundles, every way of computing them side by side.

    uv run python scripts/bench_export.py                      sentiment, digits and char_lm, trained a few steps
    uv run python scripts/bench_export.py runs/sentiment       a run of one's own, or several
    uv run python scripts/bench_export.py digits --rounds 5

Every way has a process of its own: the live model by jit, StableHLO and ONNX Runtime by `Bundle`, ONNX Runtime fed by
hand, Node, headless Chromium, C++. They take turns, round by round. The latency is that of one row as tensors, and of
one raw input; both as the least of all rounds, and the median of the rounds' medians. The most rows a second are those of
the best of 1, 4, 16 and 64 rows. *Load* is the time from the start of a fresh process to its first answer, with all
verification, the least of some starts, and the CPU seconds of it, which are steadier where other processes run; of jax
with an empty cache of compiled programs, and with a full one. *Memory* is the most that was resident by then. What is not
installed has a row that says so.
"""

import argparse
import contextlib
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from bench_export_ways import BUNDLE, DEFAULTS, HAND, ROOT, WAYS, Missing, Model, Running, Times, Way

from jaxtrain.deploy.golden import golden_examples
from jaxtrain.deploy.manifest import version_folder
from jaxtrain.deploy.signature import Signature

SIZES = (1, 4, 16, 64)
SLOW = 1.0  # seconds of a call, after which larger batches are not tried

SHIPPED = {
    "sentiment": ("--steps", "10"),
    "digits": ("--steps", "100"),
    "char_lm": ("--steps", "3", "--evals.test.source.count", "256"),
}
"""How long they are trained, on which speed does not depend, though int8's gate does; and what makes an export quicker."""


@contextlib.contextmanager
def environment(**values: str) -> Generator[None]:
    """Variables for the processes that are started in it."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def started(
    way: Way, model: Model, starts: int, stack: contextlib.ExitStack
) -> tuple[list[tuple[float, float]], Running]:
    """The seconds and CPU seconds of every start, of which the last goes on running."""
    for name in way.files:
        if not (model.bundle / name).exists():
            raise Missing(f"the bundle has no {name}")
    programs = stack.enter_context(tempfile.TemporaryDirectory())
    loads = []
    with environment(JAX_COMPILATION_CACHE_DIR=programs, JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0"):
        for _ in range(1 if way.compiled else starts - 1):
            with contextlib.ExitStack() as one:
                first = way.start(model, one)
                loads.append((first.load, first.cpu))
        running = way.start(model, stack)
    return [*loads, (running.load, running.cpu)], running


@dataclass
class Measured:
    """What was seen of a way: by rows, the times of each round."""

    way: Way
    loads: list[tuple[float, float]]
    running: Running
    size: int
    seen: dict[int, list[Times]] = field(default_factory=dict)
    best: int = 1

    def round(self, seconds: float) -> None:
        for rows in dict.fromkeys((1, *((0,) if self.way.raw else ()), *((self.best,) if self.way.batches else ()))):
            self.seen.setdefault(rows, []).append(self.running.take(rows, seconds))

    def find_best(self) -> None:
        """Sets the number of rows with the most rows a second."""
        rates = {}
        for rows in SIZES if self.way.batches else (1,):
            least, _, _ = self.running.take(rows, 0.05)
            rates[rows] = rows / least
            if least > SLOW:
                break
        self.best = max(rates, key=lambda rows: rates[rows])

    def least(self, rows: int) -> float:
        return min(each for each, _, _ in self.seen[rows])

    def median(self, rows: int) -> float:
        return statistics.median(each for _, each, _ in self.seen[rows])

    def cpu(self, rows: int) -> float:
        """The least of the rounds; NaN where it is not known."""
        return min((each for _, _, each in self.seen[rows] if each is not None), default=math.nan)

    def row(self) -> tuple[str, ...]:
        def latency(rows: int) -> str:
            return f"{1e3 * self.least(rows):.3f} / {1e3 * self.median(rows):.3f}" if rows in self.seen else ""

        shown = self.loads if self.way.compiled else [(min(self.loads)[0], min(cpu for _, cpu in self.loads))]
        load = ", ".join(f"{wall:.2f} ({cpu:.2f})" for wall, cpu in shown)
        rate = f"{self.best / self.least(self.best):,.0f} ({self.best})" if self.way.batches else ""
        memory = f"{self.running.memory:.0f}"
        cpu = "" if math.isnan(self.cpu(1)) else f"{1e3 * self.cpu(1):.3f}"
        return self.way.name, latency(1), cpu, latency(0), rate, f"{self.size / 1e6:.2f}", load, memory


HEADER = ("", "one row, ms", "CPU ms", "raw input, ms", "rows/s (of)", "MB on disk", "load, s (CPU)", "MB of memory")


def measure(model: Model, rounds: int, seconds: float, starts: int) -> None:
    """Prints the table of a model."""
    with contextlib.ExitStack() as stack:
        all_of_them, rows = [], [HEADER, ("---",) * len(HEADER)]
        missing: list[tuple[str, ...]] = []
        for way in WAYS:
            try:
                loads, running = started(way, model, starts, stack)
                size = model.bytes_of(*way.files) if way.files else checkpoint_bytes(model.run)
                all_of_them.append(Measured(way, loads, running, size))
                all_of_them[-1].find_best()
            except Missing as error:
                missing.append((way.name, f"not measured: {error}", *[""] * (len(HEADER) - 2)))
        for _ in range(rounds):
            for each in all_of_them:
                each.round(seconds)
        size = sum(file.stat().st_size for file in model.bundle.iterdir())
        print(f"\n{model.name}: {size / 1e6:.2f} MB in all, load average {os.getloadavg()[0]:.1f}\n")
        for row in [*rows, *(each.row() for each in all_of_them), *missing]:
            print(f"| {' | '.join(row)} |")
        print()
        aims({each.way.name: each for each in all_of_them})


def aims(measured: dict[str, Measured]) -> None:
    """Prints the aims: ONNX of the bundle ≤ 1.1 of ONNX Runtime by hand, loaded in less than 0.5 s."""
    if BUNDLE not in measured or HAND not in measured:
        return
    bundle = measured[BUNDLE]
    for other in (HAND, DEFAULTS):
        hand = measured[other]
        ratios = [one[0] / two[0] for one, two in zip(bundle.seen[1], hand.seen[1], strict=True)]
        least, raw = bundle.least(1) / hand.least(1), bundle.least(0) / hand.least(1)
        middle = statistics.median(ratios)
        cpu = f"in CPU time {bundle.cpu(1) / hand.cpu(1):.2f}, from raw input {bundle.cpu(0) / hand.cpu(1):.2f}"
        print(
            f"`Bundle` over {other}: {least:.2f} (median of rounds {middle:.2f}), from raw input {raw:.2f}; {cpu}; aim 1.1"
        )
    parts = ", ".join(f"{name} {seconds:.3f} s" for name, seconds in bundle.running.parts.items())
    wall, cpu = min(bundle.loads)
    print(f"load of ONNX by `Bundle`: {wall:.2f} s, {cpu:.2f} of CPU, aim 0.5 s; the last start: {parts}", flush=True)


def checkpoint_bytes(run: Path) -> int:
    """Of the newest checkpoint."""
    newest = max((each for each in (run / "checkpoints").iterdir() if each.name.isdecimal()), key=lambda x: int(x.name))
    return sum(file.stat().st_size for file in newest.rglob("*") if file.is_file())


def exported(name: str, folder: Path) -> Model:
    """A model, exported into a folder: of a run, or of a shipped experiment that is trained a little."""
    run = Path(name)
    jaxtrain = [sys.executable, "-m", "jaxtrain"]
    if name in SHIPPED:
        run = folder / "run"
        experiment = ROOT / "experiments" / f"{name}.py"
        quiet(
            [*jaxtrain, "train", str(experiment), "--run", str(run), *SHIPPED[name], "--optimizer.schedule.warmup", "1"]
        )
    quiet([*jaxtrain, "export", str(run), "--out", str(folder / "out"), "--name", "model"])
    bundle = version_folder(folder / "out")
    signature = Signature.read(bundle / "signature.json")
    golden = golden_examples(json.loads((bundle / "golden.json").read_text()), signature, "golden.json")
    tensors: dict[str, Any] = signature.tensors_of([each.inputs for each in golden[:8]])
    np.savez(folder / "rows.npz", **tensors)
    return Model(Path(name).name, bundle, run, folder / "rows.npz")


def quiet(command: Sequence[str]) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with code {done.returncode}:\n{done.stderr[-2000:]}")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=[*SHIPPED], help=f"runs, or {', '.join(SHIPPED)}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.1, help="of one way in one round")
    parser.add_argument("--starts", type=int, default=3, help="fresh processes of each way")
    flags = parser.parse_args()
    print(
        f"{os.cpu_count()} cores, {time.strftime('%d %b %Y')}; latency: least / median; load of jax: without, with cache"
    )
    for name in flags.models:
        with tempfile.TemporaryDirectory(prefix="bench-export-") as folder:
            measure(exported(name, Path(folder)), flags.rounds, flags.seconds, flags.starts)


if __name__ == "__main__":
    main()

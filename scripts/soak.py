"""Kills training in every way at random moments, resumes it, and compares what it came to with a run left alone.

    python scripts/soak.py --kills 1000              about 10 s a kill on two cores
    python scripts/soak.py --kills 20 --kinds SIGKILL worker coordinator

Chains of starts of one run, on two meshes, in one and in two processes, with data workers. After each kill the exit codes
must be those of docs/command-line.md, and no process, shared memory or temporary file may be left; after each chain the last
state and all lines of metrics must be bitwise those of the run left alone. Exit code 1 if anything is not so.
"""

import argparse
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from jaxtrain import Experiment, Layout, Runtime
from jaxtrain.data import Pipeline, Source
from jaxtrain.experiment import Retention
from jaxtrain.models import Blocks, Transformer
from jaxtrain.optimizers import AdamW, CosineDecay
from jaxtrain.tasks import LanguageModel

STEPS, BATCH_SECONDS, HANG_SECONDS, MARK = 40, 0.12, 150.0, "JAXTRAIN_SOAK"
RUN_FILES = {
    *("experiment.json", "environment.json", "metrics.jsonl", "events.jsonl", "soak.py", "tensorboard", "checkpoints"),
    *("lock.json", "steps.bin", "flight.json", "data", "damaged", "logs"),
    *(f"{name}{number}.txt" for name in ("traceback", "stacks") for number in ("", "-1")),
}
"""What a run folder may hold."""


@dataclass(frozen=True)
class Slow(Source):
    """Rows of tokens that count up; a batch takes so long that a kill can meet any phase."""

    rows: int = 200

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        time.sleep(BATCH_SECONDS / 8)
        return {"tokens": ((np.arange(17) * (index % 7 + 1) + index) % 64).astype(np.int32)}

    def identity(self) -> str:
        """Its fields say all."""
        return f"slow:{self.rows}"


def alone() -> Experiment:
    """On one device."""
    blocks = Blocks(width=32, layers=2, heads=4, mlp=64, dropout=0.1)
    return Experiment(
        task=LanguageModel(model=Transformer(vocab=64, blocks=blocks)),
        data=Pipeline(Slow(), batch_size=8, workers=2, threads=1),
        optimizer=AdamW(schedule=CosineDecay(peak=1e-2, warmup=2), ema=0.9),
        steps=STEPS,
        evals={"test": Pipeline(Slow(16), batch_size=8, shuffle=False)},
        runtime=Runtime(log_every=3, eval_every=10, save_every=7, keep=Retention(last=2), deadline=15),
    )


def data() -> Experiment:
    """Data parallel."""
    return replace(alone(), layout=Layout({"data": -1}))


def fsdp() -> Experiment:
    """Fully sharded."""
    return replace(alone(), layout=Layout({"fsdp": -1}))


SCENARIOS = (("alone", 1, 1), ("fsdp", 2, 1), ("data", 1, 2))
"""Function, devices of a process, processes."""

CODES = {
    "SIGKILL": {-9},
    "SIGTERM": {75},
    "SIGUSR1": {75},
    "SIGINT": {130},
    "SIGTERM twice": {75},
    "SIGINT twice": {130},
    "worker": set[int](),  # the run goes on
    "coordinator": {-9, 75},
    "other process": {-9, 75},
}
"""The exit codes that a kill of a kind may end processes with, besides 0 where the run was done before."""


class Job:
    """The processes of one start of a run."""

    def __init__(self, scenario: tuple[str, int, int], folder: Path, temporary: Path) -> None:
        function, devices, count = scenario
        self.folder, self.mark = folder, f"{os.getpid()}-{time.monotonic_ns()}"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        base = {
            **os.environ,
            MARK: self.mark,
            "TMPDIR": str(temporary),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        }
        several = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": str(count)}
        command = [sys.executable, "-m", "jaxtrain", "train", f"{Path(__file__).resolve()}:{function}", "--run", folder]
        self.log = folder.with_name(f"{folder.name}.log")
        with self.log.open("a") as log:
            self.processes = [
                subprocess.Popen(
                    command,
                    env={**base, **({**several, "JAX_PROCESS_ID": str(number)} if count > 1 else {})},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
                for number in range(count)
            ]

    def running(self) -> list[int]:
        """All processes that this start has begun, their data workers too, that run."""
        return [pid for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))) if self._is_ours(pid)]

    def _is_ours(self, pid: int) -> bool:
        with contextlib.suppress(OSError):
            return f"{MARK}={self.mark}\0".encode() in Path(f"/proc/{pid}/environ").read_bytes()
        return False

    def kill(self, kind: str, draw: random.Random) -> bool:
        """Whether there was something to kill."""
        main = [process for process in self.processes if process.poll() is None]
        if kind == "worker":
            workers = set(self.running()) - {process.pid for process in self.processes}
            if not workers:
                return False
            with contextlib.suppress(ProcessLookupError):
                os.kill(draw.choice(sorted(workers)), signal.SIGKILL)
            return True
        if kind in ("coordinator", "other process"):
            main = [self.processes[0 if kind == "coordinator" else -1]]
            kind = "SIGKILL"
        alive = any(process.poll() is None for process in main)
        for number in range(1 + kind.endswith("twice")):
            time.sleep(number * draw.random() * 0.3)
            for process in main:
                process.send_signal(signal.Signals[kind.split()[0]])
        return alive

    def end(self) -> list[int]:
        """Wait for the exit codes; a job that hangs is killed, and raises TimeoutError."""
        end = time.monotonic() + HANG_SECONDS
        try:
            return [process.wait(max(0.0, end - time.monotonic())) for process in self.processes]
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"{kind_of_log(self.log)}: hangs") from None
        finally:
            for process in self.processes:
                process.kill()


def kind_of_log(log: Path) -> str:
    """The last lines of a log."""
    return "\n    ".join([str(log), *log.read_text(errors="replace").splitlines()[-12:]])


def left_over(job: Job, temporary: Path, shared: set[str]) -> list[str]:
    """What a job has left behind, 10 seconds after its end at the latest."""
    for _ in range(100):
        if not job.running():
            break
        time.sleep(0.1)
    found = [f"process {pid} is left" for pid in job.running()]
    found += [f"temporary file {path.name} is left" for path in temporary.iterdir()]
    return found + [f"shared memory {name} is left" for name in sorted(shared_memory() - shared)]


def shared_memory() -> set[str]:
    """The names in /dev/shm."""
    return set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()


def moment(job: Job, draw: random.Random, startup: float, kind: str) -> float:
    """Wait for a random moment: in 4 of 10 cases while the job starts, else while it trains. Returns how many seconds
    starting takes, if it was seen.
    """
    if draw.random() < 0.4 and kind != "worker":  # which are started last
        time.sleep(draw.random() * startup)
        return startup
    begun = time.monotonic()
    events = job.folder / "events.jsonl"
    before = events.read_bytes().count(b'"compiled"') if events.exists() else 0
    end = time.monotonic() + 20 * startup
    while time.monotonic() < end and all(process.poll() is None for process in job.processes):
        if events.exists() and events.read_bytes().count(b'"compiled"') > before:
            break
        time.sleep(0.01)
    startup = time.monotonic() - begun
    time.sleep(draw.random() * STEPS * BATCH_SECONDS / 2)  # two workers read
    return startup


def soak(kills: int, kinds: Sequence[str], seed: int, place: Path) -> list[str]:
    """Do so many kills; prints progress and a table, and returns what was wrong."""
    from jaxtrain.analysis.verify_resume import ended, unlike

    draw, wrong, counts, codes_seen = random.Random(seed), list[str](), Counter[str](), dict[str, Counter[int]]()
    temporary, shared = place / "temporary", shared_memory()
    temporary.mkdir()
    expected, startup = {}, {}
    begun, done, chain, starts = time.monotonic(), 0, 0, 0
    while done < kills or not chain:
        scenario = SCENARIOS[chain % len(SCENARIOS)]
        name, chain = "-".join(map(str, scenario)), chain + 1
        if name not in expected:
            at = time.monotonic()
            job = Job(scenario, place / name, temporary)
            if any(job.end()):
                return [f"the run left alone failed: {kind_of_log(job.log)}"]
            wrong += [f"{name} left alone: {each}" for each in left_over(job, temporary, shared)]
            # The first start compiles; those after it find the programs in the cache.
            expected[name], startup[name] = ended(place / name, STEPS), (time.monotonic() - at) / 4
        folder, own = place / f"chain-{chain}", 0
        while True:
            starts += 1
            job, kind = Job(scenario, folder, temporary), ""
            if done < kills and own < 8:
                usable = [each for each in kinds if scenario[2] > 1 or each not in ("coordinator", "other process")]
                kind = draw.choice(usable)
                startup[name] = moment(job, draw, startup[name], kind)
                kind = kind if job.kill(kind, draw) else ""
            try:
                codes = job.end()
            except TimeoutError as error:
                return [*wrong, f"chain {chain}, {kind}: {error}"]
            allowed = {0} | (CODES[kind] if kind else set())
            if not set(codes) <= allowed:
                wrong.append(f"chain {chain} ({name}), {kind or 'no kill'}: exit codes {codes}: {kind_of_log(job.log)}")
            wrong += [f"chain {chain} ({name}), {kind}: {each}" for each in left_over(job, temporary, shared)]
            if kind:
                done, own = done + 1, own + 1
                counts[kind] += 1
                codes_seen.setdefault(kind, Counter()).update(codes)
                seconds = time.monotonic() - begun
                print(f"{done}/{kills}  chain {chain}  {name}  {kind}  {codes}  {seconds:.0f} s", flush=True)
            if not any(codes):
                break
            if not kind and any(codes):
                return [*wrong, f"chain {chain}: does not end: {kind_of_log(job.log)}"]
        wrong += [f"chain {chain} ({name}): {each}" for each in unlike(expected[name], ended(folder, STEPS))]
        names = {path.name for path in folder.iterdir()}
        wrong += [f"chain {chain}: the run folder holds {each}" for each in sorted(names - RUN_FILES)]
        saved = [path.name for path in (folder / "checkpoints").iterdir()]
        wrong += [f"chain {chain}: checkpoints/ holds {each}" for each in saved if "tmp" in each]
    print(f"\n{done} kills, {starts} starts, {chain} chains, {time.monotonic() - begun:.0f} s, seed {seed}")
    for kind, count in sorted(counts.items()):
        seen = ", ".join(f"{code} × {times}" for code, times in sorted(codes_seen[kind].items()))
        print(f"  {kind:14} {count:5}  exit codes {seen}")
    return wrong


def main() -> None:
    """Read the flags, and soak."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=list(CODES), default=list(CODES))
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="jaxtrain-soak-") as place:
        wrong = soak(flags.kills, flags.kinds, flags.seed, Path(place))
    print(*(wrong or ["nothing was lost, nothing is left, nothing hung"]), sep="\n")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()

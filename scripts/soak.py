"""Kills training in every way at random moments, resumes it, and compares what it came to with a run left alone.

    python scripts/soak.py --kills 1000              about 7 s a kill on two cores
    python scripts/soak.py --kills 20 --kinds SIGKILL worker coordinator

Chains of starts of one run, on two meshes, in one and in two processes, with data workers. After each kill the exit codes
must be those of docs/command-line.md, and no process, shared memory or temporary file may be left; after each chain the last
state and all lines of metrics must be bitwise those of the run left alone. Exit code 1 if anything is not so. It ends what
it started when it is interrupted.
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from jaxtrain import Experiment, Layout, Runtime
from jaxtrain.analysis.outcome import Ended, ended, unlike
from jaxtrain.data import Pipeline, Source
from jaxtrain.experiment import Retention
from jaxtrain.models import Blocks, Transformer
from jaxtrain.optimizers import AdamW, CosineDecay
from jaxtrain.tasks import LanguageModel

STEPS, BATCH_SECONDS, HANG_SECONDS, MARK = 40, 0.06, 150.0, "JAXTRAIN_SOAK"
RUN_FILES = {
    *("experiment.json", "environment.json", "metrics.jsonl", "events.jsonl", "soak.py", "tensorboard", "checkpoints"),
    *("lock.json", "steps.bin", "flight.json", "skipped.json", "data", "damaged", "logs", "rows"),
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
        data=Pipeline(Slow(), batch_size=8, workers=1, threads=1),
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
    "SIGTERM, then SIGINT": {75, 130},
    "worker": set[int](),  # the run goes on
    "coordinator": {-9, 75},
    "other process": {-9, 75},
}
"""The exit codes that a kill of a kind may end processes with, besides 0 where the run was done before."""

SIGNALS = {
    **{kind: (kind,) for kind in ("SIGKILL", "SIGTERM", "SIGUSR1", "SIGINT")},
    **{f"{kind} twice": (kind, kind) for kind in ("SIGTERM", "SIGINT")},
    "SIGTERM, then SIGINT": ("SIGTERM", "SIGINT"),
    **dict.fromkeys(("coordinator", "other process"), ("SIGKILL",)),
}
"""What is sent to the processes of a start, or to one of them, for a kill of a kind."""

MOMENTS = {"startup": 4, "training": 5, "teardown": 1}
"""When a kill comes, and how often: from the first line of the command on, from the first step on, and once the last save is durable."""


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
            "PYTHONFAULTHANDLER": "1",  # SIGABRT shows the stacks of one that hangs
            "TMPDIR": str(temporary),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        }
        several = {
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
            "JAX_NUM_PROCESSES": str(count),
            "JAXTRAIN_JOIN_SECONDS": "60",  # for which the others wait where one is killed before it has joined
        }
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
        return marked(f"{self.mark}\0")

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
            chosen = self.processes[0 if kind == "coordinator" else -1]
            main = [chosen] if chosen in main else []
        alive = bool(main)
        for number, name in enumerate(SIGNALS[kind]):
            time.sleep(number * draw.random() * 1.5)  # a second one within half a second is an echo of the first
            for process in main:
                process.send_signal(signal.Signals[name])
        return alive

    def hears(self) -> bool:
        """Whether every process that runs handles SIGTERM, as it does from the first line of the command on."""
        return all(_catches(process.pid, signal.SIGTERM) for process in self.processes if process.poll() is None)

    def wait(self) -> list[int]:
        """Wait for the exit codes. Raises TimeoutError where a process hangs, whose stacks are in the log then."""
        end = time.monotonic() + HANG_SECONDS
        try:
            return [process.wait(max(0.0, end - time.monotonic())) for process in self.processes]
        except subprocess.TimeoutExpired:
            for process in self.processes:
                process.send_signal(signal.SIGABRT)
            time.sleep(2)
            raise TimeoutError(f"hangs: {tail(self.log, 60)}") from None


def marked(mark: str = f"{os.getpid()}-") -> list[int]:
    """The processes that run whose mark begins so: by default, of all starts."""
    found = []
    for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))):
        with contextlib.suppress(OSError):
            if f"\0{MARK}={mark}".encode() in b"\0" + Path(f"/proc/{pid}/environ").read_bytes():
                found.append(pid)
    return found


@contextlib.contextmanager
def ending_all() -> Generator[None]:
    """At the end, also by an exception at any moment, end all that was started."""
    try:
        yield
    finally:
        while found := marked():
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)


def _catches(pid: int, number: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True
    found = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")]
    return bool(found) and bool(int(found[0], 16) >> (number - 1) & 1)


def tail(log: Path, lines: int = 12) -> str:
    """The last lines of a log."""
    return "\n    ".join([str(log), *log.read_text(errors="replace").splitlines()[-lines:]])


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


def moment(job: Job, draw: random.Random, startup: float, kind: str, usable: Sequence[str]) -> tuple[str, float]:
    """Wait for a random moment. Returns which of `MOMENTS`, and how many seconds starting takes, as far as is known."""
    begun, events = time.monotonic(), job.folder / "events.jsonl"

    def count(event: bytes) -> int:
        return events.read_bytes().count(b'"%s"' % event) if events.exists() else 0

    before = {event: count(event) for event in (b"compiled", b"ended")}

    def wait_for(event: bytes, patience: float) -> None:
        end = time.monotonic() + patience
        while time.monotonic() < end and count(event) == before[event] and all(p.poll() is None for p in job.processes):
            time.sleep(0.01)

    which = "training" if kind == "worker" else draw.choices(usable, [MOMENTS[each] for each in usable])[0]
    if which == "startup":
        while not job.hears():
            time.sleep(0.002)
        time.sleep(draw.random() * startup)
        return which, startup
    wait_for(b"compiled", HANG_SECONDS / 2)
    startup = time.monotonic() - begun
    if which == "teardown":
        wait_for(b"ended", HANG_SECONDS / 2)
        time.sleep(draw.random() * 0.6)
    else:
        time.sleep(draw.random() * STEPS * BATCH_SECONDS)
    return which, startup


class Soak:
    """Kills, and what was seen."""

    def __init__(self, kills: int, kinds: Sequence[str], moments: Sequence[str], seed: int, place: Path) -> None:
        self.kills, self.kinds, self.place, self.draw = kills, kinds, place, random.Random(seed)
        self.moments_used = moments
        self.temporary, self.shared = place / "temporary", shared_memory()
        self.temporary.mkdir()
        self.done, self.starts, self.begun = 0, 0, time.monotonic()
        self.codes: dict[str, Counter[int]] = {}
        self.moments: dict[str, Counter[str]] = {}
        self.expected: dict[str, Ended] = {}
        self.startup: dict[str, float] = {}

    def left_alone(self, scenario: tuple[str, int, int], name: str) -> list[str]:
        """Train without a kill, and remember what it came to; returns what was wrong."""
        at = time.monotonic()
        job = Job(scenario, self.place / name, self.temporary)
        codes = job.wait()
        if any(codes):
            return [f"exit codes {codes}: {tail(job.log)}"]
        # The first start compiles; those after it find the programs in the cache.
        self.expected[name], self.startup[name] = ended(self.place / name, STEPS), (time.monotonic() - at) / 3
        return left_over(job, self.temporary, self.shared)

    def chain(self, number: int, scenario: tuple[str, int, int], name: str, most: int) -> list[str]:
        """Start one run again and again, killing it at most so often, until it ends; returns what was wrong."""
        folder, own, wrong = self.place / f"chain-{number}", 0, list[str]()
        usable = [each for each in self.kinds if scenario[2] > 1 or each not in ("coordinator", "other process")]
        while True:
            self.starts += 1
            job, kind, which = Job(scenario, folder, self.temporary), "", ""
            if self.done < self.kills and own < most:
                kind = self.draw.choice(usable)
                which, self.startup[name] = moment(job, self.draw, self.startup[name], kind, self.moments_used)
                kind = kind if job.kill(kind, self.draw) else ""
            try:
                codes = job.wait()
            except TimeoutError as error:
                return [*wrong, f"{kind} ({which}): {error}"]
            left = left_over(job, self.temporary, self.shared)
            at = f"{kind or 'no kill'} ({which}), exit codes {codes}"
            wrong += [f"{at}: {each}" for each in left]
            if not set(codes) <= {0} | (CODES[kind] if kind else set()):
                wrong.append(f"{at}: {tail(job.log)}")
            if kind:
                self.done, own = self.done + 1, own + 1
                self.codes.setdefault(kind, Counter()).update(codes)
                self.moments.setdefault(kind, Counter())[which] += 1
                print(f"  {self.done}/{self.kills}  {at}  {time.monotonic() - self.begun:.0f} s", flush=True)
            if not any(codes):
                break
            if not kind:
                return [*wrong, f"does not end: {tail(job.log)}"]
        wrong += unlike(self.expected[name], ended(folder, STEPS))
        wrong += [f"the run folder holds {path.name}" for path in folder.iterdir() if path.name not in RUN_FILES]
        saved = [path.name for path in (folder / "checkpoints").iterdir()]
        return wrong + [f"checkpoints/ holds {each}" for each in saved if not each.isdecimal()]

    def table(self) -> str:
        """How often what was killed when, and the exit codes."""
        lines = [f"{self.done} kills, {self.starts} starts, {time.monotonic() - self.begun:.0f} s"]
        for kind, seen in sorted(self.codes.items()):
            codes = ", ".join(f"{code} × {times}" for code, times in sorted(seen.items()))
            when = ", ".join(f"{which} {self.moments[kind][which]}" for which in MOMENTS)
            lines.append(f"  {kind:20} {self.moments[kind].total():5}  {when:40} exit codes {codes}")
        return "\n".join(lines)


def soak(
    kills: int,
    kinds: Sequence[str],
    seed: int,
    place: Path,
    scenarios: Sequence[int] = (0, 1, 2),
    moments: Sequence[str] = tuple(MOMENTS),
) -> list[str]:
    """Do so many kills; prints a line a kill and a chain, and a table, and returns what was wrong.

    scenarios: indices of `SCENARIOS`, which take turns.
    """
    all_of_it, wrong, number = Soak(kills, kinds, moments, seed, place), list[str](), 0
    most = max(1, min(8, -(-kills // len(scenarios))))
    try:
        while all_of_it.done < kills:
            scenario, number = SCENARIOS[scenarios[number % len(scenarios)]], number + 1
            name = f"{scenario[0]}-{scenario[1]}-{scenario[2]}"
            if name not in all_of_it.expected and (found := all_of_it.left_alone(scenario, name)):
                wrong += [f"{name}, left alone: {each}" for each in found]
                break
            found = [f"chain {number} ({name}): {each}" for each in all_of_it.chain(number, scenario, name, most)]
            print(*(found or [f"chain {number} ({name}): ends as the run left alone"]), sep="\n", flush=True)
            wrong += found
    finally:
        print(f"\nseed {seed}, {number} chains, {all_of_it.table()}", flush=True)
    return wrong


def main() -> None:
    """Read the flags, and soak."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=list(CODES), default=list(CODES))
    parser.add_argument("--moments", nargs="+", choices=list(MOMENTS), default=list(MOMENTS))
    parser.add_argument("--scenarios", nargs="+", type=int, default=[0, 1, 2], help="alone, fsdp, two processes")
    parser.add_argument("--keep", action="store_true", help="keep the folders of the runs where something was wrong")
    flags = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="jaxtrain-soak-") as place, ending_all():
        wrong = soak(flags.kills, flags.kinds, flags.seed, Path(place), flags.scenarios, flags.moments)
        if wrong and flags.keep:
            print(f"kept: {shutil.copytree(place, f'{place}-kept', symlinks=True)}")
    print(*(wrong or ["nothing was lost, nothing is left, nothing hung"]), sep="\n")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()

"""Measures speed: `python scripts/bench_step.py [loop] [launch] [compile] [torch]`; all four by default.

Numbers that are compared come from interleaved rounds of one run. CPU seconds count what the process itself used, so
that they mean something on a machine that does other work too; wall seconds then do not.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from jaxtrain.data import Arrays, Pipeline
from jaxtrain.experiment import Experiment, Runtime
from jaxtrain.experiment.files import Origin, load
from jaxtrain.models import Blocks, Precision, Transformer
from jaxtrain.optimizers import AdamW, CosineDecay, Standard
from jaxtrain.program import Program
from jaxtrain.runs.journal import Journal, Metrics
from jaxtrain.tasks import LanguageModel
from jaxtrain.train import train

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxtrain"
TORCH = "2.13.0"
MATMULS = 10
Dtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Shape:
    """Of a small GPT and its batch."""

    layers: int = 4
    width: int = 256
    heads: int = 4
    length: int = 256
    batch: int = 4
    vocab: int = 256

    def experiment(self, dtype: Dtype = "float32", unroll: int = 1) -> Experiment:
        """A language model on random tokens."""
        blocks = Blocks(
            width=self.width, layers=self.layers, heads=self.heads, unroll=unroll, precision=Precision(compute=dtype)
        )
        tokens = np.random.default_rng(0).integers(self.vocab, size=(self.batch, self.length + 1), dtype=np.int32)
        return Experiment(
            task=LanguageModel(model=Transformer(vocab=self.vocab, blocks=blocks)),
            data=Pipeline(Arrays({"tokens": tokens}), batch_size=self.batch),
            optimizer=AdamW(schedule=CosineDecay(peak=1e-4), weight_decay=0.1),
            steps=1000,
        )

    @property
    def flops(self) -> float:
        """Floating-point operations a step: 6 a parameter and token, and the half of attention that is not masked."""
        hidden = -(-8 * self.width // 192) * 64
        parameters = self.vocab * self.width + self.layers * (4 * self.width**2 + 3 * self.width * hidden)
        tokens = self.batch * self.length
        return tokens * (6 * parameters + 6 * self.layers * self.length * self.width)


def ready(program: Program) -> tuple[Any, Any]:
    """A state and a batch on the device."""
    experiment = program.experiment
    return program.init(), next(program.batches(experiment.data))


def timed(steps: int, step: Callable[[], Any]) -> tuple[float, float]:
    """Wall and CPU seconds a step; the last step's result is waited for."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(steps):
        last = step()
    jax.block_until_ready(last)
    return (time.perf_counter() - wall) / steps, (time.process_time() - cpu) / steps


def stepper(program: Program) -> Callable[[], Any]:
    """Takes one more step each time it is called."""
    state, batch = ready(program)

    def step() -> Any:
        nonlocal state
        state, metrics = program.step(state, batch)
        return metrics

    return step


def training(experiment: Experiment, origin: Origin, skip: int) -> tuple[float, float]:
    """Wall and CPU seconds a step of `train`, read at each step's end, without the first `skip` steps."""
    marks: list[tuple[float, float]] = []

    class Marking(Journal):
        def trained(self, step: int, metrics: Metrics) -> None:
            super().trained(step, metrics)
            marks.append((time.perf_counter(), time.process_time()))

    with tempfile.TemporaryDirectory() as folder, mock.patch("jaxtrain.train.Journal", Marking):
        train(experiment, Path(folder) / "run", origin)
    (wall, cpu), (until, used) = marks[skip], marks[-1]
    return (until - wall) / (len(marks) - 1 - skip), (used - cpu) / (len(marks) - 1 - skip)


def loop() -> None:
    """`train` beside a bare loop over the same step with its batch on the device, and what a step costs the host."""
    print("seconds a step, wall (cpu)      train            bare   bare/train, wall (cpu): target ≥ 0.98, wall")
    for name, file, size, steps in (("digits", "digits.py:transformer", 128, 150), ("char_lm", "char_lm.py", 4, 40)):
        experiment, origin = load(str(ROOT / "experiments" / file))
        experiment = replace(experiment, data=replace(experiment.data, batch_size=size), evals={}, steps=steps)
        optimizer = experiment.optimizer
        assert isinstance(optimizer, Standard)
        optimizer = replace(optimizer, schedule=replace(optimizer.schedule, warmup=0))
        experiment = replace(experiment, optimizer=optimizer)
        experiment = replace(experiment, runtime=Runtime(log_every=steps // 5, save_every=10**9, eval_every=10**9))
        bare = stepper(Program(experiment))
        timed(3, bare)
        pairs = [(training(experiment, origin, steps // 5), timed(steps // 2, bare)) for _ in range(5)]
        ours, theirs = (tuple(map(statistics.median, zip(*side, strict=True))) for side in zip(*pairs, strict=True))
        wall, cpu = (statistics.median(b[i] / a[i] for a, b in pairs) for i in (0, 1))
        print(
            f"{name:22} {ours[0]:9.3f} ({ours[1]:.3f}) {theirs[0]:7.3f} ({theirs[1]:.3f}) {wall:9.2f} ({cpu:.2f})",
            flush=True,
        )

    for name, shape in (("tiny", Shape(12, 32, 2, 16, 2)), ("0.1 s of device time", Shape(12, 128, 4, 64, 8))):
        step, spent = stepper(Program(shape.experiment())), []
        for _ in range(100):
            before = time.perf_counter()
            metrics = step()
            spent.append(time.perf_counter() - before)
            jax.block_until_ready(metrics)
        print(
            f"host time of a 12-layer step, {name}: {statistics.median(spent) * 1e3:.2f} ms, least {min(spent) * 1e3:.2f} (target ≤ 0.4)"
        )


def launch() -> None:
    """From the command to the first finished step, and what importing costs."""
    command = [sys.executable, "-m", "jaxtrain", "train", "experiments/sentiment.py"]
    print("launch of experiments/sentiment.py to its first finished step, wall seconds")
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": f"{folder}/programs"}
        environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
        for name in ("cold", "warm", "warm", "warm"):
            run = Path(folder) / f"run-{time.time()}"
            flags = ["--run", str(run), "--log-every", "1", "--steps", "100"]
            began = time.perf_counter()
            process = subprocess.Popen(
                command + flags, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            while process.poll() is None and not _has_lines(run / "metrics.jsonl"):
                time.sleep(0.01)
            print(f"  {name:6} {time.perf_counter() - began:6.2f}")
            process.kill()
            process.wait()
    ours, bare = [], []
    for _ in range(5):
        for code, spent in (("import jaxtrain", ours), ("import jax, flax.nnx", bare)):
            before = os.times()
            subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
            after = os.times()
            spent.append(after.children_user + after.children_system - before.children_user - before.children_system)
    a, b = min(ours), min(bare)
    print(f"import jaxtrain {a:.2f} CPU seconds, import jax, flax.nnx {b:.2f}: {a / b:.2f} (target ≤ 1.2)")


def _has_lines(file: Path) -> bool:
    return file.is_file() and file.stat().st_size > 0


def compiling() -> None:
    """Trace, lower and compile a step of 48 layers and of 6, with no cache."""
    jax.config.update("jax_enable_compilation_cache", False)
    spent: dict[int, list[float]] = {2: [], 6: [], 48: []}
    for layers in (2, 6, 48, 6, 48, 6, 48):
        jax.clear_caches()
        experiment = Shape(layers, 64, 4, 64, 4).experiment()
        before = time.process_time()
        Program(experiment).lower().compile()
        spent[layers].append(time.process_time() - before)
    few, many = min(spent[6]), min(spent[48])
    print(f"compile, CPU seconds: 6 layers {few:.2f}, 48 layers {many:.2f}: {many / few:.2f} (target ≤ 1.3)")


class Worker:
    """Another process that takes steps when told to."""

    def __init__(self, command: Sequence[str]) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        self.answer()

    def answer(self) -> list[str]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.process.args} ended")
        return line.split()

    def take(self, steps: int) -> tuple[float, float]:
        """Wall and CPU seconds a step; 0 is a matmul."""
        assert self.process.stdin
        print(steps, file=self.process.stdin, flush=True)
        wall, cpu = map(float, self.answer())
        return wall, cpu


def torch_python() -> str:
    """The interpreter of an environment that has torch, made at the first call."""
    folder = CACHE / f"torch-{TORCH}"
    if not (folder / "done").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([folder / "bin" / "pip", "install", "-q", f"torch=={TORCH}", "numpy"], check=True)
        (folder / "done").touch()
    return str(folder / "bin" / "python")


def beside_torch(rounds: int = 5, steps: int = 1) -> None:
    """The same small GPT here and in PyTorch."""
    shape = Shape()
    sizes = [str(size) for size in vars(shape).values()]
    peer = [torch_python(), "scripts/bench_torch.py"]
    here = [sys.executable, "scripts/bench_step.py", "worker"]
    workers = {
        (who, dtype): Worker([*here, dtype] if who == "jaxtrain" else [*peer, who.split()[1], dtype, *sizes])
        for dtype in get_args(Dtype)
        for who in ("jaxtrain", "torch eager", "torch compile")
    }
    spent = {name: [] for name in workers}
    matmuls = {name: [] for name in workers}
    for _ in range(rounds):
        for name, worker in workers.items():
            spent[name].append(worker.take(steps))
            matmuls[name].append(worker.take(0))
    tokens = shape.batch * shape.length
    print(f"{shape}: {shape.flops / 1e9:.0f} GFLOP, {tokens} tokens a step; medians of {rounds} rounds of {steps}")
    print(
        f"{'':24} wall s/step  cpu s/step  tokens/s  GFLOP/cpu-s  of the matmul ceiling (GFLOP/cpu-s)  vs torch (cpu)"
    )
    for (who, dtype), times in spent.items():
        wall, cpu = (statistics.median(column) for column in zip(*times, strict=True))
        # The ceiling of the machine is the better of the two libraries' matmuls.
        ceiling = max(
            _matmul_flops(shape) / min(t[1] for t in matmuls[x, dtype]) / 1e9 for x, d in workers if d == dtype
        )
        best = min(statistics.median(t[1] for t in spent[x, dtype]) for x in ("torch eager", "torch compile"))
        rate = shape.flops / cpu / 1e9
        print(
            f"{who:14} {dtype:9} {wall:11.3f} {cpu:11.3f} {tokens / wall:9.0f} {rate:12.1f}"
            f" {rate / ceiling:12.0%} ({ceiling:.0f}) {best / cpu:24.2f}"
        )
    for worker in workers.values():
        worker.process.kill()


def _matmul_flops(shape: Shape) -> float:
    return 2 * shape.batch * shape.length * shape.width * 4 * shape.width


def worker(dtype: Dtype) -> None:
    """Answers as `bench_torch.py` does."""
    shape = Shape()
    step = stepper(Program(shape.experiment(dtype, unroll=shape.layers)))
    keys = jax.random.split(jax.random.key(0))
    x = jax.random.normal(keys[0], (shape.batch * shape.length, shape.width), dtype)
    w = jax.random.normal(keys[1], (shape.width, 4 * shape.width), dtype)
    product = jax.jit(lambda x, w: jnp.dot(x, w, preferred_element_type=jnp.float32))

    def matmul() -> jax.Array:
        return product(x, w)

    timed(2, step)
    timed(2, matmul)
    print("ready", flush=True)
    for line in sys.stdin:
        count = int(line)
        print(*timed(count, step) if count else timed(MATMULS, matmul), flush=True)


SECTIONS = {"loop": loop, "launch": launch, "compile": compiling, "torch": beside_torch}

if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        worker("bfloat16" if sys.argv[2] == "bfloat16" else "float32")
    else:
        for section in sys.argv[1:] or SECTIONS:
            SECTIONS[section]()

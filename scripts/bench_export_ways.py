"""The ways of computing a bundle that bench_export.py compares: how each is started, and how it is asked for times."""

import contextlib
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from jaxtrain.base.cache import cache
from jaxtrain.base.errors import ConfigError
from jaxtrain.deploy.client.web import write_web

ROOT = Path(__file__).resolve().parent.parent
MODULE = ROOT / "jaxtrain" / "deploy" / "client" / "module"
NODE = "1.30.0"

HAND, DEFAULTS, BUNDLE = "ONNX Runtime by hand", "ONNX Runtime by hand, its defaults", "ONNX Runtime, `Bundle`"


Times = tuple[float, float, float | None]
"""The least and the median seconds of a call, and its CPU seconds where they are known."""


class Missing(Exception):
    """Why a way cannot be measured here."""


@dataclass(frozen=True)
class Model:
    """A bundle, the run that it is of, and rows for it as tensors."""

    name: str
    bundle: Path
    run: Path
    rows: Path

    def bytes_of(self, *files: str) -> int:
        return sum((self.bundle / name).stat().st_size for name in files)


@dataclass
class Running:
    """A way that has given its first answer."""

    load: float
    cpu: float
    """Seconds of CPU until then."""
    memory: float
    take: Callable[[int, float], Times]
    parts: dict[str, float] = field(default_factory=dict)


Start = Callable[[Model, contextlib.ExitStack], Running]


@dataclass(frozen=True)
class Way:
    """How a bundle is computed: how it starts, which files it needs, and how."""

    name: str
    start: Start
    files: tuple[str, ...]
    compiled: bool = False
    """By jax: its second start finds compiled programs."""
    raw: bool = False
    """Whether it is measured from a raw input too."""
    batches: bool = True


def memory_of(process: int) -> float:
    """The most megabytes of a process that were resident; 0 where it has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1e3
    return 0.0


def cpu_of(process: int) -> float:
    """The CPU seconds of a process; 0 where it has ended."""
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, words[11:13])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def children(process: int) -> list[int]:
    """A process and all below it."""
    found = [process]
    for each in Path(f"/proc/{process}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [deeper for child in each.read_text().split() for deeper in children(int(child))]
    return found


def piped(command: Sequence[object], stack: contextlib.ExitStack) -> Running:
    """A process that answers lines "rows seconds"."""
    start = time.perf_counter()
    process = stack.enter_context(
        subprocess.Popen([*map(str, command)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    )
    stack.callback(process.kill)
    asked, answers = process.stdin, process.stdout
    assert asked is not None
    assert answers is not None

    def answer() -> Any:
        if not (line := answers.readline()):
            raise Missing(f"it ended with code {process.wait()}")
        return json.loads(line)

    parts = answer()
    load = time.perf_counter() - start

    def take(rows: int, seconds: float) -> Times:
        print(rows, seconds, file=asked, flush=True)
        least, median, spent = answer()
        return least, median, spent

    return Running(load, cpu_of(process.pid), memory_of(process.pid), take, parts)


def python(way: str, model: Model, stack: contextlib.ExitStack) -> Running:
    """One of the ways of bench_export_worker.py."""
    script = ROOT / "scripts" / "bench_export_worker.py"
    return piped([sys.executable, script, way, model.bundle, model.run, model.rows], stack)


def node(model: Model, stack: contextlib.ExitStack) -> Running:
    """The JavaScript module with onnxruntime-node, which is installed into the cache once."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            raise Missing(f"{program} is not installed")
    folder = cache("node") / f"onnxruntime-node-{NODE}"
    if not (folder / "node_modules").is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        command = ["npm", "install", "--ignore-scripts", "--no-save", "--prefix", folder, f"onnxruntime-node@{NODE}"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            shutil.rmtree(folder)
            raise Missing(f"npm cannot install onnxruntime-node: {done.stderr.strip().splitlines()[-1]}")
    script = ROOT / "scripts" / "bench_export.mjs"
    return piped(["node", script, MODULE, folder, model.bundle], stack)


def chromium(model: Model, stack: contextlib.ExitStack) -> Running:
    """The same module with ONNX Runtime's WebAssembly in a tab. Its load begins when the address is opened."""
    sys.path.insert(0, str(ROOT / "tests"))
    browser = importlib.import_module("browser")  # that of the tests

    if not browser.CHROMIUM:
        raise Missing("Chromium is not installed")
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    try:
        site = write_web(model.bundle, folder / "site")
    except ConfigError as error:
        raise Missing(str(error)) from error
    shutil.copy(ROOT / "scripts" / "bench_export.mjs", site / "bench.js")
    (site / "bench.html").write_text("<!doctype html><title>bench</title>")
    before = set(children(os.getpid()))
    tab = stack.enter_context(browser.page(browser.Site(site), folder / "profile"))
    processes = set(children(os.getpid())) - before
    start, cpu = time.perf_counter(), sum(map(cpu_of, processes))
    tab.open("http://localhost:8000/bench.html")
    tab.wait("document.title === 'bench'")
    tab.run("""(async () => {
        const ort = await import("./ort/ort.wasm.js");
        ort.env.wasm.numThreads = 1;
        ort.env.wasm.wasmBinary = await (await fetch("ort/ort.wasm")).arrayBuffer();
        const { Bundle } = await import("./client/index.js");
        globalThis.bench = await import("./bench.js");
        globalThis.bundle = await bench.loaded(Bundle, ort, "model");
    })()""")
    load = time.perf_counter() - start
    processes = set(children(os.getpid())) - before
    cpu, memory = sum(map(cpu_of, processes)) - cpu, max(map(memory_of, processes))

    def take(rows: int, seconds: float) -> Times:
        least, median, _ = tab.run(f"bench.timed(bundle, {rows}, {seconds})")
        return least, median, None

    return Running(load, cpu, memory, take)


def cpp(model: Model, stack: contextlib.ExitStack) -> Running:
    """The program of scripts/cpp, which times one golden example. Its load is that of all of them."""
    built = subprocess.run([ROOT / "scripts" / "cpp" / "build"], capture_output=True, text=True)
    if built.returncode:
        raise Missing(f"scripts/cpp/build fails: {(built.stderr.strip() or 'no reason given').splitlines()[-1]}")
    program, cpu, memory, start = built.stdout.strip().splitlines()[-1], 0.0, 0.0, time.perf_counter()
    process = subprocess.Popen([program, model.bundle, "--golden"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while process.poll() is None:
        cpu, memory = max(cpu, cpu_of(process.pid)), max(memory, memory_of(process.pid))
        time.sleep(0.002)
    load, said = time.perf_counter() - start, process.stdout.read().decode() if process.stdout else ""
    if process.returncode:
        raise Missing(f"its golden examples fail: {(said.strip() or '?').splitlines()[-1]}")

    def take(rows: int, seconds: float) -> Times:
        done = subprocess.run([program, model.bundle, "--time"], capture_output=True, text=True, check=True)
        words = done.stdout.replace(",", " ").split()
        least, median = (float(words[words.index(name) + 1]) / 1e3 for name in ("best", "median"))
        return least, median, None

    return Running(load, cpu, memory, take)


WAYS = (
    Way("live model, jit", partial(python, "jit"), (), compiled=True),
    Way("StableHLO, `Bundle`", partial(python, "stablehlo"), ("model.stablehlo", "weights.safetensors"), True, True),
    Way(DEFAULTS, partial(python, "hand, defaults"), ("model.onnx",)),
    Way(HAND, partial(python, "hand"), ("model.onnx",)),
    Way(BUNDLE, partial(python, "onnx"), ("model.onnx",), raw=True),
    Way("the same, int8", partial(python, "int8"), ("model.int8.onnx",), raw=True),
    Way("Node, onnxruntime-node", node, ("model.onnx",)),
    Way("Chromium, WebAssembly", chromium, ("model.onnx",)),
    Way("C++, ONNX Runtime", cpp, ("model.onnx",), batches=False),
)

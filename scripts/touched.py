"""Adds a parallelism, a model, a dataset and a metric to a copy of the repository, trains each, and counts the files.

What is added lies in `scripts/additions/KIND/`, as it would lie in the repository. An addition that does not train
through the command line, to the numbers that it must have, is an error, so a count can not be of what does not work.
"""

import filecmp
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ADDITIONS = Path(__file__).resolve().parent / "additions"
DEVICES = 4

Line = dict[str, Any]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxtrain" / "test-programs"


def environment(devices: int = DEVICES) -> dict[str, str]:
    """The environment of a process with so many simulated devices."""
    known = {"JAX_COMPILATION_CACHE_DIR": str(CACHE), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1"}
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    return {**known, **os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}


def touched(before: Path, after: Path) -> list[str]:
    """The files of one tree that another lacks or has otherwise, by their paths; compiled Python left out."""
    files = [file.relative_to(after) for file in after.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    same = {file for file in files if (before / file).is_file() and filecmp.cmp(before / file, after / file, False)}
    return sorted(str(file) for file in files if file not in same)


def run(arguments: list[str], folder: Path, environment: dict[str, str]) -> str:
    """What a Python program prints. Raises RuntimeError with the end of its output where it fails."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed with {done.returncode}:\n{done.stdout}{done.stderr[-2000:]}")
    return done.stdout


def _trained(tree: Path, function: str = "added") -> list[Line]:
    """The lines of metrics.jsonl of a training run of `experiments/added.py:FUNCTION` in a tree."""
    here = {**environment(), "PYTHONPATH": str(tree)}
    folder = tree.parent / f"run-{function}"
    run(["-m", "jaxtrain", "train", f"experiments/added.py:{function}", "--run", str(folder)], tree, here)
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def _evaluated(tree: Path, *flags: str) -> None:
    here = {**environment(), "PYTHONPATH": str(tree)}
    out = run(["-m", "jaxtrain", "evaluate", str(tree.parent / "run-added"), *flags], tree, here)
    if not out.startswith("validation ") or " loss " not in out:
        raise RuntimeError(f"jaxtrain evaluate printed {out!r}")


def _losses(lines: list[Line], split: str = "train") -> list[float]:
    found = [line["loss"] for line in lines if line["split"] == split]
    if not found or not all(isinstance(loss, float) and math.isfinite(loss) for loss in found):
        raise RuntimeError(f"losses of {split}: {found}")
    return found


def parallelism(tree: Path) -> None:
    """The grid trains to the losses of one device."""
    one, grid = (_losses(_trained(tree, function)) for function in ("main", "added"))
    if not all(math.isclose(a, b, rel_tol=1e-4) for a, b in zip(one, grid, strict=True)):
        raise RuntimeError(f"one device has the losses {one}, the grid {grid}")


def model(tree: Path) -> None:
    """The perceptron trains, its run is evaluated by the name that it was saved by, and `verify` needs no more of it."""
    _losses(_trained(tree))
    here = {**environment(), "PYTHONPATH": str(tree)}
    run(["-m", "jaxtrain", "verify", "experiments/added.py", "--devices", "2", "--meshes", "fsdp 2"], tree, here)
    _evaluated(tree, "--code", "experiments/added.py")  # the data, not the model: arrays in memory are not saved


def dataset(tree: Path) -> None:
    """The squares are trained on and evaluated, and read again from the run folder alone."""
    _losses(_trained(tree))
    _evaluated(tree)


def metric(tree: Path) -> None:
    """Bits are the loss over ln 2, in training and in evaluation."""
    for line in _trained(tree):
        if not math.isclose(line["bits"] * math.log(2), line["loss"], rel_tol=1e-5):
            raise RuntimeError(f"bits are not the loss in bits: {line}")


KINDS: dict[str, Callable[[Path], None]] = {
    "parallelism": parallelism,
    "model": model,
    "dataset": dataset,
    "metric": metric,
}


def add(kind: str, folder: Path) -> tuple[list[str], list[str]]:
    """Files touched within the package and outside of it when one of `KINDS` is added in a copy in `folder`.

    Raises RuntimeError where what was added does not work.
    """
    before, after = folder / "before", folder / "after"
    for name in ("jaxtrain", "experiments"):
        for tree in (before, after):
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "*.ipynb"))
    shutil.copytree(ADDITIONS / kind, after, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    KINDS[kind](after)
    files = touched(before, after)
    inside = [file for file in files if file.startswith("jaxtrain/")]
    return inside, [file for file in files if file not in inside]

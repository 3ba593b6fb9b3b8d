"""Law: a module imports only from rooms above it. Also the caps of rooms; `scripts/measure.py` holds them, and more."""

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import pytest
from source_counts import code_lines_by_entry

from jaxtrain.models import Blocks, Precision, Transformer
from jaxtrain.sharding.layout import plain

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "jaxtrain"

ROOMS = {
    "base": (
        "errors",
        "text",
        "display",
        "ranges",
        "allowed",
        "files",
        "checksums",
        "registry",
        "config",
        "cache",
        "tracebacks",
        "packages",
        "provenance",
        "lazy",
        "flops",
        "hardware",
        "threads",
        "tensors",
        "lines",
    ),
    "sharding": ("layout", "constraints", "checksum", "feed", "stages"),
    "models": (
        "notes",
        "variables",
        "params",
        "checks",
        "sizes",
        "base",
        "stages",
        "batch_norm",
        "rope",
        "layers",
        "ngrams",
        "suffixes",
        "ring",
        "attention",
        "experts",
        "kv_cache",
        "transformer",
        "bert",
        "vit",
        "recurrent",
        "naive_bayes",
        "resnet",
        "lora",
        "huggingface/architectures",
        "huggingface/reading",
        "huggingface/writing",
    ),
    "tasks": (
        "metrics",
        "classification_metrics",
        "host_metrics",
        "base",
        "checks",
        "supervised",
        "classification",
        "regression",
        "language",
    ),
    "optimizers": ("state", "standard", "guarded", "groups", "recorded"),
    "data": (
        "sources/kept",
        "sources/paths",
        "sources/pixels",
        "sources/base",
        "sources/contents",
        "sources/offsets",
        "sources/images",
        "transforms",
        "sources/arrays",
        "sources/array_record",
        "sources",
        "tokens/tokenizers",
        "tokens/files",
        "tokens/packing",
        "ahead",
        "workers",
        "reading",
        "stack",
        "pipeline",
        "bucketed",
        "remembered",
    ),
    "datasets": (
        "bundled",
        "histogram",
        "fields",
        "schema",
        "card",
        "filters",
        "formats",
        "source",
        "spec",
        "report",
        "build",
        "check",
    ),
    "experiment": (
        "saved",
        "start",
        "observers",
        "experiment",
        "override",
        "prune",
        "origins",
        "run_file",
        "files",
        "fit",
        "validate",
        "verified",
    ),
    "step": (),
    "program": (),
    "cluster": ("stop", "environment", "facts", "watchdog", "connection", "server", "rendezvous", "processes"),
    "runs": (
        "clock",
        "retention",
        "json_lines",
        "watcher",
        "heartbeat",
        "view",
        "screen",
        "console",
        "metrics_log",
        "steps_log",
        "owner",
        "sessions",
        "frame",
        "rows",
        "row_ids",
        "row_sums",
        "trackers",
        "tensorboard",
        "profiler",
        "recorder",
        "observers",
        "utilization",
        "skipped",
        "journal",
        "shards",
        "leaves",
        "health",
        "saving",
        "bucket",
        "mirror",
        "upkeep",
        "checkpoints",
        "start",
        "folder",
        "lock",
        "begin",
        "row_pass",
    ),
    "evaluate": (),
    "generation": ("sampling", "decoder", "functions", "text", "run"),
    "deploy": (
        "values",
        "inputs",
        "numeric",
        "generation",
        "signature",
        "onnx/environment",
        "onnx/runtime",
        "onnx/int8",
        "triton",
        "kserve",
        "manifest",
        "golden",
        "greedy",
        "reference",
        "batch_curve",
        "client/runtime",
        "client/web",
        "stablehlo",
        "bundle",
        "batch_job",
        "command_line",
        "raw",
        "predictor",
        "onnx/conversion",
        "onnx/operations",
        "onnx/rewrite",
        "onnx/portable",
        "onnx/convert",
        "continuation",
        "lowering",
        "examples",
        "language",
        "evaluation",
        "card",
        "export",
    ),
    "train": (),
    "analysis": (
        "hlo",
        "describe",
        "textbook",
        "explain",
        "memory",
        "shrink",
        "judge",
        "verify",
        "outcome",
        "verify_resume",
        "databench",
        "replay",
    ),
    "reports": (
        "student",
        "statistics",
        "tail",
        "find",
        "status",
        "listing",
        "watch",
        "time_account",
        "lineage",
        "page",
        "html",
        "parts",
        "pictures",
        "paired",
        "compare",
        "report",
        "sweep",
        "notebook",
    ),
    "launch": ("job", "slurm", "tpu", "kubernetes", "local", "sweep"),
    "cli": (
        "first",
        "memory",
        "failures",
        "terminal",
        "verbs",
        "rules",
        "flags",
        "train",
        "checkpoints",
        "data",
        "launch",
        "replay",
        "deploy",
        "generate",
        "sweep",
        "runs",
        "compare",
        "report",
        "lineage",
        "main",
    ),
}
"""Rooms from the ground up, and the order of files within each: a module imports only from those before it. Where a
folder stands for its files, these are not ordered; files that are not named come at the place of their folder.
"""

CODE_LINES = {
    "base": 1260,
    "sharding": 355,
    "models": 2335,
    "tasks": 770,
    "optimizers": 540,
    "data": 3275,
    "datasets": 1610,
    "experiment": 1230,
    "step": 140,
    "program": 225,
    "cluster": 980,
    "runs": 4200,
    "evaluate": 175,
    "generation": 390,
    "train": 80,
    "analysis": 2880,
    "reports": 5900,
    "deploy": 3420,
    "launch": 1170,
    "cli": 1320,
}
"""The most lines of code (without blank lines, comments and docstrings) that a room may have: 32,255 for all of them,
with the rooms that are planned.
"""

DOORS = {"__init__", "__main__"}
"""Where users come in; these see every room."""

LATE = {
    "grain": {"data/reading.py"},
    "orbax": {"runs/checkpoints.py"},
    "tensorflow_datasets": {"data/sources/tfds.py"},
    "tensorboardX": {"runs/tensorboard.py"},
    "ftfy": {"datasets/filters/text.py"},
    "datasketch": {"datasets/filters/near.py"},
    "py3langid": {"datasets/filters/text.py"},
    "mlcroissant": {"datasets/report.py"},
    "rich": {"runs/view.py"},
    "jax2onnx": {"deploy/onnx/convert.py", "deploy/onnx/operations.py"},
    "onnxruntime": {"deploy/onnx/runtime.py", "deploy/onnx/int8.py"},
    "wandb": {"runs/trackers/wandb_process.py"},
    "matplotlib": {"datasets/report.py", "analysis/databench/draw.py"},
}
"""Libraries that are slow to import, and the module that may."""

FILES = sorted(PACKAGE.rglob("*.py"))


@functools.cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


@functools.cache
def imports(file: Path) -> tuple[str, ...]:
    return tuple(imported(file))


def imported(file: Path) -> Iterator[str]:
    """The full name of every module that a file imports, inside functions too."""
    for node in ast.walk(parsed(file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield node.module or ""


def place(file: Path) -> tuple[int, int] | None:
    """Room and place within it; None for a door."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    if parts[-1] in DOORS:
        return None
    assert parts[0] in ROOMS, f"{parts[0]} has no place in ROOMS yet"
    inside = ROOMS[parts[0]]
    names = ["/".join(parts[1:end]) for end in range(len(parts), 1, -1)]
    found = next((inside.index(name) for name in names if name in inside), None)
    assert found is not None or not inside, f"{'/'.join(parts)} has no place within its room yet"
    return list(ROOMS).index(parts[0]), found or 0


def file_of(module: str) -> Path | None:
    """The file of a module of the package; None for a package's door."""
    path = ROOT / Path(*module.split("."))
    return path.with_suffix(".py") if path.with_suffix(".py").is_file() else None


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_module_imports_only_from_those_before_it(file: Path):
    here = place(file)
    if here is None:
        return
    for name in imports(file):
        if name.split(".")[0] != "jaxtrain":
            continue
        other = file_of(name)
        if other is None and name.count(".") > 1:  # the door of a folder in a room: it stands where its files do
            other = ROOT.joinpath(*name.split("."), "door.py")
        if other is None:  # a door of a room: it must be a room before this one
            assert list(ROOMS).index(name.split(".")[1]) < here[0], f"{file.name} must not know {name}"
        else:
            assert (place(other) or here) <= here, f"{file.relative_to(PACKAGE)} must not know {name}"


def test_the_test_above_sees_a_module_that_imports_from_a_later_one(monkeypatch: pytest.MonkeyPatch):
    reversed_rooms = {name: inside[::-1] for name, inside in reversed(ROOMS.items())}
    monkeypatch.setattr("test_rooms.ROOMS", reversed_rooms)
    with pytest.raises(AssertionError, match="must not know"):
        test_a_module_imports_only_from_those_before_it(PACKAGE / "train.py")
    with pytest.raises(AssertionError, match="must not know"):
        test_a_module_imports_only_from_those_before_it(PACKAGE / "sharding" / "constraints.py")


def test_there_are_at_most_twenty_entries_at_the_top():
    entries = [
        path
        for path in PACKAGE.iterdir()
        if path.name not in ("__pycache__", "__init__.py", "__init__.pyi", "__main__.py", "py.typed")
    ]
    assert len(entries) <= 20


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_file_has_at_most_three_hundred_lines(file: Path):
    lines = len(file.read_text().splitlines())
    assert lines <= 300


def test_no_room_has_more_lines_of_code_than_its_cap():
    found = code_lines_by_entry(PACKAGE)
    assert found.keys() <= CODE_LINES.keys()
    assert {room: lines for room, lines in found.items() if lines > CODE_LINES[room]} == {}
    assert sum(CODE_LINES.values()) <= 32_255


def public(name: str) -> bool:
    return not name.startswith("_")


def test_no_module_imports_a_private_name_of_another():
    found = [
        f"{file.relative_to(PACKAGE)}: {node.module}.{alias.name}"
        for file in FILES
        for node in ast.walk(parsed(file))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jaxtrain")
        for alias in node.names
        if not public(alias.name)
    ]
    assert found == []


def test_every_public_method_has_a_docstring_unless_it_overrides_one():
    classes = {node.name: node for file in FILES for node in ast.walk(parsed(file)) if isinstance(node, ast.ClassDef)}

    def described(owner: str, method: str) -> bool:
        """Whether a class or one of its bases describes a method; bases from elsewhere are trusted to."""
        if owner not in classes:
            return True
        found = next((node for node in methods(classes[owner]) if node.name == method), None)
        if found is not None and ast.get_docstring(found):
            return True
        bases = [
            base.attr if isinstance(base, ast.Attribute) else getattr(base, "id", "") for base in classes[owner].bases
        ]
        return any(described(base, method) for base in bases if base not in ("ABC", "Protocol", "Generic", ""))

    missing = [
        f"{name}.{method.name}"
        for name, node in classes.items()
        for method in methods(node)
        if public(name) and public(method.name) and not described(name, method.name)
    ]
    assert missing == []


def methods(node: ast.ClassDef) -> list[ast.FunctionDef]:
    return [each for each in node.body if isinstance(each, ast.FunctionDef)]


@pytest.mark.parametrize("library", LATE)
def test_a_slow_library_is_imported_in_one_module_only(library: str):
    users = {
        str(file.relative_to(PACKAGE)) for file in FILES if any(name.split(".")[0] == library for name in imports(file))
    }
    assert users == LATE[library]


def test_importing_jaxtrain_imports_no_library_that_is_slow():
    code = f"import sys, jaxtrain; print(*({set(LATE) | {'sklearn', 'PIL', 'tensorflow'}} & sys.modules.keys()))"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.split() == []


@pytest.mark.slow
def test_tied_embeddings_train_in_bf16_on_a_cpu():
    def gradient(compute: Literal["float32", "bfloat16"]) -> jax.Array:
        blocks = Blocks(width=32, layers=1, heads=2, precision=Precision(compute=compute))
        model, ids = Transformer(vocab=64, blocks=blocks), jnp.arange(32).reshape(2, 16)
        variables = plain(model.init(jax.random.key(0), ids))
        grads = jax.jit(jax.grad(lambda variables: jnp.square(model.apply(variables, ids)[0]).sum()))(variables)
        return grads.params["embedding"]["table"]

    exact, rough = gradient("float32"), gradient("bfloat16")
    assert 0 < float(jnp.linalg.norm(exact - rough) / jnp.linalg.norm(exact)) < 0.02

"""The rooms of the package, what may be imported where, and the yardstick's numbers."""

import ast
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import pytest

from jaxtrain.models import Blocks, Precision, Transformer
from jaxtrain.sharding.layout import plain

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "jaxtrain"

ROOMS = (
    "errors",
    "places",
    "values",
    "launchers",
    "meeting",
    "cluster",
    "layout",
    "metrics",
    "models",
    "tasks",
    "optimizers",
    "data",
    "experiment",
    "fitting",
    "loading",
    "step",
    "collectives",
    "runs",
    "evaluate",
    "explain",
    "launch",
    "verify",
    "databench",
    "train",
    "data_cli",
    "launch_cli",
    "cli",
)
"""From the ground up: a module imports from its own room and those before it."""

DOORS = {"__init__", "__main__"}
"""Where users come in; these see every room."""

LATE = {
    "grain": {"data/reading.py"},
    "orbax": {"runs/checkpoints.py"},
    "tensorflow_datasets": {"data/sources.py"},
    "tensorboardX": {"runs/record.py"},
    "ftfy": {"data/filters.py"},
    "datasketch": {"data/filters.py"},
    "py3langid": {"data/filters.py"},
    "mlcroissant": {"data/showing.py"},
    "matplotlib": {"data/showing.py", "databench.py"},
}
"""Libraries that are slow to import, and the module that may."""

FILES = sorted(PACKAGE.rglob("*.py"))


def imports(file: Path) -> Iterator[str]:
    """The full name of every module that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield node.module or ""


def room(name: str) -> str:
    """`data` for `jaxtrain.data.pipeline`."""
    return [*name.split("."), "__init__"][1]


def name_of(file: Path) -> str:
    """`jaxtrain.data.pipeline` for its file."""
    return ".".join(file.relative_to(ROOT).with_suffix("").parts)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_module_imports_only_from_its_own_room_and_those_below_it(file: Path):
    here = room(name_of(file))
    if here in DOORS:
        return
    assert here in ROOMS, f"{here} has no place in ROOMS yet"
    allowed = ROOMS[: ROOMS.index(here) + 1]
    used = {room(name) for name in imports(file) if name.split(".")[0] == "jaxtrain"}
    assert used <= set(allowed), f"{name_of(file)} must not know {sorted(used - set(allowed))}"


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


MEASURE = runpy.run_path(str(ROOT / "scripts" / "measure.py"))
ROWS = [row for row in MEASURE["rows"]() if row.met is not None]

EXAMPLE = '''
def f(x):
    """Two
    lines."""
    for y in x:
        if y:
            return 1 if x else 2
'''


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.question)
def test_the_code_meets_its_yardstick(row: Any):
    assert row.met, f"{row.question}: {row.found}, not {row.target}"


def test_the_yardstick_counts_lines_without_docstring_and_every_branch(tmp_path: Path):
    (tmp_path / "example.py").write_text(EXAMPLE)
    function = MEASURE["functions"](tmp_path / "example.py")["f"]
    assert MEASURE["lines"](function) == 4
    assert MEASURE["branches"](function) == 3


def test_tied_embeddings_train_in_bf16_on_a_cpu():
    def gradient(compute: Literal["float32", "bfloat16"]) -> jax.Array:
        blocks = Blocks(width=32, layers=1, heads=2, precision=Precision(compute=compute))
        model, ids = Transformer(vocab=64, blocks=blocks), jnp.arange(32).reshape(2, 16)
        params = plain(model.init(jax.random.key(0), ids))
        return jax.jit(jax.grad(lambda params: jnp.square(model.apply(params, ids)).sum()))(params)["embedding"][
            "table"
        ]

    exact, rough = gradient("float32"), gradient("bfloat16")
    assert 0 < float(jnp.linalg.norm(exact - rough) / jnp.linalg.norm(exact)) < 0.02

"""Law: a refactoring changes no number, no sharding and no saved name. What holds is written down in tests/goldens.

`pytest tests/test_goldens.py -m "slow or not slow" --update-goldens` writes it anew, for a change that is meant.
"""

import hashlib
import json
import os
import platform
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxtrain import Experiment, Layout, Program, load
from jaxtrain.base.registry import RENAMED, own_kinds
from jaxtrain.datasets import Dataset, build
from jaxtrain.experiment.files import functions, load_code, load_kind
from jaxtrain.program import Batches, abstract_state
from jaxtrain.sharding.layout import path_name

ROOT = Path(__file__).parent.parent
GOLDENS = Path(__file__).parent / "goldens" / "losses.json"
STEPS = 3
ALL = {"data": 2, "fsdp": 2, "tensor": 2}
TWO = {"data": 4, "tensor": 2}  # for models whose arrays have no dim that fsdp splits
CASES: dict[str, tuple[str, dict[str, int]]] = {
    "sentiment": ("sentiment.py", {}),
    "sentiment, two axes": ("sentiment.py", TWO),
    "bncc": ("bncc.py", {}),
    "bncc, two axes": ("bncc.py", TWO),
    "digits": ("digits.py", {}),
    "digits, three axes": ("digits.py", ALL),
    "digits:transformer": ("digits.py:transformer", {}),
    "digits:transformer, three axes": ("digits.py:transformer", ALL),
    "char_lm": ("char_lm.py", {}),
    "char_lm, three axes": ("char_lm.py", ALL),
    "char_lm:pipeline": ("char_lm.py:pipeline", {"stage": 4}),
    "char_lm:experts": ("char_lm.py:experts", {"expert": 8}),
    "char_lm:experts, one device": ("char_lm.py:experts", {}),
    "char_lm:long_rows": ("char_lm.py:long_rows", {"context": 4}),
}
QUICK = {"digits:transformer, three axes"}


def machine() -> str:
    """What decides the last bits of a number besides the program: the versions, and the processor's vector units."""
    words = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else platform.processor()
    found = [line for line in words.splitlines() if line.startswith(("model name", "model\t", "flags", "cache size"))]
    described = "\n".join(dict.fromkeys(found)) + f"\ncores {os.cpu_count()}"
    return f"{jax.__version__} {hashlib.sha256(described.encode()).hexdigest()[:12]}"


def golden(name: str, found: object, request: pytest.FixtureRequest) -> Any:
    """What tests/goldens/NAME.json holds; `found` is written there first with --update-goldens."""
    file = GOLDENS.with_name(f"{name}.json")
    if request.config.getoption("--update-goldens"):
        file.write_text(json.dumps(found, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    return json.loads(file.read_text())


def specs_of(experiment: Experiment) -> dict[str, str]:
    """Dtype, shape and partition spec of every leaf of the state, on data 2 × fsdp 2 × tensor 2."""
    state = abstract_state(experiment, Layout(ALL).abstract_mesh(8))
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {path_name(path): f"{leaf.dtype}{list(leaf.shape)} {leaf.sharding.spec}" for path, leaf in leaves}


@pytest.mark.slow
def test_every_leaf_of_every_shipped_experiment_is_sharded_as_written_down(
    request: pytest.FixtureRequest, bncc: None
) -> None:
    files = [file for file in sorted((ROOT / "experiments").glob("*.py")) if file.stem != "datasets"]
    made = {
        f"{file.stem}:{name}": make() for file in files for name, make in functions(load_code(file), Experiment).items()
    }
    wide = {name: replace(one, data=replace(one.data, batch_size=8), evals={}) for name, one in made.items()}
    found = {name: specs_of(replace(one, layout=Layout(ALL), microbatches=1)) for name, one in wide.items()}
    assert found == golden("specs", found, request)


def test_every_saved_class_keeps_its_name(request: pytest.FixtureRequest) -> None:
    found = sorted(own_kinds())
    lost = set(golden("names", found, request)) - set(found) - RENAMED.keys()
    assert lost == set(), "add the old names to RENAMED in jaxtrain/base/registry.py"


WHOLE = Program.epoch


def beginning(*given: Any) -> Batches:
    """Four batches of an epoch, to fit a model on: a whole pass takes long."""
    with closing(WHOLE(*given)) as batches:
        yield from islice(batches, 4)


def steps_of(experiment: Experiment, devices: int) -> dict[str, list]:
    """The hash of the batch, the loss and the gradient's norm of each step."""
    program = Program(experiment, jax.devices()[:devices])
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(Program, "epoch", beginning)
        state = program.init()
    found = {"batches": [], "loss": [], "gradient_norm": []}
    with closing(experiment.data.batches()) as batches:
        for batch in islice(batches, STEPS):
            content = b"".join(name.encode() + np.ascontiguousarray(x).tobytes() for name, x in sorted(batch.items()))
            found["batches"].append(hashlib.sha256(content).hexdigest()[:16])
    with closing(program.batches(experiment.data)) as batches:
        for batch in islice(batches, STEPS):
            state, metrics = program.step(state, batch)
            found["loss"].append(float(metrics["loss"]))
            found["gradient_norm"].append(float(metrics["gradient_norm"]))
    return found


@pytest.fixture(scope="module")
def bncc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The dataset of experiments/bncc.py is built."""
    data = tmp_path_factory.mktemp("datasets")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("JAXTRAIN_DATA", str(data))
        build(load_kind(str(ROOT / "experiments/datasets.py:bncc"), Dataset)[0])
        yield


@pytest.fixture(scope="module")
def written(request: pytest.FixtureRequest) -> Iterator[dict]:
    """What was written down; with --update-goldens, what a test puts in is written down at the end."""
    goldens = json.loads(GOLDENS.read_text()) if GOLDENS.exists() else {}
    yield goldens
    if request.config.getoption("--update-goldens"):
        GOLDENS.write_text(json.dumps(goldens, indent=1, sort_keys=True) + "\n")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in CASES]
)
def test_three_steps_give_the_numbers_that_were_written_down(
    name: str, written: dict, request: pytest.FixtureRequest, bncc: None
) -> None:
    where, mesh = CASES[name]
    experiment, _ = load(str(ROOT / "experiments" / where))
    experiment = replace(experiment, layout=Layout(mesh))
    found = steps_of(experiment, int(np.prod(list(mesh.values()) or [1])))
    if request.config.getoption("--update-goldens"):
        for kind in written.values():
            kind.pop(name, None)
        written.setdefault("batches", {})[name] = found["batches"]
        written.setdefault(machine(), {})[name] = found
        return
    assert found["batches"] == written["batches"][name]
    exact = written.get(machine(), {}).get(name)
    if exact is not None:
        assert found == exact
    for other, goldens in written.items():  # another processor or version rounds otherwise, but no more than that
        if other != "batches" and name in goldens:
            for metric in ("loss", "gradient_norm"):
                np.testing.assert_allclose(found[metric], goldens[name][metric], rtol=2e-5, err_msg=f"{other} {metric}")

"""Exports a saved step of a run as a bundle: one version folder of a Triton model repository.

It is written beside its place and renamed when it is whole. Not here: what is in each file.
"""

import contextlib
import fcntl
import importlib.metadata
import logging
import os
import shutil
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxtrain.base.errors import ConfigError, cannot_write
from jaxtrain.base.files import atomic_folder, check_file_name, json_text, remove_unfinished, replace_text
from jaxtrain.base.provenance import environment
from jaxtrain.base.tensors import write_tensors
from jaxtrain.deploy.batch_curve import batch_curve
from jaxtrain.deploy.card import NO_LICENCE, described, lineage, model_card
from jaxtrain.deploy.golden import (
    GoldenExample,
    first_difference,
    golden_json,
    largest_difference,
    odd_rows,
)
from jaxtrain.deploy.manifest import CONFIG_FILE, BundleManifest, files_of
from jaxtrain.deploy.onnx.conversion import Examples, can_convert, write_onnx
from jaxtrain.deploy.onnx.int8 import Int8Gate
from jaxtrain.deploy.predictor import Predictor, raw_source, weights_by_path
from jaxtrain.deploy.reference import ROWS, features, statistics
from jaxtrain.deploy.signature import FORMAT, Row
from jaxtrain.deploy.stablehlo import StableHlo, lowered
from jaxtrain.deploy.triton import config_pbtxt, fits_signature
from jaxtrain.evaluate import chosen_evals, evaluate
from jaxtrain.experiment.experiment import Experiment
from jaxtrain.experiment.start import SavedStep
from jaxtrain.models.variables import Variables
from jaxtrain.runs.folder import Restored, Run
from jaxtrain.sharding.layout import Layout, plain
from jaxtrain.tasks.checks import abstract_variables

GOLDEN_ROWS = 24
"""Examples of the evaluation split among the golden ones; odd ones come on top."""

LEAST_GOLDEN = 32

_CREATED_BY = ("jaxtrain", "jax", "jaxlib", "flax", "numpy", "flatbuffers")


def export_run(
    run: Run,
    out: Path,
    name: str | None = None,
    step: SavedStep | None = None,
    licence: str | None = None,
    gate: Int8Gate | None = None,
) -> Path:
    """The version folder, `out/name/1` or the next number, of a bundle of a saved step.

    name: of the model; by default that of the experiment's file.
    licence: of the model, in words; it becomes the file LICENSE.
    gate: of the graph of int8; without it no ONNX is made.

    Raises ConfigError, with the reason, for what cannot be exported, for data that are not those that the run
    recorded, and where the other versions of the model take other inputs.
    """
    name = name or Path((run.saved.get("origin") or "model").rpartition(":")[0]).stem or "model"
    check_file_name(name, "--name")
    evals, model = chosen_evals(run), out / name
    restored = run.restore(step, Layout(), jax.devices()[:1])
    predictor = Predictor.restored(restored, name)
    graph = bytes(lowered(predictor).serialize())
    runner = StableHlo(graph, predictor.weights, predictor.signature, "model.stablehlo")
    rows = _rows(predictor, restored.experiment)
    examples = _golden(predictor, restored, rows, runner)
    curve = batch_curve(runner.run, predictor.signature.tensors_of([each.inputs for each in examples[:8]]))
    signature = replace(predictor.signature, max_batch=curve["best"])
    largest = largest_difference(examples, runner.run(signature.tensors_of([each.inputs for each in examples])))
    scores = {split: evaluate(restored.program, restored.state, data) for split, data in evals.items()}
    facts = lineage(run, int(restored.state.step))
    metrics = {"format": FORMAT, "step": facts["step"], "splits": scores, "golden": {"largest_difference": largest}}
    texts = {
        "signature.json": _json(signature.to_json()),
        "golden.json": _json(golden_json(examples)),
        "reference.json": _json(_statistics(predictor, rows, runner)),
        "batch.json": _json({**curve, "backend": "jax", "hardware": environment()["hardware"]}),
        "experiment.json": _json(run.saved),
        "MODEL_CARD.md": model_card(signature, facts, scores, licence or NO_LICENCE, described(run), largest),
    }
    if licence is not None:
        texts["LICENSE"] = licence.rstrip("\n") + "\n"
    try:
        with _next_version(model) as folder:
            _check_config(model, signature)
            (folder / "model.stablehlo").write_bytes(graph)
            write_tensors(folder / "weights.safetensors", predictor.weights, predictor.weights.__getitem__)
            if gate is not None:
                metrics |= _onnx(predictor, folder, (examples, rows), runner, gate)
            for file, text in {**texts, "metrics.json": _json(metrics)}.items():
                (folder / file).write_text(text, encoding="utf-8")
            for file, path in predictor.raw.tokenizers.items():
                shutil.copyfile(path, folder / file)
            _seal(folder, name, facts, licence or NO_LICENCE)
            replace_text(model / CONFIG_FILE, config_pbtxt(signature))
    except OSError as error:
        raise cannot_write(f"the bundle in {model}", error) from error
    return model / folder.name.split(".")[1]


def _json(value: Any) -> str:
    return json_text(value) + "\n"


def _seal(folder: Path, name: str, facts: Mapping[str, Any], licence: str) -> None:
    """Write the manifest of all other files of a version, and wait until they are on disk."""
    created_by = {each: importlib.metadata.version(each) for each in _CREATED_BY}
    version = importlib.metadata.version("jaxtrain")
    BundleManifest(name, version, created_by, facts, licence, files_of(folder)).write(folder)
    _sync(folder)


def check_export(experiment: Experiment) -> None:
    """Raises ConfigError, with the reason, for an experiment whose prediction cannot be exported with its
    preprocessing. Its transforms are fitted. Traces and lowers, but computes nothing.
    """
    named = abstract_variables(experiment.task, experiment.data.example())
    shapes = Variables(plain(named.params), plain(named.state))
    predictor = Predictor.of(experiment, weights_by_path(shapes))
    lowered(predictor)
    if (why := can_convert(predictor)) is not None:
        logging.getLogger("jaxtrain.deploy").warning("its bundle will have no ONNX: %s", why)


def _rows(predictor: Predictor, experiment: Experiment) -> list[Row]:
    """Raw inputs from all over the evaluation split: `test`, or the last one; of the training data without any."""
    split = "test" if "test" in experiment.evals else next(iter([*experiment.evals][::-1]), None)
    source = raw_source(experiment, split)
    count = min(len(source), ROWS)
    indices = np.unique(np.linspace(0, len(source) - 1, count).round().astype(int))
    examples = [source.decode(stored) for stored in source.fetch(indices.tolist())]
    return [predictor.raw.row_of(example) for example in examples]


def _golden(predictor: Predictor, restored: Restored, rows: Sequence[Row], runner: StableHlo) -> list[GoldenExample]:
    """Golden examples with the outputs of the live model. Raises ConfigError where the graph gives others."""
    signature = predictor.signature
    odd = {what: row for what, row in odd_rows(signature, rows[0]).items() if _is_prepared(predictor, row)}
    count = max(GOLDEN_ROWS, LEAST_GOLDEN - len(odd))
    chosen = [rows[place % len(rows)] for place in np.linspace(0, max(len(rows), count) - 1, count).round().astype(int)]
    named = {**{f"row {number}": row for number, row in enumerate(chosen)}, **odd}
    every = [*named.values()]
    outputs = _live(predictor, restored, every, len(chosen))
    found = runner.run(signature.tensors_of(every))
    examples = [
        GoldenExample(what, row, {each: x[number] for each, x in outputs.items()})
        for number, (what, row) in enumerate(named.items())
    ]
    if difference := first_difference(examples, found):
        raise ConfigError(
            f"the exported graph computes something else than the live model: {difference}; a transform's `traced` "
            "may differ from its `__call__`, or it draws random numbers"
            + ("" if jax.default_backend() == "cpu" else "; in bfloat16 export on a CPU instead: JAX_PLATFORMS=cpu")
        )
    return examples


def _is_prepared(predictor: Predictor, row: Row) -> bool:
    """Whether the run's transforms take an odd input: one of your own that makes labels of it may raise anything."""
    if predictor.raw.example_of is None:
        return True
    try:
        predictor.kept.prepare([predictor.raw.example_of(row)])
    except Exception:
        return False
    return True


def _live(predictor: Predictor, restored: Restored, rows: Sequence[Row], usual: int) -> dict[str, np.ndarray]:
    """The predictions of the run's own program, for inputs that the run's transforms prepare on the host."""
    if predictor.raw.example_of is not None:
        prepared = [predictor.kept.prepare([predictor.raw.example_of(row)]) for row in rows]
        # A transform that makes labels may make them of some rows alone, where raw inputs have none.
        names = set.intersection(*({*each} for each in prepared))
        batch = {name: np.concatenate([each[name] for each in prepared]) for name in sorted(names)}
        return jax.device_get(restored.program.predict(restored.state, batch))
    # A language model reads rows of any length, each of which is compiled: shorter texts are as the graph has them.
    tensors = predictor.signature.tensors_of(rows)
    padded: Mapping[str, Any] = jax.device_get(jax.jit(predictor.function)(predictor.weights, tensors))
    tokens = next(iter(tensors.values()))[:usual].astype(np.int32)
    whole = (tokens[:, -1] > 0).nonzero()[0]
    if len(whole):
        batch = {"tokens": tokens[whole], "mask": np.ones(len(whole), bool)}
        live = jax.device_get(restored.program.predict(restored.state, batch))
        padded = {name: _put(x, whole, live[name]) for name, x in padded.items()}
    return dict(padded)


def _onnx(
    predictor: Predictor,
    folder: Path,
    given: tuple[Sequence[GoldenExample], Sequence[Row]],
    runner: StableHlo,
    gate: Int8Gate,
) -> dict[str, Any]:
    """Writes the graphs of ONNX; what was seen of them, or why there are none, which is logged."""
    inputs = [each.inputs for each in given[0]], given[1]
    golden, evaluation = (_computed(predictor, rows, runner) for rows in inputs)
    try:
        return write_onnx(predictor, folder, golden, evaluation, gate)
    except ConfigError as error:
        logging.getLogger("jaxtrain.deploy").warning("the bundle has no ONNX: %s", error)
        return {"onnx": {"why": str(error)}}


def _computed(predictor: Predictor, rows: Sequence[Row], runner: StableHlo) -> Examples:
    """The tensors of rows, and the outputs for them."""
    parts = [predictor.signature.tensors_of(rows[start : start + 64]) for start in range(0, len(rows), 64)]
    outputs = [runner.run(part) for part in parts]
    tensors, found = ({name: np.concatenate([each[name] for each in of]) for name in of[0]} for of in (parts, outputs))
    return tensors, found


def _put(x: np.ndarray, places: np.ndarray, values: np.ndarray) -> np.ndarray:
    new = np.array(x)
    new[places] = values
    return new


def _statistics(predictor: Predictor, rows: Sequence[Row], runner: StableHlo) -> dict[str, Any]:
    _, outputs = _computed(predictor, rows, runner)
    return statistics(features(predictor.signature, rows, outputs))


@contextlib.contextmanager
def _next_version(model: Path) -> Generator[Path]:
    """A new folder for the next version of a model; one export at a time writes a model."""
    model.mkdir(parents=True, exist_ok=True)
    handle = os.open(model, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        known = [int(each.name) for each in model.iterdir() if each.name.isdecimal()]
        path = model / str(max(known, default=0) + 1)
        remove_unfinished(path)
        with atomic_folder(path) as folder:
            yield folder
    finally:
        os.close(handle)


def _check_config(model: Path, signature: Any) -> None:
    """Raises ConfigError where the other versions of a model take other inputs: Triton has one config for all."""
    file = model / CONFIG_FILE
    others = any(each.name.isdecimal() for each in model.iterdir())
    if others and file.is_file() and not fits_signature(file.read_text(encoding="utf-8"), signature):
        raise ConfigError(
            f"{model} holds versions with other inputs or outputs ({file}): export this one with another --name"
        )


def _sync(folder: Path) -> None:
    """Every file of a folder, and its names, are on disk."""
    for path in [*folder.iterdir(), folder]:
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)

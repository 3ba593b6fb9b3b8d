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

from jaxtrain.base.errors import ConfigError, cannot_write
from jaxtrain.base.files import atomic_folder, check_file_name, json_text, remove_unfinished, replace_text
from jaxtrain.base.provenance import environment
from jaxtrain.base.tensors import write_tensors
from jaxtrain.deploy.batch_curve import CURVE_ROWS, batch_curve, batch_json, served
from jaxtrain.deploy.card import NO_LICENCE, described, lineage, model_card
from jaxtrain.deploy.examples import computed, evaluation_rows, live_examples
from jaxtrain.deploy.golden import golden_json, largest_difference
from jaxtrain.deploy.language import LanguageGraphs, language_graphs, write_language_onnx
from jaxtrain.deploy.lowering import lowered
from jaxtrain.deploy.manifest import CONFIG_FILE, BundleManifest, files_of
from jaxtrain.deploy.onnx.conversion import Examples, can_convert, write_onnx
from jaxtrain.deploy.onnx.int8 import Int8Gate
from jaxtrain.deploy.predictor import Predictor, weights_by_path
from jaxtrain.deploy.reference import features, statistics
from jaxtrain.deploy.signature import FORMAT, Row
from jaxtrain.deploy.stablehlo import StableHlo
from jaxtrain.deploy.triton import config_pbtxt, fits_signature
from jaxtrain.evaluate import chosen_evals, evaluate
from jaxtrain.experiment.experiment import Experiment
from jaxtrain.experiment.start import SavedStep
from jaxtrain.models.variables import Variables
from jaxtrain.runs.folder import Run
from jaxtrain.sharding.layout import Layout, plain
from jaxtrain.tasks.checks import abstract_variables
from jaxtrain.tasks.language import LanguageModel

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
    rows = evaluation_rows(predictor, restored.experiment)
    examples = live_examples(predictor, restored, rows, runner)
    golden, evaluation = (computed(predictor, each, runner) for each in ([one.inputs for one in examples], rows))
    curves = {"jax": batch_curve(runner.run, {name: x[:CURVE_ROWS] for name, x in golden[0].items()})}
    language = _language(predictor, rows, runner)
    largest = largest_difference(examples, golden[1])
    scores = {split: evaluate(restored.program, restored.state, data) for split, data in evals.items()}
    facts = lineage(run, int(restored.state.step))
    metrics: dict[str, Any] = {
        "format": FORMAT,
        "step": facts["step"],
        "splits": scores,
        "golden": {"largest_difference": largest},
    }
    golden_file = golden_json(examples)
    if language is not None:
        golden_file["texts"] = [each.to_json() for each in language.texts]
        metrics["generation"] = {"largest_difference": language.largest}
    texts = {
        "golden.json": _json(golden_file),
        "reference.json": _json(statistics(features(predictor.signature, rows, evaluation[1]))),
        "experiment.json": _json(run.saved),
    }
    if licence is not None:
        texts["LICENSE"] = licence.rstrip("\n") + "\n"
    try:
        with _next_version(model) as folder:
            _check_config(model, predictor.signature)
            (folder / "model.stablehlo").write_bytes(graph)
            write_tensors(folder / "weights.safetensors", predictor.weights, predictor.weights.__getitem__)
            for file, content in ({} if language is None else language.contents).items():
                (folder / file).write_bytes(content)
            if gate is not None:
                metrics |= _onnx(predictor, folder, golden, evaluation, gate)
                if language is not None:
                    metrics["generation"]["onnx"] = write_language_onnx(predictor, language, folder)
            if (measured := metrics.pop("batch_curve", None)) is not None:
                curves["onnx"] = measured
            signature = replace(
                predictor.signature,
                max_batch=curves[served(curves)]["best"],
                generation=None if language is None else language.generation,
            )
            card = model_card(signature, facts, scores, licence or NO_LICENCE, described(run), largest)
            texts |= {
                "signature.json": _json(signature.to_json()),
                "metrics.json": _json(metrics),
                "MODEL_CARD.md": card,
            }
            texts["batch.json"] = _json(batch_json(curves, environment()["hardware"]))
            for file, text in texts.items():
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


def _language(predictor: Predictor, rows: Sequence[Row], runner: StableHlo) -> LanguageGraphs | None:
    """What a language model's bundle has more; None for other models, and for one without a cache, which is logged."""
    if not isinstance(predictor.task, LanguageModel):
        return None
    found = language_graphs(predictor, rows, runner.weights)
    if isinstance(found, str):
        logging.getLogger("jaxtrain.deploy").warning("the bundle cannot continue texts: %s", found)
        return None
    return found


def _onnx(predictor: Predictor, folder: Path, golden: Examples, evaluation: Examples, gate: Int8Gate) -> dict[str, Any]:
    """Writes the graphs of ONNX; what was seen of them, or why there are none, which is logged."""
    try:
        return write_onnx(predictor, folder, golden, evaluation, gate)
    except ConfigError as error:
        logging.getLogger("jaxtrain.deploy").warning("the bundle has no ONNX: %s", error)
        return {"onnx": {"why": str(error)}}


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

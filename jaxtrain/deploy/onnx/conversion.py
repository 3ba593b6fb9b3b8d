"""ONNX of a predictor, made by a process of its own: a run's `export`, and its check before the first step."""

import json
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cloudpickle
import jax
import numpy as np

from jaxtrain.base.errors import ConfigError
from jaxtrain.deploy.inputs import Tensor
from jaxtrain.deploy.manifest import MODEL_FILE
from jaxtrain.deploy.onnx.environment import folder_of_packages, missing, run_in_environment
from jaxtrain.deploy.onnx.int8 import Int8Gate
from jaxtrain.deploy.predictor import Predictor

_NOT_IN_ONNX_RUNTIME = ("bfloat16",)

_TWICE = 2  # processors round products of int8 in their own ways

_MODULE = "jaxtrain.deploy.onnx.convert"

Examples = tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]
"""Tensors, and the outputs for them, by name, rows on dim 0."""


@dataclass(frozen=True)
class Request:
    """What the process is asked for.

    weights: arrays, or shapes where only the operations are checked.
    folder: where the files go; None checks only.
    examples: golden ones, and those of the evaluation split.
    tolerance: `rtol` and `atol` of `numpy.allclose`, between the graph's outputs and those of the examples.
    gate: of int8; None makes none.
    file: the name of the graph's file.
    stored: weights that are in weights.safetensors of the folder are read from there, and are not in the file.
    """

    function: Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, jax.Array]]
    weights: Mapping[str, Any]
    name: str
    tensors: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    folder: Path | None = None
    examples: tuple[Examples, ...] = ()
    tolerance: float = 1e-4
    gate: Int8Gate | None = None
    file: str = MODEL_FILE
    stored: bool = False


def write_onnx(
    predictor: Predictor, folder: Path, golden: Examples, evaluation: Examples, gate: Int8Gate | None = None
) -> dict[str, Any]:
    """Writes model.onnx into a folder, and model.int8.onnx where the gate passes.

    golden, evaluation: examples, with the outputs that jax computes for them, which those of ONNX are compared with.

    Returns what was seen, for metrics.json: under `onnx` the bytes and the largest difference, under `int8` what
    `int8` saw, and `int8_tolerance`, how far int8 may be from golden examples on another machine; and for batch.json,
    under `batch_curve`, that of model.onnx.

    Raises ConfigError, with the reason in one sentence, for what cannot be converted, and where the environment cannot
    be made.
    """
    whole = replace(_request(predictor), folder=folder.absolute(), examples=(golden, evaluation))
    [facts] = write_requests([replace(whole, gate=gate or Int8Gate())])
    if (seen := facts["int8"].get("golden_difference")) is not None:
        facts["int8_tolerance"] = _TWICE * seen + whole.tolerance
    return facts


def can_convert(predictor: Predictor) -> str | None:
    """Why a predictor cannot be converted, whose weights may be shapes; None where it can be, and where the environment
    is not here, which only `write_onnx` makes.
    """
    if missing(folder_of_packages()) is not None:
        return None
    shapes = {path: jax.ShapeDtypeStruct(x.shape, x.dtype) for path, x in predictor.weights.items()}
    try:
        _answers([replace(_request(predictor), weights=shapes)])
    except ConfigError as error:
        return str(error)
    return None


def write_requests(requests: Sequence[Request]) -> list[dict[str, Any]]:
    """Writes the files of all requests, or none; what was seen of each. Raises ConfigError as `write_onnx` does."""
    try:
        for each in requests:
            _check_dtypes((*each.tensors, *each.outputs))
        return _answers(requests)
    except ConfigError:
        for each in requests:
            if each.folder is not None:
                (each.folder / each.file).unlink(missing_ok=True)
        raise


def _request(predictor: Predictor) -> Request:
    signature = predictor.signature
    _check_dtypes((*signature.tensors, *signature.outputs))
    return Request(predictor.function, predictor.weights, signature.name, signature.tensors, signature.outputs)


def _check_dtypes(tensors: Sequence[Tensor]) -> None:
    for each in tensors:
        if each.dtype in _NOT_IN_ONNX_RUNTIME:
            raise ConfigError(f"{each.name!r} is {each.dtype}, which ONNX Runtime neither takes nor gives")


def _answers(requests: Sequence[Request]) -> list[dict[str, Any]]:
    """What the process answers. Raises ConfigError for an answer that says why not, RuntimeError where it fails."""
    done = run_in_environment([_MODULE], cloudpickle.dumps([*requests]))
    try:
        answer = json.loads(done.stdout.decode().strip().rpartition("\n")[2])
    except ValueError:
        raise RuntimeError(_failure(done)) from None
    if isinstance(answer, dict):
        raise ConfigError(answer["why"])
    return answer


def _failure(done: subprocess.CompletedProcess[bytes]) -> str:
    lines: Sequence[str] = done.stderr.decode(errors="replace").strip().splitlines()
    return "\n".join([f"the process that makes ONNX ended with exit code {done.returncode}:", *lines[-20:]])

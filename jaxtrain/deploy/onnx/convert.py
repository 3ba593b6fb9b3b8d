"""Makes ONNX of a predictor's function: the process that `conversion` starts in the environment of `environment`.

Its request comes on the standard input, and its answer, of JSON, goes to the standard output.
"""

import contextlib
import json
import pickle
import re
import sys
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnx_ir
from jax import export
from jax2onnx import to_onnx

from jaxtrain.base.errors import ConfigError, Damaged
from jaxtrain.deploy.batch_curve import CURVE_ROWS, batch_curve
from jaxtrain.deploy.manifest import INT8_FILE
from jaxtrain.deploy.onnx.conversion import Request
from jaxtrain.deploy.onnx.int8 import Outputs, int8, run_rows
from jaxtrain.deploy.onnx.portable import make_portable
from jaxtrain.deploy.onnx.rewrite import evaluated
from jaxtrain.deploy.onnx.runtime import OnnxModel, names_of_outputs
from jaxtrain.models.layers import plain_graph

OPSET = 21
"""Of ONNX 1.16: ONNX Runtime has it since 1.18, of May 2024."""

WEIGHTS_FILE = "weights.safetensors"

_LEAST_STORED = 1024  # bytes of a constant that is read from there

MOST = 2**31 - 1
"""Bytes of a file of protobuf."""


def answer_request() -> None:
    """Answers the requests."""
    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        requests: list[Request] = pickle.loads(sys.stdin.buffer.read())
        try:
            answer: Any = [converted(each) for each in requests]
        except (ConfigError, Damaged) as error:
            answer = {"why": str(error)}
    print(json.dumps(answer), file=answers)


def converted(request: Request) -> dict[str, Any]:
    """Writes the files of a request; what was seen of them. Raises ConfigError, with the reason, where it cannot."""
    content = graph(request)
    model = _loaded(content)
    if request.folder is None:
        return {}
    largest = 0.0
    for rows, wanted in request.examples:
        largest = max(largest, _difference(run_rows(model, rows), wanted, request.tolerance))
    file = Path(request.folder, request.file)
    if request.stored:
        content = _without_stored(content, request.folder / WEIGHTS_FILE)
    file.write_bytes(content)
    if request.stored:
        OnnxModel(file, threads=1)
    facts: dict[str, Any] = {"bytes": len(content), "opset": OPSET, "largest_difference": largest}
    if request.gate is None:
        return {"onnx": facts}
    golden, evaluation = request.examples
    curve = batch_curve(OnnxModel(content).run, {name: x[:CURVE_ROWS] for name, x in golden[0].items()})
    made = int8(content, request.outputs, evaluation[0], request.gate)
    if made.content is not None:
        Path(request.folder, INT8_FILE).write_bytes(made.content)
        found = run_rows(OnnxModel(made.content, threads=1), golden[0], at_once=1)
        made.facts["golden_difference"] = _difference(found, golden[1], None)
    return {"onnx": facts, "batch_curve": curve, "int8": made.facts}


def graph(request: Request) -> bytes:
    """The graph in f32, with its weights unless these are shapes alone; the same bytes at every call."""
    names = [each.name for each in request.tensors]
    weights = {path: _wide(x) for path, x in request.weights.items()}
    given = {path: x for path, x in weights.items() if isinstance(x, jax.ShapeDtypeStruct)}

    def function(*arrays: jax.Array) -> tuple[jax.Array, ...]:
        tensors, shapes = arrays[: len(names)], arrays[len(names) :]
        with plain_graph():
            found = request.function(
                dict(zip(given, shapes, strict=True)) or weights, dict(zip(names, tensors, strict=True))
            )
        return tuple(found[each.name] for each in request.outputs)

    (rows,) = export.symbolic_shape("batch")
    inputs = [jax.ShapeDtypeStruct((rows, *each.shape), each.dtype) for each in request.tensors]
    try:
        closed = jax.make_jaxpr(function)(*inputs, *given.values())  # before jax2onnx changes jax.numpy for its trace
        with _dims_by_name():
            made = to_onnx(
                lambda *arrays: tuple(evaluated(closed, arrays)),
                [*inputs, *given.values()],
                model_name=request.name,
                opset=OPSET,
                input_names=[*names, *(f"weights/{path}" for path in given)],
                output_names=names_of_outputs(request.tensors, request.outputs),
            )
        make_portable(made)
        content = made.SerializeToString(deterministic=True)
        onnx.checker.check_model(made, full_check=True)
    except Exception as error:  # of jax2onnx, onnx and jax, of any kind
        raise ConfigError(_why(error)) from error
    if len(content) > MOST:
        raise ConfigError(f"it would have {len(content):,} bytes, and a file of ONNX holds {MOST:,} at most")
    return content


def _without_stored(content: bytes, weights: Path) -> bytes:
    """The graph, with the constants whose bytes are in weights.safetensors as external data of ONNX."""
    model, stored = onnx.load_from_string(content), weights.read_bytes()
    for each in model.graph.initializer:
        array = onnx.numpy_helper.to_array(each)
        raw, at = array.tobytes(), -1
        # At a multiple of the size of its entries, as whatever reads it in place needs.
        while len(raw) >= _LEAST_STORED and (at := stored.find(raw, at + 1)) % array.itemsize and at >= 0:
            pass
        if at >= 0:
            each.ClearField("float_data")
            each.raw_data = raw
            onnx.external_data_helper.set_external_data(each, weights.name, at, len(raw))
            each.ClearField("raw_data")
    return model.SerializeToString(deterministic=True)


@contextlib.contextmanager
def _dims_by_name() -> Generator[None]:
    """A dim that is not known goes to onnx_ir by its name: half of jax2onnx's operations hand jax's object over."""
    convert = onnx_ir._core._maybe_convert_to_symbolic_dim

    def by_name(dim: Any) -> Any:
        return convert(str(dim) if export.is_symbolic_dim(dim) else dim)

    onnx_ir._core._maybe_convert_to_symbolic_dim = by_name
    try:
        yield
    finally:
        onnx_ir._core._maybe_convert_to_symbolic_dim = convert


def _wide(x: Any) -> Any:
    """Weights of bf16 as f32, in which they are computed with."""
    dtype = jnp.float32 if x.dtype == jnp.bfloat16 else x.dtype
    return jax.ShapeDtypeStruct(x.shape, dtype) if isinstance(x, jax.ShapeDtypeStruct) else jnp.asarray(x, dtype)


def _loaded(content: bytes) -> OnnxModel:
    try:
        return OnnxModel(content, threads=1)
    except Damaged as error:
        raise ConfigError(error.why) from error


def _difference(found: Outputs, wanted: Mapping[str, np.ndarray], tolerance: float | None) -> float:
    """The largest difference of a finite number. Raises ConfigError where one is beyond the tolerance, and as much of
    the number itself.
    """
    largest = 0.0
    for name, exact in wanted.items():
        one, other = (x.astype(np.float64) for x in (found[name], exact))
        if tolerance is not None and not np.allclose(one, other, rtol=tolerance, atol=tolerance, equal_nan=True):
            worst = np.nanmax(np.abs(one - other))
            raise ConfigError(f"ONNX Runtime computes another {name!r} than jax, by up to {worst:.2g}")
        with np.errstate(invalid="ignore"):
            apart = np.abs(one - other)
        largest = max(largest, float(apart[np.isfinite(apart)].max(initial=0)))
    return largest


def _why(error: Exception) -> str:
    text = str(error).strip()
    if found := re.search(r"primitive '([\w-]+)'", text):
        return f"jax2onnx has no form of the operation {found[1]!r}"
    first = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    return f"jax2onnx cannot convert it ({type(error).__name__}: {first[:200]})"


if __name__ == "__main__":
    answer_request()

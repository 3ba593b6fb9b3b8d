"""A graph of ONNX with weights and matmuls of int8, where it answers as the one of f32 does.

By dynamic quantisation: weights are int8, activations when they come. Runs in the environment of `environment`.
"""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jaxtrain.base.errors import ConfigError, Damaged
from jaxtrain.base.packages import needs
from jaxtrain.deploy.inputs import Tensor
from jaxtrain.deploy.onnx.runtime import OnnxModel

Outputs = Mapping[str, np.ndarray]
"""Outputs by name, rows on dim 0."""

RECIPES: Mapping[str, Mapping[str, bool]] = {
    "QUInt8": {"signed": False, "per_channel": False},
    "QInt8 per channel": {"signed": True, "per_channel": True},
}
"""How weights become int8. None is faster for all models and machines."""

_ROUNDS = 40

_ROWS = 32  # of one call where rows are compared


@dataclass(frozen=True)
class Int8Gate:
    """How far the answers of int8 may be from those of f32, on rows of the evaluation split.

    agreement: the least share of rows with the same most likely class.
    difference: the largest difference of a probability.
    spread: of outputs that are no probabilities, the largest root mean square of a difference, as a share of their
        standard deviation.
    smaller: the most bytes, as a share of those of f32.
    """

    agreement: float = 0.99
    difference: float = 0.1
    spread: float = 0.05
    smaller: float = 0.9


@dataclass(frozen=True)
class Compared:
    """What the gate sees of a graph: the worst of its outputs. None where no output is of that kind."""

    agreement: float | None
    difference: float | None
    spread: float | None

    def refused(self, gate: Int8Gate) -> str:
        """Why the gate refuses it; "" where it passes."""
        if self.agreement is not None and self.agreement < gate.agreement:
            return f"{self.agreement:.4f} of rows have the most likely class of f32, of {gate.agreement} at least"
        if self.difference is not None and not self.difference <= gate.difference:
            return f"a probability differs by {self.difference:.4f}, of {gate.difference} at most"
        if self.spread is not None and not self.spread <= gate.spread:
            return f"an output differs by {self.spread:.4f} of its standard deviation, of {gate.spread} at most"
        return ""


@dataclass
class Made:
    """A graph of int8 that passes, and what was seen of all.

    content: its bytes; None where none passes.
    facts: for metrics.json: `recipe`, or `why` there is none; bytes, milliseconds at batch 1, and what the gate saw.
    """

    content: bytes | None
    facts: dict[str, Any] = field(default_factory=dict)


def int8(graph: bytes, outputs: Sequence[Tensor], rows: Outputs, gate: Int8Gate | None = None) -> Made:
    """The faster of the graphs of int8 that pass the gate, on rows of the evaluation split."""
    gate = gate or Int8Gate()
    exact = OnnxModel(graph, threads=1)
    wanted = run_rows(exact, rows)
    contents, models, seen = {}, {}, {}
    for name, recipe in RECIPES.items():
        seen[name], content, model = _tried(graph, recipe, outputs, rows, wanted, gate)
        if model is not None:
            contents[name], models[name] = content, model
    one = {name: x[:1] for name, x in rows.items()}
    milliseconds = fastest({"f32": exact, **models}, one)
    for name in models:
        seen[name]["milliseconds"] = milliseconds[name]
    facts = {"rows": len(next(iter(rows.values()))), "f32_milliseconds": milliseconds["f32"], "recipes": seen}
    if not models:
        return Made(None, {"why": "; ".join(f"{name}: {each['why']}" for name, each in seen.items()), **facts})
    best = min(models, key=lambda name: milliseconds[name])
    return Made(contents[best], {"recipe": best, **seen[best], **facts})


def compare_outputs(outputs: Sequence[Tensor], wanted: Outputs, found: Outputs) -> Compared:
    """How far outputs are from those of f32."""
    agreement, difference, spread = [], [], []
    for each in outputs:
        exact, close = (x[each.name].astype(np.float64) for x in (wanted, found))
        likely = exact.ndim > 1 and exact.shape[-1] > 1 and each.name in ("probabilities", "log_probabilities")
        if likely:
            agreement.append(float((exact.argmax(-1) == close.argmax(-1)).mean()))
        if each.name in ("probabilities", "log_probabilities"):
            one, other = (np.exp(x) if each.name == "log_probabilities" else x for x in (exact, close))
            difference.append(float(np.abs(one - other).max()))
        else:
            error, size = np.sqrt(np.square(exact - close).mean()), exact.std()
            spread.append(float(error / size) if size else float(error))
    return Compared(min(agreement, default=None), max(difference, default=None), max(spread, default=None))


def fastest(models: Mapping[str, OnnxModel], tensors: Outputs) -> dict[str, float]:
    """The milliseconds of the best of 40 rounds, in which the models take turns, so that a busy machine slows all."""
    best = dict.fromkeys(models, float("inf"))
    for _ in range(_ROUNDS):
        for name, model in models.items():
            start = time.perf_counter()
            model.run(tensors)
            best[name] = min(best[name], 1000 * (time.perf_counter() - start))
    return {name: round(each, 4) for name, each in best.items()}


def run_rows(model: OnnxModel, rows: Outputs, at_once: int = _ROWS) -> dict[str, np.ndarray]:
    """The outputs for many rows, `at_once` in a call: in int8 one, since the activations of a call have one scale."""
    parts = [
        model.run({name: x[start : start + at_once] for name, x in rows.items()})
        for start in range(0, len(next(iter(rows.values()))), at_once)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in model.outputs}


def _tried(
    graph: bytes, recipe: Mapping[str, bool], outputs: Sequence[Tensor], rows: Outputs, wanted: Outputs, gate: Int8Gate
) -> tuple[dict[str, Any], bytes, OnnxModel | None]:
    """What the gate saw of a recipe, and the graph; no model where it does not pass."""
    try:
        content = quantized(graph, **recipe)
        model = OnnxModel(content, threads=1)
        compared = compare_outputs(outputs, wanted, run_rows(model, rows, at_once=1))
    except (ConfigError, Damaged) as error:
        return {"why": str(error)}, b"", None
    facts = {name: value for name, value in vars(compared).items() if value is not None}
    facts |= {"bytes": len(content), "of_f32": round(len(content) / len(graph), 4)}
    if len(content) > gate.smaller * len(graph):
        return {"why": f"it has {len(content):,} bytes, of {len(graph):,} in f32", **facts}, b"", None
    if why := compared.refused(gate):
        return {"why": why, **facts}, b"", None
    return facts, content, model


def quantized(graph: bytes, signed: bool, per_channel: bool) -> bytes:
    """The graph with weights of int8, after shapes are inferred and constants folded; the same bytes at every call.
    Raises ConfigError where ONNX Runtime's quantiser fails.
    """
    with needs("int8", "onnxruntime", "onnx"):
        from onnxruntime import quantization
        from onnxruntime.quantization import shape_inference
    with tempfile.TemporaryDirectory(prefix="jaxtrain-int8-") as folder:
        source, prepared, made = (Path(folder, name) for name in ("f32.onnx", "prepared.onnx", "int8.onnx"))
        source.write_bytes(graph)
        kind = quantization.QuantType.QInt8 if signed else quantization.QuantType.QUInt8
        _refused(lambda: shape_inference.quant_pre_process(source, prepared, skip_symbolic_shape=True))
        _refused(lambda: quantization.quantize_dynamic(prepared, made, weight_type=kind, per_channel=per_channel))
        return made.read_bytes()


def _refused(step: Callable[[], object]) -> None:
    try:
        step()
    except Exception as error:  # of onnx, onnxruntime and their C++, of any kind
        why = str(error).strip().splitlines() or [type(error).__name__]
        raise ConfigError(f"ONNX Runtime cannot make int8 of it ({why[0]})") from error

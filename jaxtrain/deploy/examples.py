"""The examples of a bundle: raw inputs of the evaluation split, and golden ones with the outputs of the live model.

Not here: reading them.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxtrain.base.errors import ConfigError
from jaxtrain.deploy.golden import GoldenExample, first_difference, odd_rows
from jaxtrain.deploy.onnx.conversion import Examples
from jaxtrain.deploy.predictor import Predictor, raw_source
from jaxtrain.deploy.reference import ROWS
from jaxtrain.deploy.signature import Row
from jaxtrain.deploy.stablehlo import StableHlo
from jaxtrain.experiment.experiment import Experiment
from jaxtrain.runs.folder import Restored

_log = logging.getLogger("jaxtrain.deploy")

GOLDEN_ROWS = 24
"""Examples of the evaluation split among the golden ones; odd ones come on top."""

LEAST_GOLDEN = 32


def evaluation_rows(predictor: Predictor, experiment: Experiment) -> list[Row]:
    """Raw inputs from all over the evaluation split: `test`, or the last one; of the training data without any."""
    split = "test" if "test" in experiment.evals else next(iter([*experiment.evals][::-1]), None)
    source = raw_source(experiment, split)
    count = min(len(source), ROWS)
    indices = np.unique(np.linspace(0, len(source) - 1, count).round().astype(int))
    examples = [source.decode(stored) for stored in source.fetch(indices.tolist())]
    return [predictor.raw.row_of(example) for example in examples]


def live_examples(
    predictor: Predictor, restored: Restored, rows: Sequence[Row], runner: StableHlo
) -> list[GoldenExample]:
    """Golden examples with the outputs of the live model; those of a language model for texts shorter than its rows are
    of the predictor's function. Raises ConfigError where the graph gives others.
    """
    signature = predictor.signature
    every_odd = odd_rows(signature, rows[0])
    odd = {what: row for what, row in every_odd.items() if _is_prepared(predictor, row)}
    if left_out := ", ".join(sorted({*every_odd} - {*odd})):
        _log.warning("these odd inputs are no golden examples, since the run's transforms refuse them: %s", left_out)
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
    except Exception:  # a user's transform may raise anything
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


def _put(x: np.ndarray, places: np.ndarray, values: np.ndarray) -> np.ndarray:
    new = np.array(x)
    new[places] = values
    return new


def computed(predictor: Predictor, rows: Sequence[Row], runner: StableHlo) -> Examples:
    """The tensors of rows, and the outputs for them."""
    parts = [predictor.signature.tensors_of(rows[start : start + 64]) for start in range(0, len(rows), 64)]
    outputs = [runner.run(part) for part in parts]
    tensors, found = ({name: np.concatenate([each[name] for each in of]) for name in of[0]} for of in (parts, outputs))
    return tensors, found

"""The evaluation of a bundle: its weights and its graph on the raw rows of a split, by the metrics of training.

It needs jax, the run's task and its data; a bundle alone predicts. Not here: metrics.
"""

import contextlib
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtrain.base.allowed import check_values
from jaxtrain.base.errors import ConfigError, Damaged
from jaxtrain.data.pipeline import Pipeline
from jaxtrain.data.remembered import before_transforms
from jaxtrain.data.sources.base import Example
from jaxtrain.data.transforms.base import Transform
from jaxtrain.deploy.bundle import Bundle
from jaxtrain.deploy.golden import TOLERANCE
from jaxtrain.deploy.inputs import Text
from jaxtrain.deploy.predictor import Predictor
from jaxtrain.evaluate import chosen_evals, evaluate
from jaxtrain.experiment.experiment import Experiment
from jaxtrain.experiment.fit import in_units_of_data
from jaxtrain.generation.functions import variables_of
from jaxtrain.runs.folder import Run
from jaxtrain.step import TrainState, eval_step, predict_step
from jaxtrain.tasks.metrics import Metric

_TENSOR = "tensor: "  # before the names of tensors among the fields of a batch


def evaluate_bundle(
    bundle: Bundle, split: str | None = None, code: str | None = None, data: Experiment | None = None
) -> dict[str, dict[str, float]]:
    """The metrics of a bundle by split: of all splits, or of one. Arguments as those of `evaluate_run`.

    code: the experiment's file, needed where its classes are not jaxtrain's.

    Raises Damaged where the graph predicts something else than the task does with the same weights.
    """
    run = Run(bundle.folder, code)
    run = run if data is None else run.on(data)
    chosen = chosen_evals(run, split, recorded=data is None)
    program = _BundleProgram(bundle, run.experiment)
    return {name: evaluate(program, None, pipeline) for name, pipeline in chosen.items()}


class _BundleProgram:
    """Batches with the tensors of raw rows beside the fields of the same rows, which hold the labels."""

    def __init__(self, bundle: Bundle, experiment: Experiment) -> None:
        weights = bundle.weights()
        self.experiment, self._bundle = experiment, bundle
        self._predictor = Predictor.of(experiment, weights, bundle.name)
        ours, saved = self._predictor.signature, bundle.signature
        if (ours.inputs, ours.outputs) != (saved.inputs, saved.outputs):
            raise ConfigError(f"{bundle.folder}: its code takes or gives other arrays now than when it was exported")
        variables, step = variables_of(jax.device_put(weights)), bundle.manifest.lineage["step"]
        state = TrainState(
            variables.params, (), jnp.asarray(step, jnp.int32), jax.random.key(0), model_state=variables.state
        )
        task = experiment.task
        evaluated = jax.jit(lambda state, batch: eval_step(task, state, batch))
        predicted = jax.jit(lambda state, batch: in_units_of_data(experiment, predict_step(task, state, batch)))
        self._evaluated = functools.partial(evaluated, state)
        self._predicted = functools.partial(predicted, state)
        self._is_exact = bundle.file in ("model.stablehlo", "model.onnx")

    def epoch(self, pipeline: Pipeline) -> Iterator[dict[str, np.ndarray]]:
        """Both are read in the source's order, and filled up alike."""
        source = before_transforms(pipeline.source)
        as_tensors = _AsTensors(self._predictor.raw.row_of, self._bundle.signature)
        raw = replace(pipeline, source=source, transforms=(as_tensors,), workers=0)
        with contextlib.closing(pipeline.epoch()) as batches, contextlib.closing(raw.epoch()) as tensors:
            for batch, given in zip(batches, tensors, strict=True):
                check_values(batch, self.experiment.task.allowed(), lambda row: f"row {row} of a batch")
                yield {**batch, **{_TENSOR + name: x for name, x in given.items() if name != "mask"}}

    def evaluate(self, state: Any, batch: Mapping[str, Any]) -> dict[str, Metric]:
        """By the task, with the bundle's weights, once the bundle's graph was found to predict the same."""
        fields = {name: x for name, x in batch.items() if not name.startswith(_TENSOR)}
        if self._is_exact:
            self._compare(self.predict(state, batch), jax.device_get(self._predicted(fields)), _tensors(batch))
        return self._evaluated(fields)

    def predict(self, state: Any, batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """By the bundle's graph."""
        return self._bundle.run(_tensors(batch))

    def _compare(
        self, found: Mapping[str, np.ndarray], live: Mapping[str, np.ndarray], tensors: Mapping[str, np.ndarray]
    ) -> None:
        rows = np.ones(len(next(iter(tensors.values()))), bool)
        for each in self._bundle.signature.inputs:
            if isinstance(each, Text) and each.keep == "last":  # what ends with byte 0 is shorter as a text
                rows &= tensors[each.tensor][:, -1] > 0
        for name, x in found.items():
            if not np.allclose(x[rows], live[name][rows], rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True):
                file = self._bundle.folder / self._bundle.file
                raise Damaged(str(file), None, f"its {name!r} is not what the task predicts with the same weights")


@dataclass(frozen=True)
class _AsTensors(Transform):
    """A raw example as the row of each tensor."""

    row_of: Any
    signature: Any

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        return {name: x[0] for name, x in self.signature.tensors_of([self.row_of(example)]).items()}


def _tensors(batch: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(_TENSOR): x for name, x in batch.items() if name.startswith(_TENSOR)}

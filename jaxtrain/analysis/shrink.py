"""Shrinks an experiment so that it trains in seconds, for `jaxtrain verify`.

Not here: shrinking the model, which is `Model.shrunk`.
"""

import itertools
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import optax

from jaxtrain.data import Arrays, Pipeline
from jaxtrain.experiment.experiment import Experiment, Runtime
from jaxtrain.models.sizes import smaller
from jaxtrain.optimizers import Optimizer

STEPS = 5
"""Updates that `jaxtrain verify` compares by default."""


@dataclass(frozen=True, kw_only=True)
class Recorded(Optimizer):
    """Wraps an optimizer so that the first part of its state is the latest gradient."""

    inner: Optimizer

    def build(self, steps: int) -> optax.GradientTransformation:
        """The inner transformation, after an `optax.trace` without decay that holds the gradient."""
        return optax.chain(optax.trace(decay=0.0), self.inner.build(steps))

    def frozen(self, paths: Collection[str]) -> list[str]:
        """The frozen parameters of the inner optimizer."""
        return self.inner.frozen(paths)


def shrink(experiment: Experiment, devices: int, steps: int = STEPS) -> Experiment:
    """The experiment with a small model in f32, on the first rows of its data, enough for `steps`.

    Sizes keep their common divisors with `devices`, so that the same meshes fit.
    """
    task = experiment.task
    data = replace(experiment.data, batch_size=devices, workers=0, threads=0)
    columns = _columns(itertools.islice(data.batches(), steps))
    model, inputs = task.model.shrunk(devices), task.read(data.example())
    sizes = model.describe(inputs)
    if sizes and sizes.vocab and isinstance(task.inputs, str):
        columns = _cropped(columns, task.inputs, inputs.shape[1], sizes.vocab, devices)
    return replace(
        experiment,
        task=replace(task, model=model),
        data=Pipeline(Arrays(columns), batch_size=devices, shuffle=False, threads=0),
        optimizer=Recorded(inner=experiment.optimizer),
        layout=replace(experiment.layout, mesh={}),
        evals={},
        runtime=Runtime(),
        microbatches=1,
    )


def _columns(batches: Iterable[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    read = list(batches)
    return {name: np.concatenate([batch[name] for batch in read]) for name in read[0] if name != "mask"}


def _cropped(
    columns: Mapping[str, np.ndarray], inputs: str, length: int, vocab: int, devices: int
) -> dict[str, np.ndarray]:
    """Crops rows of token ids, and other columns of the same length, and takes the ids modulo `vocab`."""
    whole = columns[inputs].shape[1]
    kept = whole - length + smaller(length, 32, 2 * devices)
    short = {name: x[:, :kept] if x.shape[1:2] == (whole,) else x for name, x in columns.items()}
    tokens = short[inputs]
    return {**short, inputs: (tokens.astype(np.int64) % vocab).astype(tokens.dtype)}

"""An experiment made small enough to train in seconds."""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import optax

from jaxtrain.data import Arrays, Pipeline
from jaxtrain.experiment.experiment import Experiment, Runtime
from jaxtrain.models import Blocks, Model, NGrams, Precision, Transformer
from jaxtrain.optimizers import Optimizer

STEPS = 5


@dataclass(frozen=True, kw_only=True)
class Recorded(Optimizer):
    """Another optimizer, which keeps the gradient it was given last, as the first part of its state."""

    inner: Optimizer

    def build(self, steps: int) -> optax.GradientTransformation:
        """The other's transformation after a trace that forgets at once."""
        return optax.chain(optax.trace(decay=0.0), self.inner.build(steps))

    def scale(self) -> optax.GradientTransformation:
        """The other's."""
        return self.inner.scale()


def shrink(experiment: Experiment, devices: int) -> Experiment:
    """The same experiment with a small model, in f32, on a few of its own rows; what divides over some of the devices
    still does, and nothing else.
    """
    task, rows = experiment.task, devices
    data = replace(experiment.data, batch_size=rows, workers=0, threads=0)
    columns = _columns(itertools.islice(data.batches(), STEPS))
    model = _small(task.model, devices)
    if isinstance(model, Transformer):
        columns = _cropped(columns, task.inputs, task.read(data.example()).shape[1], model.vocab, devices)
    return replace(
        experiment,
        task=replace(task, model=model),
        data=Pipeline(Arrays(columns), batch_size=rows, shuffle=False, threads=0),
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
    """Shorter rows of smaller tokens."""
    whole = columns[inputs].shape[1]
    kept = whole - length + _smaller(length, 32, 2 * devices)
    short = {name: x[:, :kept] if x.shape[1:2] == (whole,) else x for name, x in columns.items()}
    tokens = short[inputs]
    return {**short, inputs: (tokens.astype(np.int64) % vocab).astype(tokens.dtype)}


def _small(model: Model, devices: int) -> Model:
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(model):
        value = getattr(model, field.name)
        if isinstance(value, Precision):
            changes[field.name] = Precision()
        if isinstance(value, Blocks):
            changes[field.name] = _small_blocks(value, devices)
    if isinstance(model, Transformer):
        vocab = _smaller(model.vocab, 256, devices)
        changes |= {"vocab": vocab, "outputs": vocab if model.outputs == model.vocab else model.outputs}
    if isinstance(model, NGrams):
        changes["buckets"] = _smaller(model.buckets, 4096, devices)
    return replace(model, **changes)


def _small_blocks(blocks: Blocks, devices: int) -> Blocks:
    widths = range(2 * blocks.heads, blocks.width, 2 * blocks.heads)
    experts = blocks.experts
    width = next((w for w in widths if w >= 64 and _alike(w, blocks.width, devices)), blocks.width)
    return replace(
        blocks,
        width=width,
        layers=_smaller(blocks.layers, 2 * blocks.rounds, devices * blocks.rounds),
        experts=replace(experts, width=experts.width and _smaller(experts.width, width, devices)),
        mlp=_smaller(blocks.hidden, 2 * width, devices),
        attention="auto" if blocks.attention in ("cudnn", "ring") else blocks.attention,
        precision=Precision(),
    )


def _smaller(entries: int, least: int, devices: int) -> int:
    return next((number for number in range(least, entries) if _alike(number, entries, devices)), entries)


def _alike(one: int, other: int, devices: int) -> bool:
    """Whether the same numbers of devices divide both."""
    return math.gcd(one, devices) == math.gcd(other, devices)

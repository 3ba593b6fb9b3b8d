"""A new model, trained on points inside and outside of a circle."""

import numpy as np

from jaxtrain.data import Arrays, Pipeline
from jaxtrain.experiment import Experiment, Runtime
from jaxtrain.models.perceptron import Perceptron
from jaxtrain.optimizers import AdamW
from jaxtrain.sharding.layout import Layout
from jaxtrain.tasks import Classification


def added() -> Experiment:
    """Fully sharded over all devices."""
    points = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    source = Arrays({"point": points, "label": (np.square(points).sum(1) > 4).astype(np.int32)})
    return Experiment(
        task=Classification(model=Perceptron(), inputs="point", classes=("inside", "outside")),
        data=Pipeline(source, batch_size=8),
        optimizer=AdamW(),
        steps=2,
        evals={"validation": Pipeline(source, batch_size=8)},
        layout=Layout({"fsdp": -1}),
        runtime=Runtime(log_every=1),
    )

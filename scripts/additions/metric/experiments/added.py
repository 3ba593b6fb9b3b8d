"""A new metric."""

from jaxtrain.data import Arrays, Pipeline, Windows
from jaxtrain.experiment import Experiment, Runtime
from jaxtrain.models import Blocks, Transformer
from jaxtrain.optimizers import AdamW
from jaxtrain.sharding.layout import Layout
from jaxtrain.tasks.bits import BitsModel


def added() -> Experiment:
    """In two microbatches, over all devices."""
    source = Windows(Arrays({"text": ["what is measured in bits and in nats"] * 4}), 8)
    return Experiment(
        task=BitsModel(model=Transformer(vocab=256, blocks=Blocks(width=16, layers=1, heads=2, mlp=16))),
        data=Pipeline(source, batch_size=8),
        optimizer=AdamW(),
        steps=2,
        evals={"validation": Pipeline(source, batch_size=8)},
        layout=Layout({"data": -1}),
        microbatches=2,
        runtime=Runtime(log_every=1),
    )

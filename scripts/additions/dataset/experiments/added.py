"""A new dataset, read by a language model."""

from jaxtrain.data import Pipeline
from jaxtrain.data.sources.squares import Squares
from jaxtrain.experiment import Experiment, Runtime
from jaxtrain.models import Blocks, Transformer
from jaxtrain.optimizers import AdamW
from jaxtrain.sharding.layout import Layout
from jaxtrain.tasks import LanguageModel


def added() -> Experiment:
    """Data parallel over all devices."""
    return Experiment(
        task=LanguageModel(model=Transformer(vocab=32, blocks=Blocks(width=16, layers=1, heads=2, mlp=16))),
        data=Pipeline(Squares(), batch_size=8),
        optimizer=AdamW(),
        steps=2,
        evals={"validation": Pipeline(Squares(), batch_size=8)},
        layout=Layout({"data": -1}),
        runtime=Runtime(log_every=1),
    )

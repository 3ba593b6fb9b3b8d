"""A new parallelism: a mesh whose axes have names of their own, and the table that puts arrays on it."""

from dataclasses import replace

from jaxtrain.data import Arrays, Pipeline, Windows
from jaxtrain.experiment import Experiment, Runtime
from jaxtrain.models import Blocks, Transformer
from jaxtrain.optimizers import AdamW
from jaxtrain.sharding.layout import RULES, Layout
from jaxtrain.tasks import LanguageModel

GRID = {
    **RULES,
    "batch": "row",
    "embed": "row",
    "heads": "column",
    "kv_heads": "column",
    "mlp": "column",
    "vocab": "column",
}


def main() -> Experiment:
    """One device."""
    source = Windows(Arrays({"text": ["what is sharded by rows and by columns"] * 4}), 8)
    return Experiment(
        task=LanguageModel(model=Transformer(vocab=256, blocks=Blocks(width=16, layers=1, heads=2, mlp=16))),
        data=Pipeline(source, batch_size=8),
        optimizer=AdamW(),
        steps=2,
        evals={"validation": Pipeline(source, batch_size=8)},
        runtime=Runtime(log_every=1),
    )


def added() -> Experiment:
    """The grid: parameters and batch are sharded by row, heads and feed-forward layers by column."""
    return replace(main(), layout=Layout({"row": 2, "column": 2}, GRID))

"""A residual network with batch normalisation: running statistics are part of the state, on any mesh.

uv run jaxtrain train experiments/recipes/batch_norm.py
"""

from jaxtrain import Experiment
from jaxtrain.data import Pipeline
from jaxtrain.datasets import Digits
from jaxtrain.models import ResNet
from jaxtrain.optimizers import SGD, CosineDecay
from jaxtrain.tasks import Classification


def main() -> Experiment:
    """Two stages of one block each."""
    return Experiment(
        task=Classification(
            model=ResNet(outputs=10, widths=(16, 32), blocks=1), inputs="image", classes=tuple("0123456789")
        ),
        data=Pipeline(Digits("train"), batch_size=64),
        optimizer=SGD(schedule=CosineDecay(peak=0.1, warmup=20), weight_decay=5e-4),
        steps=300,
        evals={"test": Pipeline(Digits("test"), batch_size=64, shuffle=False)},
    )

"""char lm."""

from jaxtrain.data import MovieReviews, Pipeline, Windows
from jaxtrain.experiment import Experiment
from jaxtrain.models import Blocks, Transformer
from jaxtrain.optimizers import AdamW, Cosine
from jaxtrain.tasks import LanguageModel


def main() -> Experiment:
    """One device."""
    return Experiment(
        task=LanguageModel(model=Transformer(vocab=256, blocks=Blocks(width=192, layers=4, heads=6))),
        data=Pipeline(Windows(MovieReviews("train"), 256), batch_size=16),
        optimizer=AdamW(schedule=Cosine(peak=2e-3, warmup=50), weight_decay=0.1, b2=0.99),
        steps=400,
        evals={"validation": Pipeline(Windows(MovieReviews("validation"), 256), batch_size=64, shuffle=False)},
    )

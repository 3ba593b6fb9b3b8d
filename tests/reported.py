"""Experiments whose reports are tested: a classifier of texts that try to be markup, and a regression. Not a test."""

from dataclasses import dataclass

import numpy as np

from jaxtrain.data import Arrays, Pipeline, Source, Utf8
from jaxtrain.experiment import Experiment, Runtime
from jaxtrain.models import NGrams
from jaxtrain.optimizers import AdamW
from jaxtrain.tasks import Classification, Regression

EVIL = "</script><script>window.hacked = 1</script><img src=x onerror=hacked=1>"


@dataclass(frozen=True)
class Reviews(Source):
    """Texts of two kinds, each of which tries to be markup."""

    rows: int

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> dict[str, object]:
        words = ("dull", "slow", "flat", "weak") if index % 2 else ("bright", "quick", "deep", "warm")
        noise = " ".join(words[(index * 7 + place) % 4] for place in range(1 + index % 9))
        return {"text": f"{EVIL} review {index}: {noise}", "label": np.int32(index % 2)}

    def identity(self) -> str:
        """Its rows say all."""
        return f"reviews:{self.rows}"


def classifier() -> Experiment:
    """Names of classes, of a split and of metrics that try to be markup too."""
    data = Pipeline(Reviews(64), (Utf8(160),), batch_size=16)
    held_out = Pipeline(Reviews(60), (Utf8(160),), batch_size=16, shuffle=False)
    return Experiment(
        task=Classification(
            model=NGrams(outputs=2, buckets=64, words=16, width=8), inputs="bytes", classes=("<b>bright", "<i>dull")
        ),
        data=data,
        optimizer=AdamW(),
        steps=12,
        evals={"<u>test": held_out},
        runtime=Runtime(log_every=2, eval_every=6, save_every=4),
    )


def regression() -> Experiment:
    """Data in memory."""
    draw = np.random.default_rng(0)
    arrays = {"text": draw.integers(97, 123, (80, 12)).astype(np.uint8), "target": draw.normal(size=80).astype("f4")}
    data = Pipeline(Arrays(arrays), batch_size=16)
    return Experiment(
        task=Regression(model=NGrams(outputs=1, buckets=64, words=4, width=4), inputs="text"),
        data=data,
        optimizer=AdamW(),
        steps=8,
        evals={"test": data},
        runtime=Runtime(log_every=2, eval_every=4, save_every=4),
    )

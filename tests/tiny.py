"""Experiments so small that a process trains one in a second; some tests run them through the command line."""

import time
from dataclasses import dataclass, replace

import numpy as np

from jaxtrain.data import Pipeline, Source
from jaxtrain.experiment import Experiment, Retention, Runtime
from jaxtrain.models import Blocks, Transformer
from jaxtrain.optimizers import AdamW, CosineDecay
from jaxtrain.sharding.layout import Layout
from jaxtrain.tasks import LanguageModel


@dataclass(frozen=True)
class Counting(Source):
    """Rows of tokens that count up in steps of 1 to 7: learnable, and different for every index."""

    rows: int
    length: int = 16

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {"tokens": ((np.arange(self.length + 1) * (index % 7 + 1) + index) % 64).astype(np.int32)}

    def identity(self) -> str:
        """Its fields say all."""
        return f"counting:{self.rows}:{self.length}"


@dataclass(frozen=True)
class Hanging(Counting):
    """One row is never read."""

    hangs_at: int = 50

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if index == self.hangs_at:
            time.sleep(1000)
        return super().__getitem__(index)


def main() -> Experiment:
    """A language model with dropout on one device."""
    blocks = Blocks(width=32, layers=2, heads=4, kv_heads=2, mlp=64, dropout=0.1)
    return Experiment(
        task=LanguageModel(model=Transformer(vocab=64, blocks=blocks)),
        data=Pipeline(Counting(100), batch_size=16, seed=3),
        optimizer=AdamW(schedule=CosineDecay(peak=1e-2, warmup=2), weight_decay=0.1, ema=0.9),
        steps=12,
        evals={"validation": Pipeline(Counting(20), batch_size=8, shuffle=False)},
        runtime=Runtime(log_every=1, eval_every=6, save_every=4, keep=Retention(last=10)),
    )


def data() -> Experiment:
    """Data parallel."""
    return replace(main(), layout=Layout({"data": -1}))


def hanging() -> Experiment:
    """Data parallel, with a worker that hangs in one of the processes."""
    return replace(data(), data=Pipeline(Hanging(100), batch_size=16, seed=3, workers=1))


def fsdp() -> Experiment:
    """Fully sharded."""
    return replace(main(), layout=Layout({"fsdp": -1}))


def tensor() -> Experiment:
    """Tensor parallel."""
    return replace(main(), layout=Layout({"tensor": -1}))


def both() -> Experiment:
    """Data parallel and sharded, on four devices."""
    return replace(main(), layout=Layout({"data": 2, "fsdp": 2}))

"""An experiment so small that a process trains it in a moment, for the tests of sweeps.

Where GATE names a file, a process waits before its sixth batch of training until that file is there.
"""

import os
import time
from dataclasses import dataclass, replace

import numpy as np

from jaxtrain import Prune
from jaxtrain.data import Pipeline, Source, Utf8
from jaxtrain.experiment import Experiment, Runtime
from jaxtrain.models import NGrams
from jaxtrain.optimizers import AdamW, ConstantRate
from jaxtrain.sharding.layout import Layout
from jaxtrain.tasks import Classification

READ: list[int] = []
"""The rows of training that this process has read."""


@dataclass(frozen=True)
class Films(Source):
    """Titles that say whether a film is good."""

    rows: int = 24
    gated: bool = False

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> dict[str, object]:
        if self.gated:
            READ.append(index)
        while len(READ) > 40 and self.gated and not os.path.exists(os.environ.get("GATE", "/")):
            time.sleep(0.05)
        return {"text": f"{('bad', 'good')[index % 2]} film {index}", "label": np.int32(index % 2)}

    def identity(self) -> str:
        """Its fields say all."""
        return f"films:{self.rows}"


def main() -> Experiment:
    """Two classes, six steps, an evaluation at every second one."""
    return Experiment(
        task=Classification(model=NGrams(buckets=24, words=4, width=4), inputs="bytes", classes=("bad", "good")),
        data=Pipeline(Films(gated=True), (Utf8(16),), batch_size=8),
        optimizer=AdamW(schedule=ConstantRate(peak=1e-2)),
        steps=6,
        evals={"test": Pipeline(Films(8), (Utf8(16),), batch_size=8, shuffle=False)},
        runtime=Runtime(log_every=1, eval_every=2, save_every=1),
    )


def pruned() -> Experiment:
    """The same, whose bad trials end early."""
    return replace(main(), observers=(Prune(least=2, warmup=1),))


def wide() -> Experiment:
    """The same on two devices."""
    return replace(main(), layout=Layout({"data": 2}))

"""An experiment so small that a process trains it in a moment, for the tests of sweeps; PAUSE makes its rows slow."""

import os
import time
from dataclasses import dataclass, replace

import numpy as np

from jaxtrain import Prune
from jaxtrain.data import Pipeline, Source, Utf8
from jaxtrain.experiment import Experiment, Runtime
from jaxtrain.models import NGrams
from jaxtrain.optimizers import AdamW, ConstantRate
from jaxtrain.tasks import Classification


@dataclass(frozen=True)
class Films(Source):
    """Titles that say whether a film is good."""

    rows: int = 24
    slow: bool = False

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> dict[str, object]:
        if self.slow:
            time.sleep(float(os.environ.get("PAUSE", "0")))
        return {"text": f"{('bad', 'good')[index % 2]} film {index}", "label": np.int32(index % 2)}

    def identity(self) -> str:
        """Its fields say all."""
        return f"films:{self.rows}"


def main() -> Experiment:
    """Two classes, six steps, an evaluation at every second one."""
    return Experiment(
        task=Classification(model=NGrams(buckets=24, words=4, width=4), inputs="bytes", classes=("bad", "good")),
        data=Pipeline(Films(slow=True), (Utf8(16),), batch_size=8),
        optimizer=AdamW(schedule=ConstantRate(peak=1e-2)),
        steps=6,
        evals={"test": Pipeline(Films(8), (Utf8(16),), batch_size=8, shuffle=False)},
        runtime=Runtime(log_every=1, eval_every=2, save_every=1),
    )


def pruned() -> Experiment:
    """The same, whose bad trials end early."""
    return replace(main(), observers=(Prune(least=2, warmup=1),))

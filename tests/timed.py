"""An experiment whose steps take a known time, which it writes down itself, and which kills its process twice."""

import os
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import tiny

from jaxtrain import Experiment
from jaxtrain.tasks import LanguageModel
from jaxtrain.tasks.base import Context, Loss

PAUSE = 0.2
"""Seconds that a step takes, beside which its computation takes little."""

KILLS = {13: 1, 21: 2}
"""The steps (from 0) in which the process is killed, and in which of the processes."""


def pause(step: Any) -> None:
    """Take the time of a step, and write when it began and ended."""
    step, log, began = int(step), Path(os.environ["STEPS"]), time.time()
    time.sleep(PAUSE)
    sessions = Path(f"{log}.sessions").read_text().count("\n")
    if KILLS.get(step) == sessions:
        os.kill(os.getpid(), signal.SIGKILL)
    with log.open("a") as file:
        file.write(f"{step} {began} {time.time()}\n")


@dataclass(frozen=True)
class Timed(LanguageModel):
    """A language model, each step of which takes `PAUSE` seconds."""

    def loss(self, variables: Any, batch: Any, context: Context) -> Loss:
        """That of a language model."""
        if context.training:
            jax.debug.callback(pause, context.step)
        return super().loss(variables, batch, context)


def main() -> Experiment:
    """24 steps, which are saved every 8."""
    base = tiny.main()
    runtime = replace(base.runtime, log_every=2, eval_every=24, save_every=8)
    return replace(base, task=Timed(model=base.task.model), steps=24, runtime=runtime)

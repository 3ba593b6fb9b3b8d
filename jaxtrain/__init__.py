"""A JAX research training codebase: one pure train step, distributed by partition specs.

Names for notebooks; the command line is `jaxtrain` (see `jaxtrain.cli`).
"""

from jaxtrain import models, tasks
from jaxtrain.errors import ConfigError
from jaxtrain.experiment import Experiment
from jaxtrain.layout import MEGATRON, RULES, ZERO1, Layout
from jaxtrain.loading import load
from jaxtrain.metrics import Mean
from jaxtrain.runs.run import Run
from jaxtrain.step import Program, TrainState, eval_step, init_state, predict_step, train_step

__all__ = [
    "MEGATRON",
    "RULES",
    "ZERO1",
    "ConfigError",
    "Experiment",
    "Layout",
    "Mean",
    "Program",
    "Run",
    "TrainState",
    "eval_step",
    "init_state",
    "load",
    "models",
    "predict_step",
    "tasks",
    "train_step",
]

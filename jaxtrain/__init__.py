"""A JAX research training codebase: one pure train step, distributed by partition specs.

Names for notebooks; the command line is `jaxtrain` (see `jaxtrain.cli`).
"""

from jaxtrain import models, tasks
from jaxtrain.base.errors import ConfigError
from jaxtrain.experiment.experiment import Experiment, Retention, Runtime
from jaxtrain.experiment.files import load
from jaxtrain.program import Program
from jaxtrain.runs.folder import Run
from jaxtrain.sharding.layout import MEGATRON, RULES, ZERO1, Layout
from jaxtrain.step import TrainState, eval_step, init_state, predict_step, train_step
from jaxtrain.tasks.metrics import Mean

__all__ = [
    "MEGATRON",
    "RULES",
    "ZERO1",
    "ConfigError",
    "Experiment",
    "Layout",
    "Mean",
    "Program",
    "Retention",
    "Run",
    "Runtime",
    "TrainState",
    "eval_step",
    "init_state",
    "load",
    "models",
    "predict_step",
    "tasks",
    "train_step",
]

"""An experiment: the five decisions that make a training run, as a value."""

from jaxtrain.experiment.experiment import Deadlines, Experiment, Retention, Runtime
from jaxtrain.experiment.observers import EarlyStopping, ObservedRun, Observer, Scores
from jaxtrain.experiment.start import Start

__all__ = [
    "Deadlines",
    "EarlyStopping",
    "Experiment",
    "ObservedRun",
    "Observer",
    "Retention",
    "Runtime",
    "Scores",
    "Start",
]

"""An experiment: the five decisions of a training run, as a value."""

from jaxtrain.experiment.experiment import Experiment, Retention, Runtime
from jaxtrain.experiment.start import Start

__all__ = ["Experiment", "Retention", "Runtime", "Start"]

"""An experiment: the five decisions of a training run, as a value."""

from jaxtrain.experiment.experiment import Experiment, Retention, Runtime

__all__ = ["Experiment", "Retention", "Runtime"]

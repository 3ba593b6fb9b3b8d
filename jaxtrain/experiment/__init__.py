"""An experiment: the five decisions of a training run, as a value."""

from jaxtrain.experiment.experiment import Experiment, Keep

__all__ = ["Experiment", "Keep"]

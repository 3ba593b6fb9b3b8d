"""Tasks: what is learned. A task joins a model to a loss, metrics and predictions."""

from jaxtrain.tasks.base import Task
from jaxtrain.tasks.classification import Classification
from jaxtrain.tasks.language import LanguageModel
from jaxtrain.tasks.regression import Regression

__all__ = ["Classification", "LanguageModel", "Regression", "Task"]

"""What is learned: a task joins a model to a loss, its metrics and its predictions."""

from jaxtrain.tasks.base import Task
from jaxtrain.tasks.classification import Classification
from jaxtrain.tasks.language import LanguageModel
from jaxtrain.tasks.regression import Regression

__all__ = ["Classification", "LanguageModel", "Regression", "Task"]

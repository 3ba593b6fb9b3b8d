"""Tasks: what is learned. A task joins a model to a loss, metrics and predictions."""

from jaxtrain.models.variables import Context, Variables
from jaxtrain.tasks.base import Loss, Task
from jaxtrain.tasks.classification import Classification
from jaxtrain.tasks.language import LanguageModel
from jaxtrain.tasks.regression import Regression
from jaxtrain.tasks.supervised import Supervised

__all__ = ["Classification", "Context", "LanguageModel", "Loss", "Regression", "Supervised", "Task", "Variables"]

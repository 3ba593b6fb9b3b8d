"""Tasks: what is learned. A task joins a model to a loss, metrics and predictions. `__init__.pyi` lists the names."""

from jaxtrain.base.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__)

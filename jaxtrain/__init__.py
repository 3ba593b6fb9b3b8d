"""A JAX research training codebase: one pure train step, distributed by partition specs.

Names for notebooks, listed in `__init__.pyi`; the command line is `jaxtrain` (see `jaxtrain.cli`).
"""

from jaxtrain.base.display import render_in
from jaxtrain.base.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__)
render_in("jaxtrain.reports.notebook")

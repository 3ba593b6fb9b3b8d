"""What a notebook shows instead of a value's text. Values of low rooms are drawn by a module of a high one, which is
imported when the first of them is shown.

Not here: the drawing, which is `reports/notebook`.
"""

import importlib

_renderer = ""


def render_in(module: str) -> None:
    """From now on `Displayed` values are drawn by the function `html_of` of this module."""
    global _renderer
    _renderer = module


class Displayed:
    """Base of the values that Jupyter and its like show as HTML. Their text stays as it is."""

    __slots__ = ()

    def _repr_html_(self) -> str | None:
        return importlib.import_module(_renderer).html_of(self) if _renderer else None

"""What notebooks show: experiments, layouts, runs, metrics and trees of arrays as HTML. `show` is the door for all."""

from jaxtrain.reports.notebook.show import Shown, html_of, show

__all__ = ["Shown", "html_of", "show"]

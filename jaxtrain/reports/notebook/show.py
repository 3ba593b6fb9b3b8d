"""`show`: what a value is, for the eye: as HTML in a notebook and as a table of text elsewhere. `html_of` draws the
values that have a picture of their own wherever a cell ends with one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax

import jaxtrain.reports.html as html
from jaxtrain.base.errors import ConfigError
from jaxtrain.base.ranges import Checked
from jaxtrain.experiment.experiment import Experiment
from jaxtrain.models.base import Model
from jaxtrain.models.params import merged
from jaxtrain.program import Program, abstract_state
from jaxtrain.reports.notebook.layouts import array_html, device_count, layout_html
from jaxtrain.reports.notebook.runs import run_html
from jaxtrain.reports.notebook.trees import dims_of, is_tree_of_arrays, leaves_of, tree_html, tree_text
from jaxtrain.reports.notebook.values import experiment_html, metric_html, metrics_html, metrics_table, value_html
from jaxtrain.runs.folder import Run
from jaxtrain.sharding.layout import Layout
from jaxtrain.step import TrainState
from jaxtrain.tasks.checks import abstract_variables
from jaxtrain.tasks.metrics import Metric


@dataclass(frozen=True, repr=False)
class Shown:
    """What `show` returns; a notebook draws it, a terminal prints its text."""

    html: str
    text: str

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return self.text


def html_of(value: Any) -> str:
    """The HTML of a value that is `Displayed`."""
    if isinstance(value, Run):
        return html.cell(run_html(value))
    if isinstance(value, Layout):
        return html.cell(layout_html(value))
    if isinstance(value, Experiment):
        return html.cell(experiment_html(value))
    if isinstance(value, Metric):
        return html.cell(metric_html(value))
    if isinstance(value, Program | TrainState):
        return show(value).html
    return html.cell(value_html(value))


def show(value: Any, of: Experiment | Program | None = None, inputs: Any = None, devices: int | None = None) -> Shown:
    """What a value is: a state, parameters or any tree of arrays; one array; a model, experiment or program; a layout;
    a run; metrics.

    Trees have the shape, dtype, bytes and sharding of each array, and the names of its dims where they are known. An
    array on several devices is drawn on its mesh.

    of: for a state or parameters, the experiment or program that knows the names of their dims.
    inputs: for a model, an array (or its shape) like those that it is called with: of it only shape and dtype matter.
    devices: for an experiment or a layout, the number of devices that it is laid out on; none are needed. By default as
        many as the mesh says, or 8 where it takes what there is.

    Raises ConfigError for a value that cannot be shown, for a model without `inputs`, and for a mesh that does not fit
    the devices.
    """
    if isinstance(value, Layout):
        return Shown(html.cell(layout_html(value, devices)), repr(value))
    if isinstance(value, Experiment | Program):
        return _whole(value, devices)
    if isinstance(value, Model):
        if inputs is None:
            raise ConfigError(f"show({type(value).__name__}): give inputs=, an array such as the model is called with")
        named = jax.eval_shape(lambda: value.init(jax.random.key(0), inputs))
        return _tree(
            {"params": named.params, **({"state": named.state} if named.state else {})}, type(value).__name__, {}
        )
    if isinstance(value, jax.Array) and not jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        return Shown(html.cell(array_html(value)), tree_text(leaves_of({"array": value}, {})))
    if isinstance(value, Mapping) and value and all(isinstance(each, Metric) for each in value.values()):
        return Shown(html.cell(metrics_html(value)), metrics_table(value))
    if isinstance(value, Metric | Run | Checked):
        return Shown(html_of(value), repr(value))
    if is_tree_of_arrays(value):
        return _tree(value, type(value).__name__, {} if of is None else _dims(of))
    raise ConfigError(
        f"show: a {type(value).__name__} is none of these: a tree of arrays, a model, an experiment, a program, "
        "a layout, a run, metrics"
    )


def _tree(tree: Any, title: str, dims: Mapping[str, Any]) -> Shown:
    leaves = leaves_of(tree, dims)
    return Shown(html.cell(tree_html(leaves, title)), tree_text(leaves))


def _dims(of: Experiment | Program) -> dict[str, tuple[str | None, ...]]:
    experiment = of.experiment if isinstance(of, Program) else of
    return dims_of(abstract_variables(experiment.task, experiment.data.example()).params)


def _whole(value: Experiment | Program, devices: int | None) -> Shown:
    """All arrays of an experiment's state, where its layout puts them."""
    if isinstance(value, Program):
        state, layout, title, count = value.state, value.experiment.layout, "Program", value.mesh.size
    else:
        layout, title = value.layout, "Experiment"
        count, _ = device_count(layout, devices)
        state = abstract_state(value, layout.abstract_mesh(count))
    tree = {
        "params": merged(state.params, state.frozen),
        "model_state": state.model_state,
        "opt_state": state.opt_state,
    }
    dims = _dims(value)
    leaves = [leaf for name, part in tree.items() for leaf in leaves_of({name: part}, dims)]  # jax would sort the names
    head = html.cell(tree_html(leaves, title), html.details("layout", layout_html(layout, count)))
    return Shown(head, tree_text(leaves))

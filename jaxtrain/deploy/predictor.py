"""`Predictor`: the prediction of a trained model from raw inputs, as one pure function of weights and tensors.

The transforms of the run's data are part of it, so that what is exported of it prepares inputs as evaluation did. Not
here: files.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh

from jaxtrain.base.errors import ConfigError
from jaxtrain.data.remembered import RememberedPipeline, before_transforms, remember_inputs
from jaxtrain.data.sources.base import Example, Source, spread
from jaxtrain.deploy.inputs import Tensor
from jaxtrain.deploy.raw import RawInputs, raw_inputs
from jaxtrain.deploy.signature import Signature
from jaxtrain.experiment.experiment import Experiment
from jaxtrain.experiment.fit import in_units_of_data
from jaxtrain.generation.functions import variables_of
from jaxtrain.models.checks import kind_of
from jaxtrain.models.variables import Variables
from jaxtrain.runs.folder import Restored
from jaxtrain.sharding.constraints import scope
from jaxtrain.sharding.layout import Layout, path_name
from jaxtrain.step import TrainState
from jaxtrain.tasks.base import Task
from jaxtrain.tasks.checks import prediction_of

Weights = Mapping[str, Any]
"""Arrays by path: `params/dense/kernel`, `state/ratios`."""

_ROWS = 3  # of the arrays that are traced to find the shapes of outputs


@dataclass(frozen=True)
class Predictor:
    """What a bundle computes.

    weights: the parameters and the state that are evaluated, by path, as numpy arrays; of `check_export`, shapes.
    raw: the inputs, and how their tensors become a batch. kept: what prepares raw inputs without a graph.
    """

    task: Task
    weights: Weights
    signature: Signature
    raw: RawInputs
    kept: RememberedPipeline
    in_units: Callable[[Mapping[str, Any]], dict[str, Any]]

    def function(self, weights: Weights, tensors: Mapping[str, Any]) -> dict[str, jax.Array]:
        """The outputs by name, from the tensors of the signature; pure, traced by jax, for any number of rows."""
        return _predict(self.task, self.raw, self.in_units, weights, tensors)

    @classmethod
    def of(cls, experiment: Experiment, weights: Weights, name: str = "model") -> "Predictor":
        """From an experiment whose data are here, or that a run remembers, and its weights (arrays or shapes).

        Raises ConfigError, with the reason, for what cannot be exported.
        """
        task, data = experiment.task, experiment.data
        if task.not_exported:
            raise ConfigError(f"{type(task).__name__} is not exported: {task.not_exported}")
        kept = data if isinstance(data, RememberedPipeline) else remember_inputs(data, experiment.evals, task.inputs)
        raw = raw_inputs(kept, task, _examples(experiment))

        def in_units(outputs: Mapping[str, Any]) -> dict[str, Any]:
            return in_units_of_data(replace(experiment, data=kept), outputs)

        def shaped(rows: int) -> dict[str, Any]:
            tensors = {each.name: jax.ShapeDtypeStruct((rows, *each.shape), each.dtype) for each in specs}
            return jax.eval_shape(functools.partial(_predict, task, raw, in_units), weights, tensors)

        specs = tuple(each.spec() for each in raw.inputs)
        _check_batch(raw, specs, kept, task)
        outputs = []
        for output, found in shaped(_ROWS).items():
            if found.shape[:1] != (_ROWS,):
                raise ConfigError(f"{type(task).__name__}.predict: {output!r} is {kind_of(found)}, not rows first")
            shape = tuple(found.shape[1:])
            outputs.append(Tensor(output, found.dtype.name, shape, task.classes_of(output, shape)))
        signature = Signature(name, raw.inputs, specs, tuple(outputs))
        return cls(task, weights, signature, raw, kept, in_units)

    @classmethod
    def restored(cls, restored: Restored, name: str = "model") -> "Predictor":
        """Of a run at a saved step."""
        return cls.of(restored.experiment, weights_of(restored.state), name)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What the function takes."""
        return self.signature.tensors


def weights_of(state: TrainState) -> dict[str, np.ndarray]:
    """The variables that are evaluated, averaged where the optimizer averages, by path, as numpy arrays."""
    variables = jax.device_get(jax.jit(lambda state: state.evaluated)(state))
    return weights_by_path(variables)


def weights_by_path(variables: Variables) -> dict[str, Any]:
    """The leaves of variables by path, parameters under `params/` and state under `state/`."""
    trees = {"params": variables.params, "state": variables.state}
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(trees)}


def raw_source(experiment: Experiment, split: str | None = None) -> Source:
    """The source of a split, of the training data by default, without transforms: its examples are raw inputs."""
    pipeline = experiment.data if split is None else experiment.evals[split]
    return before_transforms(pipeline.source)


def _predict(task: Task, raw: RawInputs, in_units: Callable, weights: Weights, tensors: Mapping[str, Any]) -> Any:
    batch = raw.batch_of(tensors)
    rows = jax.tree.leaves(tensors)[0].shape[0]
    batch |= {"mask": jnp.ones((rows,), bool)}
    # For one device of any platform: what a CPU computes is right everywhere.
    with scope(Layout(), AbstractMesh((), ()), platform="cpu"):
        return in_units(prediction_of(task, variables_of(weights), batch))


def _check_batch(raw: RawInputs, specs: Sequence[Tensor], kept: RememberedPipeline, task: Task) -> None:
    """Raises ConfigError where the graph makes other arrays than the pipeline does."""
    tensors = {each.name: jax.ShapeDtypeStruct((_ROWS, *each.shape), each.dtype) for each in specs}
    batch = jax.eval_shape(raw.batch_of, tensors)
    for name in (task.inputs,) if isinstance(task.inputs, str) else task.inputs:
        found, (dtype, shape) = batch[name], kept.row[name]
        if (found.dtype.name, found.shape[1:]) != (dtype, tuple(shape)):
            raise ConfigError(
                f"the transforms make {found.dtype}{list(found.shape[1:])} of {name!r} when they are traced, but "
                f"{dtype}{list(shape)} otherwise: their `traced` and `__call__` differ"
            )


def _examples(experiment: Experiment) -> list[Example]:
    """Some raw examples, where the data are here."""
    pipelines = [*experiment.evals.values(), experiment.data]
    data = next((each for each in pipelines if not isinstance(each, RememberedPipeline)), None)
    return [] if data is None else spread(before_transforms(data.source))

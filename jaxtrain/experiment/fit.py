"""Fits an experiment's transforms on its training split. Not here: how each kind of transform is fitted."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxtrain.base.config import from_json
from jaxtrain.base.errors import ConfigError
from jaxtrain.base.registry import name_of
from jaxtrain.data.pipeline import Pipeline
from jaxtrain.data.transforms.base import Transform
from jaxtrain.data.transforms.fitted import FittedTransform
from jaxtrain.experiment.experiment import Experiment
from jaxtrain.experiment.run_file import read_saved


def fit(experiment: Experiment, folder: Path | None = None) -> Experiment:
    """The experiment with fitted values in all its transforms, those of `data` and of the evals.

    Each transform is fitted in one pass over the training split, in the source's order, on examples that the transforms
    before it have prepared as in evaluation. Every process of a run reads the whole split and computes the same values.
    If `folder` is that of a run, its saved values are used and nothing is fitted.

    Raises ConfigError for a fitted transform in an eval that is not among those of `data`, and for a folder that is a
    str.
    """
    if isinstance(folder, str):
        raise ConfigError(f"the folder of a run is a path: give pathlib.Path({folder!r}), not a str")
    file = folder / "experiment.json" if folder is not None else None
    if file is not None and file.is_file():
        experiment = fitted_as(experiment, read_saved(file.parent))
    done: list[Transform] = []
    for transform in experiment.data.transforms:
        if isinstance(transform, FittedTransform) and transform.fitted is None:
            transform = transform.fit(replace(experiment.data, transforms=tuple(done)).examples())
        done.append(transform)
    return _shared(experiment, done)


def fitted_as(experiment: Experiment, saved: Mapping[str, Any]) -> Experiment:
    """The experiment, with the fitted values of a saved run in the transforms that the run has too.

    saved: the content of the run's `experiment.json`.
    """
    transforms, known = experiment.data.transforms, saved["experiment"]["data"]["transforms"]
    if not any(isinstance(transform, FittedTransform) for transform in transforms):
        return experiment
    pairs = enumerate(zip(transforms, known, strict=False))
    return _shared(experiment, [_saved(*pair, number) for number, pair in pairs] + [*transforms][len(known) :])


def _saved(transform: Transform, saved: Mapping[str, Any], number: int) -> Transform:
    if (
        isinstance(transform, FittedTransform)
        and transform.fitted is None
        and saved["$kind"] == name_of(type(transform))
    ):
        found = from_json(saved, wanted=Transform, path=f"experiment.data.transforms.{number}")
        return found if found.unfitted() == transform else transform
    return transform


def _shared(experiment: Experiment, transforms: Sequence[Transform]) -> Experiment:
    """The experiment with these transforms in its data, and with their fitted values in its evals."""
    if not any(isinstance(each, FittedTransform) for data in _pipelines(experiment) for each in data.transforms):
        return experiment
    fitted = [each for each in transforms if isinstance(each, FittedTransform)]
    for number, each in enumerate(fitted):
        if each.unfitted() in [other.unfitted() for other in fitted[:number]]:
            raise ConfigError(f"data.transforms: {each.unfitted()!r} is there twice")
    evals = {
        split: replace(data, transforms=tuple(_with_values(each, fitted, split) for each in data.transforms))
        for split, data in experiment.evals.items()
    }
    return replace(experiment, data=replace(experiment.data, transforms=tuple(transforms)), evals=evals)


def _with_values(transform: Transform, fitted: Sequence[FittedTransform], split: str) -> Transform:
    if not isinstance(transform, FittedTransform) or transform.fitted is not None:
        return transform
    found = next((each for each in fitted if each.unfitted() == transform), None)
    if found is None:
        raise ConfigError(
            f"evals.{split}: {transform!r} is not among the transforms of `data`: it is fitted on the training split "
            "alone, so both must have the same"
        )
    return found


def _pipelines(experiment: Experiment) -> list[Pipeline]:
    return [experiment.data, *experiment.evals.values()]


def in_units_of_data(experiment: Experiment, values: Mapping[str, Any], labels: bool = False) -> dict[str, Any]:
    """Predictions by name, with the transforms of the fields that the task predicts undone; with `labels`, fields of a
    batch instead of predictions.
    """
    names = experiment.task.fields_of()
    fields = {field: field for field in names.values()} if labels else names
    return {name: experiment.data.undo(fields[name], x) if name in fields else x for name, x in values.items()}

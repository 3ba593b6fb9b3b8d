"""What a run saves of its data, so that `predict` needs no data file: transforms, fields, shapes and dtypes."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from jaxtrain.base.errors import ConfigError
from jaxtrain.data.pipeline import Pipeline
from jaxtrain.data.sources.base import Example, HostBatch, RememberedSource, Source, spread
from jaxtrain.data.sources.combine import Mapped, Mixture, Wrapper
from jaxtrain.data.transforms.base import Transform


@dataclass(frozen=True)
class RememberedPipeline(Pipeline):
    """A pipeline's transforms, for raw inputs, and the dtype and shape of every field of a row of its batches.

    Its batches are zeros and serve only for their shapes.
    """

    row: Mapping[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)

    @cached_property
    def _first(self) -> HostBatch:
        return {name: np.zeros((1, *shape), dtype) for name, (dtype, shape) in self.row.items()}

    def read(self, argument: str) -> HostBatch:
        """A batch of one raw input, a text or the path of a file, prepared as in evaluation.

        Raises ConfigError for an input that cannot be read, and for an empty one that no transform pads.
        """
        batch = self.prepare([self.source.raw(argument)])
        for name, value in batch.items():
            if not value.size:
                raise ConfigError(f"{argument!r} is empty: nothing is left of it for {name!r}")
        return batch

    def _changed(self, transform: Transform, example: Example, rng: np.random.Generator) -> Example:
        """Skips a transform of a field that raw inputs lack, such as the label."""
        return changed_where_possible(lambda watched: transform(watched, rng), example)

    def evaluated(self) -> list[Transform]:
        """The transforms as evaluation and prediction apply them."""
        return [each.evaluating() for each in self.transforms if not each.training_only]

    def needs(self, examples: Sequence[Example], wanted: Sequence[str]) -> list[str]:
        """The fields of examples from which the fields `wanted` of a batch are computed; all fields if unknown.

        Found by trial: a field is needed if the wanted values change when it is removed, or replaced by that of another
        example.
        """

        def made(example: Example) -> list[Any]:
            try:
                found = self._transformed(example, np.random.default_rng(0), training=False)
            except Exception:  # a user's transform may raise anything for a missing field
                return []
            return [np.asarray(found[name]) for name in wanted if name in found]

        def differ(changed: Example, before: list[Any]) -> bool:
            now = made(changed)
            return len(now) != len(before) or not all(map(np.array_equal, now, before))

        first, found = examples[0], made(examples[0])
        if not found:
            return [*first]
        return [
            name
            for name in first
            if any(differ({**first, name: one[name]}, found) for one in examples[1:] if name in one)
            or differ({other: value for other, value in first.items() if other != name}, found)
        ]


class Watched(dict[str, Any]):
    """An example that notes whether a missing field was looked up."""

    lacking = False

    def __contains__(self, name: object) -> bool:
        found = super().__contains__(name)
        self.lacking |= not found
        return found

    def __missing__(self, name: str) -> Any:
        self.lacking = True
        raise KeyError(name)


def remember(
    pipeline: Pipeline, inputs: Pipeline | None = None, wanted: str | Sequence[str] = ()
) -> RememberedPipeline:
    """The pipeline that a run saves in place of one that reads data. Reads a few examples.

    inputs: the pipeline that prepares raw inputs; `pipeline` by default.
    wanted: the fields of a batch that the model reads. A raw input consists of the fields of an example from which
        these are computed.
    """
    row = {name: (x.dtype.name, x.shape[1:]) for name, x in pipeline.example().items()}
    inputs = inputs or pipeline
    inner, before = _read_by(inputs.source) if wanted else (inputs.source, ())
    source = inner.remembered()
    kept = RememberedPipeline(source, (*before, *inputs.transforms), pipeline.batch_size, seed=inputs.seed, row=row)
    if wanted and isinstance(source, RememberedSource):
        examples = spread(inner)
        needed = kept.needs(examples, (wanted,) if isinstance(wanted, str) else wanted)
        only = [{name: one[name] for name in needed if name in one} for one in examples]
        return replace(kept, source=replace(RememberedSource.like(only), whole=True))
    return kept


def remember_inputs(data: Pipeline, evals: Mapping[str, Pipeline], wanted: str | Sequence[str]) -> RememberedPipeline:
    """`remember`, with raw inputs prepared as in the evaluations, or as in `data` if those differ, which is logged."""
    wanted, ways = ((wanted,) if isinstance(wanted, str) else wanted), []
    for pipeline in evals.values():
        transforms = [each.evaluating() for each in pipeline.transforms if not each.training_only]
        way = transforms, {name: x.shape[1:] for name, x in pipeline.example().items() if name in wanted}
        ways += [way] if way not in ways else []
    if len(ways) > 1:
        logging.getLogger("jaxtrain.data").warning(
            "the evaluations %s prepare the model's input in different ways: predict prepares it as `data` does, "
            "without augmentation",
            ", ".join(evals),
        )
    return remember(data, next(iter(evals.values())) if len(ways) == 1 else data, wanted)


def before_transforms(source: Source) -> Source:
    """A source without the transforms of those inside it: what a raw input is an example of, by the same index."""
    if type(source) is Mapped:
        return before_transforms(source.source)
    if isinstance(source, Wrapper) and type(source).raw is Wrapper.raw:
        return replace(source, source=before_transforms(source.source))
    if type(source) is Mixture:
        return replace(source, sources=tuple(map(before_transforms, source.sources)))
    return source


def changed_where_possible(
    change: Callable[[Example], Example], example: Example, watched: "Watched | None" = None
) -> Example:
    """`change(example)`, or the example where it lacks a field that `change` looks for, such as the label."""
    watched = Watched(example) if watched is None else watched
    try:
        return change(watched)
    except (ConfigError, KeyError):
        if not watched.lacking:
            raise
        return example


def _read_by(source: Source) -> tuple[Source, tuple[Transform, ...]]:
    """The innermost source, which reads raw inputs, and the transforms of the sources that wrap it."""
    if type(source) is Mapped:
        inner, before = _read_by(source.source)
        return inner, (*before, *source.transforms)
    if isinstance(source, Wrapper) and type(source).raw is Wrapper.raw:
        return _read_by(source.source)
    return _read_by(source.sources[0]) if type(source) is Mixture else (source, ())

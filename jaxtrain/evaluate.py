"""The verbs that use a trained model: evaluate it on a split, predict from raw inputs. Not here: changing it."""

import sys
from collections import deque
from collections.abc import Iterator, Sequence

import jax

from jaxtrain.base.errors import ConfigError, nearest
from jaxtrain.data.pipeline import Pipeline
from jaxtrain.program import Program
from jaxtrain.runs.folder import Run
from jaxtrain.runs.journal import IN_FLIGHT
from jaxtrain.sharding.layout import Layout
from jaxtrain.step import TrainState
from jaxtrain.tasks.metrics import Mean, merge


def evaluate(program: Program, state: TrainState, pipeline: Pipeline) -> dict[str, float]:
    """The metrics over one pass of a pipeline; exact whatever the mesh and the batch size.

    Waits for the batch `IN_FLIGHT` before the last, so that batches never pile up on the devices.
    """

    def finished() -> Iterator[dict[str, Mean]]:
        flight: deque[dict[str, Mean]] = deque()
        for batch in program.epoch(pipeline):
            flight.append(program.evaluate(state, batch))
            if len(flight) > IN_FLIGHT:
                yield jax.device_get(flight.popleft())
        yield from jax.device_get(list(flight))

    return {name: float(mean) for name, mean in merge(finished()).items()}


def evaluate_run(run: Run, step: int | None = None, split: str | None = None) -> dict[str, dict[str, float]]:
    """The metrics of a saved step by split: of all splits, or of one."""
    evals = run.experiment.evals
    if split is not None and split not in evals:
        raise ConfigError(f"this experiment has no split {split!r}{nearest(split, evals)}")
    restored = run.restore(step, _layout_here(run))
    chosen = evals if split is None else {split: evals[split]}
    return {name: evaluate(restored.program, restored.state, pipeline) for name, pipeline in chosen.items()}


def _layout_here(run: Run) -> Layout:
    """The run's own layout, or one device where other devices are here than it was trained on."""
    try:
        run.experiment.layout.sizes(jax.device_count())
    except ConfigError as error:
        print(f"on one device, since the run's layout does not fit here ({error})", file=sys.stderr)
        return Layout()
    return run.experiment.layout


def predict_run(run: Run, arguments: Sequence[str], step: int | None = None) -> list[str]:
    """One line for each text or file, from a saved step on one device."""
    run = run.without_data()
    data, task = run.experiment.data, run.experiment.task
    batches = [data.prepare([data.source.raw(argument)]) for argument in arguments]
    restored = run.restore(step, Layout(), jax.devices()[:1])
    predictions = [jax.device_get(restored.program.predict(restored.state, batch)) for batch in batches]
    return [task.describe({name: value[0] for name, value in one.items()}) for one in predictions]

"""The verbs that use a trained model: evaluate it on a split, predict from raw inputs. Not here: changing it."""

import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxtrain.base.errors import ConfigError, nearest
from jaxtrain.cluster import watchdog
from jaxtrain.cluster.stop import StopSignal
from jaxtrain.data.pipeline import Pipeline
from jaxtrain.data.remembered import RememberedPipeline, remember_inputs
from jaxtrain.experiment.experiment import Experiment, Runtime
from jaxtrain.experiment.fit import in_units_of_data
from jaxtrain.experiment.start import SavedStep
from jaxtrain.experiment.validate import check_evals, check_observers
from jaxtrain.program import Program
from jaxtrain.runs.clock import Clock
from jaxtrain.runs.folder import Run
from jaxtrain.runs.journal import IN_FLIGHT
from jaxtrain.runs.row_pass import keep_rows
from jaxtrain.sharding.layout import Layout
from jaxtrain.step import TrainState
from jaxtrain.tasks.base import Batch
from jaxtrain.tasks.host_metrics import HostMetric, Rows
from jaxtrain.tasks.metrics import Metric, flat, merge, values_by_name


class Evaluator(Protocol):
    """What `evaluate` asks of a program; a bundle answers it too."""

    @property
    def experiment(self) -> Experiment:
        """Whose task, host metrics and transforms these are."""
        ...

    def epoch(self, pipeline: Pipeline) -> Iterator[Any]:
        """The batches of one pass."""
        ...

    def evaluate(self, state: Any, batch: Any) -> dict[str, Metric]:
        """The metrics of a batch."""
        ...

    def predict(self, state: Any, batch: Any) -> dict[str, Any]:
        """The predictions for a batch, in the units of the data."""
        ...


def evaluate(program: Evaluator, state: Any, pipeline: Pipeline, stop: StopSignal | None = None) -> dict[str, float]:
    """The metrics over one pass of a pipeline, host metrics too; exact whatever the mesh and the batch size.

    Waits for the batch `IN_FLIGHT` before the last, so that batches never pile up on the devices. Raises
    Stopped between two batches where `stop` is requested.
    """
    host_metrics = program.experiment.host_metrics
    rows: list[tuple[Rows, Rows]] = []

    def start(batch: Batch) -> tuple[dict[str, Metric], Batch, Batch]:
        labels = {name: batch[name] for name in _label_fields(host_metrics, batch)} if host_metrics else {}
        return program.evaluate(state, batch), program.predict(state, batch) if host_metrics else {}, labels

    def finish(metrics: dict[str, Metric], predictions: Batch, labels: Batch) -> dict[str, Metric]:
        if host_metrics:
            predictions, labels = _real_rows(predictions, labels)
            rows.append((predictions, in_units_of_data(program.experiment, labels, labels=True)))
        return jax.device_get(metrics)

    def finished() -> Iterator[dict[str, Metric]]:
        flight: deque[tuple[dict[str, Metric], Batch, Batch]] = deque()
        for batch in program.epoch(pipeline):
            if stop is not None:
                stop.check()
            watchdog.beat()
            flight.append(start(batch))
            if len(flight) > IN_FLIGHT:
                yield finish(*flight.popleft())
        for one in flight:
            yield finish(*one)

    found = values_by_name(merge(finished()))
    predictions, labels = (_joined([one[part] for one in rows]) for part in (0, 1))
    for name, metric in host_metrics.items() if rows else ():
        found |= flat(name, _host_value(name, metric, predictions, labels))
    return found


def evaluate_splits(program: Program, state: TrainState, clock: Clock, stop: StopSignal) -> dict[str, dict[str, float]]:
    """`evaluate` of each split of the experiment, by its name, in the phase `eval` of the clock."""
    with clock("eval"):
        return {split: evaluate(program, state, data, stop) for split, data in program.experiment.evals.items()}


def _host_value(name: str, metric: HostMetric, predictions: Rows, labels: Rows) -> float | Mapping[str, float]:
    """Raises ConfigError where the metric reads a prediction or a field that is not there."""
    try:
        return metric.value(predictions, labels)
    except KeyError as error:
        [key, *_], known = error.args or ("",), [*predictions, *labels]
        if key in known:
            raise
        what = f"{key!r} is neither a prediction nor one of its fields{nearest(str(key), known)}"
        raise ConfigError(f"host_metrics.{name}: {what}") from error


def _label_fields(host_metrics: Mapping[str, HostMetric], batch: Batch) -> list[str]:
    """The mask, and the fields that host metrics read. Raises ConfigError for a field that the batch lacks."""
    for name, metric in host_metrics.items():
        for needed in metric.fields:
            if needed not in batch:
                raise ConfigError(f"host_metrics.{name}: the batch has no field {needed!r}{nearest(needed, batch)}")
    return sorted({"mask", *(needed for metric in host_metrics.values() for needed in metric.fields)})


def _real_rows(predictions: Batch, labels: Batch) -> tuple[Rows, Rows]:
    """The rows of a batch that do not only fill it up, of all processes."""
    whole = {name: multihost_utils.process_allgather(x, tiled=True) for name, x in labels.items()}
    mask = whole.pop("mask")
    real = {name: jax.device_get(x)[mask] for name, x in predictions.items()}
    return real, {name: x[mask] for name, x in whole.items()}


def _joined(parts: Sequence[Rows]) -> Rows:
    return {name: np.concatenate([part[name] for part in parts]) for name in (parts[0] if parts else ())}


def check_metrics(program: Program) -> None:
    """Raises ConfigError, before any step, for what evaluations would find out late: a `keep.best` that none of them
    reports, nor what an observer reads, and host metrics that read what there is not. Traces, but computes nothing.
    """
    experiment = program.experiment
    check_evals(experiment)
    check_observers(experiment)
    host_metrics, best = experiment.host_metrics, experiment.runtime.keep.best
    needed = {best: "keep.best"} if best else {}
    needed |= {name: f"observers.{number}" for number, each in enumerate(experiment.observers) for name in each.reads}
    for split, pipeline in experiment.evals.items():
        wanted = {name.partition("/")[2]: where for name, where in needed.items() if name.partition("/")[0] == split}
        if not wanted and not host_metrics:
            continue
        batch = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in pipeline.example().items()}
        known, unknown = _names(jax.eval_shape(program.evaluate, program.state, batch))
        if host_metrics:
            _label_fields(host_metrics, batch)
            jax.eval_shape(program.predict, program.state, batch)
        if twice := host_metrics.keys() & {name.partition("/")[0] for name in [*known, *unknown]}:
            raise ConfigError(f"host_metrics: {min(twice)!r} is the name of a metric of the task: choose another")
        unknown += host_metrics
        for name, where in wanted.items():
            if name not in known and name.partition("/")[0] not in unknown:
                full, names = f"{split}/{name}", [f"{split}/{each}" for each in [*known, *unknown]]
                raise ConfigError(f"{where}: no evaluation reports {full!r}{nearest(full, names)}")


def _names(shapes: Mapping[str, Metric]) -> tuple[list[str], list[str]]:
    """The names of the values of abstract metrics, and the metrics of which these are known only once computed."""
    known, unknown = [], []
    for name, metric in shapes.items():
        try:
            known += values_by_name({name: jax.tree.map(lambda x: np.ones(x.shape, x.dtype), metric)})
        except (ArithmeticError, ValueError):  # ones need not be possible sums: a log of their difference
            unknown.append(name)
    return known, unknown


def evaluate_run(
    run: Run,
    step: SavedStep | None = None,
    split: str | None = None,
    data: Experiment | None = None,
    rows: bool = False,
) -> dict[str, dict[str, float]]:
    """The metrics of a saved step by split: of all splits, or of one.

    data: an experiment whose evaluations are used instead of the run's; differences from the run's data are printed on
        stderr. Without it, raises ConfigError for a split whose data differ from what the run recorded.
    rows: keep the rows in the run folder, as after a run's last evaluation: at most `runtime.keep_rows` of a split, or
        as many as by default where that is 0. Raises ConfigError with `data`, of which these rows would not say so.
    """
    if rows and data is not None:
        raise ConfigError("--keep-rows keeps what the run found on its own data: leave out --data")
    run = run if data is None else run.on(data)
    chosen = chosen_evals(run, split, recorded=data is None)
    restored = run.restore(step, layout_here(run))
    found = {name: evaluate(restored.program, restored.state, pipeline) for name, pipeline in chosen.items()}
    if rows:
        most = run.experiment.runtime.keep_rows or Runtime().keep_rows
        keep_rows(restored.program, restored.state, run.folder, chosen, most)
    return found


def chosen_evals(run: Run, split: str | None = None, recorded: bool = True) -> dict[str, Pipeline]:
    """The evaluations of a run, or the one of a split.

    recorded: raise ConfigError for data that are not those that the run recorded; else what differs is printed on
        stderr.
    """
    evals = run.experiment.evals
    if split is not None and split not in evals:
        raise ConfigError(f"this experiment has no split {split!r}{nearest(split, evals)}")
    chosen = dict(evals) if split is None else {split: evals[split]}
    for name, pipeline in chosen.items():
        if found := run.difference(name, pipeline, data_alone=recorded):
            line = f"evals.{name}: not the data that the run recorded (run → now): {found}"
            if recorded:
                raise ConfigError(f"{line}: put those back, or evaluate on these by --data FILE[:FUNCTION]")
            print(line, file=sys.stderr)
    return chosen


def layout_here(run: Run) -> Layout:
    """The run's own layout, or one device where other devices are here than it was trained on."""
    try:
        run.experiment.layout.sizes(jax.device_count())
    except ConfigError as error:
        print(f"on one device, since the run's layout does not fit here ({error})", file=sys.stderr)
        return Layout()
    return run.experiment.layout


def predict_run(run: Run, arguments: Sequence[str], step: SavedStep | None = None) -> list[str]:
    """One line for each text or file, from a saved step on one device: what evaluation would give for such a row."""
    run = run.without_data()
    data, task = run.experiment.data, run.experiment.task
    if not isinstance(data, RememberedPipeline):
        data = remember_inputs(data, run.experiment.evals, task.inputs)
    batches = [data.read(argument) for argument in arguments]
    restored = run.restore(step, Layout(), jax.devices()[:1])
    predictions = [jax.device_get(restored.program.predict(restored.state, batch)) for batch in batches]
    return [task.describe({name: value[0] for name, value in one.items()}) for one in predictions]

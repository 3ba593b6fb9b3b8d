"""`Program`: the only place where jit, shardings and donation meet."""

import contextlib
import functools
from collections.abc import Callable, Collection, Generator, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxtrain.base.allowed import check_values
from jaxtrain.base.display import Displayed
from jaxtrain.base.errors import ConfigError
from jaxtrain.data.pipeline import Pipeline
from jaxtrain.experiment.experiment import Experiment
from jaxtrain.experiment.fit import in_units_of_data
from jaxtrain.experiment.validate import (
    check_compiler_options,
    check_rates,
    check_sizes,
    check_updates,
    check_used,
    check_whole_batch,
)
from jaxtrain.models.notes import notes
from jaxtrain.models.params import parted, unnamed
from jaxtrain.models.variables import Variables
from jaxtrain.optimizers.recorded import groups_of, recorded
from jaxtrain.optimizers.state import map_state
from jaxtrain.sharding.checksum import checksum
from jaxtrain.sharding.constraints import scope
from jaxtrain.sharding.feed import local_rows, put_rows
from jaxtrain.sharding.layout import mesh_axes, named_leaves, path_name, plain
from jaxtrain.step import TrainState, eval_step, full_batch, init_state, microbatched, predict_step, train_step
from jaxtrain.tasks.base import Batch
from jaxtrain.tasks.checks import abstract_variables, check_loss
from jaxtrain.tasks.metrics import Metric


def abstract_state(
    experiment: Experiment, mesh: Mesh | AbstractMesh, example: Batch | None = None, named: Variables | None = None
) -> TrainState:
    """The shape, dtype and sharding of every leaf of the state: what initialising, restoring and planning go by.

    Optimizer state of a parameter is sharded as the parameter is (by `Layout.optimizer_rules`) if it has its shape; all
    other optimizer state is replicated. Needs no devices. `example`: the pipeline's example batch, if it was
    made already; `named`: its `abstract_variables`. Raises ConfigError where the layout does not fit the model.
    """
    task, layout, sizes = experiment.task, experiment.layout, mesh.shape
    batch = experiment.data.example() if example is None else example
    named = abstract_variables(task, batch) if named is None else named
    frozen = experiment.optimizer.frozen([path_name(path) for path, _ in named_leaves(named.params)])
    optimizer = experiment.optimizer.transformation(experiment.steps, plain(named.params))
    shapes = jax.eval_shape(lambda: init_state(task, optimizer, jax.random.key(0), batch, frozen))
    check_updates(optimizer, type(experiment.optimizer).__name__, shapes.params)
    check_rates(experiment.optimizer, experiment.steps)
    kept_in = "pinned_host" if layout.offload else None

    def place(leaf: jax.ShapeDtypeStruct, spec: P | None = None, memory: str | None = None) -> jax.ShapeDtypeStruct:
        sharding = NamedSharding(mesh, spec or P(), memory_kind=memory)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    def keep(leaf: jax.ShapeDtypeStruct, param: jax.ShapeDtypeStruct, spec: P) -> jax.ShapeDtypeStruct:
        return place(leaf, spec, kept_in) if leaf.shape == param.shape else place(leaf)

    check_whole_batch(experiment, sizes)
    check_sizes(experiment, sizes)
    specs, kept = layout.specs(named.params, sizes), layout.specs(named.params, sizes, kept=True)
    (params, fixed), (kept, _) = (parted(tree, frozen, "frozen") for tree in (specs, kept))
    state_specs = layout.specs(named.state, sizes, "model_state")
    return replace(
        jax.tree.map(place, shapes),
        params=jax.tree.map(place, shapes.params, params),
        opt_state=map_state(optimizer, keep, shapes.opt_state, shapes.params, kept, others=place),
        frozen=jax.tree.map(place, shapes.frozen, fixed),
        model_state=jax.tree.map(place, shapes.model_state, state_specs),
    )


Batches = Generator[dict[str, jax.Array], None, None]
"""Close it to stop its readers."""


class Program(Displayed):
    """An experiment compiled for a mesh: its steps as functions of global arrays, and the batches to give them."""

    def __init__(
        self, experiment: Experiment, devices: Sequence[jax.Device] | None = None, horizon: int | None = None
    ) -> None:
        """Traces, but puts nothing on a device. Raises ConfigError where layout, model and batch do not fit.

        horizon: the steps that learning rates are made for; None is `experiment.steps`.
        """
        horizon = horizon or experiment.steps
        self.experiment = experiment
        self.mesh = experiment.layout.make_mesh(devices)
        self._example = example = experiment.data.example()
        self._named = abstract_variables(experiment.task, example)
        self.state = abstract_state(replace(experiment, steps=horizon), self.mesh, example, self._named)
        task, optimizer = experiment.task, experiment.optimizer.transformation(horizon, self.state.params)
        frozen = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(self.state.frozen)]
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.state)
        everywhere = NamedSharding(self.mesh, P())
        count, staged = experiment.microbatches, experiment.layout.stages(self.mesh.shape)[0] > 1
        replicas = experiment.layout.row_axes(self.mesh.shape)
        gradients = microbatched(count, replicas) if count > 1 and not staged else full_batch
        self._used: set[str] = set()
        self._init = jax.jit(
            lambda: init_state(task, optimizer, jax.random.key(experiment.seed), example, frozen),
            out_shardings=shardings,
        )
        self._begun = jax.jit(
            lambda state: replace(state, opt_state=optimizer.init(state.params)), out_shardings=shardings
        )
        fetch = fetched if experiment.layout.offload else lambda state: state
        self._train = jax.jit(
            lambda state, batch: train_step(task, optimizer, fetch(state), batch, gradients),
            donate_argnums=0,
            out_shardings=(shardings, everywhere),
        )
        # A program of its own: as part of the step it would have some models compiled to other last bits.
        sums = functools.partial(checksum, mesh=self.mesh, axes=self._row_axes())
        groups = groups_of(self._named.params, self.state.params) if self.mesh.size == 1 else None

        def record(params: Any, batch: Batch) -> dict[str, Any]:
            sampled = {} if groups is None else {"recorded": recorded(params, groups)}
            return {"batch": sums(batch), **sampled}

        self._record = jax.jit(record, out_shardings=everywhere)
        self._evaluate = jax.jit(lambda state, batch: eval_step(task, fetch(state), batch), out_shardings=everywhere)
        self._predict = self.compiled(
            lambda state, batch: in_units_of_data(experiment, predict_step(task, fetch(state), batch))
        )
        self._finite = self.compiled(
            lambda params: [jax.numpy.isfinite(leaf).all() for leaf in jax.tree.leaves(params)]
        )

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function of arrays, compiled, whose results are on every device."""
        return jax.jit(function, out_shardings=NamedSharding(self.mesh, P()))

    @property
    def sizes(self) -> dict[str, int]:
        """The size of each mesh axis."""
        return dict(self.mesh.shape)

    def scope(self) -> Any:
        """While tracing inside, models see this program's layout."""
        return scope(self.experiment.layout, self.mesh, self.experiment.microbatches, self._used)

    def lower(self) -> jax.stages.Lowered:
        """The train step, traced for this mesh and not yet compiled. Raises ConfigError for a mesh axis without use,
        and for a loss that is wrong whatever the numbers are.
        """
        check_compiler_options(self.experiment.runtime.compiler_options)
        task, state, abstract = self.experiment.task, self.state, self._abstract(self.experiment.data, self._example)
        with self.scope():
            lowered = self._train.lower(state, abstract)
            check_loss(task, state.params, state.fixed, abstract, state.step, state.key)
            for split, pipeline in self.experiment.evals.items():
                self._check_eval(split, self._abstract(pipeline, pipeline.example()), abstract)
        check_used(self.experiment.layout, self.state, self._used)
        return lowered

    def _abstract(self, pipeline: Pipeline, example: Batch) -> dict[str, jax.ShapeDtypeStruct]:
        rows = self.experiment.layout.batch_sharding(self.mesh, pipeline.batch_size)
        return {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows) for name, x in example.items()}

    def _check_eval(self, split: str, batch: Batch, trained: Batch) -> None:
        """Raises ConfigError where the batches of a split have other shapes, which the task does not take."""
        other = [f"{name} {list(x.shape[1:])}" for name, x in batch.items() if x.shape[1:] != trained[name].shape[1:]]
        try:
            _ = jax.eval_shape(self._evaluate, self.state, batch) if other else None
        except (TypeError, ValueError) as error:
            was = ", ".join(f"{name} {list(x.shape[1:])}" for name, x in trained.items() if x.shape[1:])
            raise ConfigError(
                f"evals.{split}: its examples have {', '.join(other)}, those trained on {was}: {error}"
            ) from error

    def notes(self, lowered: jax.stages.Lowered) -> dict[str, list[str]]:
        """What the log records of a lowered step: the choices of the model, such as its attention; on several devices
        also the parameters that are replicated because their dims have no names.
        """
        leaves = unnamed(self._named.params)
        return notes(lowered) | ({"unnamed_parameters": leaves} if leaves and self.mesh.size > 1 else {})

    def _row_axes(self) -> tuple[str, ...]:
        """The mesh axes of more than one device that split the rows of a batch."""
        spec = self.experiment.layout.batch_sharding(self.mesh, self.experiment.data.batch_size).spec
        return tuple(axis for axis in (mesh_axes(spec[0]) if spec else ()) if self.mesh.shape[axis] > 1)

    @functools.cached_property
    def step(self) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Any]]]:
        """The compiled train step; it donates the state it is given."""
        return self.lower().compile()

    def record(self, state: TrainState, batch: Batch) -> dict[str, Any]:
        """For the flight recorder, of a step's batch and the state after it: `batch`, the checksum of the batch as two
        sums u32[2], and on one device `recorded`, a `Sampled` of the parameters; on several it would have to be sent.
        """
        return self._record(state.params, batch)

    def init(self) -> TrainState:
        """The state before the first step, initialised in its shards. What the task fits, such as log-count ratios, is
        fitted in one pass over the training split.
        """
        with self.scope():
            state = self._init()
        return self._fitted(state)

    def _fitted(self, state: TrainState) -> TrainState:
        task, example, pipeline = self.experiment.task, self._example, self.experiment.data
        everywhere = NamedSharding(self.mesh, P())
        rows = {**example, "mask": np.ones(pipeline.batch_size, bool)}
        with self.scope():
            if jax.eval_shape(lambda state: task.count(state.evaluated, rows), state) is None:
                return state
            count = jax.jit(
                lambda counts, state, batch: task.count(state.evaluated, batch, counts),
                donate_argnums=0,
                out_shardings=everywhere,
            )
            counts = None
            with contextlib.closing(self.epoch(pipeline)) as batches:
                for batch in batches:
                    counts = jax.block_until_ready(count(counts, state, batch))  # so that batches do not pile up
            fit = jax.jit(
                lambda state, counts: replace(state, model_state=task.fit(state.evaluated, example, counts)),
                out_shardings=jax.tree.map(lambda leaf: leaf.sharding, self.state),
            )
            return fit(state, counts)

    def begun(self, state: TrainState) -> TrainState:
        """The state with its parameters as they are and optimizer state made anew from them."""
        return self._begun(state)

    def evaluate(self, state: TrainState, batch: Batch) -> dict[str, Metric]:
        """The metrics of a global batch."""
        with self.scope():
            return self._evaluate(state, batch)

    def predict(self, state: TrainState, batch: Batch) -> dict[str, jax.Array]:
        """The predictions for a global batch, in the units of the data."""
        with self.scope():
            return self._predict(state, batch)

    def infinite(self, state: TrainState) -> list[str]:
        """The paths of the parameters that hold a number that is not finite; the same in every process."""
        names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(state.params)]
        flags = jax.device_get(self._finite(state.params))
        return [name for name, finite in zip(names, flags, strict=True) if not finite]

    def batches(self, pipeline: Pipeline, start: int = 0, left_out: Collection[int] = ()) -> Batches:
        """The global batches of the steps from `start` on, endless, as arrays sharded over the mesh.

        left_out: numbers of steps, from 1 on, whose batch has no rows that count: its mask is False everywhere.
        """
        return self._feed(pipeline, lambda rows: pipeline.batches(rows, start), start, True, frozenset(left_out))

    def epoch(self, pipeline: Pipeline) -> Batches:
        """The global batches of one pass, in the source's order; the mask is False at rows that only fill the last."""
        return self._feed(pipeline, pipeline.epoch, 0, training=False)

    def _feed(
        self,
        pipeline: Pipeline,
        read: Callable[[Sequence[int]], Generator[dict[str, np.ndarray], None, None]],
        start: int,
        training: bool,
        left_out: Collection[int] = (),
    ) -> Batches:
        from jaxtrain.data.reading import to_device

        size, allowed = pipeline.batch_size, self.experiment.task.allowed()
        sharding = self.experiment.layout.batch_sharding(self.mesh, size)
        rows = local_rows(sharding, size)  # of these `read` yields this process's part of every batch

        def checked() -> Generator[dict[str, np.ndarray], None, None]:
            with contextlib.closing(read(rows.tolist())) as batches:
                for step, batch in enumerate(batches, start):
                    if step + 1 in left_out:
                        batch = {**batch, "mask": np.zeros_like(batch["mask"])}
                    check_values(batch, allowed, functools.partial(_where, pipeline, step, rows, training))
                    yield batch

        return to_device(checked(), lambda batch: put_rows(sharding, batch, rows, size))


def _where(pipeline: Pipeline, step: int, rows: np.ndarray, training: bool, row: int) -> str:
    """What a local row is made of."""
    index = pipeline.record(step, int(rows[row]), training)
    return f"row {rows[row]} of batch {step}" if index is None else pipeline.source.where(index)


def fetched(state: TrainState) -> TrainState:
    """The state with the optimizer state copied from host to device memory."""
    return replace(state, opt_state=jax.device_put(state.opt_state, jax.memory.Space.Device))

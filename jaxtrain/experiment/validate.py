"""Checks that the parts of an experiment fit together, for errors that would show late or not at all.

Not here: whether the dims of an array divide over the mesh, which is `Layout.spec`.
"""

import functools
import math
from collections.abc import Mapping, Set
from typing import Any

import jax
import numpy as np
import optax

from jaxtrain.base.config import find
from jaxtrain.base.errors import ConfigError, nearest
from jaxtrain.base.files import is_file_name
from jaxtrain.experiment.experiment import Experiment
from jaxtrain.experiment.observers import EarlyStopping
from jaxtrain.models.checks import kind_of
from jaxtrain.models.params import parted
from jaxtrain.optimizers import Optimizer, Schedule, map_state
from jaxtrain.sharding.layout import Layout, mesh_axes, path_name
from jaxtrain.sharding.stages import fits
from jaxtrain.tasks.checks import check_name

FEW_BYTES = 2048
"""Replicated arrays of fewer bytes are not reported."""


def check_sizes(experiment: Experiment, sizes: Mapping[str, int]) -> None:
    """Raises ConfigError for batches and microbatches that do not divide over the mesh, evals whose batches differ from
    those trained on, and a vocabulary smaller than that of the data.
    """
    layout, data = experiment.layout, experiment.data
    count, replicas, (stages, groups) = experiment.microbatches, layout.row_axes(sizes), layout.stages(sizes)
    for where, pipeline in {"": data, **{f"evals.{split}: ": data for split, data in experiment.evals.items()}}.items():
        what = f"{where}a batch of {pipeline.batch_size}"
        layout.spec(("batch",), sizes, (pipeline.batch_size,), what)
        if stages > 1:
            fits(pipeline.batch_size, count, stages, groups, what)
    kinds = {name: x.dtype for name, x in data.example().items()}
    for split, pipeline in experiment.evals.items():
        if (found := {name: x.dtype for name, x in pipeline.example().items()}) != kinds:
            held, trained_on = _field_types(found), _field_types(kinds)
            raise ConfigError(f"evals.{split}: its batches hold {held}, but those trained on {trained_on}")
    # An index past the end of an embedding table silently reads its last row.
    rows, tokens = getattr(experiment.task.model, "vocab", None), data.source.vocab
    if rows is not None and tokens is not None and rows < tokens:
        raise ConfigError(
            f"task.model.vocab: {rows} is less than the {tokens:,} tokens of the data: set it to {tokens}"
        )
    if data.batch_size % (count * math.prod(sizes[axis] for axis in replicas)):
        on = " × ".join(f"{axis}={sizes[axis]}" for axis in replicas)
        raise ConfigError(f"microbatches: {count} do not divide a batch of {data.batch_size}{on and f' on {on}'}")


def check_updates(optimizer: optax.GradientTransformation, name: str, params: Any) -> None:
    """Raises ConfigError for an optimizer whose updates differ from the parameters in shape (they would be broadcast),
    whose state changes in shape or dtype, or that needs more than gradients, state, parameters and loss.
    """
    state = jax.eval_shape(optimizer.init, params)
    grads = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, np.promote_types(x.dtype, np.float32)), params)
    try:
        update = functools.partial(optax.with_extra_args_support(optimizer).update, value=np.float32(0))
        updates, after = jax.eval_shape(update, grads, state, params)
    except (TypeError, AttributeError) as error:
        needs = "it has to take gradients, state, parameters and the loss as value= alone"
        raise ConfigError(f"optimizer: the update of {name} fails while it is traced: {needs} ({error})") from error
    for what, old, new in (("the update", grads, updates), ("the state", state, after)):
        if jax.tree.structure(old) != jax.tree.structure(new):
            raise ConfigError(f"optimizer: {what} that {name} returns has another structure than that it is given")
        for (path, one), two in zip(jax.tree_util.tree_leaves_with_path(old), jax.tree.leaves(new), strict=True):
            if one.shape != two.shape or (what == "the state" and one.dtype != two.dtype):
                kinds = f"{kind_of(two)}, not {kind_of(one)}"
                raise ConfigError(f"optimizer: {what} that {name} returns for {path_name(path)} is {kinds}")


def check_rates(optimizer: Optimizer, steps: int) -> None:
    """Raises ConfigError for a learning rate that is negative or not finite. Checked for classes outside of jaxtrain
    only, at up to 257 steps.
    """
    values = [*find(optimizer, Schedule), *find(optimizer, Optimizer)]
    if all(type(each).__module__.startswith("jaxtrain.") for each in values):
        return
    some = np.unique(np.linspace(0, steps - 1, 257).astype(int))
    for name, rate in optimizer.rates(steps).items():
        rates = np.asarray(jax.vmap(rate)(some))
        for step, value in zip(some.tolist(), rates.tolist(), strict=True):
            if not 0 <= value < math.inf:
                raise ConfigError(f"optimizer: {name} is {value} at step {step}: a rate is finite and at least 0")


def check_whole_batch(experiment: Experiment, sizes: Mapping[str, int]) -> None:
    """Raises ConfigError for microbatches and pipeline stages where the loss of a row depends on other rows."""
    count, (stages, _) = experiment.microbatches, experiment.layout.stages(sizes)
    if experiment.task.whole_batch and (count > 1 or stages > 1):
        what = f"microbatches: {count} microbatches" if count > 1 else f"layout.mesh: a pipeline of {stages} stages"
        raise ConfigError(
            f"{what} would change the loss of {type(experiment.task).__name__}, which compares all rows of a batch: "
            "use more devices or remat to save memory"
        )


def check_evals(experiment: Experiment) -> None:
    """Raises ConfigError for a split named "train", and for intervals at which `keep.best` would miss evaluations.

    Called when a run begins, not when an experiment is created, so that old runs can still be read.
    """
    runtime, steps = experiment.runtime, experiment.steps
    if "train" in experiment.evals:
        raise ConfigError(
            "evals: 'train' is the name of the metrics of training: give the split another, such as 'train_subset'"
        )
    for split in experiment.evals:
        if not is_file_name(split):
            raise ConfigError(f"evals: {split!r} is not a name of a split, whose metrics are named split/metric")
    for name in experiment.host_metrics:
        check_name(name, "host_metrics")
    keep = runtime.keep
    if keep.best is None or keep.save_best or runtime.eval_every >= steps:  # else an evaluation may not be saved
        return
    evaluated, saved = runtime.eval_every, runtime.save_every
    if evaluated % saved and (saved % evaluated or saved >= steps):
        raise ConfigError(
            f"keep.best: the best checkpoint is chosen among steps that are both evaluated (every {evaluated}, "
            f"eval_every) and saved (every {saved}, save_every) up to step {steps}: set keep.save_best, or "
            f"save_every to {evaluated}"
        )


def interval_facts(experiment: Experiment) -> list[str]:
    """Notes on effects of the intervals that a user may not expect: what happens only once, late, or never."""
    runtime, steps, facts = experiment.runtime, experiment.steps, []
    keep, saved = runtime.keep, runtime.save_every
    evaluated = runtime.eval_every if experiment.evals else steps
    every = {"log_every": runtime.log_every, "eval_every": evaluated, "save_every": saved}
    if above := [f"{name} {number}" for name, number in every.items() if number > steps]:
        facts.append(f"the run has {steps} steps, fewer than {', '.join(above)}: that happens once, at the last step")
    if uneven := [f"{name} {number}" for name, number in every.items() if number < steps and steps % number]:
        facts.append(f"the last step, {steps}, counts too though it is not a multiple of {', '.join(uneven)}")
    if keep.best is not None and not keep.save_best and evaluated < steps and evaluated % saved:
        facts.append(
            f"keep.best is the best of the evaluations whose step is saved, one in {saved // evaluated}: for the best "
            f"of all, set keep.save_best, or save_every to {evaluated}"
        )
    if keep.every is not None and keep.every % saved:
        common = math.lcm(keep.every, saved)
        whether = f"every {common}" if common <= steps else f"none: the first would be {common}"
        facts.append(f"keep.every {keep.every} keeps the saved steps (every {saved}) that it divides, {whether}")
    count = -(-steps // evaluated)
    facts += [
        f"observers.{number} ends nothing: its patience is {each.patience}, of {count} evaluation{'s' * (count > 1)}"
        for number, each in enumerate(experiment.observers)
        if isinstance(each, EarlyStopping) and count <= each.patience
    ]
    return facts


def check_observers(experiment: Experiment) -> None:
    """Raises ConfigError where an observer refuses the experiment, and for a profile beyond the last step."""
    for number, observer in enumerate(experiment.observers):
        observer.check(experiment)
        for name in observer.reads:
            if (split := name.partition("/")[0]) not in experiment.evals:
                raise ConfigError(
                    f"observers.{number}: {name!r} is of no split in evals{nearest(split, experiment.evals)}"
                )
    if (last := max(experiment.runtime.profiled, default=0)) > experiment.steps:
        raise ConfigError(
            f"profile: {experiment.runtime.profile!r} ends with step {last}, but the run has {experiment.steps} steps"
        )


def data_facts(experiment: Experiment) -> list[str]:
    """Notes on the data that a user may not expect: an evaluation on the training data, no shuffling."""
    trained_on = experiment.data.source.identity()
    same = [split for split, pipeline in experiment.evals.items() if pipeline.source.identity() == trained_on]
    facts = [f"evals.{split} reads the examples that are trained on, so it says nothing of others" for split in same]
    if not experiment.data.shuffle:
        facts.append("data.shuffle is False: every epoch has the order of the source")
    return facts


def check_used(layout: Layout, state: Any, used: Set[str]) -> None:
    """Raises ConfigError for a mesh axis that the rules give to more than rows but that splits nothing else: no leaf of
    the abstract `state`, and no activation (`used` are the axes that split one).
    """
    leaves = jax.tree.leaves(state)
    sizes = leaves[0].sharding.mesh.shape
    split = {axis for leaf in leaves for entry in leaf.sharding.spec for axis in mesh_axes(entry)}
    for axis, size in sizes.items():
        names = [name for name, rule in layout.rules.items() if axis in mesh_axes(rule) and name != "batch"]
        if size > 1 and names and axis not in split | used:
            instead = layout.row_axes()[:1] if axis in mesh_axes(layout.rules["batch"]) else ()
            raise ConfigError(
                f"layout.mesh: axis {axis!r} = {size} splits {', '.join(names)}, but no array of this experiment has "
                f"such a dim: leave it out{''.join(f', name dims by param_axes, or say {axis}' for axis in instead)}"
            )


def replicated_leaves(experiment: Experiment, state: Any) -> dict[str, int]:
    """The bytes of optimizer state that is replicated although its parameter is sharded, by its path.

    Examples are the row and column means of factored optimizers, whose shapes differ from their parameters'. State of
    no single parameter counts if any parameter is sharded. Leaves below `FEW_BYTES` are left out.
    """
    batch, optimizer = experiment.data.example(), experiment.optimizer.transformation(experiment.steps, state.params)
    named = jax.eval_shape(lambda: experiment.task.init(jax.random.key(0), batch)).params
    frozen = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(state.frozen)]
    kept, _ = parted(experiment.layout.specs(named, state.step.sharding.mesh.shape, kept=True), frozen, "frozen")
    split = any(any(spec) for spec in jax.tree.leaves(kept))
    wanted = map_state(optimizer, lambda _, spec: any(spec), state.opt_state, kept, others=lambda _: split)
    found = {}
    for (path, leaf), want in zip(
        jax.tree_util.tree_leaves_with_path(state.opt_state), jax.tree.leaves(wanted), strict=True
    ):
        size = math.prod(leaf.shape) * leaf.dtype.itemsize
        if want and not any(leaf.sharding.spec) and size >= FEW_BYTES:
            found[f"opt_state/{path_name(path)}"] = size
    return found


def _field_types(kinds: Mapping[str, np.dtype]) -> str:
    return ", ".join(f"{name} {dtype}" for name, dtype in kinds.items())


def check_compiler_options(options: Mapping[str, str | bool]) -> None:
    """Raises ConfigError for an option or value that this XLA refuses, found by compiling a trivial program."""
    try:
        _ = jax.jit(lambda: 0).lower().compile(dict(options)) if options else None
    except jax.errors.JaxRuntimeError as error:
        raise ConfigError(f"compiler_options: {str(error).removeprefix('INVALID_ARGUMENT: ')}") from error

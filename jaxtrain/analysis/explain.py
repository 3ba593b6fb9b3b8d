"""Where every array of an experiment would live on a given number of devices, without needing those devices.

Not here: the time and the peak memory of a step.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax

from jaxtrain.base.text import size, table
from jaxtrain.experiment.experiment import Experiment
from jaxtrain.experiment.validate import check_used, replicated_leaves
from jaxtrain.models.params import merged, unnamed
from jaxtrain.program import abstract_state
from jaxtrain.sharding.constraints import scope
from jaxtrain.sharding.layout import Layout, mesh_axes, named_leaves, path_name
from jaxtrain.sharding.stages import bubble
from jaxtrain.step import eval_step
from jaxtrain.tasks.checks import abstract_variables


def explain(experiment: Experiment, devices: int) -> str:
    """Tables of the parameters (shape, dtype, dims, partition spec, bytes/device, why replicated) and of totals."""
    layout = experiment.layout
    mesh = layout.abstract_mesh(devices)
    state = abstract_state(experiment, mesh)
    batch, used = experiment.data.example(), set()
    with scope(layout, mesh, experiment.microbatches, used):  # activations must divide over the mesh too
        jax.eval_shape(functools.partial(eval_step, experiment.task), state, batch)
    check_used(layout, state, used)
    named = abstract_variables(experiment.task, batch).params
    axes = {path_name(path): leaf.axes for path, leaf in named_leaves(named)}
    rows = [("parameter", "shape", "dtype", "axes", "partition spec", "bytes/device", "")]
    for path, leaf in jax.tree_util.tree_leaves_with_path(merged(state.params, state.frozen)):
        name = path_name(path)
        spec = leaf.sharding.spec
        why = "" if any(spec) or mesh.size == 1 else f"replicated: {_why_replicated(axes[name], layout, mesh.shape)}"
        shown = ", ".join(str(axis) for axis in axes[name])
        rows.append(
            (
                name,
                "×".join(map(str, leaf.shape)),
                str(leaf.dtype),
                shown,
                _spec_text(spec),
                size(_leaf_bytes_on_device(leaf)),
                why,
            )
        )
    rows_spec = layout.batch_sharding(mesh, experiment.data.batch_size)
    fields = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows_spec) for x in batch.values()]
    totals = [("", "entries", "bytes", "bytes/device")]
    for name, leaves in (
        ("parameters", jax.tree.leaves(state.params)),
        ("frozen parameters", jax.tree.leaves(state.frozen)),
        ("model state", jax.tree.leaves(state.model_state)),
        ("optimizer state", jax.tree.leaves(state.opt_state)),
        (f"batch of {experiment.data.batch_size}", fields),
    ):
        if not leaves:
            continue
        entries, total = sum(math.prod(leaf.shape) for leaf in leaves), sum(_global(leaf) for leaf in leaves)
        totals.append((name, f"{entries:,}", size(total), size(sum(map(_leaf_bytes_on_device, leaves)))))
    shown = " × ".join(f"{axis} {count}" for axis, count in mesh.shape.items())
    head = f"{mesh.size} device{'s' if mesh.size > 1 else ''}: {shown}"
    stages, _ = layout.stages(mesh.shape)
    if stages > 1:
        shapes = (dict(zip(leaf.axes, leaf.value.shape, strict=True)) for _, leaf in named_leaves(named))
        rounds, count = max(shape.get("rounds", 1) for shape in shapes), experiment.microbatches
        head += (
            f"\npipeline: {stages} stages, {rounds} round{'s' if rounds > 1 else ''}, {count} microbatches, "
            f"bubble {bubble(stages, rounds, count):.1%}"
        )
    if replicated := replicated_leaves(experiment, state):
        leaves = "".join(f"\n  {path}  {size(count)}" for path, count in replicated.items())
        head += f"\noptimizer state that is replicated although its parameter is sharded:{leaves}"
    if mesh.size > 1 and (leaves := unnamed(named)):
        head += f"\nreplicated, since their dims have no names: {', '.join(leaves)}"
    if layout.offload:
        head += "\noptimizer state in host memory"
    return f"{head}\n\n{table(rows)}\n\n{table(totals)}"


def _spec_text(spec: Any) -> str:
    return f"P({', '.join('·'.join(mesh_axes(entry)) or 'None' for entry in spec)})"


def _why_replicated(axes: Sequence[str | None], layout: Layout, sizes: Any) -> str:
    reasons = []
    for axis in filter(None, axes):
        rule = layout.rules.get(axis)
        wanted = "/".join(mesh_axes(rule))
        reasons.append(f"{axis} goes to {wanted}, of size 1 here" if wanted else f"no rule splits {axis}")
    return "; ".join(dict.fromkeys(reasons)) or "its dims have no names"


def _global(leaf: Any) -> int:
    # Not `nbytes`, which PRNG key arrays lack.
    return math.prod(leaf.shape) * leaf.dtype.itemsize


def _leaf_bytes_on_device(leaf: Any) -> int:
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize

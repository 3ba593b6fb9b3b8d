"""Where every array of an experiment would live, for any number of devices, none of which need be there.

Not here: time and peak memory of the step.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax

from jaxtrain.base.text import size, table
from jaxtrain.experiment.experiment import Experiment
from jaxtrain.experiment.validate import check_used, replicated_leaves
from jaxtrain.program import abstract_state
from jaxtrain.sharding.constraints import scope
from jaxtrain.sharding.layout import Layout, mesh_axes, path_name
from jaxtrain.sharding.stages import bubble


def explain(experiment: Experiment, devices: int) -> str:
    """A table of parameters (shape, dtype, axis names, partition spec, bytes a device, why replicated), and totals."""
    layout = experiment.layout
    mesh = layout.abstract_mesh(devices)
    state = abstract_state(experiment, mesh)
    batch, used = experiment.data.example(), set()
    with scope(layout, mesh, experiment.microbatches, used):  # activations have to fit too
        jax.eval_shape(lambda params: experiment.task.loss(params, batch, None), state.params)
    check_used(layout, state, used)
    named = jax.eval_shape(lambda: experiment.task.init(jax.random.key(0), batch))
    names = list(_leaves(named, lambda x: hasattr(x, "axes")))
    axes = {path_name(path): leaf.axes for path, leaf in names}
    rows = [("parameter", "shape", "dtype", "axes", "partition spec", "bytes/device", "")]
    for path, leaf in _leaves(state.params):
        name = path_name(path)
        spec = leaf.sharding.spec
        why = "" if any(spec) or mesh.size == 1 else f"replicated: {_why(axes[name], layout, mesh.shape)}"
        shown = ", ".join(str(axis) for axis in axes[name])
        rows.append(
            (
                name,
                "×".join(map(str, leaf.shape)),
                str(leaf.dtype),
                shown,
                _spec(spec),
                size(_local(leaf)),
                why,
            )
        )
    rows_spec = layout.batch_sharding(mesh, experiment.data.batch_size)
    fields = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows_spec) for x in batch.values()]
    totals = [("", "entries", "bytes", "bytes/device")]
    for name, leaves in (
        ("parameters", jax.tree.leaves(state.params)),
        ("optimizer state", jax.tree.leaves(state.opt_state)),
        (f"batch of {experiment.data.batch_size}", fields),
    ):
        entries, total = sum(math.prod(leaf.shape) for leaf in leaves), sum(_global(leaf) for leaf in leaves)
        totals.append((name, f"{entries:,}", size(total), size(sum(map(_local, leaves)))))
    shown = " × ".join(f"{axis} {count}" for axis, count in mesh.shape.items())
    head = f"{mesh.size} device{'s' if mesh.size > 1 else ''}: {shown}"
    stages, _ = layout.stages(mesh.shape)
    if stages > 1:
        turns = (dict(zip(leaf.axes, leaf.value.shape, strict=True)).get("rounds", 1) for _, leaf in names)
        rounds, count = max(turns), experiment.microbatches
        head += (
            f"\npipeline: {stages} stages, {rounds} round{'s' if rounds > 1 else ''}, {count} microbatches: each "
            f"device waits for {bubble(stages, rounds, count):.1%} of the time"
        )
    if replicated := replicated_leaves(experiment, state):
        leaves = "".join(f"\n  {path}  {size(count)}" for path, count in replicated.items())
        head += f"\noptimizer state that is replicated although its parameter is sharded:{leaves}"
    if layout.offload:
        head += "\nthe optimizer's state is in the memory of the host"
    return f"{head}\n\n{table(rows)}\n\n{table(totals)}"


def _leaves(tree: Any, is_leaf: Any = None) -> Iterable[tuple[Any, Any]]:
    return jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)


def _spec(spec: Any) -> str:
    return f"P({', '.join('·'.join(mesh_axes(entry)) or 'None' for entry in spec)})"


def _why(axes: Sequence[str | None], layout: Layout, sizes: Any) -> str:
    reasons = []
    for axis in filter(None, axes):
        rule = layout.rules.get(axis)
        wanted = "/".join(mesh_axes(rule))
        reasons.append(f"{axis} goes to {wanted}, of size 1 here" if wanted else f"no rule splits {axis}")
    return "; ".join(dict.fromkeys(reasons))


def _global(leaf: Any) -> int:
    # A PRNG key's dtype has no size that numpy knows, but says its own.
    return math.prod(leaf.shape) * leaf.dtype.itemsize


def _local(leaf: Any) -> int:
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize

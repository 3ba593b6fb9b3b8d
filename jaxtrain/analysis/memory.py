"""What takes the memory of a train step, and which changes would save most: found by compiling the step, and that of
each changed experiment, without running them.

Not here: the bytes of every parameter, which are `analysis/explain.py`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from typing import Any

import jax

from jaxtrain.analysis.hlo import source_lines, temporaries
from jaxtrain.base.config import changed, find
from jaxtrain.base.errors import ConfigError
from jaxtrain.base.hardware import planned_memory
from jaxtrain.base.text import size
from jaxtrain.experiment.experiment import Experiment
from jaxtrain.program import Program
from jaxtrain.sharding.layout import FULLY_SHARDED

LARGEST = 5
"""How many temporaries are listed."""

HELPFUL = 3
"""How many changes are listed."""


@dataclass(frozen=True)
class Plan:
    """The memory of a train step, in bytes of one device."""

    peak: int
    groups: Mapping[str, int]
    largest: tuple[str, ...]
    """The largest temporaries: bytes, type and source line of each."""


def plan(experiment: Experiment, devices: Sequence[jax.Device]) -> Plan:
    """The compiler's memory plan for these devices. Raises ConfigError where the layout does not fit them."""
    program = Program(experiment, devices)
    compiled = program.lower().compile()
    stats: Any = compiled.memory_analysis()
    state = program.state
    rows = experiment.layout.batch_sharding(program.mesh, experiment.data.batch_size)
    batch = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows) for x in experiment.data.example().values()]
    own = {
        "parameters": _bytes_on_device([state.params, state.frozen]),
        "optimizer state": _bytes_on_device(state.opt_state),
        "model state": _bytes_on_device(state.model_state),
        "batch": _bytes_on_device(batch),
    }
    temporary, gradients = stats.temp_size_in_bytes, min(_bytes_on_device(state.params), stats.temp_size_in_bytes)
    groups = {**own, "gradients": gradients, "other temporaries": temporary - gradients}
    text = compiled.as_text() or ""
    largest = temporaries(text)[:LARGEST]
    named = [f"{size(one.bytes)} {one.type}{_source_of(text, one.frame, one.where)}" for one in largest]
    shown = {name: count for name, count in groups.items() if count}
    return Plan(planned_memory(compiled)["peak_memory"], shown, tuple(named))


def changes(experiment: Experiment, devices: Sequence[jax.Device]) -> Iterator[tuple[str, Experiment]]:
    """Changes that could save memory: a description of each, and the changed experiment."""
    batch, micro = experiment.data.batch_size, 2 * experiment.microbatches
    if batch % micro == 0:
        yield f"microbatches {micro} (the same update)", replace(experiment, microbatches=micro)
    blocks = {type(part) for part in find(experiment.task, object) if is_dataclass(part) and hasattr(part, "remat")}
    full: Any = experiment
    for kind in blocks:
        full = changed(full, kind, _rematerialized)
    if full != experiment:
        yield 'remat "full" of the blocks (the same update, more computing)', full
    if batch % 2 == 0:
        yield (
            f"batch_size {batch // 2} (another update)",
            replace(experiment, data=replace(experiment.data, batch_size=batch // 2)),
        )
    if not experiment.layout.offload:
        offloaded = replace(experiment.layout, offload=True)
        yield "layout.offload (optimizer state in host memory)", replace(experiment, layout=offloaded)
    if len(devices) > 1 and dict(experiment.layout.mesh) != dict(FULLY_SHARDED):
        sharded, (axis,) = replace(experiment.layout, mesh=FULLY_SHARDED), FULLY_SHARDED
        yield f"layout.mesh {axis} -1 ({len(devices)} devices)", replace(experiment, layout=sharded)


def _rematerialized(blocks: Any) -> Any:
    return replace(blocks, remat="full")


def savings(experiment: Experiment, before: Plan, devices: Sequence[jax.Device]) -> list[str]:
    """The changes that save most, with the bytes that each saves on a device; [] where none saves any."""
    found = []
    for name, other in changes(experiment, devices):
        try:
            saved = before.peak - plan(other, devices).peak
        except (ConfigError, ValueError, jax.errors.JaxRuntimeError):
            # It does not compile here. Offloading does not on simulated devices, but what it saves is known.
            saved = before.groups.get("optimizer state", 0) if other.layout.offload else 0
        found += [(saved, name)] if saved > 0 else []
    return [f"{name}: {size(saved)} less" for saved, name in sorted(found, reverse=True)[:HELPFUL]]


def account(experiment: Experiment, devices: Sequence[jax.Device], brief: bool = False) -> str:
    """The plan and the changes as text; in three lines if `brief`."""
    found = plan(experiment, devices)
    helpful = savings(experiment, found, devices) or ["none that is known here: use more devices, or a smaller model"]
    groups = ", ".join(f"{name} {size(count)}" for name, count in found.groups.items())
    platform = devices[0].platform.upper()
    head = f"a device needs {size(found.peak)}, as XLA for a {platform} plans it: {groups}"
    if brief:
        first = f"largest temporaries: {'; '.join(found.largest[:2])}"
        return "\n".join([head, first, f"what would help: {'; '.join(helpful)}"])
    parts = [head, "largest temporaries:", *(f"  {line}" for line in found.largest), "what would help most:"]
    return "\n".join([*parts, *(f"  {line}" for line in helpful)])


def _source_of(text: str, frame: int, where: str) -> str:
    lines = [line for line in source_lines(text, frame) if "site-packages" not in line.file] if frame else []
    return f" ({lines[0].file}, line {lines[0].line})" if lines else f" ({where})" if where else ""


def _bytes_on_device(tree: Any) -> int:
    """Bytes on one device. Not by `nbytes`, which PRNG key arrays lack."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)

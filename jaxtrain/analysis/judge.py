"""Judges one mesh: whether a program trains as on one device, and sends no more than the textbook asks for.

Not here: which meshes are tried, and what is printed.
"""

import contextlib
import linecache
import math
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import jax
import numpy as np

from jaxtrain.analysis.describe import describe
from jaxtrain.analysis.hlo import Collective, collectives, counted, moved, source_lines
from jaxtrain.analysis.textbook import textbook
from jaxtrain.base.text import size
from jaxtrain.program import Program
from jaxtrain.sharding.layout import path_name

LIMIT = 2e-5
"""Largest relative difference of a loss in f32, and of the norm of the first gradient's difference."""

BYTES, SLACK = 1.05, 2048
"""A device may send this factor times the bytes of the textbook, and this many more, for metrics and softmax sums."""

SMALLEST = 64
"""Arrays of fewer bytes are not counted."""

QUICKLY: dict[str, str | bool] = {"xla_backend_optimization_level": "0", "xla_llvm_disable_expensive_passes": True}
"""Options of XLA for programs that run for milliseconds; they come into effect after arrays are sharded."""
if version("jaxlib").startswith("0.10."):  # later ones do not know it, and stop at what they do not know
    QUICKLY["xla_cpu_use_fusion_emitters"] = False

SHARED = ("sharding/constraints.py", "models/layers.py")
"""Files whose lines say little about where in a model an operation comes from: their callers' lines are shown."""

Losses = list[float]
Gradient = dict[str, np.ndarray]


@dataclass(frozen=True)
class Verdict:
    """The two results on one mesh."""

    mesh: Mapping[str, int]
    loss: float
    """The largest relative difference from one device's loss in any step."""
    gradient: float
    """The norm of the difference of the first gradient over its norm."""
    collectives: int
    bytes: float
    """Bytes that a device sends a step."""
    unknown: float
    """Those of them that no formula covers: activations of a model that does not describe them."""
    wanted: float
    """Bytes that the textbook asks for."""
    differences: tuple[str, ...]
    """Why it does not train as one device does; empty if it does."""
    excess: tuple[str, ...]
    """What it sends beyond what is needed, with source lines; empty if that is nothing."""

    def row(self) -> tuple[str, ...]:
        """Its cells in the table."""
        ratio = f"{(self.bytes - self.unknown) / self.wanted:.3f}" if self.wanted else "–"
        result = "FAILS" if self.differences else "passes, but sends too much" if self.excess else "passes"
        unknown = f"; {size(self.unknown)} are activations, for which there is no formula" if self.unknown else ""
        return (
            f"{self.loss:.1e}",
            f"{self.gradient:.1e}",
            f"{self.collectives}",
            size(self.bytes),
            ratio,
            result + unknown,
        )


def trained(
    program: Program, first: Program, batches: Sequence[Mapping[str, np.ndarray]], step: Any
) -> tuple[Losses, Gradient]:
    """The loss of every step, and the first gradient by parameter. Training starts from the first state of `first`."""
    state = jax.device_put(first.init(), jax.tree.map(lambda leaf: leaf.sharding, program.state))
    rows = program.experiment.layout.batch_sharding(program.mesh, program.experiment.data.batch_size)
    losses, gradient = [], {}
    for batch in batches:
        state, metrics = step(state, jax.device_put(dict(batch), rows))
        losses.append(float(metrics["loss"]))
        if not gradient:
            leaves = jax.tree_util.tree_leaves_with_path(state.opt_state[0].trace)
            gradient = {path_name(path): np.asarray(leaf) for path, leaf in leaves}
    return losses, gradient


def judge(
    program: Program,
    lowered: jax.stages.Lowered,
    alone: Program,
    batches: Sequence[Mapping[str, np.ndarray]],
    reference: tuple[Losses, Gradient],
) -> Verdict:
    """Whether a program trains as `alone` does on one device, and whether it sends no more than needed.

    reference: what `trained` returned for `alone`, from the same batches.
    """
    mesh = program.mesh.shape
    compiled = lowered.compile(QUICKLY)
    losses, gradient = trained(program, alone, batches, compiled)
    differences = [abs(one - other) / (abs(other) or 1) for one, other in zip(losses, reference[0], strict=True)]
    loss = float(np.max(differences))  # unlike Python's, it does not pass over a NaN
    off = {path: float(np.linalg.norm(gradient[path] - leaf)) for path, leaf in reference[1].items()}
    norm = math.hypot(*(float(np.linalg.norm(leaf)) for leaf in reference[1].values())) or 1.0
    found = collectives(compiled.as_text() or "", mesh, SMALLEST)
    expected = textbook(program.experiment, program.mesh)
    # If a model does not describe its activations, only the mesh axes that split rows are judged: over these only
    # parameters and gradients are sent.
    step = describe(program.experiment, program.mesh)
    known = [one for one in found if step.activations or set(one.axes) <= set(step.rows)]
    sent, judged, wanted = (_moved(each, mesh) for each in (counted(found), counted(known), expected))
    difference, failures, excess = math.hypot(*off.values()) / norm, [], []
    if not difference <= LIMIT:
        worst = sorted(off, key=lambda path: -off[path])[:3]
        leaves = ", ".join(f"{path} ({off[path] / norm:.1e} of the whole)" for path in worst)
        failures.append(f"the first gradient differs by {difference:.1e} (limit {LIMIT:.0e}), most in {leaves}")
    if not loss <= LIMIT:
        first = next(number for number, each in enumerate(differences, 1) if not each <= LIMIT)
        failures.append(f"the loss differs by {loss:.1e} (limit {LIMIT:.0e}), first in step {first}")
    if judged > BYTES * wanted + SLACK:
        excess.append(f"a device sends {size(judged)}, the textbook asks for {size(wanted)}; most of the rest are:")
        excess += [f"  {culprit}" for culprit in _culprits(expected, program)]
    count = sum(one.times for one in found)
    return Verdict(dict(mesh), loss, difference, count, sent, sent - judged, wanted, tuple(failures), tuple(excess))


def _moved(arrays: Counter[Any], mesh: Mapping[str, int]) -> float:
    return sum(moved(key, mesh) * times for key, times in arrays.items())


def _culprits(expected: Counter[Any], program: Program) -> Iterator[str]:
    """The collectives that send most beyond the textbook, with the source lines of their operations."""
    mesh, sizes = program.mesh.shape, _names_by_bytes(program)
    with _own_source_lines():
        text = program.lower().compile().as_text() or ""
    found = collectives(text, mesh, SMALLEST)
    times = counted(found) - expected
    extra = {key: moved(key, mesh) * count for key, count in times.items()}
    for key, bytes in sorted(extra.items(), key=lambda item: -item[1])[:5]:
        if bytes * 10 >= max(extra.values()):
            lines = dict.fromkeys(_line(text, one) for one in found if one.key == key and one.frame)
            like = "" if lines else f", as large as {' or '.join(sizes.get(key[2], ['no parameter'])[:3])}"
            yield f"{key[0]} over {key[1]} of {size(key[2])}{like}: {times[key]} a step more than by the textbook"
            yield from (f"  {line}" for line in list(lines)[:4])


def _names_by_bytes(program: Program) -> dict[int, list[str]]:
    """The parameters by the bytes that a device holds of them."""
    found: dict[int, list[str]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(program.state.params):
        bytes = math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        found.setdefault(bytes, []).append(path_name(path))
    return found


def _line(text: str, collective: Collective) -> str:
    frames = source_lines(text, collective.frame)
    own = [frame for frame in frames if not frame.file.endswith(SHARED)]
    for frame in own[:1] or frames[:1]:
        code = linecache.getline(frame.file, frame.line).strip()
        return f"{frame.file}:{frame.line}, {frame.function}: {code}"
    return collective.where


@contextlib.contextmanager
def _own_source_lines() -> Generator[None, None, None]:
    # A program from the cache may come from an older version of the same source and have the lines of that one.
    name = "jax_compilation_cache_include_metadata_in_key"
    before = getattr(jax.config, name)
    jax.config.update(name, True)
    try:
        yield
    finally:
        jax.config.update(name, before)

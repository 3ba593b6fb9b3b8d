"""Judges an experiment on one mesh: whether it trains as on one device, and sends no more than the textbook formulas.

Not here: which meshes are tried, and printing.
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
"""The largest allowed relative difference in f32, of a loss and of the first gradient (in norm)."""

BYTES, SLACK = 1.05, 2048
"""A device may send BYTES times the bytes of the textbook, plus SLACK bytes for metrics and sums in softmax."""

SMALLEST = 64
"""Arrays of fewer bytes are not counted."""

QUICKLY: dict[str, str | bool] = {"xla_backend_optimization_level": "0", "xla_llvm_disable_expensive_passes": True}
"""XLA options that compile faster, for programs that run for milliseconds. They do not affect the partitioning."""
if version("jaxlib").startswith("0.10."):  # later versions refuse it as unknown
    QUICKLY["xla_cpu_use_fusion_emitters"] = False

SHARED = ("sharding/constraints.py", "models/layers.py")
"""Files of helpers that all models call: for an operation in them, the caller's line is shown instead."""

Losses = list[float]
Gradient = dict[str, np.ndarray]


@dataclass(frozen=True)
class Verdict:
    """The result on one mesh."""

    mesh: Mapping[str, int]
    loss: float
    """The largest relative difference from one device's loss in any step."""
    gradient: float
    """The norm of the first gradient's difference, divided by its norm."""
    collectives: int
    bytes: float
    """Bytes that a device sends in a step."""
    unknown: float
    """The part of `bytes` that no formula covers: activations of a model that does not describe them."""
    wanted: float
    """Bytes that the textbook needs."""
    differences: tuple[str, ...]
    """How training differs from one device; empty if it does not."""
    excess: tuple[str, ...]
    """What it sends beyond the textbook, with source lines; empty if nothing."""

    def row(self) -> tuple[str, ...]:
        """The cells of its row in the table."""
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
    """The loss of every step, and the first gradient by parameter, training from the initial state of `first`."""
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
    """Compare a program with `alone`, which runs on one device, and the bytes that it sends with the textbook.

    reference: the result of `trained` for `alone` on the same batches.
    """
    mesh = program.mesh.shape
    compiled = lowered.compile(QUICKLY)
    losses, gradient = trained(program, alone, batches, compiled)
    differences = [abs(one - other) / (abs(other) or 1) for one, other in zip(losses, reference[0], strict=True)]
    loss = float(np.max(differences))  # unlike Python's max, this is NaN if any is
    off = {path: float(np.linalg.norm(gradient[path] - leaf)) for path, leaf in reference[1].items()}
    norm = math.hypot(*(float(np.linalg.norm(leaf)) for leaf in reference[1].values())) or 1.0
    found = collectives(compiled.as_text() or "", mesh, SMALLEST)
    expected = textbook(program.experiment, program.mesh)
    # If a model does not describe its activations, only collectives over the axes that split rows are judged: these
    # send parameters and gradients only.
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
    """The names of parameters by the bytes that a device holds of them."""
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
    # Otherwise a cached program could have the line numbers of an older version of the source.
    name = "jax_compilation_cache_include_metadata_in_key"
    before = getattr(jax.config, name)
    jax.config.update(name, True)
    try:
        yield
    finally:
        jax.config.update(name, before)

"""Whether an experiment trains on every mesh as on one device, and sends what the textbook asks for and no more."""

import contextlib
import itertools
import linecache
import math
import os
import time
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import jax
import numpy as np

from jaxtrain.analysis.hlo import Collective, collectives, counted, moved, source_lines
from jaxtrain.analysis.shrink import STEPS, shrink
from jaxtrain.analysis.textbook import describe, textbook
from jaxtrain.base.config import difference, flatten
from jaxtrain.base.errors import ConfigError
from jaxtrain.base.text import size
from jaxtrain.experiment.experiment import Experiment
from jaxtrain.program import Program
from jaxtrain.sharding.layout import mesh_axes, path_name

LIMIT = 2e-5
"""Largest relative difference of a loss in f32, and of the first gradient by its norm."""


BYTES, SLACK = 1.05, 2048
"""Bytes over those of the textbook, and besides: a softmax's maximum and sum, metrics."""


IGNORED = 64
"""Arrays of fewer bytes count as nothing."""


QUICKLY: dict[str, str | bool] = {"xla_backend_optimization_level": "0", "xla_llvm_disable_expensive_passes": True}
if version("jaxlib").startswith("0.10."):  # later ones do not know it, and stop at what they do not know
    QUICKLY["xla_cpu_use_fusion_emitters"] = False
"""What is compiled runs for milliseconds; sharding is decided before any of this."""


Mesh = Mapping[str, int]


@dataclass(frozen=True)
class Verdict:
    """What was found on one mesh."""

    mesh: Mesh
    loss: float
    """The largest relative difference from one device's loss in any step."""
    gradient: float
    """The norm of the first gradient's difference over its norm."""
    collectives: int
    bytes: float
    """What a device sends a step, and of that…"""
    other: float
    """…what no formula speaks of: activations of a model that is not made of `Blocks`."""
    asked: float
    """What the textbook asks for."""
    failures: tuple[str, ...]

    def row(self) -> tuple[str, ...]:
        """Its words in the table."""
        ratio = f"{(self.bytes - self.other) / self.asked:.3f}" if self.asked else "–"
        told = "FAILS" if self.failures else "passes"
        other = f"; {size(self.other)} are activations, which no formula knows" if self.other else ""
        return f"{self.loss:.1e}", f"{self.gradient:.1e}", f"{self.collectives}", size(self.bytes), ratio, told + other


def simulate(devices: int) -> list[jax.Device]:
    """So many simulated CPU devices, to be asked for before jax is first used. Raises ConfigError if it is too late."""
    if devices < 2:
        raise ConfigError(f"--devices {devices}: give at least 2, there is nothing to compare otherwise")
    quickly = (f"--{name}={str(value).lower()}" for name, value in QUICKLY.items())
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *quickly]).strip()
    with contextlib.suppress(RuntimeError):  # jax has looked at its devices already: perhaps they are enough
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", devices)
    found = jax.devices("cpu")
    if len(found) < devices:
        raise ConfigError(
            f"--devices {devices}: jax has {len(found)} already; the experiment file used it before its function was "
            f"called: set XLA_FLAGS=--xla_force_host_platform_device_count={devices}"
        )
    return found[:devices]


def verify(experiment: Experiment, devices: Sequence[jax.Device], meshes: Sequence[Mesh] = ()) -> bool:
    """Print a verdict for each of these meshes (for every one that fits, if none are given); whether all passed.

    Raises ConfigError where the experiment does not fit even one device, or a mesh that was asked for.
    """
    started, count = time.monotonic(), len(devices)
    small = shrink(experiment, count)
    print(f"{count} simulated devices, {STEPS} steps of {count} rows of the experiment's own data, in f32")
    tasks = ({f"task.{path}": value for path, value in flatten(each.task).items()} for each in (experiment, small))
    if changed := difference(*tasks):
        print(f"made smaller, so that it takes seconds:\n{changed}")
    batches = list(small.data.epoch())
    alone = Program(small, devices[:1])
    lowered = alone.lower()
    refused, tried = list[str](), [[mesh] for mesh in meshes]
    if not meshes:
        unfit = {axis: _unfit(small, axis, devices) for axis in _axes(small)}
        refused = [f"  {why}" for why in unfit.values() if why]
        tried = candidates([axis for axis, why in unfit.items() if not why], _own(experiment, count), count)
    width = max(len(named(mesh)) for options in tried for mesh in options)
    fitting = (_first_that_fits(small, options, devices) for options in tried)
    fitting = list(fitting) if meshes else fitting  # what was asked for is looked at before anything is trained
    for found in fitting if meshes else ():
        if isinstance(found, str):
            raise ConfigError(found)
    reference = _trained(alone, alone, batches, lowered.compile(QUICKLY))
    titles = ("loss differs", "gradient differs", "collectives", "bytes/device", "of textbook", "")
    print(f"\n{len(tried)} meshes to try" if not meshes else "")
    print(f"{'mesh':{width}}  {'  '.join(titles)}".rstrip(), flush=True)
    verdicts = []
    for found in fitting:
        if isinstance(found, str):
            refused.append(f"  {found}")
            continue
        try:
            verdict = _judged(*found, alone, batches, reference)
        except jax.errors.JaxRuntimeError as error:  # some meshes are more than XLA can do
            nothing = (math.nan, math.nan, 0, 0, 0, 0)
            verdict = Verdict(found[0].mesh.shape, *nothing, (f"XLA: {str(error).splitlines()[0]}",))
        verdicts.append(verdict)
        cells = "  ".join(word.ljust(len(title)) for word, title in zip(verdict.row(), titles, strict=True))
        print(f"{named(verdict.mesh):{width}}  {cells}", *verdict.failures, sep="\n  ", flush=True)
    if refused:
        print("\nnot tried, for they do not fit:", *refused, sep="\n")
    wrong = [named(verdict.mesh) for verdict in verdicts if verdict.failures]
    print(f"\n{_sentence(len(verdicts), wrong)} ({time.monotonic() - started:.0f} s)")
    return bool(verdicts) and not wrong


def read_mesh(words: str, devices: int) -> Mesh:
    """`{"data": 2, "tensor": 4}` for `data 2 tensor 4`; an axis alone takes all devices. Raises ConfigError."""
    parts = words.replace("=", " ").replace(",", " ").split()
    if len(parts) == 1:
        return {parts[0]: devices}
    sizes = dict(zip(parts[::2], parts[1::2], strict=False))
    if not parts or len(parts) != 2 * len(sizes) or not all(size.isdigit() for size in sizes.values()):
        raise ConfigError(f"--meshes {words!r}: write axes and sizes, such as 'data 2 tensor 4', or one axis")
    return {axis: int(size) for axis, size in sizes.items()}


def named(mesh: Mesh) -> str:
    """`data 2 tensor 4`."""
    return " ".join(f"{axis} {size}" for axis, size in mesh.items())


def _sentence(count: int, wrong: Sequence[str]) -> str:
    if not count:
        return "No mesh fits this experiment: see above why."
    if wrong:
        return f"{len(wrong)} of {count} meshes fail: {', '.join(wrong)}."
    if count == 1:
        return "The mesh trains as one device does and sends no more than the textbook asks for."
    return f"All {count} meshes train as one device does and send no more than the textbook asks for."


def _axes(experiment: Experiment) -> list[str]:
    """The mesh axes that the layout's rules know."""
    return list(dict.fromkeys(axis for rule in experiment.layout.rules.values() for axis in mesh_axes(rule)))


def _unfit(experiment: Experiment, axis: str, devices: Sequence[jax.Device]) -> str:
    """Why a mesh axis fits no mesh: why it does not fit as few devices as it may have; empty if it does."""
    count = next(size for size in range(2, len(devices) + 1) if len(devices) % size == 0)
    found = _first_that_fits(experiment, [{axis: count}], devices[:count])
    return found if isinstance(found, str) else ""


def _own(experiment: Experiment, devices: int) -> Mesh:
    """The mesh of the experiment itself, if it fits these devices."""
    with contextlib.suppress(ConfigError):
        return experiment.layout.sizes(devices)
    return {}


def candidates(axes: Sequence[str], own: Mesh, devices: int) -> list[list[Mesh]]:
    """An experiment's own mesh, every axis, pair and triple of axes; each with the sizes it may have, best first."""
    found: list[list[Mesh]] = [[own]] if own else []
    for count in (1, 2, 3):
        if sizes := sorted(_factors(devices, count), key=max):
            for names in itertools.combinations(axes, count):
                options: list[Mesh] = [dict(zip(names, each, strict=True)) for each in sizes]
                found += [options] if own not in options[:1] else []
    return found


def _factors(number: int, count: int) -> list[tuple[int, ...]]:
    if count == 1:
        return [(number,)] if number > 1 else []
    first = [size for size in range(2, number) if number % size == 0]
    return [(size, *rest) for size in first for rest in _factors(number // size, count - 1)]


def _first_that_fits(
    experiment: Experiment, options: Sequence[Mesh], devices: Sequence[jax.Device]
) -> tuple[Program, jax.stages.Lowered] | str:
    """A program for the first of these meshes, or why the first of them does not fit."""
    refused = []
    for mesh in options:
        try:
            layout = replace(experiment.layout, mesh=mesh)
            parts = layout.stages(layout.sizes(len(devices)))[0]  # as many as keep the stages of a pipeline at work
            program = Program(replace(experiment, layout=layout, microbatches=parts), devices)
            return program, program.lower()
        except ConfigError as error:
            refused.append(f"{named(mesh)}: {error}")
    return refused[0]


def _trained(
    program: Program, first: Program, batches: Sequence[Mapping[str, np.ndarray]], step: Any
) -> tuple[list[float], dict[str, np.ndarray]]:
    """The loss of every step, and the gradient of the first by parameter. All begin with the state of `first`."""
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


def _judged(
    program: Program,
    lowered: jax.stages.Lowered,
    alone: Program,
    batches: Sequence[Mapping[str, np.ndarray]],
    reference: tuple[list[float], dict[str, np.ndarray]],
) -> Verdict:
    mesh = program.mesh.shape
    compiled = lowered.compile(QUICKLY)
    losses, gradient = _trained(program, alone, batches, compiled)
    differences = [abs(one - other) / (abs(other) or 1) for one, other in zip(losses, reference[0], strict=True)]
    loss = float(np.max(differences))  # unlike Python's, it does not pass over a NaN
    off = {path: float(np.linalg.norm(gradient[path] - leaf)) for path, leaf in reference[1].items()}
    norm = math.hypot(*(float(np.linalg.norm(leaf)) for leaf in reference[1].values())) or 1.0
    found = collectives(compiled.as_text() or "", mesh, IGNORED)
    asked = textbook(program.experiment, program.mesh)
    # Of a model whose activations no formula describes, only what goes over the axes of the batch is judged:
    # over those only parameters and gradients go.
    step = describe(program.experiment, program.mesh)
    known = [one for one in found if step.blocks or set(one.axes) <= set(step.rows)]
    sent, judged, wanted = (_moved(each, mesh) for each in (counted(found), counted(known), asked))
    difference, failures = math.hypot(*off.values()) / norm, []
    if not difference <= LIMIT:
        worst = sorted(off, key=lambda path: -off[path])[:3]
        said = ", ".join(f"{path} ({off[path] / norm:.1e} of the whole)" for path in worst)
        failures.append(f"the first gradient differs by {difference:.1e} (limit {LIMIT:.0e}), most in {said}")
    if not loss <= LIMIT:
        first = next(number for number, each in enumerate(differences, 1) if not each <= LIMIT)
        failures.append(f"the loss differs by {loss:.1e} (limit {LIMIT:.0e}), first in step {first}")
    if judged > BYTES * wanted + SLACK:
        failures.append(f"{size(judged)} a device where the textbook asks for {size(wanted)}; most of the rest are:")
        failures += [f"  {culprit}" for culprit in _culprits(asked, program)]
    count = sum(one.times for one in found)
    return Verdict(dict(mesh), loss, difference, count, sent, sent - judged, wanted, tuple(failures))


def _moved(arrays: Counter[Any], mesh: Mapping[str, int]) -> float:
    return sum(moved(key, mesh) * times for key, times in arrays.items())


def _culprits(asked: Counter[Any], program: Program) -> Iterator[str]:
    """The collectives that send most of what the textbook does not ask for, with the lines they come from."""
    mesh, sizes = program.mesh.shape, _sizes(program)
    with _own_source_lines():
        text = program.lower().compile().as_text() or ""
    found = collectives(text, mesh, IGNORED)
    times = counted(found) - asked
    extra = {key: moved(key, mesh) * count for key, count in times.items()}
    for key, bytes in sorted(extra.items(), key=lambda item: -item[1])[:5]:
        if bytes * 10 >= max(extra.values()):
            lines = dict.fromkeys(_line(text, one) for one in found if one.key == key and one.frame)
            like = "" if lines else f", as large as {' or '.join(sizes.get(key[2], ['no parameter'])[:3])}"
            yield f"{key[0]} over {key[1]} of {size(key[2])}{like}: {times[key]} a step more than asked for"
            yield from (f"  {line}" for line in list(lines)[:4])


def _sizes(program: Program) -> dict[int, list[str]]:
    """The parameters by the bytes that a device holds of them."""
    found: dict[int, list[str]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(program.state.params):
        bytes = math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        found.setdefault(bytes, []).append(path_name(path))
    return found


def _line(text: str, collective: Collective) -> str:
    frames = source_lines(text, collective.frame)
    ours = [frame for frame in frames if not frame.file.endswith(("sharding/constraints.py", "models/layers.py"))]
    for frame in ours[:1] or frames[:1]:
        code = linecache.getline(frame.file, frame.line).strip()
        return f"{frame.file}:{frame.line}, {frame.function}: {code}"
    return collective.where


@contextlib.contextmanager
def _own_source_lines() -> Generator[None, None, None]:
    # A program from the cache may come from an older state of the same source, and name the lines of that.
    name = "jax_compilation_cache_include_metadata_in_key"
    before = getattr(jax.config, name)
    jax.config.update(name, True)
    try:
        yield
    finally:
        jax.config.update(name, before)

"""`jaxtrain verify`: trains an experiment on every mesh that fits some simulated devices, and compares it with one
device and with the textbook.

Not here: judging one mesh, which is `analysis/judge.py`.
"""

import contextlib
import itertools
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import jax
import numpy as np

from jaxtrain.analysis.judge import QUICKLY, Gradient, Losses, Verdict, judge, trained
from jaxtrain.analysis.shrink import STEPS, shrink
from jaxtrain.base.config import difference, flatten
from jaxtrain.base.errors import ConfigError
from jaxtrain.experiment.experiment import Experiment
from jaxtrain.program import Program
from jaxtrain.sharding.layout import mesh_axes

Mesh = Mapping[str, int]
Traced = tuple[Program, jax.stages.Lowered]
"""A program for a mesh that fits, and its lowered train step."""


def simulate(devices: int) -> list[jax.Device]:
    """Simulate this many CPU devices. Raises ConfigError if jax is initialised already, with fewer."""
    if devices < 2:
        raise ConfigError(f"--devices {devices}: give at least 2, since a mesh is compared with one device")
    quickly = (f"--{name}={str(value).lower()}" for name, value in QUICKLY.items())
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *quickly]).strip()
    with contextlib.suppress(RuntimeError):  # jax is initialised already, perhaps with enough devices
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", devices)
    found = jax.devices("cpu")
    if len(found) < devices:
        raise ConfigError(
            f"--devices {devices}: jax has {len(found)} already, since the experiment file uses jax outside its "
            f"function: set XLA_FLAGS=--xla_force_host_platform_device_count={devices}"
        )
    return found[:devices]


def verify(
    experiment: Experiment,
    devices: Sequence[jax.Device],
    meshes: Sequence[Mesh] = (),
    strict: bool = False,
    updates: int = STEPS,
    passed: Callable[[Mesh], None] = lambda mesh: None,
) -> bool:
    """Print for each of these meshes, or by default for every mesh that fits, whether the experiment trains as on one
    device, and whether it sends no more than needed. True if it trains as on one device on all of them and, if
    `strict`, sends no more than needed.

    updates: the number of updates that are compared.
    passed: called with every mesh on which it trains as on one device.

    Raises ConfigError where the experiment does not fit one device, and for a given mesh that does not fit.
    """
    started, count = time.monotonic(), len(devices)
    small = shrink(experiment, count, updates)
    steps = "1 step" if updates == 1 else f"{updates} steps"
    print(f"{count} simulated devices, {steps} of {count} rows of the experiment's own data, in f32")
    tasks = ({f"task.{path}": value for path, value in flatten(each.task).items()} for each in (experiment, small))
    if changed := difference(*tasks):
        print(f"made smaller, so that it takes seconds:\n{changed}")
    batches = list(small.data.epoch())
    alone = Program(small, devices[:1])
    lowered = alone.lower()
    refused, tried = list[str](), [[mesh] for mesh in meshes]
    if not meshes:
        unfit = {axis: _unfit(small, axis, devices) for axis in _mesh_axes_of(small)}
        refused = [f"  {why}" for why in unfit.values() if why]
        tried = candidates([axis for axis, why in unfit.items() if not why], _own(experiment, count), count)
    width = max(len(named(mesh)) for options in tried for mesh in options)
    fitting = (_first_that_fits(small, options, devices) for options in tried)
    fitting = _all_that_fit(fitting) if meshes else fitting
    reference = trained(alone, alone, batches, lowered.compile(QUICKLY))
    titles = ("loss differs", "gradient differs", "collectives", "bytes/device", "of textbook", "")
    print(f"\n{len(tried)} meshes to try" if not meshes else "")
    print(f"{'mesh':{width}}  {'  '.join(titles)}".rstrip(), flush=True)
    verdicts = []
    for found in fitting:
        if isinstance(found, str):
            refused.append(f"  {found}")
            continue
        verdict = _judged(found, alone, batches, reference)
        verdicts.append(verdict)
        if not verdict.differences:
            passed(verdict.mesh)
        cells = "  ".join(word.ljust(len(title)) for word, title in zip(verdict.row(), titles, strict=True))
        why = (*verdict.differences, *verdict.excess)
        print(f"{named(verdict.mesh):{width}}  {cells}", *why, sep="\n  ", flush=True)
    if refused:
        print("\nnot tried, since they do not fit:", *refused, sep="\n")
    print(f"\n{_summary(verdicts, strict)} ({time.monotonic() - started:.0f} s)")
    return bool(verdicts) and not any(one.differences or (strict and one.excess) for one in verdicts)


def read_mesh(words: str, devices: int) -> Mesh:
    """`{"data": 2, "tensor": 4}` for `data 2 tensor 4`; a single axis gets all devices. Raises ConfigError."""
    parts = words.replace("=", " ").replace(",", " ").split()
    if len(parts) == 1:
        return {parts[0]: devices}
    sizes = dict(zip(parts[::2], parts[1::2], strict=False))
    if not parts or len(parts) != 2 * len(sizes) or not all(size.isdigit() for size in sizes.values()):
        raise ConfigError(f"--meshes {words!r}: write axes and sizes, such as 'data 2 tensor 4', or one axis")
    return {axis: int(size) for axis, size in sizes.items()}


def named(mesh: Mesh) -> str:
    """A mesh as text, such as `data 2 tensor 4`; the inverse of `read_mesh`."""
    return " ".join(f"{axis} {size}" for axis, size in mesh.items())


def _summary(verdicts: Sequence[Verdict], strict: bool) -> str:
    if not verdicts:
        return "No mesh fits this experiment; the reasons are above."
    count = len(verdicts)
    wrong = [named(one.mesh) for one in verdicts if one.differences]
    more = [named(one.mesh) for one in verdicts if one.excess]
    these, train, send = ("The mesh", "trains", "sends") if count == 1 else (f"All {count} meshes", "train", "send")
    if not wrong and not more:
        return f"{these} {train} as one device does and {send} no more than the textbook asks for."
    first = (
        f"{len(wrong)} of {count} meshes fail: {', '.join(wrong)}." if wrong else f"{these} {train} as one device does."
    )
    kind = "Error (--strict)" if strict else "Warning"
    return f"{first} {kind}: {len(more)} of {count} send more than needed: {', '.join(more)}." if more else first


def _mesh_axes_of(experiment: Experiment) -> list[str]:
    """The mesh axes in the layout's rules."""
    return list(dict.fromkeys(axis for rule in experiment.layout.rules.values() for axis in mesh_axes(rule)))


def _unfit(experiment: Experiment, axis: str, devices: Sequence[jax.Device]) -> str:
    """The reason why no mesh with this axis fits, from the smallest one; empty if one fits."""
    count = next(size for size in range(2, len(devices) + 1) if len(devices) % size == 0)
    found = _first_that_fits(experiment, [{axis: count}], devices[:count])
    return found if isinstance(found, str) else ""


def _own(experiment: Experiment, devices: int) -> Mesh:
    """The experiment's own mesh; {} if it does not fit these devices."""
    with contextlib.suppress(ConfigError):
        return experiment.layout.sizes(devices)
    return {}


def candidates(axes: Sequence[str], own: Mesh, devices: int) -> list[list[Mesh]]:
    """The meshes to try: the experiment's own, and every axis, pair and triple of axes. Each is a list of alternatives
    with different sizes, the most even first.
    """
    found: list[list[Mesh]] = [[own]] if own else []
    for count in (1, 2, 3):
        if sizes := sorted(_factors(devices, count), key=max):
            for names in itertools.combinations(axes, count):
                options: list[Mesh] = [dict(zip(names, each, strict=True)) for each in sizes]
                found += [options] if own not in options[:1] else []
    return found


def meshes_like(mesh: Mesh) -> list[Mesh]:
    """Up to three small meshes with the axes of this one, of at least 4 devices if possible. All have the same number
    of devices, and each size divides that of the axis. [] for a mesh of one device.
    """
    sizes = {axis: size for axis, size in mesh.items() if size != 1}
    least = {axis: next(n for n in itertools.count(2) if size < 0 or size % n == 0) for axis, size in sizes.items()}
    doubled: list[Mesh] = [{**least, axis: 4} for axis, size in sizes.items() if size < 0 or size % 4 == 0]
    if doubled and math.prod(least.values()) <= 4:
        return doubled[:3]
    return [least] if least else []


def _factors(number: int, count: int) -> list[tuple[int, ...]]:
    if count == 1:
        return [(number,)] if number > 1 else []
    first = [size for size in range(2, number) if number % size == 0]
    return [(size, *rest) for size in first for rest in _factors(number // size, count - 1)]


def _all_that_fit(found: Iterable[Traced | str]) -> list[Traced]:
    """The programs, before any is trained. Raises ConfigError for the first mesh that does not fit."""
    programs = []
    for each in found:
        if isinstance(each, str):
            raise ConfigError(each)
        programs.append(each)
    return programs


def _judged(
    found: Traced, alone: Program, batches: Sequence[Mapping[str, np.ndarray]], reference: tuple[Losses, Gradient]
) -> Verdict:
    """The verdict on a program, which is a failure where XLA cannot compile it."""
    try:
        return judge(*found, alone, batches, reference)
    except jax.errors.JaxRuntimeError as error:
        nothing = (math.nan, math.nan, 0, 0, 0, 0)
        return Verdict(found[0].mesh.shape, *nothing, (f"XLA: {str(error).splitlines()[0]}",), ())


def _first_that_fits(experiment: Experiment, options: Sequence[Mesh], devices: Sequence[jax.Device]) -> Traced | str:
    """A program for the first of these meshes that fits; if none does, the reason why the first one does not."""
    refused = []
    for mesh in options:
        try:
            layout = replace(experiment.layout, mesh=mesh)
            stages = layout.stages(layout.sizes(len(devices)))[0]
            program = Program(replace(experiment, layout=layout, microbatches=stages), devices)
            return program, program.lower()
        except ConfigError as error:
            refused.append(f"{named(mesh)}: {error}")
    return refused[0]

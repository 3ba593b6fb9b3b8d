"""Reads what a command line wants of a sweep: which values, judged by what. All is checked before anything is written.

Not here: running it, and how the words of a flag become a value, which the command line's own parser says.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import jax
import tyro

from jaxtrain.base.errors import ConfigError, nearest
from jaxtrain.base.ranges import Checked, NonNegativeInt
from jaxtrain.evaluate import check_metrics
from jaxtrain.experiment.experiment import Experiment, Retention
from jaxtrain.experiment.fit import fit
from jaxtrain.experiment.override import flag_words, full_path, override_all, value_at
from jaxtrain.launch.sweep.slots import Slot, simulated_devices
from jaxtrain.program import Program
from jaxtrain.reports.sweep.space import Axis, Between, Choices, Space

MOST_TRACED = 64
"""The most trials that are all traced before the first begins. Of a larger sweep, only those are traced that differ
from the first trial in one field.
"""

Judged = tuple[str, str, bool]
"""What `objective` returns."""

Read = Callable[[Sequence[str]], Experiment]
"""The experiment with these flags, by the rules and messages of `jaxtrain train`."""


@dataclass(frozen=True, kw_only=True)
class Wanted(Checked):
    """What a sweep tries, and how its trials are judged; every field is a flag."""

    grid: Annotated[tuple[str, ...], tyro.conf.arg(metavar="PATH=VALUE,VALUE …")] = ()
    """All combinations of values: optimizer.schedule.peak=1e-4,1e-3 seed=0,1,2. With --random: of each draw."""
    random: Annotated[tuple[str, ...], tyro.conf.arg(metavar="N PATH=LOW:HIGH[:log] …")] = ()
    """N draws, from ranges or lists of values: 20 optimizer.schedule.peak=1e-4:1e-2:log optimizer.clip=None,1."""
    adaptive: Annotated[tuple[str, ...], tyro.conf.arg(metavar="N PATH=LOW:HIGH[:log] …")] = ()
    """N trials whose values Optuna chooses by the trials before (needs the extra `sweep`)."""
    draw_seed: NonNegativeInt = 0
    """The seed of the draws; that of the experiment is `seed`."""
    metric: str | None = None
    """What trials are judged by, as split/metric; by default keep.best, else the loss of the first split."""
    mode: Literal["min", "max"] | None = None
    """Whether the lowest or the highest is best; by default that of keep.best, or min for a loss."""

    def words(self) -> list[str]:
        """The flags of this, for a command line."""
        found = []
        for name in ("grid", "random", "adaptive"):
            found += [f"--{name}", *getattr(self, name)] if getattr(self, name) else []
        found += ["--draw-seed", str(self.draw_seed)] if self.draw_seed else []
        found += [f"--metric={self.metric}"] if self.metric else []
        return found + ([f"--mode={self.mode}"] if self.mode else [])


def space_wanted(wanted: Wanted, base: Experiment, read: Read) -> Space:
    """The space that the flags describe. Raises ConfigError for every kind of mistake in them."""
    if (bool(wanted.random) and bool(wanted.adaptive)) or not (wanted.grid or wanted.random or wanted.adaptive):
        raise ConfigError("sweep: give --grid, --random or --adaptive, such as --grid seed=0,1,2; see --help")
    if wanted.adaptive and wanted.grid:
        raise ConfigError("--grid does not go with --adaptive: list the values there, as in --adaptive 20 seed=0,1,2")
    flag = "--random" if wanted.random else "--adaptive"
    count, *texts = wanted.random or wanted.adaptive or ("1",)
    if not count.isdecimal() or not 1 <= int(count) <= 10**6:
        raise ConfigError(
            f"{flag} {count}: give the number of trials first, as in {flag} 20 {' '.join(texts)}".rstrip()
        )
    if (wanted.random or wanted.adaptive) and not texts:
        raise ConfigError(
            f"{flag} {count}: name what varies, as in {flag} {count} optimizer.schedule.peak=1e-4:1e-2:log"
        )
    grid = tuple(_choices("--grid", text, base, read) for text in wanted.grid)
    drawn = tuple(_drawn(flag, text, base, read) for text in texts)
    paths = [axis.path for axis in (*grid, *drawn)]
    if twice := next((path for path in paths if paths.count(path) > 1), None):
        raise ConfigError(f"{twice} is given twice")
    method = "adaptive" if wanted.adaptive else "random" if wanted.random else "grid"
    return Space(method, grid, drawn, int(count), wanted.draw_seed)


def objective(wanted: Wanted, base: Experiment) -> Judged:
    """The metric, the mode, and whether the best evaluation of a trial counts and not its last."""
    keep = base.runtime.keep
    metric = wanted.metric or keep.best or next((f"{split}/loss" for split in base.evals), None)
    if metric is None:
        raise ConfigError("--metric: this experiment evaluates no split: give evals, or judge by --metric train/loss")
    if (split := metric.partition("/")[0]) not in base.evals and metric != "train/loss":
        raise ConfigError(f"--metric {metric}: there is no such split in evals{nearest(split, base.evals)}")
    is_kept = metric == keep.best
    mode = wanted.mode or (keep.mode if is_kept else "min" if metric.endswith("/loss") else None)
    if mode is None:
        raise ConfigError(f"--mode: say whether the lowest (min) or the highest (max) {metric} is best")
    return metric, mode, is_kept


def check_all(
    wanted: Wanted, base: Experiment, read: Read, slots: Sequence[Slot]
) -> tuple[Space, tuple[str, str, bool]]:
    """`space_wanted` and `objective`, after `check_metric` and `check_trials` on as many devices as a trial has."""
    space, judged, devices = space_wanted(wanted, base, read), objective(wanted, base), simulated_devices(slots)
    check_metric(base, judged[0], devices)
    check_trials(space, base, devices)
    return space, judged


def check_metric(base: Experiment, metric: str, devices: Sequence[jax.Device] | None = None) -> None:
    """Raises ConfigError for a metric that no evaluation reports, with the nearest one."""
    if metric == "train/loss":
        return
    try:
        base = fit(base)
        judged = replace(base, runtime=replace(base.runtime, keep=Retention(best=metric)))
        check_metrics(Program(judged, devices))
    except ConfigError as error:
        raise ConfigError(str(error).replace("keep.best", "--metric", 1)) from error


def check_trials(space: Space, base: Experiment, devices: Sequence[jax.Device] | None = None) -> None:
    """Raises ConfigError, naming the values, where a trial would be refused. Of a large space every trial is created,
    and some are traced; of an adaptive one, the ends of its ranges.
    """
    fitted = fit(base)
    of_data = any(axis.path.startswith(("data.", "evals.")) for axis in space.axes)
    for number, values in enumerate(_points(space)):
        try:
            made = override_all(base if of_data else fitted, values)
            if number < MOST_TRACED:
                Program(fit(made), devices)
        except ConfigError as error:
            named = ", ".join(f"{path} = {value}" for path, value in values.items())
            raise ConfigError(f"with {named}: {error}") from error


def _points(space: Space) -> Iterator[dict[str, Any]]:
    if space.method != "adaptive":
        first, many = space.point(1), len(space) > MOST_TRACED
        if many:
            most = max(1, MOST_TRACED // max(1, len(space.grid)))
            for axis in space.grid:
                yield from ({**first, axis.path: value} for value in axis.values[:most])
        yield from map(space.point, range(1, len(space) + 1))
        return
    ends = {axis.path: (axis.low, axis.high) if isinstance(axis, Between) else axis.values for axis in space.drawn}
    first = {path: values[0] for path, values in ends.items()}
    for path, values in ends.items():
        yield from ({**first, path: value} for value in values)


def _choices(flag: str, text: str, base: Experiment, read: Read) -> Choices:
    path, values = _split(flag, text, base)
    found = tuple(_value(flag, path, word, base, read) for word in values.split(","))
    for number, value in enumerate(found):
        if value in found[:number]:
            raise ConfigError(f"{flag} {text}: {value} is there twice")
    return Choices(path, found)


def _drawn(flag: str, text: str, base: Experiment, read: Read) -> Axis:
    path, values = _split(flag, text, base)
    if ":" not in values:
        return _choices(flag, text, base, read)
    ends = values.removesuffix(":log").split(":")
    if len(ends) != 2:
        raise ConfigError(f"{flag} {text}: give two numbers, LOW:HIGH or LOW:HIGH:log, or values with commas")
    low, high = (_value(flag, path, end, base, read) for end in ends)
    if not all(type(end) in (int, float) for end in (low, high)) or not math.isfinite(low + high):
        raise ConfigError(f"{flag} {text}: {path} is no number, so it has no range: list its values with commas")
    return Between(path, low, high, values.endswith(":log"), whole=isinstance(low, int) and isinstance(high, int))


def _split(flag: str, text: str, base: Experiment) -> tuple[str, str]:
    path, equals, values = text.partition("=")
    if not equals or not path or not values.strip():
        raise ConfigError(f"{flag} {text}: give a field and its values, as in {flag} seed=0,1,2")
    try:
        return full_path(base, path), values
    except ConfigError as error:
        raise ConfigError(f"{flag} {text}: {error}") from error


def _value(flag: str, path: str, word: str, base: Experiment, read: Read) -> Any:
    """The value of a word, as the flag of the field takes it."""
    before, word = value_at(base, path), word.strip()
    value: Any = word
    if isinstance(before, bool):
        if word.lower() not in ("true", "false"):
            raise ConfigError(f"{flag} {path}: {word!r} is not true or false")
        value = word.lower() == "true"
    elif isinstance(before, tuple | dict) or " " in word:
        value = tuple(word.split())
    try:
        return value_at(read(flag_words(base, path, value)), path)
    except ConfigError as error:
        raise ConfigError(f"{flag} {path}={word}: {error}") from error


def use_the_cpu() -> None:
    """From here on jax takes no accelerator, whose memory belongs to the trials; too late where it was used already."""
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_platforms", "cpu")

"""What runs differ in, by the files of their folders: data, experiment, packages, variables, machine.

Not here: code, which is `code.py`, and what the runs did.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtrain.reports.compare.facts import RunFacts

MISSING = "—"
"""Stands for the value of a run that has none."""

DIFFERENCE_KINDS = {
    "data": "the data",
    "seed": "the seed",
    "experiment": "the experiment",
    "length": "the number of steps",
    "layout": "the mesh and the layout of arrays",
    "code": "the code",
    "packages": "the versions of packages",
    "variables": "the environment variables",
    "machine": "the machine",
    "runtime": "how it runs, not what it computes",
}
"""Kinds of differences, in the order in which they are listed."""

ROUNDING_KINDS = ("layout", "packages", "variables", "machine", "runtime")
"""Kinds of differences by which the same computation may be rounded otherwise."""

_SEEDS = ("seed", "data.seed")
_HOW = ("workers", "threads", "prefetch")  # of pipelines


@dataclass(frozen=True)
class Difference:
    """One thing in which runs differ."""

    kind: str
    """One of `DIFFERENCE_KINDS`."""
    name: str
    """A dotted path of the experiment, a package, a variable, a file."""
    values: tuple[Any, ...]
    """The value of each run, `MISSING` where it has none."""
    origins: tuple[str, ...] = ()
    """Where each value came from: "file", "command line", "default"; "" where that is not known."""
    text: str = ""
    """A diff, of code."""
    place: int | None = None
    """Of code: which run was compared with the first; then there are two values. None for all runs."""

    def is_between(self, place: int) -> bool:
        """Whether the run at a place differs from the first in it."""
        return self.place == place or (self.place is None and self.values[0] != self.values[place])


def config_differences(runs: Sequence[RunFacts]) -> list[Difference]:
    """What the runs differ in, without code. What follows from another difference, such as the hash of data whose rows
    were changed by a field, is left out.
    """
    found = [*_of_config(runs), *_of_environment(runs)]
    return sorted(found, key=lambda each: [*DIFFERENCE_KINDS].index(each.kind))


def _of_config(runs: Sequence[RunFacts]) -> Iterator[Difference]:
    known = [run for run in runs if run.config]
    if len(known) < 2:
        return
    paths = dict.fromkeys(path for run in known for path in run.config)
    differ = [path for path in paths if not _equal([run.config.get(path, MISSING) for run in known])]
    kept = [path for path in differ if not _follows(path, differ, known)]
    for path in kept:
        values = tuple(run.config.get(path, MISSING) if run.config else MISSING for run in runs)
        origins = tuple(run.origins.get(path, "") for run in runs)
        name = path.removesuffix(".identity")
        yield Difference(_kind(path), name, values, origins if any(origins) else ())


def _follows(path: str, differ: Sequence[str], runs: Sequence[RunFacts]) -> bool:
    """Whether a difference is but a consequence of others."""
    if path.endswith(".identity"):
        inside = path.removesuffix("identity")
        return any(other.startswith(inside) and other != path for other in differ)
    if path.endswith(".steps") and "steps" in differ:  # the horizon of a schedule
        return all(run.config.get(path) == run.saved.get("horizon", run.config.get("steps")) for run in runs)
    if ".fitted" in path:
        return any(other.endswith(".identity") for other in differ)
    return False


def _kind(path: str) -> str:
    first, last = path.partition(".")[0], path.rpartition(".")[2]
    if path in _SEEDS:
        return "seed"
    if path == "steps":
        return "length"
    if first in ("layout", "runtime"):
        return first
    if first in ("data", "evals"):
        return "runtime" if last in _HOW else "data"
    return "runtime" if first == "observers" else "experiment"


def _of_environment(runs: Sequence[RunFacts]) -> Iterator[Difference]:
    known = [bool(run.environment) for run in runs]
    groups: dict[str, Callable[[RunFacts], Mapping[str, Any]]] = {
        "packages": lambda run: {**_group(run, "packages"), **_python(run)},
        "variables": lambda run: _group(run, "variables"),
        "machine": lambda run: _group(run, "hardware"),
    }
    for kind, group in groups.items():
        each = [group(run) if there else None for run, there in zip(runs, known, strict=True)]
        for name in dict.fromkeys(name for one in each if one for name in one):
            values = [one.get(name, MISSING) for one in each if one is not None]
            if not _equal(values):
                yield Difference(kind, name, tuple(MISSING if one is None else one.get(name, MISSING) for one in each))


def _group(run: RunFacts, name: str) -> Mapping[str, Any]:
    found = run.environment.get(name)
    return found if isinstance(found, dict) else {}


def _python(run: RunFacts) -> Mapping[str, Any]:
    version = run.environment.get("python")
    return {"python": version} if isinstance(version, str) else {}


def _equal(values: Sequence[Any]) -> bool:
    return all(each == values[0] and type(each) is type(values[0]) for each in values[1:])

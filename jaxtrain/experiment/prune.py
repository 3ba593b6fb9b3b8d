"""`Prune`: an observer that ends the bad trials of a sweep early. Not here: the sweep itself (`launch/sweep`)."""

import contextlib
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtrain.base.errors import ConfigError
from jaxtrain.base.files import read_json, write_json
from jaxtrain.base.ranges import NonNegativeInt, PositiveInt
from jaxtrain.experiment.observers import ObservedRun, Observer, Scores


@dataclass(frozen=True, kw_only=True)
class Prune(Observer):
    """Ends a trial of `jaxtrain sweep` by the median rule (Golovin et al. 2017, doi:10.1145/3097983.3098043): where its
    best value so far is worse than the median of what the other trials had reached by the same step.

    The value is the metric that the sweep is judged by. In a run that is no trial of a sweep it does nothing.
    """

    least: PositiveInt = 4
    """How many other trials must have been evaluated at a step before one is ended there."""
    warmup: NonNegativeInt = 1
    """How many evaluations of each trial are not judged."""

    def begun(self, run: ObservedRun, step: int) -> str | None:
        return str(found) if (found := _read(_file(run.folder)).get("pruned")) else None

    def evaluated(self, run: ObservedRun, step: int, scores: Scores) -> str | None:
        sweep = run.folder.parent.parent / "sweep.json"
        if not sweep.is_file():
            return None
        judged, file = read_json(sweep), _file(run.folder)
        split, _, name = str(judged["metric"]).partition("/")
        value = scores.get(split, {}).get(name, math.nan)
        sign = -1.0 if judged["mode"] == "max" else 1.0
        own = {**_values(file), step: sign * value}
        file.parent.mkdir(exist_ok=True)
        write_json(file, {"values": own})
        others = [_values(path) for path in file.parent.glob("*.json") if path != file]
        reached = [_best(values, step) for values in others if step in values]
        if len(own) <= self.warmup or len(reached) < self.least:
            return None
        median, best = statistics.median(reached), _best(own, step)
        if best <= median:
            return None
        why = f"pruned: {judged['metric']} was {sign * best:.6g} at best until step {step}, and that of the median of "
        why += f"{len(reached)} other trials {sign * median:.6g}"
        write_json(file, {"values": own, "pruned": why})
        return why


def _file(folder: Path) -> Path:
    """Where a trial keeps its evaluations: numbers by step, of which lower is better."""
    return folder.parent.parent / "evaluations" / f"{folder.name}.json"


def _read(file: Path) -> dict[str, Any]:
    """The object in a file; {} for a trial that has none yet, and for a damaged one."""
    with contextlib.suppress(ConfigError, OSError):
        found = read_json(file)
        return found if isinstance(found, dict) else {}
    return {}


def _values(file: Path) -> dict[int, float]:
    """The evaluations of a trial by step; {} for a damaged file."""
    with contextlib.suppress(ValueError, TypeError, AttributeError):
        return {int(step): float(value) for step, value in _read(file).get("values", {}).items()}
    return {}


def _best(values: dict[int, float], step: int) -> float:
    """The lowest value until a step; NaN counts as the worst."""
    return min((x for at, x in values.items() if at <= step and not math.isnan(x)), default=math.inf)

"""Metrics of runs that differ in their seeds alone: means over seeds with t-intervals, and groups beside each other.

A bootstrap of three seeds covers far less than it says; Student's t does not. Not here: runs on the same examples,
which are `scores.py`.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxtrain.base.text import cut
from jaxtrain.reports.compare.facts import RunFacts
from jaxtrain.reports.compare.scores import LEVEL, final_value, metric_names
from jaxtrain.reports.compare.verdicts import MetricVerdict, direction, judged
from jaxtrain.reports.statistics import Interval, difference_of_seeds, holm, mean_of_seeds, t_interval

_SEEDS = ("seed", "data.seed")


@dataclass(frozen=True)
class SeedsScore:
    """A metric of several groups of runs, each of which differs in its seed alone."""

    split: str
    metric: str
    groups: tuple[tuple[str, ...], ...]
    """The names of the runs of each group."""
    means: tuple[Interval, ...]
    """The mean over the seeds of each group, with its t-interval."""
    against: tuple[MetricVerdict | None, ...]
    """Of each group beside the first, which has none."""


def seed_scores(runs: Sequence[RunFacts], splits: Sequence[str], metrics: Sequence[str] = ()) -> list[SeedsScore]:
    """Each metric over seeds, where several runs differ in their seed alone; runs without others are left out. The
    verdicts of a split are corrected for their number (Holm).
    """
    groups = [group for group in seed_groups(runs) if len(group) > 1]
    return [score for split in splits if groups for score in _of_split(groups, split, metrics)]


def _of_split(groups: Sequence[Sequence[RunFacts]], split: str, metrics: Sequence[str]) -> list[SeedsScore]:
    names, first = tuple(tuple(run.name for run in group) for group in groups), groups[0]
    values: dict[str, list[list[float]]] = {}
    for metric in metric_names([run for group in groups for run in group], split, metrics):
        found = [[final_value(run, split, metric) for run in group] for group in groups]
        if all(each is not None and math.isfinite(each) for group in found for each in group):
            values[metric] = [[each for each in group if each is not None] for group in found]
    tests = {
        (metric, at): _between(first, groups[at], found[0], found[at], len(groups) - 1)
        for metric, found in values.items()
        for at in range(1, len(groups))
    }
    adjusted = dict(zip(tests, holm([p for _, p in tests.values()]), strict=True))
    scores = []
    for metric, found in values.items():
        means = tuple(t_interval(one, LEVEL) for one in found)
        better = direction(metric, first[0].saved.get("experiment"), split)
        size, against = max(abs(mean.value) for mean in means), []
        for at in range(1, len(groups)):
            interval = tests[metric, at][0]
            told = interval.excludes(0) and adjusted[metric, at] <= 1 - LEVEL
            where = f"over {len(first)} and {len(groups[at])} seeds"
            against.append(
                judged(f"the mean of {cut(', '.join(names[at]), 40)}", metric, better, interval, told, where, size)
            )
        scores.append(SeedsScore(split, metric, names, means, (None, *against)))
    return scores


def _between(
    one: Sequence[RunFacts], two: Sequence[RunFacts], a: Sequence[float], b: Sequence[float], comparisons: int
) -> tuple[Interval, float]:
    """How much larger the second mean is: in pairs where both have the same seeds, else by Welch's t."""
    seeds, others = ([_seed(run) for run in group] for group in (one, two))
    if {*seeds} == {*others}:
        by_seed = dict(zip(others, b, strict=True))
        changes = [by_seed[seed] - value for seed, value in zip(seeds, a, strict=True)]
        return mean_of_seeds(changes, LEVEL, comparisons)
    return difference_of_seeds(a, b, LEVEL, comparisons)


def _seed(run: RunFacts) -> tuple[str, ...]:
    return tuple(str(run.config.get(path)) for path in _SEEDS)


def seed_groups(runs: Sequence[RunFacts]) -> list[list[RunFacts]]:
    """Runs that differ in their seeds alone, or in how they ran. A run whose experiment is not known is alone, and so
    is one with the seed of another.
    """
    groups: dict[str, list[RunFacts]] = {}
    for run in runs:
        kept: dict[str, Any] = {
            path: value for path, value in run.config.items() if path not in _SEEDS and not path.startswith("runtime.")
        }
        git = run.environment.get("git") or {}
        key = json.dumps([kept, run.file, git.get("revision"), git.get("diff")], sort_keys=True, default=str)
        if not run.config or _seed(run) in [_seed(other) for other in groups.get(key, [])]:
            key += run.name
        groups.setdefault(key, []).append(run)
    return [*groups.values()]

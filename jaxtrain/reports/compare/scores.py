"""The final metrics of runs, each beside the first, on the same examples.

Not here: the words of a verdict, and runs that differ in their seeds alone, which are `seeds.py`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from jaxtrain.base.errors import ConfigError, Damaged
from jaxtrain.base.text import printable
from jaxtrain.reports.compare.differences import Difference
from jaxtrain.reports.compare.facts import RunFacts
from jaxtrain.reports.compare.verdicts import Direction, MetricVerdict, amount, direction, judged, too_few
from jaxtrain.reports.paired import Pairs, integer_labels, pairs
from jaxtrain.reports.statistics import PairedDifference, told_apart
from jaxtrain.runs.rows import RowsOf, read_rows

LEVEL = 0.95

KEEP_ROWS = "no rows are kept of {names}: `jaxtrain evaluate RUN --keep-rows` keeps them"


@dataclass(frozen=True)
class Score:
    """A metric of the last evaluation of a split."""

    split: str
    metric: str
    better: Direction
    values: tuple[float | None, ...]
    """Of each run."""
    steps: tuple[int | None, ...]
    """The step that was evaluated."""
    against: tuple[MetricVerdict | None, ...]
    """Of each run beside the first; None for the first, and where it was not evaluated."""


def scores(
    runs: Sequence[RunFacts],
    differ: Sequence[Difference],
    splits: Sequence[str],
    metrics: Sequence[str] = (),
) -> list[Score]:
    """The metrics of each split. A verdict is corrected for the number of runs and of metrics of the split (Holm); the
    intervals of one metric hold for all runs together.
    """
    found: list[Score] = []
    for split in splits:
        rows, why = _rows(runs, split)
        beside = _pairs_of(rows, len(runs))
        names = metric_names(runs, split, metrics)
        told = _told(names, beside)
        for name in names:
            values = tuple(final_value(run, split, name) for run in runs)
            steps = tuple(run.final(split).get("step") for run in runs)
            score = Score(split, name, direction(name, runs[0].saved.get("experiment"), split), values, steps, ())
            against = [None] + [
                _against(score, runs, at, beside.get(at), rows, told, differ, why) for at in range(1, len(runs))
            ]
            found.append(replace(score, against=tuple(against)))
    return found


def _rows(runs: Sequence[RunFacts], split: str) -> tuple[list[RowsOf | None], str]:
    """The kept rows of each run that are of its last evaluation, and why others are missing."""
    found: list[RowsOf | None] = []
    none, why = [], []
    for run in runs:
        rows = None
        try:
            rows = read_rows(run.folder, split)
            if (last := run.final(split).get("step")) not in (None, rows.step):
                why.append(f"the rows that {run.name} kept are of step {rows.step}, not {last}")
                rows = None
        except ConfigError:
            none.append(run.name)
        except (Damaged, OSError) as error:
            why.append(f"the rows of {run.name} are damaged: {printable(str(error))}")
        found.append(rows)
    return found, "; ".join([*([KEEP_ROWS.format(names=" and ".join(none))] if none else []), *why])


def _pairs_of(rows: Sequence[RowsOf | None], count: int) -> dict[int, Pairs]:
    first = rows[0]
    others = {at: each for at, each in enumerate(rows) if at and each is not None}
    return {} if first is None else {at: pairs(first, each, LEVEL, len(others)) for at, each in others.items()}


def metric_names(runs: Sequence[RunFacts], split: str, metrics: Sequence[str]) -> list[str]:
    """The metrics of a split: those named by `metrics`, else those without a "/" in their name, else all."""
    names = dict.fromkeys(name for run in runs for name in run.final(split) if name not in ("step", "split"))
    if metrics:
        return [name for name in names if name in metrics or name.partition("/")[0] in metrics]
    return [name for name in names if "/" not in name] or [*names]


def _told(names: Sequence[str], beside: Mapping[int, Pairs]) -> set[tuple[int, str]]:
    """The runs and metrics that may be said to differ, corrected for the number of all."""
    family: dict[tuple[int, str], PairedDifference] = {}
    for at, found in beside.items():
        family |= {(at, name): found.differences[name] for name in names if name in found.differences}
    return {each for each, told in zip(family, told_apart([*family.values()]), strict=True) if told}


def final_value(run: RunFacts, split: str, name: str) -> float | None:
    """A metric of the last evaluation of a split."""
    value = run.final(split).get(name)
    return float(value) if isinstance(value, int | float) else None


def _against(
    score: Score,
    runs: Sequence[RunFacts],
    at: int,
    found: Pairs | None,
    rows: Sequence[RowsOf | None],
    told: set[tuple[int, str]],
    differ: Sequence[Difference],
    why: str,
) -> MetricVerdict | None:
    """The verdict on a metric of the run at a place beside the first."""
    one, two = score.values[0], score.values[at]
    if one is None or two is None:
        return None
    reason = _not_comparable(score, runs, at, found, rows, differ)
    if reason:
        return MetricVerdict("not comparable", f"not comparable, because {reason}")
    if found is None or score.metric not in found.differences:
        word = f"{amount(score.metric, two - one)} {'higher' if two > one else 'lower'}"
        word = "the same value" if one == two else word
        reason = why or f"{score.metric} is not a sum over rows"
        return MetricVerdict("no interval", f"{word}, but there is no interval: {reason}", two - one)
    paired = found.differences[score.metric]
    first = rows[0]
    share = f" of {first.of:,}" if first is not None and first.kept < first.of else ""  # more were not kept
    where = f"on the same {found.same:,}{share} examples"
    if any(found.alone):
        where = f"on the {found.same:,} examples that both have"
    if score.steps[0] != score.steps[at]:
        where += f", at step {score.steps[at]} beside {score.steps[0]}"
    if not math.isfinite(paired.interval.margin) and paired.differ == paired.of > 1:
        return MetricVerdict("not told apart", f"not told apart: a resample {where} has no value")
    if not math.isfinite(paired.interval.margin):
        return MetricVerdict(
            "not told apart", too_few(paired.differ, paired.of), paired.interval.value, examples=paired.of
        )
    size = max(map(abs, found.values[score.metric]))
    may = (at, score.metric) in told
    verdict = judged(runs[at].name, score.metric, score.better, paired.interval, may, where, size)
    return replace(verdict, examples=paired.of)


def _not_comparable(
    score: Score,
    runs: Sequence[RunFacts],
    at: int,
    found: Pairs | None,
    rows: Sequence[RowsOf | None],
    differ: Sequence[Difference],
) -> str:
    """Why a metric of two runs says nothing beside each other; "" if it does."""
    for place in (0, at):
        if not math.isfinite(score.values[place] or 0):
            return f"{score.metric} of {runs[place].name} is {score.values[place]}"
    between = [each for each in differ if each.is_between(at)]
    if found is not None and not found.same:
        return f"they were evaluated on other examples of {score.split}: none is the same"
    if found is not None and (refused := found.refused.get(score.metric.partition("/")[0])):
        return refused
    own = [each for each in between if each.name.startswith(f"evals.{score.split}.")]
    data = [each for each in own if each.kind == "data" and ".transforms" not in each.name and not _harmless(each.name)]
    if found is None and data:
        return f"the data of {score.split} differ: {data[0].name}"
    transforms = [each for each in own if ".transforms" in each.name]
    first = rows[0]
    if transforms and (first is None or not integer_labels(first)):
        return f"{transforms[0].name} differs, by which the targets may have other units"
    task = [each.name for each in between if each.name.startswith("task.") and not each.name.startswith("task.model")]
    if task and score.metric.partition("/")[0] == "loss":
        return f"{task[0]} differs, by which the loss is another quantity"
    return ""


def _harmless(name: str) -> bool:
    return name.rpartition(".")[2] in ("batch_size", "seed", "shuffle", "folder")

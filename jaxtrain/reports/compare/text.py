"""A comparison as text for a terminal. Not here: the comparison."""

import itertools
import math
from collections.abc import Iterator, Sequence

from jaxtrain.base.text import cut, number, printable, table
from jaxtrain.reports.compare.comparison import Comparison, comparable
from jaxtrain.reports.compare.differences import DIFFERENCE_KINDS, Difference
from jaxtrain.reports.compare.facts import RunFacts, shown_value
from jaxtrain.reports.compare.scores import Score
from jaxtrain.reports.statistics import Interval

MOST_LINES = 24
"""Lines of a diff that are shown; --json and the page have all."""


def comparison_page(found: Comparison) -> str:
    """All of a comparison."""
    return "\n\n".join([differences_page(found), *_results(found)])


def differences_page(found: Comparison) -> str:
    """Its first half: whether the runs are comparable, what they differ in, and from which step on."""
    blocks = [_runs(found), _comparable(found), _differences(found), _steps(found)]
    return "\n\n".join(block for block in blocks if block)


def _runs(found: Comparison) -> str:
    rows = [["run", "step", "of", "folder"]]
    for run in found.runs:
        of = run.config.get("steps", "?")
        rows.append([run.name, str(run.last_step), str(of), printable(str(run.folder))])
    return "\n".join([table(rows), *(f"not read: {each}" for each in found.wrong)])


def _comparable(found: Comparison) -> str:
    words = {True: "the same", False: "differ", None: "not known"}
    rows = [["compared", "", ""]]
    rows += [[name, words[same], shown_value(value) if same else ""] for name, same, value in comparable(found)]
    return table(rows)


def _differences(found: Comparison) -> str:
    if not found.differences:
        unknown = " in what could be read" if found.wrong else ""
        return f"no difference{unknown}: of data, experiment, code, packages, variables or machine"
    lines = []
    for kind, group in itertools.groupby(found.differences, key=lambda each: each.kind):
        lines.append(f"{DIFFERENCE_KINDS[kind]} differ{'' if kind in ('data', 'packages', 'variables') else 's'}")
        for each in group:
            lines += [f"  {line}" for line in _difference(each, found.runs)]
    return "\n".join(lines)


def _difference(each: Difference, runs: Sequence[RunFacts]) -> Iterator[str]:
    values = [shown_value(value) for value in each.values]
    origins = [f" ({origin})" if origin else "" for origin in each.origins or [""] * len(values)]
    arrow = " → ".join(f"{value}{origin}" for value, origin in zip(values, origins, strict=True))
    name = printable(each.name) + (f" of {runs[each.place].name}" if each.place and len(runs) > 2 else "")
    yield f"{name}: {arrow}" if any(values) else name
    lines = each.text.splitlines()
    yield from (f"  {printable(line)}" for line in lines[:MOST_LINES])
    if len(lines) > MOST_LINES:
        yield f"  … {len(lines) - MOST_LINES} more lines: --json or --html FILE"


def _steps(found: Comparison) -> str:
    first = found.runs[0].name
    lines = [f"{first} and {run.name}: {found.acts_from(place)}" for place, run in enumerate(found.runs[1:], 1)]
    return "\n".join(lines)


def _results(found: Comparison) -> Iterator[str]:
    for split, scores in itertools.groupby(found.scores, key=lambda each: each.split):
        yield _split(found, split, [*scores])
    for split, group in itertools.groupby(found.seeds, key=lambda each: each.split):
        rows = [[f"{printable(split)}, over seeds", "", "mean (95 %)", ""]]
        for score in group:
            for names, mean, verdict in zip(score.groups, score.means, score.against, strict=True):
                cells = [printable(score.metric), cut(" and ".join(names), 40), _mean(mean)]
                rows.append([*cells, verdict.words if verdict else ""])
        yield table(rows)
    if not found.scores:
        yield "no evaluation to compare"


def _mean(mean: Interval) -> str:
    return number(mean.value) + (f" ± {number(mean.margin)}" if math.isfinite(mean.margin) else "")


def _split(found: Comparison, split: str, scores: list[Score]) -> str:
    rows = [[printable(split), *(run.name for run in found.runs)]]
    steps = [str(step) if step is not None else "" for step in scores[0].steps]
    rows.append(["at step", *steps])
    for score in scores:
        values = ["" if value is None else number(value) for value in score.values]
        rows.append([printable(score.metric), *values])
    lines = [table(rows)]
    for place in range(1, len(found.runs)):
        said = [(score.metric, score.against[place]) for score in scores]
        run = f"{found.runs[place].name}, " if len(found.runs) > 2 else ""
        lines += [f"{run}{printable(metric)}: {verdict.words}" for metric, verdict in said if verdict is not None]
    return "\n".join(lines)

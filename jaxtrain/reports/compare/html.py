"""A comparison as one HTML page, with the curves of all runs over each other. Not here: the page's classes."""

import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jaxtrain.reports.compare.comparison import Comparison, comparable
from jaxtrain.reports.compare.differences import DIFFERENCE_KINDS, Difference
from jaxtrain.reports.compare.facts import RunFacts, shown_value
from jaxtrain.reports.compare.scores import Score
from jaxtrain.reports.page.document import Page
from jaxtrain.reports.page.items import Details, Item, Paragraph, Preformatted, Section, Table
from jaxtrain.reports.page.plots import Mark, Plot, Series


def write_page(found: Comparison, path: Path) -> Path:
    """Writes the page; returns its path. Raises ConfigError where it cannot be written."""
    names = [run.name for run in found.runs]
    sections = [
        Section("Results", [*_results(found)]),
        Section("Differences", [*_differences(found)]),
        Section("Where they part", _parting(found)),
        Section("Curves", [*_curves(found)]),
        Section("Runs", [*_runs(found)]),
    ]
    return Page(f"Comparison: {', '.join(names)}", sections, f"Each run beside the first, {names[0]}").write(path)


def _results(found: Comparison) -> Iterator[Item]:
    for split, scores in itertools.groupby(found.scores, key=lambda each: each.split):
        group = [*scores]
        columns = [split, *(run.name for run in found.runs)]
        rows = [[each.metric, *each.values] for each in group]
        yield Table(columns, [["step", *group[0].steps], *rows], caption=f"The last evaluation of {split}")
        yield Table(
            ["metric", "run", f"beside {found.runs[0].name}"],
            [*_verdicts(found, group)],
            caption=f"Differences on {split}, with intervals that hold with 95 %",
        )
    for split, group in itertools.groupby(found.seeds, key=lambda each: each.split):
        rows = [
            [
                score.metric,
                ", ".join(names),
                mean.value,
                _bound(mean.low),
                _bound(mean.high),
                verdict.words if verdict else "",
            ]
            for score in group
            for names, mean, verdict in zip(score.groups, score.means, score.against, strict=True)
        ]
        yield Table(["metric", "seeds", "mean", "from", "to", "verdict"], rows, caption=f"{split}, over seeds")
    if not found.scores:
        yield Paragraph("No run was evaluated.")


def _verdicts(found: Comparison, scores: list[Score]) -> Iterator[list[object]]:
    for score in scores:
        for run, verdict in zip(found.runs, score.against, strict=True):
            if verdict is not None:
                yield [score.metric, run.name, verdict.words]  # with the numbers: more columns leave a phone no room


def _bound(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _differences(found: Comparison) -> Iterator[Item]:
    if not found.differences:
        yield Paragraph("No difference of data, experiment, code, packages, variables or machine was found.")
    for kind, group in itertools.groupby(found.differences, key=lambda each: each.kind):
        if kind == "code":
            for each in group:
                yield from _code(each, found)
            continue
        rows = [[each.name, *_values(each)] for each in group]
        yield Table([kind, *(run.name for run in found.runs)], rows, caption=DIFFERENCE_KINDS[kind].capitalize())


def _code(each: Difference, found: Comparison) -> Iterator[Item]:
    other = found.runs[each.place or 1].name
    arrow = " → ".join(map(str, each.values)) if any(each.values) else ""
    summary = f"Code of {other}: {each.name} {arrow}".rstrip()
    yield Details(summary, [Preformatted(each.text or "no text")], open=len(each.text) < 4000)


def _values(each: Difference) -> list[str]:
    origins = each.origins or ("",) * len(each.values)
    return [
        shown_value(value) + (f" ({origin})" if origin else "")
        for value, origin in zip(each.values, origins, strict=True)
    ]


def _parting(found: Comparison) -> list[Item]:
    first = found.runs[0].name
    rows = [[run.name, *_steps(found, place), found.acts_from(place)] for place, run in enumerate(found.runs[1:], 1)]
    return [Table([f"beside {first}", "batches part at", "losses part at", "in words"], rows)]


def _steps(found: Comparison, place: int) -> list[int | None]:
    parting = found.partings[place - 1]
    return [None, None] if parting is None else [parting.batch, parting.loss]


def _curves(found: Comparison) -> Iterator[Item]:
    marks = [
        Mark(parting.first, f"{run.name} parts from {found.runs[0].name}")
        for run, parting in zip(found.runs[1:], found.partings, strict=True)
        if parting is not None and parting.first is not None
    ]
    loss = [_of_steps(run, "loss") or _of_lines(run, "train", "loss") for run in found.runs]
    yield Plot("Training loss", [each for each in loss if each], y="loss", marks=marks)
    norms = [_of_steps(run, "gradient_norm") for run in found.runs]
    if any(norms):
        yield Plot("Gradient norm", [each for each in norms if each], y="norm", log_y=True, marks=marks)
    for score in found.scores:
        series = [_of_lines(run, score.split, score.metric) for run in found.runs]
        yield Plot(f"{score.split} {score.metric}", [each for each in series if each], y=score.metric, marks=marks)


def _of_steps(run: RunFacts, name: str) -> Series | None:
    return (
        None
        if run.steps is None or not len(run.steps["step"])
        else Series(run.name, run.steps["step"], run.steps[name])
    )


def _of_lines(run: RunFacts, split: str, name: str) -> Series | None:
    points = {
        line["step"]: line[name]
        for line in run.lines
        if line["split"] == split and isinstance(line.get(name), int | float)
    }
    steps = np.array(sorted(points), np.int64)
    if not len(steps):
        return None
    smooth = split == "train"
    return Series(run.name, steps, np.array([points[step] for step in steps.tolist()]), smooth=smooth)


def _runs(found: Comparison) -> Iterator[Item]:
    rows: list[list[object]] = []
    for run in found.runs:
        git = run.environment.get("git") or {}
        revision = str(git.get("revision") or "")[:12] + (" with changes" if git.get("diff") else "")
        command = shown_value(run.environment.get("command", ""), 120)
        rows.append([run.name, str(run.folder), run.last_step, run.config.get("steps"), revision, command])
    yield Table(["run", "folder", "step", "of", "revision", "command"], rows)
    words = {True: "the same", False: "different", None: "not known"}
    facts = [[name, words[same], shown_value(value) if same else ""] for name, same, value in comparable(found)]
    yield Table(["", "in all runs", "value"], facts, caption="Are they comparable?")
    for each in found.wrong:
        yield Paragraph(f"Not read: {each}", kind="warning")
    yield Paragraph(
        "An interval holds for all runs of a metric together with 95 %. Better and worse are said only where it "
        "excludes 0, and where a test agrees that swaps the two runs at random in each example, corrected for the "
        "number of tests (Holm)."
    )

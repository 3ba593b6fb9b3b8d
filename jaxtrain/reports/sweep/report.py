"""The page of a sweep: the settings by their metric, response curves, importance, parallel coordinates, the winner.

Not here: the table on a terminal, and the pages of single trials (`jaxtrain report TRIAL`).
"""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxtrain.base.text import number
from jaxtrain.reports.page import Item, Page, Paragraph, Picture, Plot, Preformatted, Section, Series, Table
from jaxtrain.reports.statistics import Interval, t_interval
from jaxtrain.reports.sweep.findings import RANGE_GROUPS, Point, importance, is_number, response, winner_file
from jaxtrain.reports.sweep.parallel import parallel_coordinates
from jaxtrain.reports.sweep.read import SEED, Setting, Sweep, read_sweep, short_names, value_text

MOST_ROWS_OF_TABLE = 200
"""Settings and trials in each table."""

SPREAD = 30
"""Positive values of a field that span more than this factor are drawn on a logarithmic axis."""


def sweep_report(folder: Path, out: Path | None = None) -> Path:
    """Write the page of a sweep, finished or not; report.html in its folder by default. Returns its path.

    Raises ConfigError where the folder is no sweep.
    """
    sweep = read_sweep(folder)
    short = short_names([axis.path for axis in sweep.space.axes])
    sections = [_overview(sweep, short)]
    if any(setting.numbers for setting in sweep.settings()):
        sections += [_winner(sweep), _curves(sweep, short), _importance(sweep), _parallel(sweep, short)]
    sections.append(_trials(sweep))
    return Page(f"Sweep of {sweep.experiment}", sections, str(folder)).write(out or folder / "report.html")


def _overview(sweep: Sweep, short: dict[str, str]) -> Section:
    states = Counter(trial.state for trial in sweep.trials)
    left = len(sweep.space) - len(sweep.trials)
    counts = ", ".join([f"{count} {state}" for state, count in states.items()] + [f"{left} not begun"] * (left > 0))
    which = "best" if sweep.best else "last"
    said = f"Trials are judged by {sweep.metric} of their {which} evaluation: the {_good(sweep)} is the best."
    settings = sweep.settings()
    paths = [path for path in short if path != SEED]
    rows = [
        [
            " ".join(str(trial.number) for trial in setting.trials[:6]),
            *(value_text(setting.values.get(path, "")) for path in paths),
            *_cells(setting),
        ]
        for setting in settings[:MOST_ROWS_OF_TABLE]
    ]
    fields = [[axis.path, str(axis).removeprefix(axis.path).strip(" =")] for axis in sweep.space.axes]
    columns = ["trials", *(short[path] for path in paths), f"mean {sweep.metric}", "95 % interval over seeds", "seeds"]
    more = len(settings) - MOST_ROWS_OF_TABLE
    items: list[Item] = [
        Paragraph(f"{len(sweep.space)} trials by the method {sweep.space.method}: {counts or 'none'}. {said}"),
        Table(["field", "values"], fields),
        Table(columns, rows, "Settings, the best first"),
        *([Paragraph(f"{more} more settings are not shown.")] if more > 0 else []),
    ]
    return Section("Settings", items)


def _cells(setting: Setting) -> list[object]:
    if not setting.numbers:
        return ["pruned" if any(trial.state == "pruned" for trial in setting.trials) else None, None, 0]
    return [setting.mean, seeds_interval(t_interval(setting.numbers)), len(setting.numbers)]


def seeds_interval(interval: Interval) -> str:
    """An interval as two numbers, or why it has none."""
    if not math.isfinite(interval.margin):
        return "unbounded: one seed"
    return f"{number(interval.low)} to {number(interval.high)}"


def _good(sweep: Sweep) -> str:
    return "highest" if sweep.mode == "max" else "lowest"


def _winner(sweep: Sweep) -> Section:
    winner = sweep.winner()
    assert winner is not None
    trial = next(trial for trial in winner.trials if trial.state == "finished")
    count = len([setting for setting in sweep.settings() if setting.numbers])
    found = f"{sweep.metric} {number(winner.mean)}"
    if len(winner.numbers) > 1:
        interval = seeds_interval(t_interval(winner.numbers))
        found += f", the mean of {len(winner.numbers)} seeds (95 % interval {interval})"
    named = ", ".join(f"{path} {value_text(value)}" for path, value in winner.values.items())
    items: list[Item] = [
        Paragraph(f"{found}, with {named or 'the values as they are'}."),
        Paragraph(
            f"It was chosen as the best of {count} settings by this very number, which is therefore better than the "
            "setting is on new data: report it on a split that chose nothing, after training with fresh seeds.",
            "warning" if count > 1 else "",
        ),
        Preformatted(winner_file(sweep, trial.values), f"The experiment of trial {trial.number}, to paste into a file"),
    ]
    return Section("The winner", items)


def _curves(sweep: Sweep, short: dict[str, str]) -> Section:
    items: list[Item] = [
        Paragraph(
            "Each point is the mean over the values of all other fields, and its band the 95 % t-interval over seeds; "
            "without repetitions over seeds there is none. The thin line is the best setting with that value."
        )
    ]
    for axis in sweep.space.axes:
        if axis.path == SEED:
            continue
        points = response(sweep, axis.path)
        if len(points) > 1 and all(is_number(point.value) for point in points):
            items.append(_curve(sweep, short[axis.path], points))
        items.append(_curve_table(sweep, axis.path, points))
    return Section("Response curves", items)


def _curve(sweep: Sweep, name: str, points: Sequence[Point]) -> Plot:
    x = [float(point.value) for point in points]
    bands = [point.interval for point in points]
    bounded = any(math.isfinite(band.margin) for band in bands)
    low, high = (
        np.array([x if math.isfinite(x) else math.nan for x in side])
        for side in ([band.low for band in bands], [band.high for band in bands])
    )
    kind = "line" if max(point.trials for point in points) > 1 else "points"
    middle = [band.value for band in bands]
    mean = Series("mean", x, middle, low if bounded else None, high if bounded else None, smooth=False, kind=kind)
    best = Series("best setting", x, [point.best for point in points], faint=True, smooth=False)
    log = min(x) > 0 and max(x) / min(x) > SPREAD
    return Plot(f"{sweep.metric} by {name}", [mean, best], x=name, y=sweep.metric, log_x=log)


def _curve_table(sweep: Sweep, path: str, points: Sequence[Point]) -> Table:
    rows = [
        [value_text(point.value), point.interval.value, seeds_interval(point.interval), point.best, point.trials]
        for point in points[:MOST_ROWS_OF_TABLE]
    ]
    columns = [path, f"mean {sweep.metric}", "95 % interval over seeds", "best setting", "trials"]
    return Table(columns, rows)


def _importance(sweep: Sweep) -> Section:
    shares = importance(sweep)
    if not shares:
        return Section("Importance", [Paragraph("Too few trials finished, or all are equal: nothing can be said.")])
    own = "each trial has its own value"
    rows = [[path, f"{share:.0%}" if math.isfinite(share) else own] for path, share in shares.items()]
    how = (
        "The share of the variance of the metric over all finished trials that the values of a field explain alone (ε² "
        f"of a one-way analysis of variance, at least 0; a range is cut into {RANGE_GROUPS} groups of as many trials). "
        "What only several fields together explain is in none of them, so the shares need not sum to 100 %."
    )
    return Section("Importance", [Paragraph(how), Table(["field", "explains"], rows)])


def _parallel(sweep: Sweep, short: dict[str, str]) -> Section:
    trials = [trial for trial in sweep.trials if trial.state == "finished" and trial.value is not None]
    axes = {axis.path: [trial.values.get(axis.path) for trial in trials] for axis in sweep.space.axes}
    values = [trial.value for trial in trials if trial.value is not None]
    drawn = parallel_coordinates(axes, short, sweep.metric, values, best_first=sweep.mode == "min")
    words = f"Parallel coordinates: one line for each of {len(trials)} trials from field to field to {sweep.metric}"
    caption = "One line a trial; the blue ones are the better half, the thick ones the best quarter."
    return Section("Parallel coordinates", [Picture(drawn, words, caption)])


def _trials(sweep: Sweep) -> Section:
    paths = [axis.path for axis in sweep.space.axes]
    rows = [
        [trial.number, trial.state, trial.value, *(value_text(trial.values.get(path, "")) for path in paths), trial.why]
        for trial in sweep.trials[:MOST_ROWS_OF_TABLE]
    ]
    more = len(sweep.trials) - MOST_ROWS_OF_TABLE
    items: list[Item] = [Table(["trial", "state", sweep.metric, *paths, "why"], rows)]
    if more > 0:
        items.append(Paragraph(f"{more} more trials are not shown."))
    return Section("Trials", items)

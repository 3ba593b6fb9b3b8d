"""The table of a sweep on a terminal: every setting with its value over seeds, and what failed. Not here: the page."""

import math
from collections import Counter

from jaxtrain.base.text import cut, number, table
from jaxtrain.reports.sweep.read import SEED, Setting, Sweep, short_names, value_text

MOST_SETTINGS = 40
"""Settings in the table."""


def sweep_text(sweep: Sweep) -> str:
    """A table of the settings, the best first, and a line for each trial that failed or did not end."""
    states = Counter(trial.state for trial in sweep.trials)
    left = len(sweep.space) - len(sweep.trials)
    counts = [f"{count} {state}" for state, count in states.items()] + ([f"{left} not begun"] if left > 0 else [])
    short = short_names([axis.path for axis in sweep.space.axes])
    paths = [path for path in short if path != SEED]
    settings = sweep.settings()
    lines = [f"{sweep.folder}: {', '.join(counts) or 'no trials'}"]
    if settings:
        head = [sweep.metric, "trials", *(short[path] for path in paths)]
        rows = [_row(one, paths) for one in settings[:MOST_SETTINGS]]
        lines += ["", table([head, *rows])]
        lines += [f"… and {len(settings) - MOST_SETTINGS} more"] if len(settings) > MOST_SETTINGS else []
    for trial in sweep.trials:
        if trial.state in ("failed", "unfinished", "running"):
            lines.append(f"trial {trial.number} {trial.state}{trial.why and f': {cut(trial.why, 200)}'}")
    if (winner := sweep.winner()) is not None:
        named = "  ".join(f"{path}={value_text(value)}" for path, value in winner.values.items())
        lines += [
            "",
            f"best: {sweep.metric} {number(winner.mean)}{_over(winner)} with {named or 'the values as they are'}",
        ]
        lines += [f"trial {winner.trials[0].number}: {winner.trials[0].folder}"]
    return "\n".join(lines)


def _over(setting: Setting) -> str:
    count = len(setting.numbers)
    return f", the mean of {count} seeds," if count > 1 else ""


def _row(setting: Setting, paths: list[str]) -> list[str]:
    trials = [str(trial.number) for trial in setting.trials]
    named = ", ".join(trials[:6]) + (" …" if len(trials) > 6 else "")
    found = setting.numbers
    spread = f" ({number(min(found))} to {number(max(found))})" if len(found) > 1 else ""
    value = "—" if math.isnan(setting.mean) else f"{number(setting.mean)}{spread}"
    if not found and any(trial.state == "pruned" for trial in setting.trials):
        value = "pruned"
    return [value, named, *(value_text(setting.values.get(path, "")) for path in paths)]

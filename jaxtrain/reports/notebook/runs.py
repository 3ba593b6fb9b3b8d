"""A run for the eye: its state, its last metrics, and the curve of its loss, read from its folder without trusting it.

Not here: the report, which shows all of a run.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np

import jaxtrain.reports.html as html
from jaxtrain.base.errors import ConfigError, Damaged
from jaxtrain.base.text import number
from jaxtrain.reports.html import Markup
from jaxtrain.reports.pictures import curve_svg
from jaxtrain.reports.status import read_status
from jaxtrain.reports.tail import LARGEST_TAIL, last_objects, read_bounded
from jaxtrain.runs.folder import Run
from jaxtrain.runs.metrics_log import line_check
from jaxtrain.runs.steps_log import read_steps

LARGEST_STEPS = 64 << 20
"""Bytes of a steps.bin that is read for the curve: two million steps."""

_SPEEDS = ("seconds_", "examples_per_second", "tokens_per_second", "mfu", "learning_rate")


def run_html(run: Run) -> Markup:
    """State, last metrics of each split, and the curve of the loss."""
    status = read_status(run.folder)
    done = f"step {status.step:,}" + (f" of {status.of:,}" if status.of else "")
    head = html.joined(
        (
            html.element("b", "Run"),
            " ",
            html.code(run.folder),
            html.element("span", status.state, class_="state"),
            f" {done} ",
            html.dim(status.why),
        )
    )
    lines, problem = _last_lines(run.folder)
    x, y = _losses(run.folder, lines)
    curve = curve_svg(x, y, "step", "loss") if len(x) else Markup()
    pictures = html.figure(curve, "loss of the training batches") if curve else ""
    said = html.element("div", html.dim(problem)) if problem else ""
    return html.joined((html.element("div", head), pictures, _last_metrics(lines), said))


def _last_lines(folder: Path) -> tuple[list[dict[str, Any]], str]:
    """The good lines at the end of metrics.jsonl, and why there may be none."""
    path = folder / "metrics.jsonl"
    try:
        found = read_bounded(path, LARGEST_TAIL, from_end=True)
    except OSError as error:
        return [], f"metrics.jsonl: {error}"
    if found is None:
        return [], "no metrics yet"
    check = line_check()
    data, facts = found
    lines = [line for line in last_objects(data, facts.st_size <= LARGEST_TAIL) if not check(line)]
    return lines, "" if lines else "metrics.jsonl has no line that can be read"


def _last_metrics(lines: list[dict[str, Any]]) -> Markup:
    last = {line["split"]: line for line in lines}
    names = dict.fromkeys(name for line in last.values() for name in line if name not in ("step", "split"))
    shown = [name for name in names if "/" not in name and not name.startswith(_SPEEDS)][:12]
    rows = [
        [html.code(split), f"{line['step']:,}", *(number(float(line[name])) if name in line else "" for name in shown)]
        for split, line in last.items()
    ]
    return html.rows_table(["split", "step", *shown], rows, range(1, 2 + len(shown))) if rows else Markup()


def _losses(folder: Path, lines: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Steps and their losses: of every step, else of the lines of metrics."""
    try:
        if os.stat(folder / "steps.bin").st_size <= LARGEST_STEPS:
            steps = read_steps(folder)
            return steps["step"].astype(float), steps["loss"].astype(float)
    except (OSError, ConfigError, Damaged):
        pass
    found = [(line["step"], float(line["loss"])) for line in lines if line["split"] == "train" and "loss" in line]
    x, y = (np.array(column, float) for column in zip(*found, strict=True)) if found else (np.zeros(0), np.zeros(0))
    return x, y

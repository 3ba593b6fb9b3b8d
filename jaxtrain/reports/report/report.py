"""`report`: a run's folder as one HTML page. Nothing is written into the folder but the page.

Not here: the sections, which stand in the files beside this one.
"""

from pathlib import Path

from jaxtrain.base.errors import ConfigError
from jaxtrain.reports.page import Page
from jaxtrain.reports.report.about import data, ending, environment, events, summary, values
from jaxtrain.reports.report.curves import curves
from jaxtrain.reports.report.evaluation import evaluation
from jaxtrain.reports.report.layout import layout
from jaxtrain.reports.report.record import RunRecord, read_record
from jaxtrain.reports.report.time import time
from jaxtrain.runs.folder import Run


def report(folder: Path, out: Path | None = None, code: str | None = None) -> Path:
    """Writes the report of a run, by default as report.html in its folder; returns its path.

    code: `file.py[:function]` of an experiment with classes or data in memory of one's own.

    Raises ConfigError for a folder that is no run's, and where the page cannot be written. All else that is wrong with
    the folder stands in the report.
    """
    record = read_record(folder)
    run, why = _opened(record, code)
    state, _ = ending(record)
    sections = [
        summary(record),
        curves(record),
        evaluation(record, run, why),
        time(record),
        layout(record, run, why),
        values(record),
        data(record),
        environment(record),
        events(record),
    ]
    name = folder.absolute().name
    return Page(name, sections, f"{state} · step {record.last_step:,}").write(out or folder / "report.html")


def _opened(record: RunRecord, code: str | None) -> tuple[Run | None, str]:
    """The run, or why it cannot be opened."""
    if not record.saved:
        return None, "experiment.json cannot be read."
    try:
        run = Run(record.folder, code)
        _ = run.experiment
    except ConfigError as error:
        hint = "" if code else " (an experiment with classes of your own: give --code FILE)"
        return None, f"{error}{hint}"
    return run, ""

"""`report`: a run's folder as one HTML page. Nothing is written into the folder but the page.

Not here: the sections, which stand in the files beside this one.
"""

from pathlib import Path

from jaxtrain.base.errors import ConfigError
from jaxtrain.reports.page import Page
from jaxtrain.reports.report.about import data, events, summary, surroundings, values
from jaxtrain.reports.report.curves import curves
from jaxtrain.reports.report.evaluation import evaluation
from jaxtrain.reports.report.language import language
from jaxtrain.reports.report.layout import layout
from jaxtrain.reports.report.record import RunRecord, read_folder
from jaxtrain.reports.report.time import time
from jaxtrain.reports.status import read_status
from jaxtrain.runs.folder import Run


def report(folder: Path, out: Path | None = None, code: str | None = None, samples: int = 3) -> Path:
    """Writes the report of a run, by default as report.html in its folder; returns its path.

    code: `file.py[:function]` of an experiment with classes or data in memory of one's own.
    samples: how many texts a language model writes; 0 reads no checkpoint.

    Raises ConfigError for a folder that is no run's, and where the page cannot be written. All else that is wrong with
    the folder stands in the report.
    """
    record = read_folder(folder)
    run, why = _opened(record, code)
    status = read_status(folder)
    more = language(run, samples) if run is not None else None
    sections = [
        summary(record, status),
        curves(record),
        evaluation(record, run, why),
        *([more] if more else []),
        time(record),
        layout(record, run, why),
        values(record),
        data(record),
        surroundings(record),
        events(record),
    ]
    name = folder.absolute().name
    return Page(name, sections, f"{status.state} · step {record.last_step:,}").write(out or folder / "report.html")


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

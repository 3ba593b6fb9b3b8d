"""Where the time of a run went. Not here: the speed by step, which is a curve."""

from jaxtrain.base.text import duration
from jaxtrain.reports.page import Bars, Paragraph, Section
from jaxtrain.reports.report.record import RunRecord
from jaxtrain.reports.time_account import account_of
from jaxtrain.runs.sessions import last_sign


def time(record: RunRecord) -> Section:
    """The section of the time account, over all sessions of the run."""
    found = account_of(record.events, record.lines, last_sign(record.folder, record.lines))
    if not found.total:
        return Section("Time", [Paragraph("No time was logged.")])
    many = len(found.sessions)
    words = (
        f"Goodput {found.goodput:.1%}: of {duration(found.total)}, from the start of the first process to the end of "
        f"the last of {many} sessions, the share in which steps were trained that no later session trained again."
        if many > 1
        else f"Goodput {found.goodput:.1%}: of {duration(found.total)}, from the start of the process to its end, the "
        "share in which steps were trained."
    )
    notes = [Paragraph(words)]
    if not found.complete:
        notes.append(Paragraph("An earlier version made this run, which did not record all of its time.", "note"))
    used = {name: seconds for name, seconds in found.seconds.items() if seconds > 0}
    return Section("Time", [Bars("Wall-clock time", used, "seconds"), *notes])

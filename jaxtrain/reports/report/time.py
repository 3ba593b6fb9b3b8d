"""Where the time of a run went. Not here: the speed by step, which is a curve."""

import numpy as np

from jaxtrain.reports.page import Bars, Paragraph, Section
from jaxtrain.reports.report.record import RunRecord


def time(record: RunRecord) -> Section:
    """The section of the time account: the seconds of all sessions by phase, as their last lines have them."""
    train = record.splits["train"]
    _, totals = train.get("seconds_total", (None, np.zeros(0)))
    ends = np.append(np.flatnonzero(np.diff(totals) < 0), len(totals) - 1)  # a clock that begins again is a session's
    phases = {
        name.removeprefix("seconds_"): float(values[ends].sum())
        for name, (_, values) in train.items()
        if name.startswith("seconds_") and name != "seconds_total" and len(values) == len(totals)
    }
    if not phases or not len(totals):
        return Section("Time", [Paragraph("No time was logged.")])
    of = "the session" if len(ends) == 1 else f"{len(ends)} sessions"
    note = Paragraph(f"Until the last line of training of {of}: what came after it is not in metrics.jsonl.", "note")
    return Section("Time", [Bars("Seconds by phase", phases, "seconds"), note])

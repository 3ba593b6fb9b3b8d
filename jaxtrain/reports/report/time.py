"""Where the time of a run went. Not here: the speed by step, which is a curve."""

from jaxtrain.reports.page import Bars, Paragraph, Section
from jaxtrain.reports.report.record import RunRecord


def time(record: RunRecord) -> Section:
    """The section of the time account."""
    train = record.splits["train"]
    last = {
        name.removeprefix("seconds_"): float(values[-1])
        for name, (_, values) in train.items()
        if name.startswith("seconds_") and name != "seconds_total"
    }
    if not last:
        return Section("Time", [Paragraph("No time was logged.")])
    return Section("Time", [Bars("Seconds of the last session, until its last line", last, "seconds")])

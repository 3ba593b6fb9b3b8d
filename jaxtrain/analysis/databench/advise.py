"""Advice on which setting of a pipeline to change, from the measurements."""

import math
import os

from jaxtrain.analysis.databench.report import Report

_CORES = "but takes cores from the step, which on an accelerator it would not."

_ONCE = {
    "read": "Or keep the records nearer: InMemory(source) if they fit, else Stored(source) on a local disk.",
    "decode": "Or decode once: InMemory(source) if examples fit in memory, else Stored(source).",
    "transform": "Or transform once: deterministic transforms in InMemory(Mapped(source, transforms)), or when the "
    "dataset is built (tokens).",
    "batch": "Give examples fewer bytes, such as uint8 images that the model turns into floats.",
    "transfer": "Give batches fewer bytes: smaller dtypes, or only the fields that the task reads (Select).",
}
"""How to avoid the work of a stage, where doing it in parallel does not help."""


def advice(report: Report) -> str:
    """The advice, in a sentence or two."""
    now = report.overlapped
    if report.best:
        gain = now.seconds / report.best.seconds
        found = f"Fastest of those tried ({gain:.2f} times as fast as now): {report.best.flags}"
        return found if gain > 1.05 else "Nothing that was tried is faster."
    if report.bottleneck == "step":
        slowed = report.shared and now.seconds > 1.05 * report.compute
        return "Reading keeps up" + (f", {_CORES}" if slowed else ": nothing to change.")
    if not now.threads and not now.workers:
        return "Nothing is read ahead: --data.threads 1"
    readers = min(max(1, now.threads), now.prefetch) * max(1, now.workers)
    if report.load < report.compute * readers:
        if report.shared:
            return f"Reading is quick enough, {_CORES}"
        return f"Reading is quick enough on average, but not always: --data.prefetch {2 * now.prefetch}"
    return _speed_up(report, report.bottleneck)


def _speed_up(report: Report, stage: str) -> str:
    if stage in ("batch", "transfer"):
        return _ONCE[stage]
    wanted, cores = min(99, math.ceil(1.1 * report.load / max(report.compute, 1e-9))), os.cpu_count() or 1
    threads = f"--data.threads {wanted} --data.prefetch {max(wanted, report.overlapped.prefetch)}"
    enough = f"{wanted} readers would keep up with the step"
    if (waiting := report.waiting(stage)) > 0.5:  # for a disk or a network, which several threads can do at once
        return f"It waits {waiting:.0%} of its time, which threads can do together: {threads}. {_ONCE[stage]}"
    if wanted > cores:
        return f"It computes, and {enough}, but there are {cores} cores. {_ONCE[stage]}"
    return f"It computes; {enough}: {threads}, or --data.workers {wanted} if it holds the GIL. {_ONCE[stage]}"

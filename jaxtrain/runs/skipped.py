"""Steps of a run that are not finite, and updates that a guard skipped: which, how many in a row, and what follows.

`skipped.json` in the run folder holds the steps whose batch is left out when the run goes on. Not here: finding them,
which the step does on the device (`optimizers/guarded.py`).
"""

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxtrain.base.config import find
from jaxtrain.base.errors import ConfigError, Diverged, Retry
from jaxtrain.base.files import read_json, write_json
from jaxtrain.cluster.processes import broadcast_from_first, is_first_process
from jaxtrain.experiment.experiment import Experiment
from jaxtrain.optimizers import Policy, Rewind, Skip
from jaxtrain.tasks.metrics import Mean, Metric, Sum, of_no_rows

WATCHED = ("loss", "gradient_norm")
"""The metrics of a step that have to be finite, in the order in which they are reported."""


def read_skipped(folder: Path) -> list[dict[str, Any]]:
    """How a run went back: for each time the bad `step`, `why`, the steps `left_out`, and the step of the checkpoint
    that it went back to, `after`. Raises ConfigError for a file that is none of ours.
    """
    file = folder / "skipped.json"
    if not os.path.lexists(file):
        return []
    found = read_json(file)
    rewinds = found.get("rewinds") if isinstance(found, dict) else None
    if not isinstance(rewinds, list) or not all(_is_rewind(each) for each in rewinds):
        raise ConfigError(f'{file} does not hold {{"rewinds": [{{"step", "why", "left_out": […], "after"}}, …]}}')
    return rewinds


def _is_rewind(each: Any) -> bool:
    steps = [each.get("step"), each.get("after")] if isinstance(each, dict) else [None]
    left_out = each.get("left_out") if isinstance(each, dict) else None
    return isinstance(left_out, list) and all(type(step) is int and 0 <= step < 2**31 for step in [*steps, *left_out])


def left_out(folder: Path) -> frozenset[int]:
    """The steps whose batch is left out, as process 0 reads them: the same in every process."""
    if jax.process_count() == 1:
        return _steps(folder)
    own = sorted(_steps(folder)) if is_first_process() else []
    steps = np.zeros(broadcast_from_first(len(own)), np.int32)
    steps[: len(own)] = own
    return frozenset(multihost_utils.broadcast_one_to_all(steps).tolist()) if len(steps) else frozenset()


def _steps(folder: Path) -> frozenset[int]:
    return frozenset(step for each in read_skipped(folder) for step in each["left_out"])


class StepFaults:
    """Judges the steps of a run by the metrics that its device reported. The answers are the same in every process."""

    def __init__(self, folder: Path, experiment: Experiment) -> None:
        self._folder = folder
        self._policy = next(find(experiment.optimizer, Policy), None)  # of a Rewind, not the one inside
        self.in_a_row = 0
        """Updates skipped in a row, up to the last step that was judged."""
        self.saved: Callable[[], int] = lambda: 0
        """The step that a run which stops now resumes from, once the save in progress is durable or has failed. Every
        process calls it."""

    def after(self, metrics: Sequence[Mapping[str, Metric]]) -> int:
        """Updates skipped in a row after these steps too."""
        found = self.in_a_row
        for one in metrics:
            found = found + 1 if is_skipped(one) else 0
        return found

    def fault(self, first: int, metrics: Sequence[Mapping[str, Metric]]) -> Exception | None:
        """What ends the run, of the steps from `first` on. One that goes back is not written down before `raise_`."""
        in_a_row = self.in_a_row
        for step, one in enumerate(metrics, first):
            in_a_row = in_a_row + 1 if is_skipped(one) else 0
            if not in_a_row:
                if bad := _not_finite(one):
                    return self.diverged(
                        step,
                        f"{bad}: try a lower peak of the learning rate, a longer warm-up or "
                        "clip in a new run, or skip such updates with Guarded(optimizer, Skip())",
                    )
            elif isinstance(self._policy, Rewind):
                return _Rewound(step, _reason(one))
            elif isinstance(self._policy, Skip) and in_a_row > (most := self._policy.at_most):
                what = f"{_reason(one)}, and this is update {in_a_row} in a row that was skipped"
                return self.diverged(step, f"{what}; allowed are {most}")
        return None

    def diverged(self, step: int, why: str) -> Diverged:
        """The three lines of a run that stops: step, what is not finite, and how to see it again."""
        kept = f"the last checkpoint is that of step {saved}" if (saved := self.saved()) else "there is no checkpoint"
        command = f"jaxtrain replay {shlex.quote(str(self._folder))} --step {step}"
        return Diverged(f"step {step}: this run has diverged and stops; {kept}\n{why}\n{command}")

    def raise_(self, fault: Exception | None) -> None:
        """Raises the fault. A step to go back for is written to `skipped.json` first, by process 0."""
        if fault is None:
            return
        if not isinstance(fault, _Rewound):
            raise fault
        assert isinstance(self._policy, Rewind)
        step, saved, rewinds = fault.step, self.saved(), read_skipped(self._folder) if is_first_process() else []
        before = broadcast_from_first(sum(each["after"] == saved for each in rewinds))
        if before >= self._policy.at_most:
            times = f"the run went back to step {saved} {before} times already; allowed are {self._policy.at_most}"
            raise self.diverged(step, f"{fault.why}, and {times}")
        steps = list(range(step, step + self._policy.batches))
        if is_first_process():
            one = {"step": step, "why": fault.why, "left_out": steps, "after": saved}
            write_json(self._folder / "skipped.json", {"rewinds": [*rewinds, one]})
        broadcast_from_first(0)  # a barrier: no process ends the others before the file is there
        without = f"step {step}" if len(steps) == 1 else f"steps {step} to {steps[-1]}"
        raise Retry(
            f"step {step}: {fault.why}; run the same command again with --run {shlex.quote(str(self._folder))}: it "
            f"goes back to step {saved} and leaves out the batch of {without}"
        )


class _Rewound(Exception):
    def __init__(self, step: int, why: str) -> None:
        self.step, self.why = step, why
        super().__init__(f"step {step}: {why}")


def is_skipped(metrics: Mapping[str, Metric]) -> bool:
    """Whether a guard skipped the update of a step."""
    found = metrics.get("skipped")
    return isinstance(found, Sum) and float(found.total) > 0


def without_skipped(metrics: Mapping[str, Metric]) -> Mapping[str, Metric]:
    """The metrics of a step, as those of no rows where its update was skipped: its NaN would be one of the period."""
    if not is_skipped(metrics):
        return metrics
    return {
        name: metric if name in ("skipped", "rate_scale") else of_no_rows(metric) for name, metric in metrics.items()
    }


def facts(first: int, metrics: Sequence[Mapping[str, Metric]]) -> list[dict[str, Any]]:
    """The steps whose update was skipped, from `first` on, with the loss and the gradient's norm of each."""
    return [
        {"step": step, **{name: float(one[name]) for name in WATCHED}}
        for step, one in enumerate(metrics, first)
        if is_skipped(one)
    ]


def _not_finite(metrics: Mapping[str, Metric]) -> str:
    """A step without weight has sums of 0, whose means are NaN: it changed nothing."""
    for name in WATCHED:
        found = metrics.get(name)
        if isinstance(found, Mean) and not np.isfinite(found.total).all():
            return f"{name} is {found.value():g}"
    return ""


def _reason(metrics: Mapping[str, Metric]) -> str:
    """Why an update was skipped."""
    norm = metrics["gradient_norm"].value()
    return (
        _not_finite(metrics)
        or f"loss {metrics['loss'].value():g} is a spike, or the update is not finite (gradient_norm {norm:g})"
    )

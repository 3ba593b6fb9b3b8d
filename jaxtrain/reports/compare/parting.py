"""The first step at which two runs part: their batches, their losses, their gradients.

Not here: what they were made to differ in.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxtrain.reports.compare.facts import RunFacts

BY_ROUNDING = 1e-5
"""The largest relative difference of two f32 losses that rounding may explain at the step at which they part."""


@dataclass(frozen=True)
class Parting:
    """How the steps of a run differ from those of another. A step is None where they do not differ."""

    steps: int
    """The number of steps that both have."""
    batch: int | None
    loss: int | None
    gradient: int | None
    skipped: int | None
    """The first step whose update was skipped in one of them alone."""
    losses: tuple[float, float] | None
    """Of the step at which they part."""
    relative: float
    """The relative difference of these, 0 if they do not part; infinite where one is not finite."""
    largest: float
    """The largest relative difference of the losses of a step."""
    per_step: bool = True
    """False where the records of steps were missing, and logged lines, which are means of a period, were compared."""

    @property
    def first(self) -> int | None:
        """The first step at which anything differs."""
        return min((at for at in (self.batch, self.loss, self.gradient, self.skipped) if at is not None), default=None)


def parting(one: RunFacts, two: RunFacts) -> Parting | None:
    """How two runs part; None where they have no step in common."""
    per_step = one.steps is not None and two.steps is not None
    a, b = (run.steps if per_step and run.steps is not None else _logged(run.lines) for run in (one, two))
    steps, at_a, at_b = np.intersect1d(a["step"], b["step"], return_indices=True)
    if not len(steps):
        return None

    def first(name: str) -> int | None:
        if name not in a or name not in b:
            return None
        x, y = a[name][at_a], b[name][at_b]
        other = x != y
        if x.dtype.kind == "f":
            other &= ~(np.isnan(x) & np.isnan(y))
        return int(steps[other.argmax()]) if other.any() else None

    losses = [each["loss"][at].astype(np.float64) for each, at in ((a, at_a), (b, at_b))]
    relative = _relative(*losses)
    at = first("loss")
    place = 0 if at is None else int(np.searchsorted(steps, at))
    return Parting(
        steps=len(steps),
        batch=first("batch"),
        loss=at,
        gradient=first("gradient_norm"),
        skipped=first("skipped"),
        losses=None if at is None else (float(losses[0][place]), float(losses[1][place])),
        relative=0.0 if at is None else float(relative[place]),
        largest=float(relative.max()),
        per_step=per_step,
    )


def _relative(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        found = np.abs(a - b) / np.maximum(np.maximum(np.abs(a), np.abs(b)), np.finfo(np.float32).tiny)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    return np.where(same, 0.0, np.where(np.isfinite(found), found, np.inf))


def _logged(lines: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Steps and losses of the logged lines of training."""
    found = {line["step"]: line for line in lines if line["split"] == "train" and "loss" in line}
    steps = sorted(found)
    columns = {
        name: np.array([found[step].get(name, np.nan) for step in steps], np.float32)
        for name in ("loss", "gradient_norm")
    }
    return {"step": np.array(steps, np.int64), **columns}

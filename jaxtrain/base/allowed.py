"""Which numbers the fields of a batch may hold, checked on the host as batches are read: a label or token out of range
raises no error on a device, and the model would silently learn from it. Needs numpy only. Not here: shapes and dtypes,
which are checked once.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxtrain.base.errors import Damaged


@dataclass(frozen=True)
class Allowed:
    """The finite numbers from `least` to `most`, both included, and the value `ignored`, which marks labels that do not
    count.
    """

    least: float = -np.inf
    most: float = np.inf
    ignored: int | None = None
    why: str = ""
    """The reason for the bounds, for the error message."""
    total: float | None = None
    """The sum over the last dim that each row must have, within 1 %; None is any."""

    @property
    def any_finite(self) -> bool:
        """Whether all finite numbers are allowed."""
        return bool(np.isinf(self.least) and np.isinf(self.most))

    def __str__(self) -> str:
        if self.any_finite:
            return "finite numbers"
        also = "" if self.ignored is None else f", or {self.ignored}"
        if np.isinf(self.most):
            return f"finite numbers from {self.least:g}{also}"
        return f"numbers from {self.least:g} to {self.most:g}{also}"

    def outside(self, values: np.ndarray) -> np.ndarray:
        """True where a value is not allowed, bool of the same shape."""
        inside = (values >= self.least) & (values <= self.most)
        if values.dtype.kind == "f":
            inside &= np.isfinite(values)
        return ~(inside if self.ignored is None else inside | (values == self.ignored))


def check_values(batch: Mapping[str, np.ndarray], allowed: Mapping[str, Allowed], where: Callable[[int], str]) -> None:
    """Raises Damaged, naming field, value and place, for a number that is not allowed in a row whose mask is True.

    where: names the record that a row of the batch comes from, for the message.
    """
    for name, numbers in allowed.items():
        values: Any = batch.get(name)
        if values is None or values.dtype.kind not in "iuf":
            continue
        if (
            not _all_allowed(values, numbers)
            and (at := _first_wrong(numbers.outside(values), batch["mask"])) is not None
        ):
            place = f" at {list(at[1:])}" if at[1:] else ""
            raise Damaged(
                where(at[0]), None, f"field {name!r} is {values[at]}{place}, not one of the {numbers}: {numbers.why}"
            )
        if numbers.total is not None:
            sums = values.sum(-1, dtype=np.float64)
            if (at := _first_wrong(abs(sums - numbers.total) > 0.01 * numbers.total, batch["mask"])) is not None:
                why = f"field {name!r} sums to {sums[at]:g}, not to {numbers.total:g}: {numbers.why}"
                raise Damaged(where(at[0]), None, why)


def _first_wrong(wrong: np.ndarray, mask: np.ndarray) -> tuple[int, ...] | None:
    """The index of the first wrong value in a row whose mask is True; None without any."""
    found = np.argwhere(wrong & mask.reshape(-1, *(1,) * (wrong.ndim - 1)))
    return tuple(int(i) for i in found[0]) if len(found) else None


def _all_allowed(values: np.ndarray, numbers: Allowed) -> bool:
    """Whether all values are allowed, without copying them. Comparisons with NaN are False."""
    if values.size == 0 or (values.dtype.kind != "f" and numbers.any_finite):
        return True
    if numbers.any_finite:
        with np.errstate(over="ignore", invalid="ignore"):
            if np.isfinite(values.sum()):
                return True  # nearly always so, and found in one pass
    least, most = values.min(), values.max()
    return bool(least >= numbers.least and most <= numbers.most and np.isfinite(least) and np.isfinite(most))

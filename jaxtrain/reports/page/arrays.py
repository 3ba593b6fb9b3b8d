"""Numbers for a page: series thinned to what a screen can show, and arrays as JSON, each written once.

Not here: what is drawn from them.
"""

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np

MOST_POINTS = 1_200
"""Points of a series that a page holds; of a longer one, the lowest and the highest of each of half as many stretches.
"""


def thinned(y: np.ndarray, low: np.ndarray, high: np.ndarray, most: int = MOST_POINTS) -> np.ndarray:
    """The positions [k] that stand for all n of a series, ascending.

    All of them up to `most`; else, of each of `most // 2` stretches of equal length, where `y` and `low` are lowest,
    where `y` and `high` are highest, and the first that is not finite, which is a gap; and both ends. So every extreme
    and every gap is kept.

    y, low, high: [n]; low and high are y itself where there is no band.
    """
    if (n := len(y)) <= most:
        return np.arange(n)
    length = -(-n // (most // 2))
    starts = np.arange(0, n, length)

    def rows(x: np.ndarray, filled: float) -> np.ndarray:
        whole = np.full(len(starts) * length, filled)
        whole[:n] = np.where(np.isfinite(x), x, filled)
        return whole.reshape(-1, length)

    kept = [starts + rows(x, np.inf).argmin(axis=1) for x in (y, low)]
    kept += [starts + rows(x, -np.inf).argmax(axis=1) for x in (y, high)]
    gaps = np.flatnonzero(~np.isfinite(y))
    first_gaps = gaps[np.unique(gaps // length, return_index=True)[1]]
    return np.unique(np.concatenate([*kept, first_gaps, [0, n - 1]]))


def stretches(values: np.ndarray, used: np.ndarray, most: int = MOST_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """Means [k] of the `used` values of each of `most // 2` stretches of a series, NaN where none is, and how many of
    them each stretch has [k]. They are smoothed in place of extremes, whose middle is not the mean.

    values, used (bool): [n].
    """
    starts = np.arange(0, len(values), -(-len(values) // (most // 2)))
    counts = np.add.reduceat(used.astype(np.int64), starts)
    with np.errstate(over="ignore"):
        sums = np.add.reduceat(np.where(used, values, 0.0), starts)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan), counts


@dataclass
class PageData:
    """The arrays of a page, and what is drawn from them. Equal arrays are held once."""

    plots: list[dict[str, Any]] = field(default_factory=list)
    _numbers: dict[str, int] = field(default_factory=dict)

    def add(self, values: np.ndarray) -> int:
        """The number of an array [n] in the page. What is not finite is null there; floats have 8 digits."""
        if np.issubdtype(values.dtype, np.integer):
            text = ",".join(map(str, values.tolist()))
        else:
            text = ",".join("null" if x - x != 0 else f"{x:.8g}" for x in values.tolist())
        return self._numbers.setdefault(f"[{text}]", len(self._numbers))

    def json(self) -> str:
        """JSON that may stand in a script element of a page: it ends no element and begins no comment."""
        text = f'{{"plots":{json.dumps(self.plots)},"arrays":[{",".join(self._numbers)}]}}'
        return text.translate({ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"})

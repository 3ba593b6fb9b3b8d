"""Histograms whose bins nest, and how far two distributions are apart."""

import math
from collections import Counter
from collections.abc import Hashable, Mapping
from typing import TypeVar

import numpy as np

Outcome = TypeVar("Outcome", bound=Hashable)

BINS = 30
"""The most bins of a histogram."""

FINEST = -1000
"""Bins are 2^FINEST wide or wider."""


class Histogram:
    """Counts in bins [k 2^e, (k + 1) 2^e), with the least e for which at most BINS of them hold all values.

    Such bins nest: the result does not depend on the order of the values, and two histograms can be compared exactly in
    the bins of the coarser one.
    """

    def __init__(self) -> None:
        self.low, self.high = math.inf, -math.inf
        self._exponent = FINEST
        self._counts: Counter[int] = Counter()

    def add(self, values: np.ndarray) -> None:
        """Count float64 values; NaN and infinities are left out."""
        values = values[np.isfinite(values)]
        if not values.size:
            return
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
        largest = max(abs(self.low), abs(self.high))
        # Not finer than 2^-40 of the largest value: the bins' numbers stay exact.
        exponent = max(self._exponent, math.frexp(largest)[1] - 40 if largest else FINEST)
        while math.floor(math.ldexp(self.high, -exponent)) - math.floor(math.ldexp(self.low, -exponent)) >= BINS:
            exponent += 1
        self._coarsen(exponent)
        bins, counts = np.unique(np.floor(np.ldexp(values, -exponent)), return_counts=True)
        self._counts.update(dict(zip(map(int, bins.tolist()), counts.tolist(), strict=True)))

    def result(self, finest: int = FINEST) -> tuple[tuple[float, ...], tuple[int, ...]]:
        """Edges [n + 1] and counts [n] of bins that are 2^finest wide or wider; empty where nothing was counted."""
        if not self._counts:
            return (), ()
        self._coarsen(max(self._exponent, finest))
        bins = range(min(self._counts), max(self._counts) + 1)
        with np.errstate(over="ignore"):
            edges = np.nan_to_num(np.ldexp(np.arange(bins.start, bins.stop + 1, dtype=np.float64), self._exponent))
        return tuple(edges.tolist()), tuple(self._counts[number] for number in bins)

    def _coarsen(self, exponent: int) -> None:
        coarser: Counter[int] = Counter()
        for number, count in self._counts.items():
            coarser[number >> (exponent - self._exponent)] += count
        self._exponent, self._counts = exponent, coarser


def rebin(edges: tuple[float, ...], counts: tuple[int, ...], width: float) -> Counter[float]:
    """The counts of a histogram in bins of `width`, a multiple of its own by a power of two."""
    found: Counter[float] = Counter()
    for edge, count in zip(edges, counts, strict=False):
        found[edge // width] += count
    return found


def divergence(p: Mapping[Outcome, float], q: Mapping[Outcome, float]) -> float:
    """Jensen–Shannon divergence (Lin 1991) of two distributions, in bits: 0 where they are equal, 1 where disjoint.

    p, q: probability of each outcome, each summing to 1.
    """
    found = 0.0
    for key in p.keys() | q.keys():
        a, b = p.get(key, 0.0), q.get(key, 0.0)
        middle = (a + b) / 2
        found += sum(share / 2 * math.log2(share / middle) for share in (a, b) if share)
    return min(1.0, max(0.0, found))

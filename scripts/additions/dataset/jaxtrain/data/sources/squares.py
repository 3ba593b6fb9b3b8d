"""Squares modulo a number, as tokens."""

from dataclasses import dataclass

import numpy as np

from jaxtrain.data.sources.base import Example, Source


@dataclass(frozen=True)
class Squares(Source):
    """Example i holds the squares of i, i + 1, … modulo `modulus`."""

    rows: int = 64
    length: int = 8
    modulus: int = 32

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> Example:
        return {"tokens": (np.arange(index, index + self.length + 1) ** 2 % self.modulus).astype(np.int32)}

    def identity(self) -> str:
        """Its fields."""
        return f"squares:{self.rows}:{self.length}:{self.modulus}"

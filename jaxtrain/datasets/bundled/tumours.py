"""A small table, breast tumours in 30 numbers each: the Wisconsin diagnostic dataset that scikit-learn carries."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from jaxtrain.base.files import digest
from jaxtrain.base.packages import package_file
from jaxtrain.data.sources.base import Example, Source

MEASURES = (
    "radius",
    "texture",
    "perimeter",
    "area",
    "smoothness",
    "compactness",
    "concavity",
    "concave_points",
    "symmetry",
    "fractal_dimension",
)
COLUMNS = tuple(f"{kind}_{measure}" for kind in ("mean", "error", "worst") for measure in MEASURES)
"""Of the cell nuclei in an image: the mean, its standard error, and the mean of the three largest."""


@dataclass(frozen=True)
class Tumours(Source):
    """{each of COLUMNS: float32, "label": int32, 0 malignant or 1 benign}: 569 tumours (Street et al. 1993).

    Raises ConfigError when scikit-learn is not installed; it is not imported.
    """

    def __len__(self) -> int:
        return len(_load())

    def __getitem__(self, index: int) -> Example:
        *values, label = _load()[index]
        return {**dict(zip(COLUMNS, values, strict=True)), "label": np.int32(label)}

    def identity(self) -> str:
        """A sha256 of all numbers."""
        return f"tumours:{digest(_load().tobytes(), length=16)}"


@lru_cache(maxsize=1)
def _load() -> np.ndarray:
    file = package_file("scikit-learn", "sklearn/datasets/data/breast_cancer.csv")
    return np.loadtxt(file, np.float32, delimiter=",", skiprows=1)

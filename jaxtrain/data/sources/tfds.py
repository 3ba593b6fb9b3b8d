"""Datasets that TensorFlow Datasets prepared, as a source."""

import re
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from jaxtrain.base.errors import ConfigError, nearest
from jaxtrain.base.packages import needs
from jaxtrain.data.sources.base import Example, Source
from jaxtrain.data.sources.paths import PATH, is_of_a_run_folder, make_absolute

OF_NO_NAMESPACE = re.compile(r"[A-Za-z_]\w*(/[\w.+-]+)?(:[0-9*]+(\.[0-9*]+){2})?")
"""Names of datasets that are in the package, were defined in this process, or lie prepared in the folder."""


@dataclass(frozen=True)
class Tfds(Source):
    """A dataset that TensorFlow Datasets prepared on disk as ArrayRecord files. TensorFlow is not needed.

    `name` is "dataset", "dataset/config" or with a version "dataset:1.0.0"; `split` may be a slice such as
    "train[:90%]"; `data_dir` is the folder that holds the dataset's folder. Text comes as bytes, labels as
    ints. Nothing is downloaded. Raises ConfigError for a missing package, dataset or split, and in a run's folder for a
    name whose code TensorFlow Datasets would fetch.
    """

    name: str
    split: str
    data_dir: str = field(metadata=PATH)

    def __post_init__(self) -> None:
        make_absolute(self, "data_dir")
        if is_of_a_run_folder() and isinstance(self.name, str) and not OF_NO_NAMESPACE.fullmatch(self.name):
            raise ConfigError(
                f"Tfds: {self.name!r} is no name of a dataset alone, with its config or version: for one such as "
                "namespace:dataset code would be fetched and run, which no run folder may ask for; give the experiment "
                "by its own file"
            )

    def __len__(self) -> int:
        return len(_open_tfds(self))

    def __getitem__(self, index: int) -> Example:
        return _open_tfds(self)[index]

    def identity(self) -> str:
        """Name and version as prepared, split, and number of examples."""
        opened = _open_tfds(self)
        return f"tfds:{opened.dataset_info.full_name}:{self.split}:{len(opened)}"


@lru_cache(maxsize=64)
def _open_tfds(source: Tfds) -> Any:
    with needs("Tfds", "tensorflow-datasets", "tfds"):
        import tensorflow_datasets as tfds
    folder = Path(source.data_dir)
    try:
        builder: Any = tfds.builder(source.name, data_dir=folder, file_format="array_record")
    except tfds.core.DatasetNotFoundError as error:
        found = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        hint = nearest(source.name, found) or "; that folder is missing or empty"
        raise ConfigError(f"Tfds: no dataset {source.name!r} in {folder}{hint}") from error
    splits = builder.info.splits
    if not splits:
        raise ConfigError(
            f"Tfds: {source.name!r} is not prepared in {folder}; run its builder's "
            'download_and_prepare(file_format="array_record") first'
        )
    try:
        return builder.as_data_source(source.split)
    except ValueError as error:
        raise ConfigError(
            f"Tfds: {source.name!r} has no split {source.split!r}{nearest(source.split, splits)} ({error})"
        ) from error

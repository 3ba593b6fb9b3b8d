"""What is read: sources of examples, transforms of one example, and the pipeline that makes batches of them.

These are values: making one opens no file and imports no reader. `jaxtrain.data.reading` is the one module
that imports grain, when the first batch is asked for.
"""

from jaxtrain.data.building import DataSet, HashSplits
from jaxtrain.data.built import Built
from jaxtrain.data.combine import InMemory, Items, Mapped, Mixture, Stored, Take, Tolerant
from jaxtrain.data.digits import Digits
from jaxtrain.data.files import ImageFolder, Parquet
from jaxtrain.data.forms import Records, TokenRows
from jaxtrain.data.pipeline import Pipeline
from jaxtrain.data.reviews import MovieReviews
from jaxtrain.data.sources import ArrayRecord, Arrays, Damaged, Source, Tfds, Windows, write_array_record
from jaxtrain.data.tokens import Bytes, HuggingFace, Packed, Tokenize, Tokens
from jaxtrain.data.transforms import (
    BatchTransform,
    CentralCrop,
    Columns,
    CutMix,
    Flip,
    Hash,
    Keep,
    LogMel,
    Normalize,
    OneHot,
    RandomCrop,
    Shift,
    Transform,
    Utf8,
)

__all__ = [
    "ArrayRecord",
    "Arrays",
    "BatchTransform",
    "Built",
    "Bytes",
    "CentralCrop",
    "Columns",
    "CutMix",
    "Damaged",
    "DataSet",
    "Digits",
    "Flip",
    "Hash",
    "HashSplits",
    "HuggingFace",
    "ImageFolder",
    "InMemory",
    "Items",
    "Keep",
    "LogMel",
    "Mapped",
    "Mixture",
    "MovieReviews",
    "Normalize",
    "OneHot",
    "Packed",
    "Parquet",
    "Pipeline",
    "RandomCrop",
    "Records",
    "Shift",
    "Source",
    "Stored",
    "Take",
    "Tfds",
    "TokenRows",
    "Tokenize",
    "Tokens",
    "Tolerant",
    "Transform",
    "Utf8",
    "Windows",
    "write_array_record",
]

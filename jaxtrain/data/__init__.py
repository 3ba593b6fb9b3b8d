"""Reading data: sources of examples, transforms of one example, and pipelines that make batches of them.

All are values: creating one opens no file and imports no reader. Only `jaxtrain.data.reading` imports grain, when the
first batch is read.
"""

from jaxtrain.base.errors import Damaged
from jaxtrain.data.bucketed import Bucketed
from jaxtrain.data.pipeline import Pipeline
from jaxtrain.data.sources.array_record import ArrayRecord, write_array_record
from jaxtrain.data.sources.arrays import Arrays
from jaxtrain.data.sources.base import Example, HostBatch, Source
from jaxtrain.data.sources.combine import InMemory, Mapped, Mixture, Take, Wrapper
from jaxtrain.data.sources.csv_rows import Csv
from jaxtrain.data.sources.images import ImageFolder, folder_classes
from jaxtrain.data.sources.items import Items
from jaxtrain.data.sources.json_lines import JsonLines
from jaxtrain.data.sources.parquet import Parquet
from jaxtrain.data.sources.stored import Stored
from jaxtrain.data.sources.tar import Tar
from jaxtrain.data.sources.tfds import Tfds
from jaxtrain.data.sources.tolerant import Tolerant
from jaxtrain.data.sources.windows import Windows
from jaxtrain.data.tokens.files import Documents, Tokens, write_tokens
from jaxtrain.data.tokens.packing import Packed, plan_packing
from jaxtrain.data.tokens.tokenizers import Bytes, HuggingFace, Tokenize, Tokenizer, train_bpe
from jaxtrain.data.transforms.audio import LogMel
from jaxtrain.data.transforms.base import BatchTransform, Transform
from jaxtrain.data.transforms.fields import Columns, Normalize, OneHot, Pad, Select
from jaxtrain.data.transforms.fitted import FittedTransform, Quantiles, Standardize
from jaxtrain.data.transforms.images import CentralCrop, CutMix, Flip, RandomAffine, RandomCrop, Shift
from jaxtrain.data.transforms.text import Hash, Utf8
from jaxtrain.data.transforms.vocabulary import Categories, TfIdf

__all__ = [
    "ArrayRecord",
    "Arrays",
    "BatchTransform",
    "Bucketed",
    "Bytes",
    "Categories",
    "CentralCrop",
    "Columns",
    "Csv",
    "CutMix",
    "Damaged",
    "Documents",
    "Example",
    "FittedTransform",
    "Flip",
    "Hash",
    "HostBatch",
    "HuggingFace",
    "ImageFolder",
    "InMemory",
    "Items",
    "JsonLines",
    "LogMel",
    "Mapped",
    "Mixture",
    "Normalize",
    "OneHot",
    "Packed",
    "Pad",
    "Parquet",
    "Pipeline",
    "Quantiles",
    "RandomAffine",
    "RandomCrop",
    "Select",
    "Shift",
    "Source",
    "Standardize",
    "Stored",
    "Take",
    "Tar",
    "TfIdf",
    "Tfds",
    "Tokenize",
    "Tokenizer",
    "Tokens",
    "Tolerant",
    "Transform",
    "Utf8",
    "Windows",
    "Wrapper",
    "folder_classes",
    "plan_packing",
    "train_bpe",
    "write_array_record",
    "write_tokens",
]

"""Making datasets: described as values, cleaned, split, documented by a card, and read back as a source."""

from jaxtrain.datasets.build import build
from jaxtrain.datasets.bundled.bncc import Skills
from jaxtrain.datasets.bundled.digits import Digits
from jaxtrain.datasets.bundled.reviews import MovieReviews
from jaxtrain.datasets.bundled.tumours import Tumours
from jaxtrain.datasets.card import Card
from jaxtrain.datasets.check import check, diff
from jaxtrain.datasets.formats import Format, Records, TokenRows
from jaxtrain.datasets.schema import Schema
from jaxtrain.datasets.source import Built
from jaxtrain.datasets.spec import Dataset, HashSplits

__all__ = [
    "Built",
    "Card",
    "Dataset",
    "Digits",
    "Format",
    "HashSplits",
    "MovieReviews",
    "Records",
    "Schema",
    "Skills",
    "TokenRows",
    "Tumours",
    "build",
    "check",
    "diff",
]

"""Quality filters: which records a dataset leaves out, and why."""

from jaxtrain.datasets.filters.base import Filter, Finding, Record
from jaxtrain.datasets.filters.duplicates import ExactDuplicates, LabelConflicts, Leaks, NearDuplicates
from jaxtrain.datasets.filters.text import BrokenEncoding, Language, MendEncoding
from jaxtrain.datasets.filters.values import InRange, Length, NotEmpty

__all__ = [
    "BrokenEncoding",
    "ExactDuplicates",
    "Filter",
    "Finding",
    "InRange",
    "LabelConflicts",
    "Language",
    "Leaks",
    "Length",
    "MendEncoding",
    "NearDuplicates",
    "NotEmpty",
    "Record",
]

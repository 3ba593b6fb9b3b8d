"""What is read: sources of examples, transforms of one example, and the pipeline that makes batches of them.

These are values: making one opens no file and imports no reader. `jaxtrain.data.reading` is the one module
that imports grain, when the first batch is asked for.
"""

from jaxtrain.data.digits import Digits
from jaxtrain.data.pipeline import Pipeline
from jaxtrain.data.reviews import MovieReviews
from jaxtrain.data.sources import ArrayRecord, Arrays, Source, Stored, Take, Tfds, Windows, write_array_record
from jaxtrain.data.transforms import Flip, Keep, Normalize, Shift, Transform, Utf8

__all__ = [
    "ArrayRecord",
    "Arrays",
    "Digits",
    "Flip",
    "Keep",
    "MovieReviews",
    "Normalize",
    "Pipeline",
    "Shift",
    "Source",
    "Stored",
    "Take",
    "Tfds",
    "Transform",
    "Utf8",
    "Windows",
    "write_array_record",
]

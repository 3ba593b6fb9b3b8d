"""The example datasets, cleaned, split and documented. Each function describes one and is built by its name.

    uv run jaxtrain data build experiments/datasets.py:bncc

`jaxtrain data card DIR` shows what was built, `data check DIR` re-reads it, `data diff A B` compares two versions.
"""

from dataclasses import replace

from jaxtrain.datasets import Dataset, Digits, HashSplits, MovieReviews, Skills, TokenRows, Tumours
from jaxtrain.datasets.bundled.tumours import COLUMNS
from jaxtrain.datasets.filters import (
    BrokenEncoding,
    ExactDuplicates,
    InRange,
    LabelConflicts,
    Language,
    Leaks,
    Length,
    MendEncoding,
    NearDuplicates,
    NotEmpty,
)

FOR_RESEARCH = "Anyone, for research; the texts are their authors'."
AS_LONG = "As long as experiments refer to it; it holds no personal data beyond what its authors published."
TENTHS = {"train": 0.8, "validation": 0.1, "test": 0.1}


def bncc() -> Dataset:
    """The skills of Brazil's national curriculum and the subjects they belong to, in Portuguese."""
    return Dataset(
        name="bncc",
        version="1.0.0",
        description="Skills that Brazilian primary schools teach (BNCC 2018), in Portuguese, labelled by 9 subjects.",
        origin="https://pypi.org/project/bncc/0.5.1/",
        licence="https://creativecommons.org/licenses/by/4.0/",
        access="Anyone.",
        retention=AS_LONG,
        records=Skills(),
        splits=HashSplits({"train": 0.8, "test": 0.2}, by=("text",)),
        filters=(
            NotEmpty("text"),
            Length("text", 10, 2000),
            BrokenEncoding("text"),
            ExactDuplicates(("text", "label")),
            LabelConflicts("text", "label"),
            Leaks("text", keep=("test",)),
        ),
        label="label",
    )


def sentiment() -> Dataset:
    """The film reviews of `sentiment.py`, with what a closer look drops."""
    return Dataset(
        name="sentiment",
        version="1.0.0",
        description="English film reviews (the training half of IMDb, Maas et al. 2011): 0 negative, 1 positive.",
        origin="https://ai.stanford.edu/~amaas/data/sentiment/",
        licence="None is stated for IMDb's reviews: cite Maas et al. 2011, and do not redistribute.",
        access=FOR_RESEARCH,
        retention=AS_LONG,
        records=MovieReviews("all"),
        splits=HashSplits(TENTHS, by=("text",)),
        transforms=(MendEncoding("text"),),  # 3 % hold dashes and quotes that were decoded wrongly
        filters=(
            NotEmpty("text"),
            Length("text", 20, 20_000),
            BrokenEncoding("text"),
            Language("text", ("en",)),
            LabelConflicts("text", "label"),
            NearDuplicates("text"),
        ),
        label="label",
    )


def review_tokens() -> Dataset:
    """The same reviews for a language model: BPE tokens, whole reviews packed into rows."""
    return replace(
        sentiment(),
        name="review-tokens",
        description="English film reviews (IMDb, Maas et al. 2011) as tokens of a byte-level BPE, packed into rows.",
        label=None,
        format=TokenRows(length=512, bpe=4096),
    )


def digits() -> Dataset:
    """The images of `digits.py`."""
    return Dataset(
        name="digits",
        version="1.0.0",
        description="Handwritten digits of 8×8 pixels (UCI 1998, the test half): 1,797 images of 10 classes.",
        origin="https://archive.ics.uci.edu/dataset/80/",
        licence="https://creativecommons.org/licenses/by/4.0/",
        access="Anyone.",
        retention=AS_LONG,
        records=Digits("all"),
        splits=HashSplits({"train": 0.8, "test": 0.2}, by=("image",)),
        filters=(InRange("image", 0, 1), ExactDuplicates(("image",))),
        label="label",
    )


def tumours() -> Dataset:
    """A table: breast tumours in 30 numbers each."""
    return Dataset(
        name="tumours",
        version="1.0.0",
        description="Breast tumours in 30 measures of their cells (Wisconsin 1995): 0 malignant, 1 benign.",
        origin="https://archive.ics.uci.edu/dataset/17/",
        licence="https://creativecommons.org/licenses/by/4.0/",
        access="Anyone.",
        retention=AS_LONG,
        records=Tumours(),
        splits=HashSplits({"train": 0.8, "test": 0.2}, by=COLUMNS),
        filters=(*(InRange(name, 0, 10_000) for name in COLUMNS), ExactDuplicates(COLUMNS)),
        label="label",
    )

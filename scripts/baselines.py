"""The scores that the experiments' docstrings compare with: simple methods on the same splits.

    uv run python scripts/baselines.py

Prints accuracy of TF-IDF and of naive-Bayes log-count ratios, each with logistic regression, on the reviews, of TF-IDF on
the skills (which `jaxtrain data build experiments/datasets.py:bncc` makes), of logistic regression and a support vector
machine on the digits, and the loss on held-out bytes of interpolated Kneser–Ney n-grams. About four minutes on 2 cores.
"""

from contextlib import closing
from itertools import islice
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC

from jaxtrain.data import Source, Windows
from jaxtrain.datasets import Built, Digits, MovieReviews
from jaxtrain.experiment.files import load

ORDERS = (4, 5, 6)


def columns(source: Source, *names: str) -> list[list[Any]]:
    rows = [source[index] for index in range(len(source))]
    return [[row[name] for row in rows] for name in names]


def sentiment() -> None:
    texts, labels = columns(MovieReviews("train"), "text", "label")
    held_texts, held_labels = columns(MovieReviews("test"), "text", "label")
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2)
    model = LogisticRegression(C=10, max_iter=1000).fit(vectorizer.fit_transform(texts), labels)
    score = model.score(vectorizer.transform(held_texts), held_labels)
    print(f"reviews  TF-IDF of words and pairs + logistic regression  {score:.3f}")
    counter = CountVectorizer(ngram_range=(1, 3), binary=True, token_pattern=r"\b\w+\b")
    present, positive = counter.fit_transform(texts), np.ravel(labels) == 1
    smoothed = [1 + np.ravel(present[rows].sum(0)) for rows in (positive, ~positive)]
    ratios = np.log(smoothed[0] / smoothed[0].sum()) - np.log(smoothed[1] / smoothed[1].sum())
    model = LogisticRegression(C=1, max_iter=1000).fit(present.multiply(ratios).tocsr(), positive)
    score = model.score(counter.transform(held_texts).multiply(ratios).tocsr(), np.ravel(held_labels) == 1)
    print(f"reviews  log-count ratios of 1- to 3-grams + logistic regression  {score:.3f}")


def bncc() -> None:
    texts, labels = columns(Built("bncc", "1.0.0"), "text", "label")
    held_texts, held_labels = columns(Built("bncc", "1.0.0", "test"), "text", "label")
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    model = LogisticRegression(C=10, max_iter=1000).fit(vectorizer.fit_transform(texts), np.ravel(labels))
    score = model.score(vectorizer.transform(held_texts), np.ravel(held_labels))
    print(f"bncc     TF-IDF of words and pairs + logistic regression  {score:.3f}")


def digits() -> None:
    images, labels = (np.stack([np.ravel(x) for x in column]) for column in columns(Digits("train"), "image", "label"))
    held_images, held_labels = (
        np.stack([np.ravel(x) for x in column]) for column in columns(Digits("test"), "image", "label")
    )
    for name, model in (
        ("logistic regression", LogisticRegression(max_iter=2000)),
        ("support vector machine", SVC(C=10)),
    ):
        score = model.fit(images, labels.ravel()).score(held_images, held_labels.ravel())
        print(f"digits   {name}  {score:.3f}")


def char_lm() -> None:
    """N-grams of the bytes that the experiment trains on, and of all bytes, on the targets that it is tested on."""
    experiment, _ = load("experiments/char_lm.py")
    test, source = experiment.evals["test"].source, experiment.data.source
    assert isinstance(source, Windows)
    with closing(experiment.data.batches()) as batches:
        seen = np.concatenate([batch["tokens"] for batch in islice(batches, experiment.steps)])
    everything = np.stack([source[row]["tokens"] for row in range(len(source))])
    held = np.stack([test[row]["tokens"] for row in range(len(test))])
    for name, rows in (("the same", seen), ("all", everything)):
        for order in ORDERS:
            loss = -np.log(kneser_ney(rows, held, order)).mean()
            print(
                f"reviews' bytes  {order}-gram of {name} {rows[:, 1:].size:,} bytes  {loss:.3f} nats a byte", flush=True
            )


def kneser_ney(train: np.ndarray, held: np.ndarray, order: int) -> np.ndarray:
    """The probability of every target in rows of held-out tokens, by interpolated n-grams with three discounts an order,
    computed from counts of counts (Chen & Goodman 1999, "An empirical study of smoothing techniques for language
    modeling", section 3). Orders below the highest count the kinds of bytes before a gram.

    The n-gram model sees the bytes before a row too, which follow each other in `held`; the transformer does not.
    """
    grams = packed(np.pad(train, ((0, 0), (order - 1, 0))), order)
    before = np.concatenate([np.zeros((1, order - 1), held.dtype), held[:-1, -order:-1]])
    wanted = packed(np.concatenate([before, held], 1), order)
    tables = [np.unique(grams, return_counts=True)]
    for length in range(order - 1, 0, -1):
        tables.append(np.unique(last(tables[-1][0], length), return_counts=True))
    chance = np.full(len(wanted), 1 / 256)
    for length, (kinds, counts) in enumerate(reversed(tables), 1):
        discounts = discounts_of(counts)[np.minimum(counts, 3)]
        contexts, starts = np.unique(kinds >> np.uint64(8), return_index=True)
        totals, freed = np.add.reduceat(counts, starts), np.add.reduceat(discounts, starts)
        gram = last(wanted, length)
        total = looked_up(contexts, totals, gram >> np.uint64(8))
        own = looked_up(kinds, counts - discounts, gram)
        mixed = (own + looked_up(contexts, freed, gram >> np.uint64(8)) * chance) / np.maximum(total, 1)
        chance = np.where(total > 0, mixed, chance)
    return chance


def discounts_of(counts: np.ndarray) -> np.ndarray:
    """What is taken from a count of 0, 1, 2, and 3 or more; 1/2 where there are too few small counts to tell."""
    ones, twos, threes, fours = ((counts == count).sum() for count in (1, 2, 3, 4))
    if not (ones and twos and threes and fours):
        return np.array([0, 0.5, 0.5, 0.5])
    rest = ones / (ones + 2 * twos)
    found = np.array([0, 1 - 2 * rest * twos / ones, 2 - 3 * rest * threes / twos, 3 - 4 * rest * fours / threes])
    return np.clip(found, 0, [0, 1, 2, 3])


def packed(rows: np.ndarray, order: int) -> np.ndarray:
    """Every run of `order` bytes that ends at a target of a row, as one number, the last byte lowest."""
    rows, targets = rows.astype(np.uint64), rows.shape[1] - order
    grams = np.zeros((len(rows), targets), np.uint64)
    for place in range(1, order + 1):
        grams = (grams << np.uint64(8)) | rows[:, place : place + targets]
    return grams.ravel()


def last(grams: np.ndarray, length: int) -> np.ndarray:
    return grams & np.uint64((1 << (8 * length)) - 1)


def looked_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0).astype(np.float64)


if __name__ == "__main__":
    digits()
    sentiment()
    bncc()
    char_lm()

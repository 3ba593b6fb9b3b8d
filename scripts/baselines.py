"""The scores that the experiments' docstrings compare with: simple methods on the same splits.

    uv run python scripts/baselines.py

Prints accuracy of TF-IDF and of naive-Bayes log-count ratios, each with logistic regression, on the reviews, of TF-IDF on
the skills (which `jaxtrain data build experiments/datasets.py:bncc` makes), of logistic regression and a support vector
machine on the digits, and the held-out loss of byte n-gram models. About four minutes on 2 cores.
"""

from typing import Any

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC

from jaxtrain.data import Source, Take, Windows
from jaxtrain.datasets import Built, Digits, MovieReviews
from jaxtrain.experiment.files import load

ORDERS = (1, 2, 3, 4, 5, 6)


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
    """Interpolated n-grams by Witten & Bell 1991: p(c|h) = (n(hc) + t(h)·p(c|h')) / (n(h) + t(h)), t(h) kinds seen after h."""
    experiment, _ = load("experiments/char_lm.py")
    source = experiment.evals["validation"].source
    assert isinstance(source, Take)
    assert isinstance(source.source, Windows)
    train = joined(
        Windows(MovieReviews("train"), source.source.length), len(Windows(MovieReviews("train"), source.source.length))
    )
    held = joined(source, len(source))
    chance = np.full(len(held) - max(ORDERS), 1 / 256)
    for order in ORDERS:
        seen, counts = np.unique(packed(train, order), return_counts=True)
        contexts, starts, kinds = np.unique(seen >> np.uint64(8), return_index=True, return_counts=True)
        totals = np.add.reduceat(counts, starts)
        wanted = packed(held, order)[max(ORDERS) - order + 1 :]
        of_gram = looked_up(seen, counts, wanted)
        of_context, kinds_of = (
            looked_up(contexts, totals, wanted >> np.uint64(8)),
            looked_up(contexts, kinds, wanted >> np.uint64(8)),
        )
        known = of_context > 0
        mixed = (of_gram + kinds_of * chance) / np.maximum(of_context + kinds_of, 1)
        chance = np.where(known, mixed, chance)
        print(f"reviews' bytes  {order}-gram of {len(train):,} bytes  {-np.log(chance).mean():.3f} nats a byte")


def joined(source: Source, rows: int) -> np.ndarray:
    return np.concatenate([source[row]["tokens"][:-1] for row in range(rows)]).astype(np.uint64)


def packed(data: np.ndarray, order: int) -> np.ndarray:
    """Every run of `order` bytes as one number, the last byte lowest."""
    grams = np.zeros(len(data) - order + 1, np.uint64)
    for place in range(order):
        grams = (grams << np.uint64(8)) | data[place : len(data) - order + 1 + place]
    return grams


def looked_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0).astype(np.float64)


if __name__ == "__main__":
    digits()
    sentiment()
    bncc()
    char_lm()

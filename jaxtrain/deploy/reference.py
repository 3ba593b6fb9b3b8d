"""Reference statistics: what inputs and outputs look like on held-out data, so that what differs later is noticed.

Every input and output is one or more features: numbers, or categories. Needs numpy alone. Not here: comparing.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxtrain.deploy.inputs import Category, Input, Text
from jaxtrain.deploy.numeric import Number
from jaxtrain.deploy.signature import FORMAT, Row, Signature

ROWS = 2000
"""Rows of the evaluation split that statistics are of, at most."""

_BINS, _CATEGORIES, _PAIRED, _COMPONENTS = 10, 20, 32, 8

Features = Mapping[str, Any]
"""Values by feature, one a row: floats, NaN where one is missing, or texts, None where one is missing."""


def features(signature: Signature, rows: Sequence[Row], outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The features of raw inputs and of the outputs for them."""
    found: dict[str, Any] = {}
    for each in signature.inputs:
        found |= _of_input(each, [row.get(each.name) for row in rows])
    for output in signature.outputs:
        values = np.asarray(outputs[output.name], np.float64).reshape(len(rows), -1)
        if output.classes:
            found[f"{output.name}: largest"] = values.max(1)
            found[f"{output.name}: class"] = [output.classes[place] for place in values.argmax(1)]
        elif values.shape[1] <= _COMPONENTS:
            found |= {f"{output.name}: {number}": values[:, number] for number in range(values.shape[1])}
        else:
            found |= {f"{output.name}: mean": values.mean(1), f"{output.name}: largest": values.max(1)}
    return found


def statistics(found: Features) -> dict[str, Any]:
    """The content of reference.json: of numbers the quantiles that part them into ten bins, how many are in each and
    missing, least and largest; of categories the commonest twenty; and the rank correlation of pairs of numbers.
    """
    numeric = {name: np.asarray(values, np.float64) for name, values in found.items() if _is_numeric(values)}
    rows = len(next(iter(found.values()), ()))
    paired = [name for name, values in numeric.items() if np.isfinite(values).any()][:_PAIRED]
    return {
        "format": FORMAT,
        "rows": rows,
        "numeric": {name: _bins(values) for name, values in numeric.items()},
        "categorical": {name: _counts(values) for name, values in found.items() if name not in numeric},
        "rank_correlation": {
            "features": paired,
            "matrix": [[_rank_correlation(numeric[one], numeric[other]) for other in paired] for one in paired],
        },
    }


def _of_input(kind: Input, values: Sequence[Any]) -> dict[str, Any]:
    if isinstance(kind, Category):
        return {kind.name: [None if value is None else str(value) for value in values]}
    if isinstance(kind, Number):
        return {kind.name: np.array([np.nan if value is None else value for value in values], np.float64)}
    if isinstance(kind, Text) or all(isinstance(value, str | bytes) for value in values):
        texts = [value.decode(errors="replace") if isinstance(value, bytes) else str(value) for value in values]
        named = [_of_text(text) for text in texts]
        return {f"{kind.name}: {what}": [one[what] for one in named] for what in _of_text("")}
    arrays = [kind.row(value).astype(np.float64) for value in values]
    parts = {"mean": np.mean, "deviation": np.std, "least": np.min, "largest": np.max}
    return {f"{kind.name}: {what}": [float(part(x)) for x in arrays] for what, part in parts.items()}


def _of_text(text: str) -> dict[str, float]:
    """Numbers that broken encodings, lost spaces, cut texts and markup change."""
    count = max(1, len(text))
    words = text.split()
    return {
        "bytes": float(len(text.encode(errors="replace"))),
        "words": float(len(words)),
        "letters": sum(map(str.isalpha, text)) / count,
        "capitals": sum(map(str.isupper, text)) / count,
        "digits": sum(map(str.isdigit, text)) / count,
        "spaces": sum(map(str.isspace, text)) / count,
        "beyond ASCII": sum(letter > "\x7f" for letter in text) / count,
        "unreadable": text.count("\ufffd") / count,
        "letters a word": sum(map(len, words)) / max(1, len(words)),
    }


def _is_numeric(values: Sequence[Any]) -> bool:
    return not any(isinstance(value, str) or value is None for value in values)


def _bins(values: np.ndarray) -> dict[str, Any]:
    known = values[np.isfinite(values)]
    if not len(known):
        return {"cuts": [], "counts": [0], "missing": len(values)}
    cuts = np.unique(np.quantile(known, np.linspace(0, 1, _BINS + 1)[1:-1]))
    counts = np.bincount(np.searchsorted(cuts, known, side="right"), minlength=len(cuts) + 1)
    return {
        "cuts": cuts.tolist(),
        "counts": counts.tolist(),
        "missing": len(values) - len(known),
        "least": float(known.min()),
        "largest": float(known.max()),
    }


def _counts(values: Sequence[Any]) -> dict[str, Any]:
    counts = Counter(value for value in values if value is not None)
    common = sorted(counts, key=lambda value: (-counts[value], value))[:_CATEGORIES]
    return {
        "values": {value: counts[value] for value in common},
        "other": sum(counts.values()) - sum(counts[value] for value in common),
        "missing": sum(value is None for value in values),
    }


def _rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's, of the rows where both are known; 0 where one of them is the same in all rows."""
    both = np.isfinite(one) & np.isfinite(other)
    x, y = (_ranks(each[both]) for each in (one, other))
    x, y = x - x.mean() if len(x) else x, y - y.mean() if len(y) else y
    length = float(np.sqrt((x @ x) * (y @ y)))
    return round(float(x @ y) / length, 6) if length else 0.0


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks, the mean of them where values are equal."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]

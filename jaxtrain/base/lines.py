"""Predictions as lines of text, of a run and of a bundle. Needs numpy alone."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

_LIKELY = 5  # next tokens that are shown


def likeliest(probabilities: Iterable[float], names: Iterable[str], most: int | None = None) -> str:
    """Names with their probabilities, the largest first, at most `most` of them; of equal ones the last name first."""
    pairs = sorted(zip(probabilities, names, strict=True), reverse=True)[:most]
    return "  ".join(f"{name} {probability:.2f}" for probability, name in pairs)


def prediction_line(prediction: Mapping[str, np.ndarray], classes: Mapping[str, Sequence[str]]) -> str:
    """One row of a prediction: probabilities of classes, the likeliest next tokens, or the numbers.

    classes: by output name, the class of each of its numbers; outputs without classes are left out.
    """
    shown = []
    for name, value in prediction.items():
        if names := classes.get(name):
            shown.append(likeliest(value, names))
        elif name == "log_probabilities" and value.ndim == 1:
            tokens = (repr(bytes([token])) if token < 256 else str(token) for token in range(len(value)))
            shown.append(f"next: {likeliest(np.exp(value), tokens, _LIKELY)}")
        else:
            shown.append(f"{name} {value}")
    return "  ".join(shown)

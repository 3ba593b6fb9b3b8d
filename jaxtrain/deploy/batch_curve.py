"""How many rows to compute at a time on this machine: measured, since on some more rows are slower."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxtrain.base.errors import ConfigError
from jaxtrain.deploy.signature import FORMAT
from jaxtrain.deploy.values import is_size

SIZES = (1, 4, 16, 64)

CURVE_ROWS = 8
"""Golden examples that export repeats to make batches of."""

_SECONDS = 0.3  # for each size
_LONGEST = 20.0  # for all of them
_ENOUGH = 0.95  # of the most rows a second


def batch_curve(
    run: Callable[[Mapping[str, np.ndarray]], Any],
    tensors: Mapping[str, np.ndarray],
    now: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """The `curve` of a backend, which is the best time of each number of rows, and `best`, the least number that is
    nearly as fast a row as any.

    tensors: at least one row; rows are repeated. Larger batches are left out once 20 seconds have gone by.
    """
    curve, begun = [], now()
    for size in SIZES:
        if curve and now() - begun > _LONGEST:
            break
        batch = {name: np.resize(x, (size, *x.shape[1:])) for name, x in tensors.items()}
        run(batch)  # compiles
        seconds, until = [], now() + _SECONDS
        while not seconds or now() < until:
            start = now()
            run(batch)
            seconds.append(now() - start)
        curve.append({"rows": size, "seconds": min(seconds), "rows_per_second": size / max(min(seconds), 1e-9)})
    most = max(each["rows_per_second"] for each in curve)
    best = next(each["rows"] for each in curve if each["rows_per_second"] >= _ENOUGH * most)
    return {"curve": curve, "best": best}


def served(curves: Mapping[str, Mapping[str, Any]]) -> str:
    """The backend that servers run, of those with a curve: config.pbtxt names ONNX, where it could be made."""
    return "onnx" if "onnx" in curves else "jax"


def batch_json(curves: Mapping[str, Mapping[str, Any]], hardware: Mapping[str, Any]) -> dict[str, Any]:
    """The content of batch.json: the curves by backend, and that of the served one, which older versions read."""
    backend = served(curves)
    return {"format": FORMAT, "backend": backend, **curves[backend], "backends": dict(curves), "hardware": hardware}


def best_rows(measured: Any, backend: str) -> int | None:
    """The best number of rows of a backend, by the content of batch.json; None where it has no curve of it, as in older
    bundles. Raises ConfigError for what `batch_json` does not write.
    """
    curves = measured.get("backends", {}) if isinstance(measured, dict) else None
    if isinstance(curves, dict) and backend not in curves:
        return None
    curve = curves[backend] if isinstance(curves, dict) else None
    if not (isinstance(curve, dict) and is_size(curve.get("best"))):
        raise ConfigError(f"it does not say the best number of rows for {backend}")
    return curve["best"]

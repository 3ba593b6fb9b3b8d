"""How many rows to compute at a time on this machine: measured, since on some more rows are slower."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxtrain.deploy.signature import FORMAT

SIZES = (1, 4, 16, 64)

_SECONDS = 0.3  # for each size
_LONGEST = 20.0  # for all of them
_ENOUGH = 0.95  # of the most rows a second


def batch_curve(
    run: Callable[[Mapping[str, np.ndarray]], Any],
    tensors: Mapping[str, np.ndarray],
    now: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """The content of batch.json: the best time of each number of rows, and the least that is nearly as fast a row as
    any, `best`.

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
    return {"format": FORMAT, "curve": curve, "best": best}

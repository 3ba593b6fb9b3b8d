"""The outcome of a run, and its differences from that of another: the leaves of the final state, and all metrics."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxtrain.runs.checkpoints import Checkpoints
from jaxtrain.runs.metrics_log import read_metrics

_PRNGS = ("threefry2x32", "rbg", "unsafe_rbg")

_OF_THE_CLOCK = ("examples_per_second", "tokens_per_second", "mfu")

Ended = tuple[dict[str, np.ndarray], list[dict[str, Any]]]
"""The leaves of the final state by path, and the lines of metrics, without the fields that depend on the clock."""


def ended(folder: Path, steps: int) -> Ended:
    """The outcome of the run in `folder` after `steps` updates; PRNG keys as their data.

    Raises ConfigError where it has no checkpoint of that step.
    """
    with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        kinds = checkpoints.leaves(steps)
        wanted: dict[str, Any] = {name: _abstract(kind) for name, kind in kinds.items()}
        arrays, _ = checkpoints.restore(wanted, steps)
    lines = [
        {name: value for name, value in line.items() if name not in _OF_THE_CLOCK and not name.startswith("seconds_")}
        for line in read_metrics(folder)
    ]
    return {name: _on_host(x) for name, x in arrays.items()}, lines


def _abstract(kind: str) -> jax.ShapeDtypeStruct:
    dtype, _, shape = kind.rstrip("]").partition("[")
    keys = {str(key.dtype): key.dtype for key in (jax.random.key(0, impl=name) for name in _PRNGS)}
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    sizes = tuple(int(n) for n in shape.split(",") if n)
    return jax.ShapeDtypeStruct(sizes, keys[dtype] if dtype in keys else np.dtype(dtype), sharding=place)


def _on_host(x: jax.Array) -> np.ndarray:
    return np.asarray(jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x)


def unlike(expected: Ended, found: Ended) -> list[str]:
    """The bitwise differences of two outcomes: the first metrics that differ, the number of lines, and the leaves."""
    lines = []
    for before, after in zip(expected[1], found[1], strict=False):
        names = sorted(name for name in before.keys() | after.keys() if not _same(before.get(name), after.get(name)))
        if names:
            lines.append(f"metrics of step {before['step']} ({before['split']}): {', '.join(names)}")
            break  # later differences follow from this one
    if len(expected[1]) != len(found[1]):
        lines.append(f"{len(found[1])} lines of metrics, not {len(expected[1])}")
    leaves = sorted(
        name
        for name in expected[0].keys() | found[0].keys()
        if name not in expected[0] or name not in found[0] or not same_bits(expected[0][name], found[0][name])
    )
    return lines + ([f"{len(leaves)} leaves, first {leaves[0]}"] if leaves else [])


def _same(one: Any, other: Any) -> bool:
    """Whether two values of metrics are equal; NaN equals NaN."""
    return one == other or (one != one and other != other)


def same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two arrays are equal in dtype, shape and every bit."""
    same = one.dtype == other.dtype and one.shape == other.shape
    return same and (one.tolist() == other.tolist() if one.dtype.hasobject else one.tobytes() == other.tobytes())


def ulps(one: np.ndarray, other: np.ndarray) -> int:
    """The largest difference of two f32 arrays, in ulps of the first one's largest element."""
    if not one.size:
        return 0
    unit = np.spacing(np.abs(one).max().astype(np.float32))
    return int(np.abs(one.astype(np.float64) - other.astype(np.float64)).max() / unit)

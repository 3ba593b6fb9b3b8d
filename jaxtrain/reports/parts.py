"""Which part of an array each device holds, for arrays that exist and for those that are planned.

Not here: the picture of it (`pictures`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxtrain.sharding.layout import mesh_axes


@dataclass(frozen=True)
class Part:
    """A part of an array: its first index along each dim, and the numbers of the devices that hold it."""

    start: tuple[int, ...]
    devices: tuple[int, ...]


def planned_parts(spec: P, shape: Sequence[int], sizes: Mapping[str, int], devices: np.ndarray) -> list[Part]:
    """The parts of an array with this partition spec.

    sizes: of the mesh's axes. devices: their numbers, i[...] of the mesh's shape.
    """
    entries = [mesh_axes(entry) for entry in spec] + [()] * (len(shape) - len(spec))
    found: dict[tuple[int, ...], list[int]] = {}
    for place in np.ndindex(*sizes.values()):
        at = dict(zip(sizes, place, strict=True))
        start = tuple(_start(axes, at, sizes, size) for axes, size in zip(entries, shape, strict=True))
        found.setdefault(start, []).append(int(devices[place]))
    return _sorted(found)


def _start(axes: Sequence[str], at: Mapping[str, int], sizes: Mapping[str, int], size: int) -> int:
    number = 0
    for axis in axes:  # the first named axis is the outermost
        number = number * sizes[axis] + at[axis]
    return number * (size // math.prod(sizes[axis] for axis in axes))


def parts_held(array: Any) -> list[Part]:
    """The parts of a `jax.Array`, or of a shape with a sharding of devices, as jax says."""
    found: dict[tuple[int, ...], list[int]] = {}
    for device, index in array.sharding.devices_indices_map(tuple(array.shape)).items():
        found.setdefault(tuple(each.start or 0 for each in index), []).append(device.id)
    return _sorted(found)


def _sorted(found: Mapping[tuple[int, ...], Sequence[int]]) -> list[Part]:
    return [Part(start, tuple(sorted(devices))) for start, devices in sorted(found.items())]


def sharding_text(array: Any) -> str:
    """Where an array lives: its partition spec, `replicated`, `device 0`, or `host`; "" for a shape alone."""
    sharding = getattr(array, "sharding", None)
    if sharding is None:
        return "host" if isinstance(array, np.ndarray) else ""
    if isinstance(sharding, NamedSharding) and sharding.mesh.size > 1:
        spec = ", ".join("·".join(mesh_axes(entry)) or "None" for entry in sharding.spec)
        return f"P({spec})" if any(sharding.spec) else "replicated"
    if isinstance(getattr(sharding, "mesh", None), AbstractMesh):
        return "one device"
    devices = [device.id for device in sharding.device_set]
    return f"device {devices[0]}" if len(devices) == 1 else f"{len(devices)} devices"


def bytes_of(array: Any) -> int:
    """The bytes of a whole array; also for PRNG keys, which have no `nbytes`."""
    return math.prod(array.shape) * array.dtype.itemsize


def bytes_on_device(array: Any) -> int:
    """The bytes that one device holds of an array."""
    sharding = getattr(array, "sharding", None)
    shape = array.shape if sharding is None else sharding.shard_shape(tuple(array.shape))
    return math.prod(shape) * array.dtype.itemsize

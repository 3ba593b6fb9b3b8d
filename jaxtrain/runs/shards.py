"""Checksums of arrays, shard by shard, from their bytes in host memory. Not here: the files that hold them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtrain.base.checksums import crc32_of_array

Region = list[list[int]]
"""Start and stop in each dim of an array."""

READ_ERRORS = (OSError, ValueError, KeyError, TypeError, EOFError)
"""What orbax and tensorstore raise for damaged files."""


def own_shards(arrays: Mapping[str, jax.Array]) -> dict[str, list[tuple[Region, np.ndarray]]]:
    """The shards that this process writes, by the name of their array: their regions in it, and their values.

    Blocks until the values are in host memory, where they stay valid when the arrays are donated.
    """
    raw = {name: _raw(x) for name, x in arrays.items()}
    own = {name: [shard for shard in x.addressable_shards if shard.replica_id == 0] for name, x in raw.items()}
    for shards in own.values():
        for shard in shards:
            shard.data.copy_to_host_async()
    return {
        name: [(_region(shard.index, raw[name].shape), np.asarray(shard.data)) for shard in shards]
        for name, shards in own.items()
    }


def shard_checksums(shards: Mapping[str, list[tuple[Region, np.ndarray]]]) -> dict[str, list[dict[str, Any]]]:
    """The crc32 of each shard, as JSON."""
    return {
        name: [{"at": region, "crc32": crc32_of_array(data)} for region, data in parts]
        for name, parts in shards.items()
    }


def other_arrays(arrays: Mapping[str, jax.Array], saved: Mapping[str, Any], most: int | None = None) -> Iterator[str]:
    """The names of arrays with a shard that does not match its checksum in `saved`.

    most: larger arrays, in bytes, are skipped. So are saved shards of which this process holds only a part, which
        happens if several processes restore with another layout than that of the save.
    """
    for name, x in arrays.items():
        if most is None or x.nbytes <= most:
            whole = _raw(x)
            parts = ((_host_region(whole, entry["at"]), entry["crc32"]) for entry in saved.get(name, ()))
            if any(part is not None and crc32_of_array(part) != crc for part, crc in parts):
                yield name


def _host_region(x: jax.Array, region: Region) -> np.ndarray | None:
    """A region of an array in host memory; None if this process does not hold all of it."""
    for shard in x.addressable_shards:
        at = _region(shard.index, x.shape)
        if all(first <= start and stop <= last for (start, stop), (first, last) in zip(region, at, strict=True)):
            inside = [slice(start - first, stop - first) for (start, stop), (first, _) in zip(region, at, strict=True)]
            return np.asarray(shard.data)[tuple(inside)]
    return np.asarray(x)[tuple(slice(*each) for each in region)] if x.is_fully_addressable else None


def _region(index: Sequence[slice], shape: Sequence[int]) -> Region:
    return [list(one.indices(size)[:2]) for one, size in zip(index, shape, strict=True)]


def _raw(x: jax.Array) -> jax.Array:
    return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x

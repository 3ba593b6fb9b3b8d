"""Checksums of arrays from their bytes in host memory, shard by shard. Not here: where they are kept."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtrain.base.checksums import crc32_of_array

Region = list[list[int]]
"""Start and stop in each dim of an array."""

READ_ERRORS = (OSError, ValueError, KeyError, TypeError, EOFError)
"""What orbax and tensorstore raise for files that are not what was written."""


def own_shards(arrays: Mapping[str, jax.Array]) -> dict[str, list[tuple[Region, np.ndarray]]]:
    """The shards that this process writes, by the name of their array: where they lie in it, and their bytes.

    Blocks until these are in host memory, where they stay though the arrays are donated.
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
    """The names of the arrays that have a shard whose bytes are not those of its checksum in `saved`.

    most: arrays of more bytes are left out. So are shards of which other processes hold a part: what is compared with
        the layout of the save is all, and with another in several processes what each has whole.
    """
    for name, x in arrays.items():
        if most is None or x.nbytes <= most:
            whole = _raw(x)
            parts = ((_part(whole, entry["at"]), entry["crc32"]) for entry in saved.get(name, ()))
            if any(part is not None and crc32_of_array(part) != crc for part, crc in parts):
                yield name


def _part(x: jax.Array, region: Region) -> np.ndarray | None:
    """A region of an array in host memory; None where no shard of this process and not all of them have it."""
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

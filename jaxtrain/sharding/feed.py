"""Which rows of a global batch a process feeds, and how they become global arrays."""

from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import NamedSharding


def local_rows(sharding: NamedSharding, batch_size: int) -> np.ndarray:
    """Which rows of the global batch the devices of this process hold, ascending: the rows it must read."""
    slices = sharding.addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in slices]))


def put_rows(
    sharding: NamedSharding, batch: Mapping[str, np.ndarray], rows: np.ndarray, size: int
) -> dict[str, jax.Array]:
    """The global arrays of a batch of `size` rows, of which this process has read `rows`."""

    def one(local: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(
            (size, *local.shape[1:]),
            sharding,
            lambda index: local[np.searchsorted(rows, np.arange(size)[index[0] if index else slice(None)])],
        )

    return {name: one(local) for name, local in batch.items()}

"""Which rows of a global batch a process feeds, and how they and other arrays that are read become global arrays."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from jaxtrain.base.errors import Damaged


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


def put_slices(leaf: jax.ShapeDtypeStruct, read: Callable[[tuple[slice, ...]], np.ndarray]) -> jax.Array:
    """The array in the shards of the leaf, of which `read(index)` gives a slice on the host.

    Each slice that devices of this process hold is read once, and is let go before the next is read.
    """
    assert leaf.sharding is not None
    devices: dict[tuple[tuple[int, ...], ...], list[jax.Device]] = {}
    for device, index in leaf.sharding.addressable_devices_indices_map(leaf.shape).items():
        bounds = tuple(part.indices(size) for part, size in zip(index or (), leaf.shape, strict=True))
        devices.setdefault(bounds, []).append(device)
    parts = []
    for bounds, holders in devices.items():
        value = read(tuple(slice(*bound) for bound in bounds))
        parts += jax.block_until_ready([jax.device_put(value, device) for device in holders])
    return jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, parts)


def check_numbers(name: str, value: jax.Array, source: str) -> None:
    """Raises Damaged for a parameter with NaN or infinity, of which all others would become NaN."""
    if jnp.issubdtype(value.dtype, jnp.floating) and not jnp.isfinite(value).all():
        raise Damaged(source, None, f"{name} holds NaN or infinity, or numbers beyond {value.dtype}")

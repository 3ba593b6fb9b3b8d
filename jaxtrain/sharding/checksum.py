"""A checksum of a global batch, computed where its rows are: the same for every mesh and number of processes.

Each 32-bit word of a row is mixed with the field's name, the row's number and the word's place in the row; the mixed
words are added modulo 2^32, in any order, and so are those words mixed once more: the two sums make 64 bits.
"""

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

Numbers = Any
"""A `jax.Array`, or a `numpy.ndarray` on the host: both are added modulo 2^32."""

SEED, STEP, AGAIN = 0x9E3779B9, 0x85EBCA6B, 0x2C1B3C6D
"""What is added to a field's seed; what places are multiplied by; and by what mixed words are multiplied for the second
sum. Both factors are odd, so that no two places, or words, become alike.
"""


def checksum(batch: Mapping[str, jax.Array], mesh: Mesh | None = None, axes: tuple[str, ...] = ()) -> jax.Array:
    """The two sums of a global batch, u32[2]. axes: those of the mesh that split its rows; devices are summed once."""

    def local(batch: Mapping[str, jax.Array], rows_B: jax.Array) -> jax.Array:
        sums = _sums(batch, rows_B, jnp)
        return jax.lax.psum(sums, axes) if axes else sums

    rows_B = jnp.arange(batch["mask"].shape[0], dtype=jnp.uint32)
    if not axes:
        return local(batch, rows_B)
    split = jax.shard_map(local, mesh=mesh, in_specs=P(axes), out_specs=P(), axis_names={*axes}, check_vma=False)
    return split(dict(batch), rows_B)


def checksum_on_host(batch: Mapping[str, np.ndarray]) -> int:
    """The checksum of a whole batch of numpy arrays, which are first of the dtypes that they have on a device."""
    there = {name: x.astype(jax.dtypes.canonicalize_dtype(x.dtype)) for name, x in batch.items()}
    rows_B = np.arange(len(batch["mask"]), dtype=np.uint32)
    return as_number(_sums(there, rows_B, np))


def as_number(sums: Numbers) -> int:
    """The checksum, 0 to 2^64 - 1, of its two sums."""
    high, low = np.asarray(sums).tolist()
    return high << 32 | low


def _sums(batch: Mapping[str, Numbers], rows_B: Numbers, xp: Any) -> Numbers:
    fields = []
    for name, x in batch.items():
        words_BW = _words(x, xp)
        rows = _mixed(rows_B + np.uint32(zlib.crc32(name.encode()) + SEED & 0xFFFFFFFF))
        places = xp.arange(words_BW.shape[1], dtype=np.uint32) * np.uint32(STEP)
        mixed = _mixed((words_BW ^ rows[:, None]) + places)
        again = (mixed ^ (mixed >> np.uint32(15))) * np.uint32(AGAIN)
        fields.append(xp.stack(_both_sums(mixed, again, xp)))
    return xp.sum(xp.stack(fields), axis=0, dtype=np.uint32)


def _both_sums(one: Numbers, other: Numbers, xp: Any) -> Sequence[Numbers]:
    """Of two arrays, modulo 2^32. XLA computes both in one pass, where two sums would each compute the words anew."""
    if xp is np:
        return [np.sum(x, dtype=np.uint32) for x in (one, other)]
    zero = jnp.uint32(0)
    return jax.lax.reduce((one, other), (zero, zero), lambda x, y: (x[0] + y[0], x[1] + y[1]), (0, 1))


def _mixed(x: Numbers) -> Numbers:
    """The finalizer of MurmurHash3 (Appleby 2011): every bit of u32[…] depends on all of them."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ (x >> np.uint32(shift))) * np.uint32(factor)
    return x ^ (x >> np.uint32(16))


def _words(x: Numbers, xp: Any) -> Numbers:
    """The bits of the rows, u32[rows, words]. Four numbers of a byte are one word where a row has a multiple of four;
    else a narrower number is a word of its own.
    """
    flat = x.reshape(x.shape[0], math.prod(x.shape[1:]))
    if xp.issubdtype(x.dtype, np.complexfloating):
        return xp.concatenate([_words(flat.real, xp), _words(flat.imag, xp)], axis=1)
    is_int = x.dtype == bool or (jnp.issubdtype(x.dtype, jnp.integer) and x.dtype.itemsize <= 4)
    if is_int and x.dtype.itemsize == 1 and flat.shape[1] and flat.shape[1] % 4 == 0:
        if xp is np:
            return np.ascontiguousarray(flat).view(np.uint32)
        return jax.lax.bitcast_convert_type(flat.astype(np.uint8).reshape(len(flat), -1, 4), np.uint32)
    if is_int:
        return flat.astype(np.uint32)
    size = x.dtype.itemsize
    kind = np.dtype(f"uint{8 * min(size, 4)}")
    if xp is np:
        return np.ascontiguousarray(flat).view(kind).astype(np.uint32)
    words = jax.lax.bitcast_convert_type(flat, kind)  # of 64 bits: with two words in a last dim of their own
    return words.reshape(flat.shape[0], -1 if flat.size else 0).astype(np.uint32)

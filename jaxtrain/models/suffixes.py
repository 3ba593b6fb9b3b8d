"""Hashes of the last n tokens at each position, for embeddings of n-grams beside those of tokens
(Pagnoni et al. 2024, arXiv:2412.09871, section 3.2.1).

Shapes: B batch, L length, N lengths of n-grams.
"""

import jax
import jax.numpy as jnp

from jaxtrain.models.ngrams import mix


def suffix_rows(
    ids_BL: jax.Array, lengths: tuple[int, ...], buckets: int, segments_BL: jax.Array | None
) -> list[jax.Array]:
    """For each n of `lengths` the row i32[B, L], from 0 to `buckets` - 1, of the last n tokens at each position.

    Tokens before the row and tokens of another segment count as absent.
    """
    token_BL = ids_BL.astype(jnp.uint32) + 1  # 0 is an absent token
    hash_BL, rows = jnp.zeros_like(token_BL), {}
    for distance in range(max(lengths, default=0)):
        earlier_BL = _earlier(token_BL, distance)
        if segments_BL is not None:
            earlier_BL = jnp.where(_earlier(segments_BL, distance) == segments_BL, earlier_BL, 0)
        hash_BL = mix(hash_BL * jnp.uint32(0x01000193) + earlier_BL + 1)
        rows[distance + 1] = (hash_BL % jnp.uint32(buckets)).astype(jnp.int32)
    return [rows[n] for n in lengths]


def _earlier(x_BL: jax.Array, distance: int) -> jax.Array:
    """What was `distance` positions before each one; 0 before the row."""
    return jnp.pad(x_BL, ((0, 0), (distance, 0)))[:, : x_BL.shape[1]]

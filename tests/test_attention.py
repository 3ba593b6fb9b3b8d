"""Every implementation of attention that a CPU can run, and cross-entropy, against float64 softmax, both ways.

Shapes: B batch, L sequence, H heads, G key/value heads, R = H/G queries a head, K head dim.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxtrain import Layout
from jaxtrain.models.attention import BLOCK, Attention, attention
from jaxtrain.models.ring import ring_attention, zigzag
from jaxtrain.sharding.constraints import scope
from jaxtrain.tasks.base import cross_entropy

Arrays = tuple[np.ndarray, ...]


def normal(length: int, heads: int = 4, groups: int = 2, size: int = 8) -> Arrays:
    """q, k, v and the gradient of the output."""
    rng = np.random.default_rng(length)
    counts = (heads, groups, groups, heads)
    return tuple(rng.normal(size=(2, length, count, size)).astype(np.float32) for count in counts)


def large(length: int, heads: int = 4, groups: int = 2) -> Arrays:
    """The same with scores of -8000 to 8000 that f32 holds exactly: whole numbers, halved by a head dim of 4. Every
    second key is that before it, so that the largest scores are not alone and softmax is not just 0 and 1.
    """
    _, _, v, g = normal(length, heads, groups, 4)
    rng = np.random.default_rng(length)
    q, k = (rng.integers(-64, 65, (2, length, count, 4)).astype(np.float32) for count in (heads, groups))
    k[:, 1::2] = k[:, : length - 1 : 2]
    return q, k, v, g


def documents(length: int) -> np.ndarray:
    """Segments of two rows: three documents of which the last is one position long; and one beside padding."""
    first = np.searchsorted([length // 3, length - 1], np.arange(length), side="right")
    return np.stack([first, np.arange(length) < length // 2]).astype(np.int32)


def by_formula(arrays: Arrays, causal: bool, segments: np.ndarray | None) -> Arrays:
    """Output and the gradients of q, k and v, in float64: for S = qkᵀ/√K, P = softmax S and O = Pv,
    dv = Pᵀg, dP = gvᵀ, dS = P ∘ (dP - rowsum(dP ∘ P)), dq = dS k/√K, dk = dSᵀq/√K.
    """
    q, k, v, g = (x.astype(np.float64) for x in arrays)
    B, L, H, K = q.shape
    G = k.shape[2]
    q, g = (x.reshape(B, L, G, H // G, K) for x in (q, g))
    seen = np.ones((B, L, L), bool) if segments is None else segments[:, :, None] == segments[:, None]
    seen = (seen & np.tril(np.ones((L, L), bool)) if causal else seen)[:, None, None]
    scores = np.where(seen, np.einsum("blgrk,btgk->bgrlt", q, k) / math.sqrt(K), -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    of_weights = np.einsum("blgrk,btgk->bgrlt", g, v)
    of_scores = weights * (of_weights - (of_weights * weights).sum(-1, keepdims=True)) / math.sqrt(K)
    return (
        np.einsum("bgrlt,btgk->blgrk", weights, v).reshape(B, L, H, K),
        np.einsum("bgrlt,btgk->blgrk", of_scores, k).reshape(B, L, H, K),
        np.einsum("bgrlt,blgrk->btgk", of_scores, q),
        np.einsum("bgrlt,blgrk->btgk", weights, g),
    )


def computed(function: Any, arrays: Arrays) -> Arrays:
    """The same of `function(q, k, v)`, jitted."""

    def both(q: jax.Array, k: jax.Array, v: jax.Array, g: jax.Array) -> tuple[jax.Array, ...]:
        out, pull = jax.vjp(function, q, k, v)
        return (out, *pull(g))

    return jax.jit(both)(*arrays)


def close(found: Arrays, expected: Arrays, arrays: Arrays, of_weights: float = 0) -> None:
    """Output and gradients within the errors of f32; `of_weights` is a further relative error of the weights, which the
    gradients may have.
    """
    q, k, v, g = (np.abs(x).max() for x in arrays)
    wrong = (0, of_weights, of_weights, of_weights)
    for one, other, size, more in zip(found, expected, (v, g * v * k, g * v * q, g), wrong, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=size * 2e-6 + more * np.abs(other).max())


CASES: dict[str, tuple[Attention, bool, Arrays, bool]] = {
    "dense": ("dense", True, normal(7), False),
    "dense, not causal": ("dense", False, normal(7), False),
    "dense, documents": ("dense", True, normal(9), True),
    "dense, documents, not causal": ("dense", False, normal(9), True),
    "dense, no groups": ("dense", True, normal(7, groups=4), False),
    "dense, one group": ("dense", False, normal(7, groups=1), True),
    "dense, large": ("dense", True, large(9), True),
    "dense, large, not causal": ("dense", False, large(9), False),
    "blocks, less than one": ("blocks", True, normal(7), True),
    "blocks, one": ("blocks", True, normal(BLOCK), False),
    "blocks, one and a bit": ("blocks", True, normal(130), True),
    "blocks, two and one position": ("blocks", True, normal(257, heads=2, groups=1), False),
    "blocks, large": ("blocks", True, large(130), True),
}


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("name", CASES)
def test_attention_and_its_gradients_are_those_of_the_formula(name, platform):
    implementation, causal, arrays, split = CASES[name]
    segments = documents(arrays[0].shape[1]) if split else None
    given = None if segments is None else jnp.asarray(segments)
    function = functools.partial(attention, causal=causal, segments_BL=given, implementation=implementation)
    layout = Layout()
    with scope(layout, layout.abstract_mesh(1), platform=platform):
        found = computed(function, arrays)
    close(found, by_formula(arrays, causal, segments), arrays)


@pytest.mark.parametrize(
    ("mesh", "arrays", "split"),
    [
        ({"context": 2}, normal(20), False),
        ({"context": 4}, normal(24), True),
        ({"context": 2, "tensor": 2}, normal(12), True),
        ({"data": 2, "context": 3}, normal(18, groups=1), False),
        ({"context": 4}, large(16), True),
    ],
    ids=["two", "four, documents", "two by two, documents", "two rings of three", "four, large"],
)
@pytest.mark.slow
def test_a_ring_and_its_gradients_are_those_of_the_formula(mesh, arrays, split):
    layout = Layout(mesh)
    devices = layout.make_mesh(jax.devices()[: math.prod(mesh.values())])
    segments = documents(arrays[0].shape[1]) if split else None
    with scope(layout, devices):
        order = zigzag(arrays[0].shape[1])
        of_ring = None if segments is None else jnp.asarray(segments[:, order])
        placed = jax.device_put([x[:, order] for x in arrays], NamedSharding(devices, P()))
        found = computed(lambda q, k, v: ring_attention(q, k, v, of_ring), placed)
    found = tuple(np.asarray(x)[:, np.argsort(order)] for x in found)
    # Only logsumexp is kept for the way back, next to which the scores are subtracted: 2^-12 is how far f32 rounds one
    # of 4096 to 8192.
    largest = max(1, np.abs(arrays[0]).max() * np.abs(arrays[1]).max() * 2)
    close(found, by_formula(arrays, True, segments), arrays, of_weights=largest * 2**-25)


def loss_and_gradient(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cross-entropy and its gradient, softmax less one at the label, in float64."""
    wide = logits.astype(np.float64)
    weights = np.exp(wide - wide.max(-1, keepdims=True))
    of_label = np.arange(wide.shape[-1]) == labels[..., None]
    return reference.cross_entropy(wide, labels), weights / weights.sum(-1, keepdims=True) - of_label


@pytest.mark.parametrize(
    ("shape", "scale"),
    [((4, 2), 1), ((3, 1), 1), ((2, 3, 5), 1), ((3, 50_257), 1), ((3, 50_257), 80), ((16, 8), 1e4), ((2, 50_257), 1e4)],
)
def test_cross_entropy_and_its_gradient_are_those_of_the_formula(shape, scale):
    rng = np.random.default_rng(0)
    logits, labels = (rng.normal(size=shape) * scale).astype(np.float32), rng.integers(0, shape[-1], shape[:-1])
    found, grads = jax.jit(lambda z: (cross_entropy(z, labels), jax.grad(lambda z: cross_entropy(z, labels).sum())(z)))(
        jnp.asarray(logits)
    )
    expected, expected_grads = loss_and_gradient(logits, labels)
    # The loss is a difference of two numbers of the size of the logits, each rounded to f32.
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=4 * 2**-24 * max(1, np.abs(logits).max()))
    np.testing.assert_allclose(grads, expected_grads, rtol=1e-4, atol=1e-6)

"""Every architecture's outputs against float64 numpy written from the papers (tests/reference.py)."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from jaxtrain.models import Blocks, Experts, Model, NGrams, Transformer, ViT
from jaxtrain.models.rope import rotate
from jaxtrain.models.variables import Variables

RNG = np.random.default_rng(0)
BLOCKS = functools.partial(Blocks, width=24, layers=2, heads=4, mlp=40)
IDS = RNG.integers(1, 20, (3, 9), np.int32)
PADDED = np.where(np.arange(9) < [[9], [5], [1]], IDS, 0)
SEGMENTS = np.array([[1] * 9, [1, 1, 1, 2, 2, 3, 3, 3, 3], [1] * 5 + [2, 0, 0, 0]], np.int32)
IMAGES = RNG.random((3, 4, 6, 2), np.float32)

TRANSFORMERS = {
    "one head": Transformer(vocab=20, blocks=BLOCKS(heads=1, layers=1)),
    "many heads": Transformer(vocab=20, blocks=BLOCKS()),
    "grouped queries": Transformer(vocab=20, blocks=BLOCKS(kv_heads=2)),
    "one key for all queries": Transformer(vocab=20, blocks=BLOCKS(kv_heads=1)),
    "untied": Transformer(vocab=20, outputs=5, tied=False, blocks=BLOCKS()),
    "not causal": Transformer(vocab=20, causal=False, blocks=BLOCKS()),
    "pooled": Transformer(vocab=20, outputs=2, tied=False, causal=False, pooled=True, blocks=BLOCKS(kv_heads=2)),
    "n-grams": Transformer(vocab=20, blocks=BLOCKS(), ngrams=(2, 4), buckets=50),
    "pooled n-grams": Transformer(
        vocab=20, outputs=2, tied=False, pooled=True, blocks=BLOCKS(), ngrams=(3,), buckets=50
    ),
    "rounds": Transformer(vocab=20, blocks=BLOCKS(layers=4, rounds=2)),
    "experts": Transformer(vocab=20, blocks=BLOCKS(experts=Experts(count=5, top_k=2))),
    "shared experts": Transformer(
        vocab=20, blocks=BLOCKS(kv_heads=2, experts=Experts(count=4, top_k=3, shared=2, width=12))
    ),
}


def weights(model: Model, inputs: np.ndarray) -> Any:
    """What a model starts from, but random where it starts from ones or zeros: so every parameter matters."""
    named = jax.jit(lambda: model.init(jax.random.key(1), jnp.asarray(inputs)))()
    rng = np.random.default_rng(2)

    def drawn(leaf: Any) -> np.ndarray:
        value = np.asarray(leaf.value)
        return value if np.ptp(value) else rng.normal(1, 0.3, value.shape).astype(np.float32)

    return jax.tree.map(drawn, named.params, is_leaf=lambda leaf: hasattr(leaf, "axes"))


def wide(params: Any) -> Any:
    return reference.mapped(lambda leaf: np.asarray(leaf, np.float64), params)


def close(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=1e-5, atol=1e-5)


def expected_rows(model: Transformer, params: Any, ids: np.ndarray, segments: Any = None, **more: Any) -> list[Any]:
    """The logits of every row, and the scores of its routers."""
    segments = [None] * len(ids) if segments is None else segments
    heads, chosen = model.blocks.heads, model.blocks.experts.top_k
    return [
        reference.transformer(
            wide(params), row, heads, model.causal, model.pooled, own, chosen, lengths=model.ngrams, **more
        )
        for row, own in zip(ids, segments, strict=True)
    ]


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_logits_are_those_of_the_papers(name):
    model = TRANSFORMERS[name]
    ids = PADDED if model.pooled else IDS
    params = weights(model, ids)
    found, _ = jax.jit(model.apply)(Variables(params), ids)
    assert found.dtype == jnp.float32
    close(found, [logits for logits, _ in expected_rows(model, params, ids)])


@pytest.mark.parametrize("name", ["grouped queries", "not causal", "n-grams"])
def test_logits_of_documents_in_one_row_are_those_of_the_papers_with_a_mask(name):
    model = TRANSFORMERS[name]
    params = weights(model, IDS)
    found, _ = jax.jit(model.apply)(Variables(params), IDS, segments_BL=SEGMENTS)
    close(found, [logits for logits, _ in expected_rows(model, params, IDS, SEGMENTS)])


@pytest.mark.parametrize("name", ["experts", "shared experts"])
def test_auxiliary_losses_of_every_row_are_those_of_the_papers(name):
    model = TRANSFORMERS[name]
    config = model.blocks.experts
    params = weights(model, IDS)
    _, extras = jax.jit(model.apply)(Variables(params), IDS)
    found = extras.aux_losses
    rows = expected_rows(model, params, IDS)
    expected = [reference.balance_and_z(routed, config.top_k) for _, routed in rows]
    close(found["balance"] / config.balance, [balance for balance, _ in expected])
    close(found["router_z"] / config.z, [z for _, z in expected])


def test_an_expert_that_is_full_leaves_out_the_later_positions():
    model = Transformer(vocab=20, blocks=BLOCKS(layers=1, experts=Experts(count=4, top_k=2, capacity=0.5)))
    params = weights(model, IDS)
    found, _ = jax.jit(model.apply)(Variables(params), IDS)
    rooms = {"all": np.inf, "few": 3}  # ⌈0.5 · 9 positions · 2 chosen / 4 experts⌉
    expected = {name: [row[0] for row in expected_rows(model, params, IDS, room=n)] for name, n in rooms.items()}
    close(found, expected["few"])
    assert np.abs(np.subtract(expected["few"], expected["all"])).max() > 0.01  # some really were left out


def test_the_epsilon_of_norms_is_a_millionth_of_the_mean_square():
    model = TRANSFORMERS["untied"]
    params = weights(model, IDS)
    params["embedding"]["table"] = params["embedding"]["table"] * 1e-3  # mean squares of a millionth go into norms
    found, _ = jax.jit(model.apply)(Variables(params), IDS)
    close(found, [logits for logits, _ in expected_rows(model, params, IDS)])


def test_pairs_are_turned_as_in_the_paper_up_to_the_order_of_dims():
    """Equation 34 of Su et al. 2021 pairs neighbours (2k, 2k + 1), as one complex number each; here k and k + K/2."""
    x_LHK = RNG.normal(size=(7, 2, 8))
    neighbours = x_LHK.reshape(7, 2, 4, 2)
    angle = np.arange(7)[:, None] * np.array([1, 0.1, 0.01, 0.001])  # 10000^(-2k/8)
    turned = (neighbours[..., 0] + 1j * neighbours[..., 1]) * np.exp(1j * angle)[:, None]
    apart = np.concatenate([neighbours[..., 0], neighbours[..., 1]], -1)
    found = rotate(jnp.asarray(apart, jnp.float32)[None], None)[0]
    close(found, np.concatenate([turned.real, turned.imag], -1))
    close(reference.rotary(apart), np.concatenate([turned.real, turned.imag], -1))


@pytest.mark.parametrize(("patch", "kv_heads"), [(2, None), (1, 2)])
def test_logits_of_images_are_those_of_the_papers(patch, kv_heads):
    model = ViT(outputs=3, patch=patch, blocks=BLOCKS(kv_heads=kv_heads))
    params = weights(model, IMAGES)
    params["positions"] = params["positions"] * 20  # they start so small that they would hardly matter
    found, _ = jax.jit(model.apply)(Variables(params), IMAGES)
    close(found, [reference.vit(wide(params), image, 4, patch) for image in IMAGES.astype(np.float64)])


TEXTS = ("Adorei o filme, não é?", "it's   a DOG's life", "x", "", "one two three four five six seven")


@pytest.mark.parametrize("order", [1, 2, 3])
def test_logits_of_texts_are_those_of_a_bag_of_hashed_ngrams(order):
    model = NGrams(outputs=3, order=order, buckets=64, words=6, width=8)
    raw = np.stack([np.frombuffer(text.encode()[:36].ljust(36, b"\0"), np.uint8) for text in TEXTS])
    params = weights(model, raw)
    found, _ = jax.jit(model.apply)(Variables(params), raw)
    close(found, [reference.ngrams(wide(params), bytes(row), order, words=6) for row in raw])

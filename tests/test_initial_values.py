"""The variance that every kind of parameter starts with, by its formula.

A sample of n entries gives a variance to a relative standard error of √(2/n) at most: each matrix here has 16,384
entries or more, so that 5 % are more than four of them.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtrain.models import Blocks, Experts, Model, NGrams, Precision, Transformer, ViT

D, M, N, V, H, G = 128, 192, 3, 256, 4, 4
PARAMS = pytest.mark.parametrize("params", ["float32", "bfloat16"])


def initial(model: Model, inputs: Any) -> dict[str, np.ndarray]:
    """The parameters by path, as f64, of one seed."""
    named = jax.jit(lambda: model.init(jax.random.key(3), inputs))()
    leaves = jax.tree_util.tree_leaves_with_path(named.params, is_leaf=lambda leaf: hasattr(leaf, "axes"))
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf.value, np.float64)
        for path, leaf in leaves
    }


def check(matrix: np.ndarray, variance: float) -> None:
    """One matrix: its variance, its mean, the mean of each of its rows; and that the numbers are not just a few."""
    assert matrix.size >= 2**14
    assert len(np.unique(matrix)) > 1000
    assert matrix.var() == pytest.approx(variance, rel=0.05)
    assert abs(matrix.mean()) < 4.5 * math.sqrt(variance / matrix.size)
    assert np.abs(matrix.mean(-1)).max() < 5 * math.sqrt(variance / matrix.shape[-1])


def check_each(stacked: np.ndarray, variance: float) -> None:
    """Every matrix of a stack by itself; and none is another's copy."""
    matrices = stacked.reshape(-1, *stacked.shape[-2:])
    for matrix in matrices:
        check(matrix, variance)
    flat = matrices.reshape(len(matrices), -1)
    apart = np.corrcoef(flat) - np.eye(len(flat)) if len(flat) > 1 else np.zeros(1)
    assert np.abs(apart).max() < 5 / math.sqrt(flat.shape[1])


def cut_at_two_deviations(matrix: np.ndarray, variance: float) -> bool:
    """Whether the largest entry is that of a normal distribution cut at ±2 and then scaled to this variance."""
    # The variance of a standard normal that is cut at ±2 is 1 - 2·2·φ(2) / (2·Φ(2) - 1).
    cut = 1 - 4 * math.exp(-2) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(2))
    most = 2 * math.sqrt(variance / cut)
    return bool(0.97 * most < np.abs(matrix).max() <= most * 1.004)


@PARAMS
def test_a_transformers_parameters_start_with_the_variance_of_their_formulas(params):
    blocks = Blocks(width=D, layers=N, heads=H, kv_heads=G, mlp=M, precision=Precision(params=params))
    model = Transformer(vocab=V, outputs=V, tied=False, blocks=blocks)
    found = initial(model, jnp.zeros((1, 4), jnp.int32))
    kernel = 1 / D  # one over fan-in (LeCun et al. 1998), so that outputs have the variance of inputs
    residual = 1 / (2 * N)  # over the number of layers that add to the residual stream (Radford et al. 2019)
    block = "blocks/block"
    expected = {
        "embedding/table": 1 / D,  # times √D on its way in: entries of variance 1
        f"{block}/query/kernel": kernel,
        f"{block}/key/kernel": kernel,
        f"{block}/value/kernel": kernel,
        f"{block}/attention_out/kernel": kernel * residual,
        f"{block}/gate/kernel": kernel,
        f"{block}/up/kernel": kernel,
        f"{block}/down/kernel": residual / M,
        "head/kernel": kernel,
    }
    norms = {f"{block}/norm_attention/scale": (N, D), f"{block}/norm_mlp/scale": (N, D), "norm/scale": (D,)}
    assert set(found) == {*expected, *norms}
    for name, variance in expected.items():
        check_each(found[name], variance)
        assert cut_at_two_deviations(found[name], variance) == ("kernel" in name), name
    for name, shape in norms.items():
        np.testing.assert_array_equal(found[name], np.ones(shape))


@PARAMS
def test_every_expert_starts_like_a_feed_forward_layer_of_its_own(params):
    E, W, shared = 4, 160, 2
    experts = Experts(count=E, top_k=2, shared=shared, width=W)
    precision = Precision(params=params)
    model = Transformer(vocab=V, blocks=Blocks(width=D, layers=N, heads=H, mlp=M, experts=experts, precision=precision))
    found = initial(model, jnp.zeros((1, 4), jnp.int32))
    own = {name.rpartition("experts/")[2]: value for name, value in found.items() if "/experts/" in name}
    expected = {
        "gate/kernel": ((N, E, D, W), 1 / D),
        "up/kernel": ((N, E, D, W), 1 / D),
        "down/kernel": ((N, E, W, D), 1 / (2 * N * W)),
        "shared_gate/kernel": ((N, D, shared * W), 1 / D),
        "shared_up/kernel": ((N, D, shared * W), 1 / D),
        "shared_down/kernel": ((N, shared * W, D), 1 / (2 * N * shared * W)),
    }
    assert set(own) == {*expected, "router/kernel"}
    for name, (shape, variance) in expected.items():
        assert own[name].shape == shape
        check_each(own[name], variance)


def test_embeddings_of_n_grams_start_at_zero_so_that_those_never_seen_add_nothing():
    model = Transformer(vocab=2, blocks=Blocks(width=D, layers=1, heads=1, mlp=2), ngrams=(2,), buckets=8)
    found = initial(model, jnp.zeros((1, 4), jnp.int32))
    np.testing.assert_array_equal(found["ngrams/table"], np.zeros((8, D)))


@pytest.mark.slow
def test_a_router_starts_with_a_variance_of_one_over_fan_in():
    model = Transformer(vocab=2, blocks=Blocks(width=D, layers=1, heads=1, mlp=2, experts=Experts(count=128, width=2)))
    found = initial(model, jnp.zeros((1, 4), jnp.int32))
    check_each(found["blocks/block/experts/router/kernel"], 1 / D)


def test_rounds_of_a_pipeline_start_like_all_other_layers():
    model = Transformer(vocab=2, blocks=Blocks(width=D, layers=4, heads=4, mlp=M, rounds=2))
    found = initial(model, jnp.zeros((1, 4), jnp.int32))
    assert found["blocks/block/down/kernel"].shape == (2, 2, M, D)
    check_each(found["blocks/block/down/kernel"], 1 / (2 * 4 * M))


@PARAMS
def test_a_vits_patches_and_positions_start_with_the_variance_of_their_formulas(params):
    model = ViT(
        outputs=128, patch=8, blocks=Blocks(width=D, layers=1, heads=4, mlp=2, precision=Precision(params=params))
    )
    found = initial(model, jnp.zeros((1, 96, 96, 3)))
    check(found["patches/kernel"], 1 / (8 * 8 * 3))
    assert found["positions"].shape == (144, D)
    check(found["positions"], 0.02**2)
    check(found["head/kernel"], 1 / D)
    np.testing.assert_array_equal(found["norm/scale"], np.ones(D))


@PARAMS
def test_the_table_of_ngrams_starts_with_rows_of_length_one(params):
    model = NGrams(outputs=128, buckets=256, width=D, precision=Precision(params=params))
    found = initial(model, jnp.zeros((1, 8), jnp.uint8))
    check(found["table/table"], 1 / D)
    check(found["head/kernel"], 1 / D)

"""The branches that models take on accelerators, run on a CPU by a scope that names their platform, against float64.

Not run here: NVIDIA's fused attention itself, which needs the card; what it is given is.
"""

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from jax.extend.core import jaxprs_in_params
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from test_attention import by_formula, computed, documents, normal
from test_reference import weights, wide

from jaxtrain import ConfigError, Layout
from jaxtrain.models import Blocks, Experts, Precision, Transformer
from jaxtrain.models.attention import attention, choose
from jaxtrain.models.base import PREDICTION
from jaxtrain.models.layers import dot
from jaxtrain.models.ring import zigzag
from jaxtrain.sharding.constraints import scope, target_platform
from jaxtrain.tasks import LanguageModel, Variables

ROUGH = 0.02
"""bf16 has 8 bits, so one rounding is wrong by 0.4 % at most, and a few of them after another by this."""


def on(name: str, function: Callable[..., Any], *arrays: Any) -> Any:
    """What a function gives, jitted for a platform. The function must be a new one: jit keeps traces by function."""
    layout = Layout()
    with scope(layout, layout.abstract_mesh(1), platform=name):
        return jax.jit(lambda *arrays: function(*arrays))(*arrays)


def distance(found: Any, expected: Any) -> float:
    """The norm of the difference over the norm of what is expected."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def operands(name: str, function: Callable[..., Any], *arrays: Any) -> set[tuple[str, str]]:
    """The kinds of matmuls in a program for a platform, and the dtypes that go into each."""

    def inside(jaxpr: Any) -> Iterator[tuple[str, str]]:
        for eqn in jaxpr.eqns:
            if "dot_general" in eqn.primitive.name:
                yield from ((eqn.primitive.name, operand.aval.dtype.name) for operand in eqn.invars[:2])
            for inner in jaxprs_in_params(eqn.params):
                yield from inside(inner)

    return set(inside(jax.make_jaxpr(lambda *arrays: on(name, function, *arrays))(*arrays).jaxpr))


def test_a_scope_names_the_platform_with_devices_and_without(monkeypatch):
    layout = Layout()
    for mesh in (layout.make_mesh(jax.devices()[:1]), layout.abstract_mesh(1)):
        with scope(layout, mesh, platform="tpu"):
            assert target_platform() == "tpu"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with scope(layout, layout.make_mesh(jax.devices()[:1])):
        assert target_platform() == "cpu"
    with scope(layout, layout.abstract_mesh(1)):
        assert target_platform() == "gpu"
    assert target_platform() == "gpu"


@pytest.mark.parametrize(
    ("name", "causal", "dtype", "chosen"),
    [
        ("cpu", True, "float32", "blocks"),
        ("cpu", False, "float32", "dense"),
        ("tpu", True, "float32", "dense"),
        ("tpu", True, "bfloat16", "dense"),
        ("tpu", False, "bfloat16", "dense"),
        ("gpu", True, "float32", "dense"),
        ("gpu", True, "bfloat16", "cudnn"),
        ("gpu", False, "bfloat16", "cudnn"),
    ],
)
def test_every_platform_has_its_own_attention(name, causal, dtype, chosen):
    layout = Layout()
    with scope(layout, layout.abstract_mesh(1), platform=name):
        assert choose("auto", causal, jnp.dtype(dtype)) == chosen
        if (name, dtype) != ("gpu", "bfloat16"):
            with pytest.raises(ConfigError, match=f"'cudnn' needs a GPU and bfloat16, not {dtype} on a {name}"):
                choose("cudnn", causal, jnp.dtype(dtype))
    ring = Layout({"context": 2})
    with scope(ring, ring.abstract_mesh(2), platform=name):
        assert choose("auto", causal, jnp.dtype(dtype)) == ("ring" if causal else chosen)


def product(compute: Literal["float32", "bfloat16"]) -> tuple[Callable[..., Any], list[np.ndarray], list[np.ndarray]]:
    """A matmul and its gradients, what goes in, and what float64 gives."""
    rng = np.random.default_rng(0)
    x, kernel, g = (rng.normal(size=shape).astype(np.float32) for shape in ((2, 5, 64), (64, 32), (2, 5, 32)))

    def both(x: jax.Array, kernel: jax.Array, g: jax.Array) -> Any:
        out, pull = jax.vjp(lambda x, kernel: dot(x, kernel, Precision(compute=compute)), x, kernel)
        return (out, *pull(g.astype(out.dtype)))

    wide_x, wide_kernel, wide_g = (a.astype(np.float64) for a in (x, kernel, g))
    expected = [wide_x @ wide_kernel, wide_g @ wide_kernel.T, np.einsum("bld,blf->df", wide_x, wide_g)]
    return both, [x, kernel, g], expected


@pytest.mark.parametrize(("name", "out"), [("cpu", "float32"), ("tpu", "bfloat16"), ("gpu", "bfloat16")])
def test_a_matmul_is_computed_in_bf16_and_returned_in_the_dtype_of_activations(name, out):
    both, arrays, expected = product("bfloat16")
    found = on(name, both, *arrays)
    assert [x.dtype for x in found] == [out, "float32", "float32"]
    for one, other in zip(found, expected, strict=True):
        assert 1e-4 < distance(one, other) < ROUGH  # and it really was computed in bf16
    assert {dtype for _, dtype in operands(name, both, *arrays)} == {"bfloat16"}


@pytest.mark.parametrize("name", ["cpu", "tpu", "gpu"])
def test_a_matmul_in_f32_is_that_of_float64(name):
    both, arrays, expected = product("float32")
    for one, other in zip(on(name, both, *arrays), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("split", [False, True], ids=["one", "documents"])
@pytest.mark.parametrize(
    ("name", "implementation", "causal"),
    [
        ("tpu", "dense", True),
        ("tpu", "dense", False),
        ("tpu", "blocks", True),
        ("gpu", "dense", True),
        ("gpu", "cudnn", True),
        ("gpu", "cudnn", False),
    ],
)
def test_attention_in_bf16_is_that_of_float64(name, implementation, causal, split, monkeypatch):
    fused = jax.nn.dot_product_attention

    def by_xla(*arrays: Any, implementation: str, **more: Any) -> jax.Array:
        assert implementation == "cudnn"
        return fused(*arrays, implementation="xla", **more)

    monkeypatch.setattr(jax.nn, "dot_product_attention", by_xla)
    arrays = tuple(np.asarray(jnp.asarray(x, jnp.bfloat16)) for x in normal(130))
    segments = documents(130) if split else None

    given = None if segments is None else jnp.asarray(segments)
    attend = functools.partial(attention, causal=causal, segments_BL=given, implementation=implementation)
    layout = Layout()
    with scope(layout, layout.abstract_mesh(1), platform=name):
        found = computed(attend, arrays)
    assert {x.dtype.name for x in found} == {"bfloat16"}
    for one, other in zip(found, by_formula(arrays, causal, segments), strict=True):
        assert 1e-4 < distance(one, other) < ROUGH


@pytest.mark.parametrize("split", [False, True], ids=["one", "documents"])
def test_a_ring_in_bf16_is_that_of_float64(split):
    layout = Layout({"context": 4})
    mesh = layout.make_mesh(jax.devices()[:4])
    arrays = tuple(np.asarray(jnp.asarray(x, jnp.bfloat16)) for x in normal(64))
    arrays = (arrays[0] * 16, *arrays[1:])  # scores of 50 and more, which bf16 would round by 0.1
    segments = documents(64) if split else None
    with scope(layout, mesh, platform="tpu"):
        order = zigzag(64)
        placed = jax.device_put([x[:, order] for x in arrays], NamedSharding(mesh, P()))
        of_ring = None if segments is None else jnp.asarray(segments[:, order])
        found = computed(lambda q, k, v: attention(q, k, v, True, of_ring), placed)
    assert {x.dtype.name for x in found} == {"bfloat16"}
    found = [np.asarray(x, np.float32)[:, np.argsort(order)] for x in found]
    out, *grads = map(distance, found, by_formula(arrays, True, segments))
    assert 1e-4 < out < ROUGH / 4  # of f32 scores the output is but rounded
    assert all(1e-4 < error < ROUGH for error in grads)


TINY = functools.partial(Blocks, width=8, layers=2, heads=2, kv_heads=1, mlp=8)
MODELS = {
    "feed-forward": TINY(),
    "experts": TINY(experts=Experts(count=3, top_k=2, shared=1, width=4, balance=0.1, z=0.01)),
}
IDS = np.random.default_rng(3).integers(1, 8, (2, 7), np.int32)


@functools.cache
def expected(name: str) -> tuple[Any, complex, Any]:
    """The parameters of a model, its loss and the gradient of that, in float64."""
    blocks = MODELS[name]
    config = blocks.experts
    params = weights(Transformer(vocab=8, blocks=blocks), IDS[:, :-1])

    def loss(params: Any) -> complex:
        total = 0
        for row in IDS:
            logits, routed = reference.transformer(params, row[:-1], blocks.heads, chosen=config.top_k)
            balance, z = reference.balance_and_z(routed, config.top_k)
            total = total + reference.cross_entropy(logits, row[1:]).mean() + config.balance * balance + config.z * z
        return total / len(IDS)

    for row in IDS if config.count else ():
        for scores in reference.transformer(wide(params), row[:-1], blocks.heads, chosen=config.top_k)[1]:
            ordered = np.sort(scores)[:, ::-1]
            gap = (ordered[:, config.top_k - 1] - ordered[:, config.top_k]).min()
            assert gap > 0.02, gap  # else what is rounded to bf16 might choose others
    return params, loss(wide(params)), reference.gradient(loss, wide(params))


def with_gradient(name: str, compute: Literal["float32", "bfloat16"]) -> Callable[[Any], Any]:
    """The loss of a model and its gradient, by its parameters."""
    blocks = replace(MODELS[name], precision=Precision(compute=compute))
    task = LanguageModel(model=Transformer(vocab=8, blocks=blocks))
    batch = {"tokens": IDS, "mask": np.ones(len(IDS), bool)}

    def loss(params: Any) -> jax.Array:
        mean = task.loss(Variables(params), batch, PREDICTION).mean
        return mean.total / mean.weight

    return jax.value_and_grad(loss)


@pytest.mark.parametrize(("name", "on_platform"), [*itertools.product(MODELS, ["cpu", "tpu"]), ("feed-forward", "gpu")])
@pytest.mark.slow
def test_loss_and_gradient_in_f32_are_those_of_float64(name, on_platform):
    params, loss, grads = expected(name)
    value, found = on(on_platform, with_gradient(name, "float32"), params)
    np.testing.assert_allclose(value, loss.real, rtol=1e-6)
    reference.mapped(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5), found, grads)


@pytest.mark.parametrize("on_platform", ["cpu", "tpu"])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.slow
def test_loss_and_gradient_in_bf16_are_nearly_those_of_float64(name, on_platform):
    params, loss, grads = expected(name)
    value, found = on(on_platform, with_gradient(name, "bfloat16"), params)
    assert value == pytest.approx(loss.real, rel=ROUGH)
    for error in jax.tree.leaves(reference.mapped(distance, found, grads)):
        assert 1e-4 < error < ROUGH


@pytest.mark.parametrize(
    ("name", "more"),
    [("feed-forward", []), ("experts", [("ragged_dot_general", "bfloat16"), ("dot_general", "float32")])],
)
def test_on_an_accelerator_all_matmuls_but_the_routers_are_of_bf16(name, more):
    """Forwards and backwards. (On a CPU attention and experts are computed in f32.)"""
    found = operands("tpu", with_gradient(name, "bfloat16"), expected(name)[0])
    assert found == {("dot_general", "bfloat16"), *more}


@pytest.mark.parametrize(("name", "dtype"), [("cpu", "float32"), ("tpu", "bfloat16"), ("gpu", "bfloat16")])
def test_activations_between_matmuls_are_in_bf16_on_an_accelerator_alone(name, dtype):
    layout = Layout()
    with scope(layout, layout.abstract_mesh(1), platform=name):
        assert Precision(compute="bfloat16").activations == dtype
        assert Precision().activations == "float32"

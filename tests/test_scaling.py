"""Parts of a model that use collectives (experts, ring attention, pipelines), each against a plain computation."""

import math
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_layouts
from conftest import FAST
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxtrain import ZERO1, ConfigError, Layout, Program
from jaxtrain.models import Blocks, Experts, Transformer
from jaxtrain.models.attention import attention
from jaxtrain.models.base import PREDICTION
from jaxtrain.models.ring import ring_attention, unzigzag, zigzag
from jaxtrain.models.transformer import Block, TransformerModule
from jaxtrain.sharding.constraints import scope
from jaxtrain.sharding.layout import plain
from jaxtrain.sharding.stages import bubble
from jaxtrain.tasks import LanguageModel, Variables

L, E, D = 16, 8, 32


def within(layout: Layout, function, *arrays):
    """The result of a function, compiled with a layout in scope."""
    mesh = layout.make_mesh(jax.devices()[: math.prod(layout.mesh.values())])
    arrays = jax.device_put(arrays, NamedSharding(mesh, P()))
    with scope(layout, mesh):
        return jax.jit(function).lower(*arrays).compile(compiler_options=FAST)(*arrays)


def moe(**experts) -> tuple[Transformer, Variables, jax.Array]:
    blocks = Blocks(width=D, layers=1, heads=2, mlp=64, experts=Experts(count=E, **experts))
    model = Transformer(vocab=64, blocks=blocks)
    ids = jax.random.randint(jax.random.key(1), (8, L), 0, 64)
    return model, plain(model.init(jax.random.key(0), ids)), ids


def layer(model: Transformer, variables: Variables, x_BLD: jax.Array):
    """The outputs and auxiliary losses of the first mixture-of-experts layer."""
    module = model.module(variables, jax.ShapeDtypeStruct((1, L), jnp.int32))
    assert isinstance(module, TransformerModule)
    structure, stacked = nnx.split(module.blocks.block)
    block = nnx.merge(structure, jax.tree.map(lambda leaf: leaf[0], stacked))
    assert isinstance(block, Block)
    return block.experts(x_BLD)


def by_hand(variables: Variables, x_BLD: jax.Array, top_k: int, capacity: int | None = None):
    """The weighted outputs of each token's top experts, in float64 numpy, one token at a time."""
    own = jax.tree.map(lambda leaf: np.asarray(leaf[0], np.float64), variables.params["blocks"]["block"]["experts"])
    outputs, inputs = np.zeros(x_BLD.shape), np.asarray(x_BLD, np.float64)
    logits = inputs @ own["router"]["kernel"]
    for row in range(len(inputs)):
        routed = np.zeros(E, int)
        for position, x in enumerate(inputs[row]):
            best = np.argsort(-logits[row, position])[:top_k]
            weights = np.exp(logits[row, position, best])
            for expert, weight in zip(best, weights / weights.sum(), strict=True):
                routed[expert] += 1
                if capacity is None or routed[expert] <= capacity:
                    gate = x @ own["gate"]["kernel"][expert]
                    hidden = gate / (1 + np.exp(-gate)) * (x @ own["up"]["kernel"][expert])
                    outputs[row, position] += weight * (hidden @ own["down"]["kernel"][expert])
    return outputs, logits


X = jax.random.normal(jax.random.key(2), (8, L, D))


@pytest.mark.parametrize(
    ("layout", "experts", "capacity"),
    [
        (Layout(), {}, None),
        (Layout({"expert": 4}), {}, None),
        (Layout({"data": 2, "expert": 2}), {"top_k": 3}, None),
        (Layout({"expert": 4}), {"capacity": 0.5}, 2),  # 0.5 · 16 tokens · top 2 / 8 experts
    ],
    ids=["one device", "expert", "data expert", "capacity"],
)
def test_a_token_gets_the_weighted_outputs_of_its_top_experts_within_their_capacity(layout, experts, capacity):
    model, variables, _ = moe(**experts)
    outputs, _ = within(layout, lambda variables, x: layer(model, variables, x), variables, X)
    expected, _ = by_hand(variables, X, model.blocks.experts.top_k, capacity)
    np.testing.assert_allclose(outputs, expected, atol=2e-6)
    if capacity is not None:
        assert (np.abs(expected).sum(-1) == 0).any()  # some tokens were dropped by both experts


@pytest.mark.slow
def test_the_auxiliary_losses_of_experts_are_those_of_the_papers():
    model, variables, _ = moe(balance=0.5, z=0.25)
    _, aux_losses = layer(model, variables, X)
    _, logits = by_hand(variables, X, 2)
    top = np.exp(logits - logits.max(-1, keepdims=True))
    probability = (top / top.sum(-1, keepdims=True)).mean(1)
    routed = np.stack([np.bincount(np.argsort(-row)[:, :2].ravel(), minlength=E) for row in logits]) / (2 * L)
    np.testing.assert_allclose(aux_losses["balance"], 0.5 * E * (routed * probability).sum(-1), rtol=1e-5)
    np.testing.assert_allclose(aux_losses["router_z"], 0.25 * (np.log(np.exp(logits).sum(-1)) ** 2).mean(1), rtol=1e-5)
    assert (np.asarray(aux_losses["balance"]) > 0.5).all()


@pytest.mark.slow
def test_auxiliary_losses_are_part_of_the_loss_and_metrics_of_their_own():
    model, variables, ids = moe()
    task = LanguageModel(model=model)
    batch = {"tokens": jnp.pad(ids, ((0, 0), (0, 1))), "mask": jnp.arange(8) < 5}
    found = task.loss(variables, batch, PREDICTION)
    loss, metrics = found.mean, found.metrics
    assert set(metrics) == {"accuracy", "main_loss", "balance", "router_z"}
    parts = [float(metrics[name]) for name in ("main_loss", "balance", "router_z")]
    assert float(loss) == pytest.approx(sum(parts), rel=1e-6)
    assert float(metrics["balance"]) > 0
    others = task.loss(variables, {**batch, "tokens": batch["tokens"].at[5:].set(0)}, PREDICTION).mean
    assert float(others) == pytest.approx(float(loss), rel=1e-6)  # rows that are masked add nothing


@pytest.mark.parametrize(
    "layout", [Layout({"context": 4}), Layout({"data": 2, "context": 2, "tensor": 2})], ids=["1", "3"]
)
@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.slow
def test_ring_attention_gives_the_output_and_the_gradients_of_dense_attention(layout, documents):
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v, g = (jax.random.normal(key, (2, L, H, 8)) for key, H in zip(keys, (4, 2, 2, 4), strict=True))
    segments = jnp.asarray([[0] * 5 + [1] * 11, [3] * 16]) if documents else None

    def plain(q, k, v):
        return (attention(q, k, v, True, segments, "dense") * g).sum()

    def ring(q, k, v):
        order = zigzag(L)
        own = None if segments is None else segments[:, order]
        mixed = ring_attention(q[:, order], k[:, order], v[:, order], own)
        return (unzigzag(mixed.reshape(2, L, -1)).reshape(mixed.shape) * g).sum()

    grads = within(layout, jax.value_and_grad(ring, argnums=(0, 1, 2)), q, k, v)
    expected = jax.value_and_grad(plain, argnums=(0, 1, 2))(q, k, v)
    for one, other in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=5e-6)


def test_under_a_causal_mask_every_device_of_a_ring_has_the_same_work():
    layout = Layout({"context": 4})
    with scope(layout, layout.abstract_mesh(4)):
        order = zigzag(64)
    assert sorted(order) == list(range(64))
    assert len({positions.sum() for positions in order.reshape(4, -1)}) == 1


def loops(jaxpr: Any) -> Iterator[tuple[int, int]]:
    """The length of every scan with a ppermute in its body, and how many there are in it."""
    for eqn in jaxpr.eqns:
        inner = [x for value in eqn.params.values() for x in (value if isinstance(value, tuple) else [value])]
        bodies = [x.jaxpr if hasattr(x, "jaxpr") else x for x in inner if hasattr(x, "eqns") or hasattr(x, "jaxpr")]
        if eqn.primitive.name == "scan":
            sent = sum(own.primitive.name == "ppermute" for body in bodies for own in body.eqns)
            yield from [(eqn.params["length"], sent)] if sent else []
        for body in bodies:
            yield from loops(body)


@pytest.mark.parametrize(("stages", "rounds", "count"), [(2, 1, 2), (2, 1, 8), (2, 2, 4), (4, 1, 4)])
def test_the_lowered_schedule_has_the_bubble_of_the_formula(stages, rounds, count):
    model = Transformer(vocab=64, blocks=Blocks(width=D, layers=4, heads=2, mlp=64, rounds=rounds))
    ids = jnp.zeros((8, L), jnp.int32)
    variables = jax.eval_shape(lambda: plain(model.init(jax.random.key(0), ids)))
    layout = Layout({"stage": stages})
    with scope(layout, layout.abstract_mesh(stages), microbatches=count):
        jaxpr = jax.make_jaxpr(jax.grad(lambda variables: model.apply(variables, ids)[0].sum()))(variables)
    found = list(loops(jaxpr.jaxpr))
    # One loop forward and one backward; each passes a microbatch on in every tick. A stage works in count · rounds
    # of the ticks.
    assert len(found) == 2
    for ticks, sent in found:
        assert sent == 1
        assert 1 - count * rounds / ticks == pytest.approx(bubble(stages, rounds, count))


def refused(name: str, layout: Layout, microbatches: int = 1) -> str:
    with pytest.raises(ConfigError) as error:
        Program(test_layouts.experiment(name, layout, microbatches)).lower()
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "layout", "microbatches", "words"),
    [
        ("lm", Layout({"stage": 8}), 8, ["'layers' has 2 entries", "stage=8"]),
        (
            "deep",
            Layout({"data": 2, "stage": 4}),
            2,
            ["microbatches: 2 is not a multiple of the 4 pipeline stages", "set it to 4"],
        ),
        (
            "deep",
            Layout({"data": 2, "stage": 4}),
            16,
            ["a batch of 16 cannot be cut into 16 equal microbatches", "2 groups"],
        ),
        ("lm", Layout({"expert": 8}), 1, ["'expert' = 8", "say data"]),
        ("ngrams", Layout({"stage": 8}), 8, ["'stage' = 8 splits layers"]),
        ("capacity", Layout({"data": 4, "context": 2}), 1, ["experts.capacity: 1.0", "context"]),
    ],
    ids=lambda value: " ".join(value.mesh) if isinstance(value, Layout) else None,
)
def test_what_does_not_fit_is_refused_and_named(name, layout, microbatches, words):
    said = refused(name, layout, microbatches)
    assert all(word in said for word in words), said


def test_an_evaluation_batch_that_cannot_be_cut_into_microbatches_is_refused_before_training():
    one = test_layouts.experiment("lm", Layout({"stage": 2}), 4)
    with pytest.raises(ConfigError, match=r"microbatches: evals.validation: a batch of 6 cannot be cut into 4 equal"):
        Program(replace(one, evals={"validation": replace(one.data, batch_size=6)}), jax.devices()[:2])


def test_experts_rings_and_rounds_that_do_not_divide_are_refused_and_named():
    layout = Layout({"expert": 3})
    with pytest.raises(ConfigError, match=r"experts/down/kernel: dim 'expert' has 8 entries, .*expert=3"):
        layout.specs(moe()[0].init(jax.random.key(0), moe()[2]).params, {"expert": 3})
    layout = Layout({"context": 5})
    with (
        scope(layout, layout.abstract_mesh(5)),
        pytest.raises(ConfigError, match="on context=5 cuts a sequence into 10 equal chunks, which a length of 16"),
    ):
        zigzag(L)
    with pytest.raises(ConfigError, match=r"experts.top_k: 9 must be from 1 to the count"):
        Experts(count=8, top_k=9)
    with pytest.raises(ConfigError, match="layers 4 must be a multiple of rounds 3"):
        Blocks(rounds=3)
    with pytest.raises(ConfigError, match="attention 'ring' needs a causal mask and a mesh axis that splits `length`"):
        attention(X[..., None], X[..., None], X[..., None], True, None, "ring")


def test_zero1_shards_the_optimizer_state_and_replicates_the_parameters():
    program = Program(test_layouts.experiment("lm", Layout({"data": 8}, optimizer_rules=ZERO1)))
    assert not any(any(leaf.sharding.spec) for leaf in jax.tree.leaves(program.state.params))
    kept = jax.tree_util.tree_leaves_with_path(program.state.opt_state)
    kernels = [leaf.sharding.spec for path, leaf in kept if "kernel" in str(path) or "table" in str(path)]
    assert len(kernels) == 2 * 8
    assert all("data" in spec for spec in kernels)
    with pytest.raises(
        ConfigError, match=r"layout.optimizer_rules: layout.rules has no dim named 'embd'; did you mean 'embed'\?"
    ):
        Layout({"data": 8}, optimizer_rules={"embd": "data"})


@pytest.mark.slow
def test_an_offloaded_optimizer_state_is_in_host_memory_after_a_step_too():
    program = Program(test_layouts.experiment("lm", Layout({"fsdp": 8}, offload=True)))
    step = program.lower().compile(compiler_options=FAST)
    batch = next(program.batches(program.experiment.data))
    state, _ = step(program.init(), batch)
    kinds = {leaf.sharding.memory_kind for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim}
    assert kinds == {"pinned_host"}
    assert {leaf.sharding.memory_kind for leaf in jax.tree.leaves(state.params)} == {"device"}


def slices(count: int, each: int) -> list:
    """Stand-ins for the devices of several slices, with the attributes that making a mesh reads."""
    return [
        SimpleNamespace(
            id=i,
            slice_index=i // each,
            process_index=i // each,
            platform="gpu",
            device_kind="none",
            addressable_memories=list,
        )
        for i in range(count * each)
    ]


@pytest.mark.parametrize(
    ("mesh", "across"),
    [
        ({"data": 2, "fsdp": 4}, {"data": 2, "fsdp": 1}),
        ({"data": 4, "fsdp": 2}, {"data": 2, "fsdp": 1}),
        ({"stage": 2, "data": 2, "tensor": 2}, {"stage": 2, "data": 1, "tensor": 1}),
    ],
    ids=str,
)
def test_the_outermost_axis_goes_across_slices_and_all_others_stay_within(mesh, across):
    layout = Layout(mesh)
    assert layout.across(mesh, 2) == across
    laid = layout.arranged(mesh, slices(2, 4))
    of = np.vectorize(lambda device: device.slice_index)(laid)
    axis = next(number for number, parts in enumerate(across.values()) if parts > 1)
    first, second = np.split(of, 2, axis=axis)
    assert (first == 0).all()
    assert (second == 1).all()


def test_slices_that_a_mesh_cannot_be_laid_over_are_named():
    with pytest.raises(ConfigError, match=r"on 3 slices.*multiple of 3"):
        Layout({"data": 2, "fsdp": 4}).across({"data": 2, "fsdp": 4}, 3)

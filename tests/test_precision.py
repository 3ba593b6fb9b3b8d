"""The dtypes that numbers are kept and computed in, also on accelerators: read off the jaxpr traced for them."""

import functools
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import test_program
import tiny
from jaxprs import dtypes, equations
from test_remat import arrays

from jaxtrain import Layout, Program, eval_step, init_state, train_step
from jaxtrain.base.flops import scan_sizes
from jaxtrain.models import Blocks, Experts, NGrams, Precision, Transformer, ViT
from jaxtrain.models.rope import rotate
from jaxtrain.optimizers import SGD, AdamW, ConstantRate, Lion, Muon, Optimizer, averaged, master_weights
from jaxtrain.sharding.constraints import scope
from jaxtrain.tasks import Classification, LanguageModel, Regression, Task

B, L, V, E = 4, 8, 20, 6
MASK = np.ones(B, bool)
TOKENS = {"tokens": np.ones((B, L + 1), np.int32), "mask": MASK}
TEXT = {"text": np.full((B, L), ord("a"), np.uint8), "label": np.zeros(B, np.int32), "mask": MASK}
IMAGES = {"image": np.ones((B, 4, 4, 1), np.float32), "label": np.zeros(B, np.int32), "mask": MASK}


def small(precision: Precision, **changes: Any) -> Blocks:
    return Blocks(width=16, layers=2, heads=2, mlp=48, attention="dense", precision=precision, **changes)


def classify(model: Any, inputs: str) -> Task:
    return Classification(model=model, inputs=inputs, classes=("a", "b"))


MODELS: dict[str, tuple[Callable[[Precision], Task], Mapping[str, np.ndarray]]] = {
    "decoder": (lambda p: LanguageModel(model=Transformer(vocab=V, blocks=small(p))), TOKENS),
    "untied": (lambda p: LanguageModel(model=Transformer(vocab=V, tied=False, blocks=small(p))), TOKENS),
    "experts": (
        lambda p: LanguageModel(model=Transformer(vocab=V, blocks=small(p, experts=Experts(count=E, shared=1)))),
        TOKENS,
    ),
    "encoder": (
        lambda p: classify(
            Transformer(vocab=256, outputs=2, tied=False, causal=False, pooled=True, blocks=small(p)), "text"
        ),
        TEXT,
    ),
    "vit": (lambda p: classify(ViT(outputs=2, blocks=small(p)), "image"), IMAGES),
    "ngrams": (lambda p: classify(NGrams(buckets=32, words=4, width=16, precision=p), "text"), TEXT),
}


@functools.cache
def traced(name: str, compute: Literal["float32", "bfloat16"], platform: str, evaluates: bool = False) -> list[Any]:
    """The equations of a model's step, as traced for this platform: without a layout in scope, for the one here."""
    make, batch = MODELS[name]
    task, optimizer = make(Precision(compute=compute)), SGD(momentum=0.0).build(1)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(jax, "default_backend", lambda: platform)
        state = jax.eval_shape(lambda: init_state(task, optimizer, jax.random.key(0), batch))
        if evaluates:
            return equations(lambda state: eval_step(task, state, batch), state)
        return equations(lambda state: train_step(task, optimizer, state, batch), state)


def matmuls(found: list[Any]) -> list[tuple[set[str], set[int]]]:
    """The floating-point dtypes that every matmul reads, and the last dims of its operands."""
    kinds = ("dot_general", "ragged_dot_general", "ragged_dot")
    return [
        (dtypes(each), {operand.aval.shape[-1] for operand in each.invars if "float" in str(operand.aval.dtype)})
        for each in found
        if each.primitive.name in kinds
    ]


ACCELERATED = [*((name, "tpu") for name in MODELS), ("decoder", "gpu"), ("experts", "gpu")]


@pytest.mark.parametrize(("name", "platform"), ACCELERATED)
@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
@pytest.mark.slow
def test_on_accelerators_every_matmul_but_the_routers_is_in_the_dtype_of_the_config(name, platform, compute):
    found = matmuls(traced(name, compute, platform))
    routers = [read for read, last in found if E in last]
    assert routers == ([{"float32"}] * 3 if name == "experts" else [])  # the scores and two derivatives
    others = [read for read, last in found if E not in last]
    assert len(others) >= (3 if name == "ngrams" else 27)
    assert all(read == {compute} for read in others)


@pytest.mark.parametrize(
    ("name", "weights", "others"),
    [
        ("decoder", 8, 2),  # seven in a block, and the scores; queries with keys, and with values
        ("untied", 8, 2),
        ("experts", 8, 6),  # the shared expert's in place of the feed-forward layer's; the router's, the experts'
        ("encoder", 8, 2),
        ("vit", 9, 2),  # the patches
        ("ngrams", 1, 0),
    ],
)
def test_on_a_cpu_matmuls_with_weights_are_in_bf16_and_all_others_in_f32(name, weights, others):
    for evaluates, times in ((False, 3), (True, 1)):  # without the two derivatives
        read = Counter("".join(kinds) for kinds, _ in matmuls(traced(name, "bfloat16", "cpu", evaluates)))
        assert read == Counter({"bfloat16": times * weights, "float32": times * others})


ISLANDS = ("exp", "log", "rsqrt", "reduce_max", "argmax", "top_k", "div", "sqrt")
"""What softmax, logarithms, norms, routers and means are made of."""


@pytest.mark.parametrize(("name", "platform"), ACCELERATED)
def test_norms_softmax_scores_loss_and_router_are_in_f32_among_activations_in_bf16(name, platform):
    found = traced(name, "bfloat16", platform)
    read = {
        kind: {dtype for each in found if each.primitive.name == kind for dtype in dtypes(each)} for kind in ISLANDS
    }
    assert {kind: kinds for kind, kinds in read.items() if kinds - {"float32"}} == {}
    assert read["exp"] == read["log"] == read["reduce_max"] == {"float32"}
    assert read["rsqrt"] == (set() if name == "ngrams" else {"float32"})
    assert read["top_k"] == ({"float32"} if name == "experts" else set())
    # Between them activations are in bf16: those that the gated layers' sigmoid reads.
    gates = {dtype for each in found if each.primitive.name == "logistic" for dtype in dtypes(each)}
    assert gates == (set() if name == "ngrams" else {"bfloat16"})


@pytest.mark.parametrize("name", [name for name in MODELS if name != "ngrams"])
@pytest.mark.parametrize(("platform", "dtype"), [("tpu", "bfloat16"), ("cpu", "float32")])
def test_the_residual_stream_is_in_bf16_on_accelerators_and_in_f32_on_a_cpu(name, platform, dtype):
    found = traced(name, "bfloat16", platform, evaluates=True)
    blocks = next(each for each in found if each.primitive.name == "scan" and each.params["length"] == 2)
    assert [str(x.aval.dtype) for x in blocks.outvars[: scan_sizes(blocks.params)[1]]] == [dtype]


def test_positions_turn_queries_and_keys_in_f32():
    x_BLHK = jax.ShapeDtypeStruct((B, L, 2, 8), jnp.bfloat16)
    found = equations(lambda x_BLHK: rotate(x_BLHK, None), x_BLHK)
    read = [dtypes(each) for each in found if each.primitive.name in ("mul", "add", "sub")]
    assert read == [{"float32"}] * 6


def test_a_ring_of_devices_adds_up_its_softmax_in_f32(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    blocks = replace(small(Precision(compute="bfloat16")), attention="ring")
    model, layout = Transformer(vocab=V, blocks=blocks), Layout({"context": 2})
    ids = jnp.ones((B, L), jnp.int32)
    variables = jax.eval_shape(lambda: arrays(model.init(jax.random.key(0), ids)))
    with scope(layout, layout.abstract_mesh(2)):
        found = equations(jax.grad(lambda variables: model.apply(variables, ids)[0].sum()), variables)
    read = {dtype for each in found if each.primitive.name in ISLANDS for dtype in dtypes(each)}
    assert read == {"float32"}
    assert all(kinds == {"bfloat16"} for kinds, _ in matmuls(found))


@pytest.mark.parametrize("name", MODELS)
def test_parameters_in_bf16_have_gradients_moments_copies_and_an_average_in_f32(name):
    make, batch = MODELS[name]
    task, gradients = make(Precision(params="bfloat16")), []

    def seen(updates: Any, params: Any) -> Any:
        gradients.extend(jax.tree.leaves(updates))
        return updates

    optimizer = optax.chain(optax.stateless(seen), master_weights(AdamW(ema=0.9).build(1)))
    state = jax.eval_shape(lambda: init_state(task, optimizer, jax.random.key(0), batch))
    after, metrics = jax.eval_shape(lambda state: train_step(task, optimizer, state, batch), state)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in gradients} == {jnp.dtype("float32")}
    copies = jax.tree.leaves(optax.tree.get(state, "master"))
    assert [leaf.shape for leaf in copies] == [leaf.shape for leaf in jax.tree.leaves(state.params)]
    assert {leaf.dtype for leaf in copies} == {jnp.dtype("float32")}
    moments = [*jax.tree.leaves(optax.tree.get(state, "mu")), *jax.tree.leaves(optax.tree.get(state, "nu"))]
    assert {leaf.dtype for leaf in moments} == {jnp.dtype("float32")}
    average = jax.tree.leaves(averaged(state.params, state.opt_state))
    assert {leaf.dtype for leaf in average} == {jnp.dtype("float32")}
    assert jax.tree.map(lambda leaf: leaf.dtype, after) == jax.tree.map(lambda leaf: leaf.dtype, state)
    assert {leaf.dtype for leaf in jax.tree.leaves(metrics)} == {jnp.dtype("float32")}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "layout", "microbatches"),
    [
        (AdamW(schedule=ConstantRate(peak=1e-2), ema=0.9), Layout(), 1),
        pytest.param(Muon(schedule=ConstantRate(peak=1e-2), ema=0.9), Layout({"fsdp": 2}), 1, marks=pytest.mark.slow),
        (Lion(schedule=ConstantRate(peak=3e-3)), Layout({"data": 2}), 2),
    ],
    ids=["AdamW", "Muon", "Lion"],
)
def test_a_model_with_parameters_in_bf16_trains(optimizer: Optimizer, layout: Layout, microbatches: int):
    one = tiny.main()
    model = one.task.model
    assert isinstance(model, Transformer)
    model = replace(model, blocks=replace(model.blocks, precision=Precision(params="bfloat16")))
    experiment = replace(
        one, task=replace(one.task, model=model), optimizer=optimizer, layout=layout, microbatches=microbatches
    )
    program = Program(experiment, jax.devices()[: 2 if layout.mesh else 1])
    state, losses = program.init(), []
    batches = program.batches(experiment.data)
    for batch in islice(batches, 12):
        state, metrics = program.step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0] - 1
    assert float(program.evaluate(state, next(batches))["loss"]) < losses[0]
    batches.close()
    assert {leaf.dtype for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim} == {jnp.dtype("float32")}
    dtypes_after = [leaf.dtype for leaf in jax.tree.leaves(state)]
    assert dtypes_after == [leaf.dtype for leaf in jax.tree.leaves(program.state)]


def test_gradients_in_bf16_are_divided_by_the_exact_weight_of_the_batch():
    rows = 257  # which no number of bf16 is: it would be 256
    task = Regression(model=test_program.Line(dtype="bfloat16"), inputs="x")
    x_BF = np.ones((rows, 1), np.float32)
    x_BF[-1] = 0
    batch = {"x": x_BF, "target": -np.ones(rows, np.float32), "mask": np.ones(rows, bool)}
    optimizer = SGD(schedule=ConstantRate(peak=1.0), clip=None, momentum=0.0).build(1)
    state = init_state(task, optimizer, jax.random.key(0), batch)
    state = replace(state, params=jax.tree.map(jnp.zeros_like, state.params))
    after, _ = train_step(task, optimizer, state, batch)
    # 256 rows have the gradient 2 · (0 + 1) · 1; -512/257 in bf16 is -1.9921875, where -512/256 would be -2.
    assert after.params["kernel"].dtype == jnp.bfloat16
    assert float(after.params["kernel"][0, 0]) == -1.9921875


def test_an_average_of_parameters_in_bf16_moves_by_less_than_their_rounding():
    params = {"x": jnp.ones(1, jnp.bfloat16)}
    optimizer = SGD(schedule=ConstantRate(peak=1.0), clip=None, momentum=0.0, ema=0.9).build(1)
    state = optimizer.init(params)
    _, state = optimizer.update({"x": jnp.full(1, 2.0**-8, jnp.bfloat16)}, state, params)
    # The decay is 1/10 at first; the next smaller number than 1 in bf16 is 1 - 2⁻⁸.
    average = averaged(params, state)["x"]
    assert float(average[0]) == pytest.approx(1 - 0.9 * 2**-8, rel=1e-6)

"""The recurrent model against a loop over time in float64 numpy, on one device and on meshes."""

import functools
import math
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from conftest import FAST
from jaxprs import equations

from jaxtrain import MEGATRON, ConfigError, Experiment, Layout, Program
from jaxtrain.analysis.hlo import IGNORED, collectives, counted
from jaxtrain.analysis.textbook import textbook
from jaxtrain.data import Arrays, Pipeline
from jaxtrain.models import Precision, Recurrent
from jaxtrain.models.recurrent import linear_recurrence
from jaxtrain.models.sizes import Activations
from jaxtrain.models.variables import Context, Variables
from jaxtrain.optimizers import SGD, ConstantRate
from jaxtrain.sharding.constraints import scope
from jaxtrain.sharding.layout import plain
from jaxtrain.tasks import Classification, LanguageModel

RNG = np.random.default_rng(0)
DECODER = Recurrent(vocab=20, width=12, layers=2, state=16, mlp=24, memory=8)
ENCODER = Recurrent(vocab=20, outputs=3, width=12, layers=2, memory=8, pooled=True, tied=False)
IDS = RNG.integers(1, 20, (3, 9), np.int32)
SEGMENTS = np.array([[1] * 9, [1, 1, 1, 2, 2, 3, 3, 3, 3], [1] * 5 + [2, 0, 0, 0]], np.int32)


@functools.cache
def variables(model: Recurrent) -> Variables:
    return plain(jax.jit(lambda: model.init(jax.random.key(1), jnp.asarray(IDS)))())


def wide(params: Any) -> Any:
    return reference.mapped(lambda leaf: np.asarray(leaf, np.float64), params)


def by_hand(params: Any, ids_L: np.ndarray, segments_L: np.ndarray, pooled: bool = False) -> np.ndarray:
    """Logits of a row: minGRU by its equations, one position after another."""
    table_VD, used_L = params["embedding"]["table"], ids_L != 0 if pooled else np.ones(len(ids_L), bool)
    x_LD = table_VD[ids_L] * math.sqrt(table_VD.shape[1])
    for own in reference.layers(params["blocks"]["block"]):
        normed_LD = reference.rms_norm(x_LD, own["norm_recurrence"]["scale"])
        h, states = 0, []
        for t, x in enumerate(normed_LD):
            h = 0 if t and segments_L[t] != segments_L[t - 1] else h
            if used_L[t]:
                z = 1 / (1 + np.exp(-(x @ own["update"]["kernel"] + own["bias"])))
                h = (1 - z) * h + z * (x @ own["candidate"]["kernel"])
            states.append(h + np.zeros(len(own["bias"])))
        gate_LM = normed_LD @ own["output_gate"]["kernel"]
        x_LD = x_LD + (np.array(states) * gate_LM / (1 + np.exp(-gate_LM))) @ own["recurrence_out"]["kernel"]
        normed_LD = reference.rms_norm(x_LD, own["norm_mlp"]["scale"])
        x_LD = x_LD + reference.swiglu(normed_LD, *(own[name]["kernel"] for name in ("gate", "up", "down")))
    x_LD = reference.rms_norm(x_LD, params["norm"]["scale"])
    out = x_LD[used_L].mean(0) if pooled else x_LD
    return out @ (params["head"]["kernel"] if "head" in params else table_VD.T)


def close(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=1e-5, atol=1e-5)


def test_logits_at_every_position_are_those_of_a_loop_over_time_within_each_document():
    given = variables(DECODER)
    found = jax.jit(lambda ids, segments: DECODER.apply(given, ids, segments_BL=segments)[0])(IDS, SEGMENTS)
    assert found.dtype == jnp.float32
    close(found, [by_hand(wide(given.params), *row) for row in zip(IDS, SEGMENTS, strict=True)])
    whole = jax.jit(lambda ids: DECODER.apply(given, ids)[0])(IDS)
    close(whole, [by_hand(wide(given.params), row, np.ones(9)) for row in IDS])
    assert float(jnp.abs(whole[1] - found[1]).max()) > 1e-3  # so the documents matter


def test_logits_of_a_pooled_model_do_not_depend_on_where_padding_lies():
    given = variables(ENCODER)
    text = IDS[0, :5]
    padded = np.zeros((3, 9), np.int32)
    padded[0, :5], padded[1, 4:], padded[2, [0, 2, 3, 5, 8]] = text, text, text
    found = jax.jit(lambda ids: ENCODER.apply(given, ids)[0])(padded)
    close(found, [by_hand(wide(given.params), text, np.ones(5), pooled=True)] * 3)


def test_gradients_are_those_of_complex_steps_through_the_loop():
    model = Recurrent(vocab=7, width=4, layers=1, state=3, mlp=5, memory=4)
    given, ids = plain(model.init(jax.random.key(0), jnp.asarray(IDS))), IDS % 6 + 1

    def loss(params: Any) -> jax.Array:
        return jnp.square(model.apply(Variables(params), ids[:1])[0]).sum()

    def loss_by_hand(params: Any) -> complex:
        return (by_hand(params, ids[0], np.ones(9)) ** 2).sum()

    expected = reference.gradient(loss_by_hand, given.params)
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4),
        jax.jit(jax.grad(loss))(given.params),
        expected,
    )


def test_entries_of_a_state_forget_over_2_positions_to_the_models_memory_at_first():
    bias_M, _ = np.asarray(variables(DECODER).params["blocks"]["block"]["bias"])
    np.testing.assert_allclose(1 + np.exp(-bias_M[[0, 15]]), [2, 8], rtol=1e-6)  # 1 / sigmoid
    positions = 1 + np.exp(-bias_M)
    np.testing.assert_allclose(positions[1:] / positions[:-1], 4 ** (1 / 15), rtol=1e-6)


@pytest.mark.parametrize("sizes", [{"context": 4}, {"data": 2, "context": 2, "tensor": 2}], ids=str)
def test_a_recurrence_over_positions_on_several_devices_is_that_of_a_loop(sizes):
    kept, added = RNG.random((4, 12, 6)).astype(np.float32), RNG.normal(size=(4, 12, 6)).astype(np.float32)
    kept[:, 5] = 0  # nothing is left of the state before
    layout = Layout(sizes)
    mesh = layout.make_mesh(jax.devices()[: math.prod(sizes.values())])

    def of(function):
        def called(kept, added):
            with scope(layout, mesh):
                return function(kept, added)

        return jax.jit(called, device=None)(*jax.device_put((kept, added), jax.NamedSharding(mesh, jax.P())))

    h, expected = np.zeros((4, 6)), np.zeros((4, 12, 6))
    for t in range(12):
        h = expected[:, t] = kept[:, t] * h + added[:, t]
    close(of(linear_recurrence), expected)

    g, expected_kept, expected_added = np.zeros((4, 6)), np.zeros((4, 12, 6)), np.zeros((4, 12, 6))
    for t in reversed(range(12)):
        g = expected_added[:, t] = 2 * expected[:, t] + g
        expected_kept[:, t] = g * (expected[:, t - 1] if t else 0)
        g = g * kept[:, t]
    found = of(jax.grad(lambda kept, added: jnp.square(linear_recurrence(kept, added)).sum(), argnums=(0, 1)))
    close(found[0], expected_kept)
    close(found[1], expected_added)


ALL = {"data": 2, "fsdp": 2, "tensor": 2}
STEPS, ROWS = 3, 16


def experiment(layout: Layout, microbatches: int = 1, pooled: bool = False, layers: int = 2) -> Experiment:
    rng = np.random.default_rng(0)
    sizes: dict[str, Any] = {"width": 32, "layers": layers, "mlp": 64, "memory": 16, "dropout": 0.1}
    tokens = rng.integers(1, 64, (48, 17)).astype(np.int32)
    if pooled:
        tokens[::3, 9:] = 0
        model = Recurrent(vocab=64, outputs=3, pooled=True, tied=False, **sizes)
        task, label = Classification(model=model, inputs="tokens", classes=("a", "b", "c")), rng.integers(0, 3, 48)
        columns = {"tokens": tokens[:, :16], "label": label}
    else:
        task, columns = LanguageModel(model=Recurrent(vocab=64, **sizes)), {"tokens": tokens}
    return Experiment(
        task=task,
        data=Pipeline(Arrays(columns), batch_size=ROWS, threads=0),
        optimizer=SGD(schedule=ConstantRate(peak=0.1), clip=None),
        steps=STEPS,
        layout=layout,
        microbatches=microbatches,
    )


def trained(setup: Experiment) -> tuple[list[float], Any]:
    """The loss of every step, and the last parameters."""
    devices = math.prod(setup.layout.mesh.values())
    program = Program(setup, jax.devices()[:devices])
    model = setup.task.model
    assert isinstance(model, Recurrent)
    first = Program(experiment(Layout(), 1, model.pooled, model.layers), jax.devices()[:1]).init()
    state = jax.device_put(first, jax.tree.map(lambda leaf: leaf.sharding, program.state))
    step = program.lower().compile(compiler_options=FAST)
    losses, batches = [], program.batches(setup.data)
    for _, batch in zip(range(STEPS), batches, strict=False):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    batches.close()
    return losses, jax.tree.map(np.asarray, state.params)


@functools.cache
def alone(pooled: bool, layers: int) -> tuple[list[float], Any]:
    return trained(experiment(Layout(), 1, pooled, layers))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "microbatches", "pooled", "layers"),
    [
        (ALL, 1, False, 2),
        pytest.param(ALL, 2, False, 2, marks=pytest.mark.slow),
        pytest.param({"data": 8}, 2, False, 2, marks=pytest.mark.slow),
        pytest.param({"fsdp": 8}, 1, False, 2, marks=pytest.mark.slow),
        pytest.param({"tensor": 8}, 1, False, 2, marks=pytest.mark.slow),
        pytest.param({"context": 4}, 1, False, 2, marks=pytest.mark.slow),
        pytest.param({"data": 2, "stage": 2, "context": 2}, 2, False, 2, marks=pytest.mark.slow),
        pytest.param({"data": 2, "stage": 4}, 4, False, 4, marks=pytest.mark.slow),
        pytest.param(ALL, 2, True, 2, marks=pytest.mark.slow),
        pytest.param({"data": 2, "context": 4}, 1, True, 2, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_every_layout_trains_as_one_device(mesh, microbatches, pooled, layers):
    losses, params = trained(experiment(Layout(mesh), microbatches, pooled, layers))
    expected, expected_params = alone(pooled, layers)
    np.testing.assert_allclose(losses, expected, rtol=2e-5)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=2e-5), params, expected_params)
    assert len(set(expected)) == STEPS


@pytest.mark.parametrize(
    "layout",
    [
        Layout(ALL),
        *(
            pytest.param(layout, marks=pytest.mark.slow)
            for layout in (
                Layout({"data": 8}),
                Layout({"fsdp": 8}),
                Layout({"tensor": 8}),
                Layout({"context": 8}),
                Layout({"data": 2, "tensor": 4}, MEGATRON),
            )
        ),
    ],
    ids=lambda layout: str(dict(layout.mesh)),
)
def test_a_step_sends_exactly_the_arrays_that_the_textbook_asks_for(layout):
    program = Program(experiment(layout))
    text = program.lower().compile(compiler_options=FAST).as_text() or ""
    expected = {key: n for key, n in textbook(program.experiment, program.mesh).items() if key[2] >= IGNORED}
    assert dict(counted(collectives(text, program.mesh.shape))) == expected


def test_a_small_version_divides_as_before_and_describes_its_state():
    model = Recurrent(vocab=50_304, width=768, layers=12, state=1024, precision=Precision(compute="bfloat16"))
    assert model.shrunk(8) == Recurrent(vocab=256, width=64, layers=4, state=64, mlp=128)
    known = DECODER.describe(jax.ShapeDtypeStruct((3, 9), np.int32))
    assert known == Activations(length=9, width=12, layers=2, state=16, vocab=20, scores=1, tied=True)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"outputs": 3}, "set tied=False"),
        ({"layers": 3, "rounds": 2}, "layers 3 must be a multiple of rounds 2"),
        ({"memory": 1}, "memory 1 must be at least 2 positions"),
    ],
)
def test_fields_that_do_not_fit_each_other_are_refused(fields, words):
    with pytest.raises(ConfigError, match=words):
        Recurrent(**fields)


def test_dropout_draws_for_the_embedding_and_for_both_parts_of_a_block():
    model, keys_B = replace(DECODER, dropout=0.5), jax.random.split(jax.random.key(0), 3)
    given = variables(DECODER)

    def draws(context: Context) -> int:
        found = equations(lambda ids: model.apply(given, ids, context)[0], IDS)
        return sum(each.primitive.name == "random_bits" for each in found)

    assert draws(Context(keys_B=keys_B)) == 3  # the blocks are scanned
    assert draws(Context()) == 0

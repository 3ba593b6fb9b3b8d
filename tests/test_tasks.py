from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxtrain import ConfigError, Mean, eval_step, init_state, predict_step, train_step
from jaxtrain.models import Blocks, Model, NGrams, Transformer
from jaxtrain.models.base import PREDICTION
from jaxtrain.sharding.layout import plain
from jaxtrain.step import TrainState
from jaxtrain.tasks import Classification, LanguageModel, Regression, Variables

RNG = np.random.default_rng(0)
TEXT = RNG.integers(97, 103, (4, 12), np.uint8)
MASK = np.array([True, True, True, False])
LABEL = np.array([0, 2, 1, 2], np.int32)
TARGET = np.array([0.5, -1.0, 2.0, 100.0], np.float32)
CLASSIFY = Classification(
    model=NGrams(outputs=3, buckets=32, words=4, width=4, dropout=0.3), inputs="text", classes=("a", "b", "c")
)
REGRESS = Regression(model=NGrams(outputs=1, buckets=32, words=4, width=4), inputs="text")
SPEAK = LanguageModel(model=Transformer(vocab=8, blocks=Blocks(width=8, layers=1, heads=2, mlp=8)))
CLASSES = {"text": TEXT, "label": LABEL, "mask": MASK}
NUMBERS = {"text": TEXT, "target": TARGET, "mask": MASK}
TOKENS = {"tokens": RNG.integers(0, 8, (4, 6), np.int32), "mask": MASK}


def state_of(task, batch, optimizer=None):
    return jax.jit(lambda key: init_state(task, optimizer or optax.adamw(1e-2), key, batch))(jax.random.key(0))


def equal(one, two):
    """Whether two trees hold the same bits."""

    def same(x, y):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        return np.array_equal(x, y)

    return jax.tree.all(jax.tree.map(same, one, two))


def evaluated(task, variables, batch):
    """The loss, the metrics and the predictions of a batch, without dropout."""
    given = {task.inputs: batch[task.inputs]} if task.inputs != "tokens" else {"tokens": batch["tokens"][:, :-1]}

    @jax.jit
    def run(variables):
        loss = task.loss(variables, batch, PREDICTION)
        logits, _ = task.model.apply(variables, given[task.inputs])
        return loss.mean, loss.metrics, task.predict(variables, given), logits

    return run(variables)


def log_softmax(x):
    x = np.asarray(x, np.float64)
    return x - x.max(-1, keepdims=True) - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True))


def test_classification_loses_the_log_probability_of_the_right_class_in_real_rows():
    variables = state_of(CLASSIFY, CLASSES).evaluated
    loss, metrics, said, logits = evaluated(CLASSIFY, variables, CLASSES)
    logits = np.asarray(logits)
    expected = -log_softmax(logits)[range(4), LABEL]
    assert float(loss) == pytest.approx(expected[:3].mean(), rel=1e-5)
    assert float(loss.weight) == 3
    assert float(metrics["accuracy"]) == pytest.approx((logits.argmax(-1) == LABEL)[:3].mean())
    np.testing.assert_allclose(said["probabilities"], np.exp(log_softmax(logits)), rtol=1e-4)


def test_classes_are_described_by_falling_probability():
    assert CLASSIFY.describe({"probabilities": np.array([0.2, 0.7, 0.1])}) == "b 0.70  a 0.20  c 0.10"


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_regression_loses_the_squared_error_of_real_rows(shape):
    variables = state_of(REGRESS, NUMBERS).evaluated
    loss, metrics, said, _ = evaluated(REGRESS, variables, {**NUMBERS, "target": TARGET.reshape(shape)})
    values = np.asarray(said["values"])
    error = values[:, 0] - TARGET
    assert values.shape == (4, 1)
    assert float(loss) == pytest.approx(np.square(error[:3]).mean(), rel=1e-4)
    assert float(metrics["absolute_error"]) == pytest.approx(np.abs(error[:3]).mean(), rel=1e-4)


def test_a_language_model_loses_the_log_probability_of_every_next_token_of_real_rows():
    variables = state_of(SPEAK, TOKENS).evaluated
    tokens = TOKENS["tokens"]
    loss, metrics, said, logits = evaluated(SPEAK, variables, TOKENS)
    logits = np.asarray(logits)
    expected = -np.take_along_axis(log_softmax(logits), tokens[:, 1:, None], -1)[..., 0]
    assert float(loss) == pytest.approx(expected[:3].mean(), rel=1e-4)
    assert float(loss.weight) == 3 * 5
    assert float(metrics["accuracy"]) == pytest.approx((logits.argmax(-1) == tokens[:, 1:])[:3].mean())
    np.testing.assert_allclose(said["log_probabilities"], log_softmax(logits)[:, -1], rtol=1e-4, atol=1e-5)


def test_packed_documents_neither_predict_each_other_nor_padding():
    """Two documents and padding in a row: what counts is written down by hand."""
    tokens = np.array([[1, 2, 3, 4, 5, 0, 0], [6, 7, 1, 2, 3, 4, 5]], np.int32)
    segments = np.array([[1, 1, 1, 2, 2, 0, 0], [1, 2, 2, 2, 2, 2, 2]], np.int32)
    counts = np.array([[1, 1, 0, 1, 0, 0], [0, 1, 1, 1, 1, 1]])  # 4 is the first token of a document, 0 is padding
    batch = {"tokens": tokens, "segments": segments, "mask": np.array([True, True])}
    variables = state_of(SPEAK, batch).evaluated
    found = jax.jit(lambda variables: SPEAK.loss(variables, batch, PREDICTION))(variables)
    loss, metrics = found.mean, found.metrics
    ids_BL, segments_BL = jnp.asarray(tokens[:, :-1]), jnp.asarray(segments[:, :-1])
    logits = SPEAK.model.apply(variables, ids_BL, segments_BL=segments_BL)[0]
    losses = -np.take_along_axis(log_softmax(logits), tokens[:, 1:, None], -1)[..., 0]
    assert float(loss.weight) == float(metrics["accuracy"].weight) == counts.sum() == 8
    assert float(loss) == pytest.approx((losses * counts).sum() / 8, rel=1e-5)


def test_the_next_token_of_a_packed_row_follows_its_last_document_alone():
    tokens = np.array([[3, 1, 4, 1, 5, 0, 0], [2, 7, 1, 3, 2, 3, 6]], np.int32)
    segments = np.array([[1, 1, 1, 2, 2, 0, 0], [1, 2, 2, 2, 3, 3, 3]], np.int32)
    batch = {"tokens": tokens, "segments": segments, "mask": np.array([True, True])}
    variables = state_of(SPEAK, batch).evaluated
    found = SPEAK.predict(variables, batch)["log_probabilities"]
    for row, document in zip(found, (tokens[0, 3:5], tokens[1, 4:]), strict=True):
        alone = {"tokens": document[None], "mask": np.array([True])}
        np.testing.assert_allclose(row, SPEAK.predict(variables, alone)["log_probabilities"][0], atol=1e-5)


def test_next_tokens_are_described_as_bytes():
    said = np.log(np.array([0.1, 0.6, 0.05, 0.2, 0.03, 0.02]))
    assert SPEAK.describe({"log_probabilities": said}).startswith("next: b'\\x01' 0.60  b'\\x03' 0.20")


@pytest.mark.parametrize(
    ("task", "says"),
    [
        (replace(CLASSIFY, inputs="txt"), "Classification.inputs: the batch has no field 'txt'; did you mean 'text'?"),
        (replace(CLASSIFY, label="lable"), "Classification.label: the batch has no field 'lable'; did you mean"),
        (replace(REGRESS, target="goal"), "Regression.target: the batch has no field 'goal'; known: label, mask, text"),
    ],
)
def test_a_field_that_the_batch_lacks_is_named(task, says):
    with pytest.raises(ConfigError) as raised:
        jax.eval_shape(lambda: task.loss(plain(task.init(jax.random.key(0), CLASSES)), CLASSES, PREDICTION))
    assert says in str(raised.value)


@pytest.mark.slow
def test_a_step_needs_neither_jit_nor_mesh_nor_an_optimizer_of_ours():
    optimizer = optax.adamw(1e-2)
    state = state_of(CLASSIFY, CLASSES)
    before = jax.tree.map(jnp.copy, state)
    after, metrics = train_step(CLASSIFY, optimizer, state, CLASSES)
    assert isinstance(after, TrainState)
    assert int(after.step) == 1
    assert set(metrics) == {"loss", "accuracy", "gradient_norm"}
    assert all(isinstance(mean, Mean) for mean in metrics.values())
    assert not equal(after.params, state.params)
    assert equal(state, before)  # the state that went in is as it was


def test_a_step_is_a_pure_function_of_state_and_batch():
    step = jax.jit(lambda state, batch: train_step(CLASSIFY, optax.adamw(1e-2), state, batch))
    state = state_of(CLASSIFY, CLASSES)
    first = step(state, CLASSES)
    step(first[0], {**CLASSES, "text": TEXT[::-1].copy()})
    assert equal(step(state, CLASSES), first)
    # Dropout is another at the next step and with another key.
    later = replace(state, step=state.step + 1)
    other = replace(state, key=jax.random.key(7))
    assert float(step(later, CLASSES)[1]["loss"]) != float(first[1]["loss"])
    assert float(step(other, CLASSES)[1]["loss"]) != float(first[1]["loss"])


def test_as_many_updates_are_done_as_there_are_steps():
    optimizer = optax.sgd(1.0)
    step = jax.jit(lambda state: train_step(REGRESS, optimizer, state, NUMBERS)[0])
    state = state_of(REGRESS, NUMBERS, optimizer)
    for done in range(1, 4):
        before, state = state, step(state)
        assert int(state.step) == done
        assert not equal(before.params, state.params)
        assert equal(before.key, state.key)


def test_an_update_follows_the_gradient_of_the_mean_loss_of_real_rows():
    optimizer = optax.sgd(1.0)
    state = state_of(REGRESS, NUMBERS, optimizer)
    after, metrics = jax.jit(lambda state: train_step(REGRESS, optimizer, state, NUMBERS))(state)
    real = {name: x[:3] for name, x in NUMBERS.items()}

    def mean(params):
        loss = REGRESS.loss(Variables(params), real, PREDICTION).mean
        return loss.total / loss.weight

    grads = jax.jit(jax.grad(mean))(state.params)
    expected = jax.tree.map(lambda param, grad: param - grad, state.params, grads)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), after.params, expected)
    assert float(metrics["gradient_norm"]) == pytest.approx(float(optax.tree.norm(grads)), rel=1e-5)


def test_a_batch_of_weight_0_changes_nothing_but_the_number_of_the_step():
    nothing, optimizer = {**NUMBERS, "mask": np.zeros(4, bool)}, optax.adamw(1e-2)
    step = jax.jit(lambda state, batch: train_step(REGRESS, optimizer, state, batch))
    state, _ = step(state_of(REGRESS, NUMBERS, optimizer), NUMBERS)
    after, metrics = step(state, nothing)
    assert int(after.step) == 2
    assert equal(replace(after, step=state.step), state)
    norm = metrics["gradient_norm"]
    assert isinstance(norm, Mean)
    assert float(norm.weight) == 0
    assert np.isnan(float(norm))


def test_evaluation_and_prediction_change_nothing_and_drop_nothing():
    state = state_of(CLASSIFY, CLASSES)
    before = jax.tree.map(jnp.copy, state)
    one, two = eval_step(CLASSIFY, state, CLASSES), eval_step(CLASSIFY, replace(state, key=jax.random.key(9)), CLASSES)
    assert equal(one, two)
    assert set(one) == {"loss", "accuracy"}
    predict_step(CLASSIFY, state, {"text": TEXT})
    assert equal(state, before)


def test_a_batch_of_nothing_but_filling_rows_says_nan_and_not_zero():
    nothing = {**NUMBERS, "mask": np.zeros(4, bool)}
    loss = eval_step(REGRESS, state_of(REGRESS, NUMBERS), nothing)["loss"]
    assert isinstance(loss, Mean)
    assert np.isnan(float(loss))
    assert float(loss.total) == 0


def test_a_nan_in_rows_that_the_mask_leaves_out_reaches_neither_loss_nor_gradient():
    model = Wide()
    task, optimizer = Regression(model=model, inputs="x"), optax.sgd(0.1)
    x, target = RNG.normal(size=(4, 3)).astype(np.float32), np.array([0.5, -1.0, 2.0, 1.0], np.float32)
    whole = {"x": x, "target": target, "mask": MASK}
    holes = {**whole, "x": np.where(MASK[:, None], x, np.nan), "target": np.where(MASK, target, np.inf)}
    state = state_of(task, whole, optimizer)
    step = jax.jit(lambda state, batch: train_step(task, optimizer, state, batch))
    (one, metrics), (other, expected) = step(state, holes), step(state, whole)
    assert equal(one.params, other.params)
    assert float(metrics["loss"]) == float(expected["loss"])
    assert np.isfinite(float(eval_step(task, state, holes)["loss"]))


class Wide(Model):
    """One linear layer."""

    def build(self, rngs, inputs):
        return nnx.Linear(inputs.shape[-1], 1, rngs=rngs)

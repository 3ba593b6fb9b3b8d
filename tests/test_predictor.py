"""What a bundle computes from raw inputs is what the run's program predicts for the same rows."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from jax import export

from jaxtrain import ConfigError, Experiment, load
from jaxtrain.base.config import from_json, to_json
from jaxtrain.data import (
    Arrays,
    Categories,
    Columns,
    Mapped,
    OneHot,
    Pipeline,
    Quantiles,
    Select,
    Standardize,
    Take,
    Transform,
    Utf8,
    Windows,
)
from jaxtrain.data.remembered import remember_inputs
from jaxtrain.datasets import Dataset, build
from jaxtrain.deploy.predictor import Predictor, raw_source, weights_of
from jaxtrain.experiment.fit import fit
from jaxtrain.generation.functions import variables_of
from jaxtrain.models import Blocks, Model, NGrams, Recurrent, Transformer
from jaxtrain.optimizers import AdamW, ConstantRate
from jaxtrain.program import Program
from jaxtrain.tasks import Classification, LanguageModel, Regression

ROOT = Path(__file__).parents[1]

WHY_NOT = {
    "contrastive.py": "Views cannot be part of an exported graph",
    "gan.py": "GAN is not exported: its generator reads no input",
    "sequence_to_sequence.py": "Encode cannot be part of an exported graph",
}
"""Shipped experiments that are not exported."""

FILES = sorted(
    path
    for path in [*ROOT.glob("experiments/*.py"), *ROOT.glob("experiments/recipes/*.py")]
    if path.name != "datasets.py"
)


def few(experiment: Experiment) -> Experiment:
    """With few rows."""
    evals = {
        split: replace(data, source=Take(data.source, 5), batch_size=5) for split, data in experiment.evals.items()
    }
    data = replace(experiment.data, source=Take(experiment.data.source, 32), batch_size=4)
    return replace(experiment, data=data, evals=evals, start=None)


def compare(experiment: Experiment, split: str = "test") -> Predictor:
    """Compares the predictions for all rows of a split, from raw inputs, with those of the program."""
    experiment = fit(experiment)
    program = Program(experiment, jax.devices()[:1])
    state = program.init()
    predictor = Predictor.of(experiment, weights_of(state))
    source, data = raw_source(experiment, split), experiment.evals[split]
    rows = [predictor.raw.row_of(source[index]) for index in range(len(source))]
    found = jax.jit(predictor.function)(predictor.weights, predictor.signature.tensors_of(rows))
    batch = next(program.epoch(data))
    expected = jax.device_get(program.predict(state, batch))
    assert {each.name for each in predictor.signature.outputs} == expected.keys() == found.keys()
    for each in predictor.signature.outputs:
        wanted = expected[each.name]
        assert (each.dtype, each.shape) == (wanted.dtype.name, wanted.shape[1:])
        np.testing.assert_allclose(found[each.name], wanted[: len(rows)], rtol=1e-5, atol=1e-6)
    return predictor


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_shipped_experiment_predicts_from_raw_inputs_what_it_evaluates(file, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    monkeypatch.setenv("JAXTRAIN_DATA", str(tmp_path))
    if file.name == "bncc.py":
        from jaxtrain.experiment.files import load_kind

        build(load_kind(f"{ROOT / 'experiments' / 'datasets.py'}:bncc", Dataset)[0], tmp_path)
    experiment = few(load(str(file))[0])
    if file.name in WHY_NOT:
        with pytest.raises(ConfigError, match=WHY_NOT[file.name]):
            Predictor.of(experiment, {})
    else:
        compare(experiment)


RNG = np.random.default_rng(0)
TEXTS = ["good film", "bad", "", "naïve 🙂", "x" * 60, "good"]
LABELS = np.array([1, 0, 0, 1, 0, 1], np.int32)
OPTIMIZER = AdamW(schedule=ConstantRate(peak=1e-2))


def supervised(task: Any, columns: Mapping[str, Any], *transforms: Transform) -> Experiment:
    data = Pipeline(Arrays(columns), transforms, batch_size=6)
    return Experiment(task=task, data=data, optimizer=OPTIMIZER, steps=2, evals={"test": replace(data, shuffle=False)})


def test_texts():
    task = Classification(model=NGrams(buckets=64, width=4), inputs="bytes", classes=("bad", "good"))
    predictor = compare(supervised(task, {"text": TEXTS, "label": LABELS}, Utf8(16)))
    [text] = predictor.signature.inputs
    assert (text.name, text.kind, text.spec().shape) == ("text", "text", (16,))
    assert predictor.signature.outputs[0].classes == ("bad", "good")


@dataclass(frozen=True)
class Line(Model):
    """One layer."""

    def build(self, rngs: nnx.Rngs, inputs: Any) -> nnx.Module:
        return nnx.Linear(inputs.shape[-1], 1, rngs=rngs)


TABLE = {
    "age": np.array([1, 50, 33, 20, 8, 61]),
    "height": RNG.normal(170, 10, 6).astype(np.float32),
    "city": ["Rome", "Paris", "Rome", "Oslo", "Oslo", "Rome"],
    "size": np.array([3, 5, 3, 3, 5, 5]),
    "note": ["not read"] * 6,
    "target": RNG.normal(100, 20, 6).astype(np.float32),
}
PREPARED = (
    Standardize(("age", "target")),
    Quantiles(("height",), count=4),
    Categories("city"),
    OneHot("size", (3, 5)),
    Columns(("age", "height", "city", "size"), "features"),
    Select(("features", "target")),
)


def test_a_table_whose_targets_are_standardized():
    predictor = compare(supervised(Regression(model=Line(), inputs="features"), TABLE, *PREPARED))
    kinds = {each.name: each.kind for each in predictor.signature.inputs}
    assert kinds == {"age": "number", "height": "number", "city": "category", "size": "category"}


def windows(model: Model) -> Experiment:
    source = Windows(Arrays({"text": ["The quick brown fox, and the slow one. " * 3, "Another text, 🙂." * 4]}), 16)
    data = Pipeline(source, batch_size=4)
    evals = {"test": Pipeline(Take(source, 7), batch_size=7, shuffle=False)}
    return Experiment(task=LanguageModel(model=model), data=data, optimizer=OPTIMIZER, steps=2, evals=evals)


BLOCKS = Blocks(width=16, layers=1, heads=2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [Transformer(vocab=256, blocks=BLOCKS, ngrams=(2, 3), buckets=64), Recurrent(vocab=256, width=8, layers=1)],
    ids=repr,
)
def test_a_language_model_reads_a_text_that_is_shorter_than_its_rows(model):
    predictor = compare(windows(model))
    experiment = windows(model)
    task, variables = experiment.task, variables_of(predictor.weights)
    function = jax.jit(predictor.function)
    for text in ("T", "The quick", "a longer text, of which the last 17 bytes are read"):
        tensors = predictor.signature.tensors_of([{"text": text}])
        found = function(predictor.weights, tensors)["log_probabilities"]
        tokens = np.frombuffer(text.encode()[-17:], np.uint8).astype(np.int32)[None]
        expected = jax.jit(task.predict)(variables, {"tokens": tokens})["log_probabilities"]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match="it is empty"):
        predictor.signature.tensors_of([{"text": ""}])


@dataclass(frozen=True)
class Odd(Transform):
    """Of the label alone."""

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        return {**example, "label": np.int32(example["label"] % 2)}


@dataclass(frozen=True)
class Louder(Transform):
    """Of the input, which no graph can follow."""

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        return {**example, "x": example["x"] * 2}


@dataclass(frozen=True)
class Doubled(Louder):
    """Which a graph can follow."""

    def traced(self, fields: dict[str, Any]) -> dict[str, Any]:
        return {**fields, "x": fields["x"] * 2}


@dataclass(frozen=True)
class Wrong(Louder):
    """Another shape when it is traced."""

    def traced(self, fields: dict[str, Any]) -> dict[str, Any]:
        return {**fields, "x": fields["x"][:, :1]}


X = {"x": RNG.normal(size=(6, 3)).astype(np.float32), "label": LABELS + 2}


@dataclass(frozen=True)
class Pair(Model):
    """Two logits."""

    def build(self, rngs: nnx.Rngs, inputs: Any) -> nnx.Module:
        return nnx.Linear(3, 2, rngs=rngs)


PAIRS = Classification(model=Pair(), inputs="x", classes=("a", "b"))


def test_a_transform_of_ones_own_is_left_out_where_it_is_of_labels_alone():
    compare(supervised(PAIRS, X, Odd(), Doubled()))
    experiment = supervised(PAIRS, X)
    mapped = replace(experiment.data, source=Mapped(experiment.data.source, (Odd(), Doubled())))
    compare(replace(experiment, data=mapped, evals={"test": replace(mapped, shuffle=False)}))


@pytest.mark.parametrize(
    ("transform", "why"),
    [
        (Louder(), "Louder cannot be part of an exported graph: it has no `traced"),
        (Wrong(), r"make float32\[1\] of 'x' when they are traced, but float32\[3\] otherwise"),
    ],
)
def test_a_transform_of_ones_own_that_a_graph_cannot_do_is_refused(transform, why):
    experiment = supervised(PAIRS, X, Odd(), transform)
    with pytest.raises(ConfigError, match=why):
        Predictor.of(experiment, weights_of(Program(experiment, jax.devices()[:1]).init()))


def test_the_data_need_not_be_there():
    experiment = fit(supervised(Regression(model=Line(), inputs="features"), TABLE, *PREPARED))
    weights = weights_of(Program(experiment, jax.devices()[:1]).init())
    kept = from_json(to_json(remember_inputs(experiment.data, experiment.evals, "features")))
    there, here = Predictor.of(experiment, weights), Predictor.of(replace(experiment, data=kept, evals={}), weights)
    assert here.signature == there.signature
    row = {"age": 30, "height": 180.0, "city": "Lima", "size": 5}
    tensors = here.signature.tensors_of([row])
    found, expected = (one.function(weights, tensors)["values"] for one in (here, there))
    np.testing.assert_array_equal(found, expected)


def test_it_is_traced_for_any_number_of_rows_and_every_platform():
    task = Classification(model=NGrams(buckets=64, width=4), inputs="bytes", classes=("bad", "good"))
    experiment = supervised(task, {"text": TEXTS, "label": LABELS}, Utf8(16))
    predictor = Predictor.of(experiment, weights_of(Program(experiment, jax.devices()[:1]).init()))
    (rows,) = export.symbolic_shape("batch")
    tensors = {each.name: jax.ShapeDtypeStruct((rows, *each.shape), each.dtype) for each in predictor.tensors}
    weights = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), predictor.weights)
    made = export.export(jax.jit(predictor.function), platforms=("cpu", "cuda", "tpu"))(weights, tensors)
    again = export.deserialize(bytearray(made.serialize()))
    for count in (1, 5):
        given = predictor.signature.tensors_of([{"text": text} for text in TEXTS[:count]])
        np.testing.assert_array_equal(
            again.call(dict(predictor.weights), given)["probabilities"],
            jax.jit(predictor.function)(predictor.weights, given)["probabilities"],
        )

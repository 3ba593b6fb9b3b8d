"""The lines that `predict` prints are the same for a run and for its bundle, whatever the task."""

import inspect
from typing import Any

import jax
import numpy as np
import pytest
from test_predictor import BLOCKS, LABELS, TEXTS, Line, supervised, windows

import jaxtrain.tasks
from jaxtrain import Experiment, Program
from jaxtrain.data import Utf8
from jaxtrain.deploy.bundle import Bundle
from jaxtrain.deploy.predictor import Predictor, weights_of
from jaxtrain.models import NGrams, Transformer
from jaxtrain.tasks import Classification, LanguageModel, MultiLabel, Regression, Task

LINES = NGrams(buckets=64, width=4)
X = np.zeros((6, 3), np.float32)

CASES: dict[type[Task], tuple[Experiment, dict[str, Any], str]] = {
    Classification: (
        supervised(
            Classification(model=LINES, inputs="bytes", classes=("bad", "good")),
            {"text": TEXTS, "label": LABELS},
            Utf8(16),
        ),
        {"probabilities": [0.25, 0.75]},
        "good 0.75  bad 0.25",
    ),
    MultiLabel: (
        supervised(
            MultiLabel(model=LINES, inputs="bytes", classes=("old", "long")),
            {"text": TEXTS, "label": np.ones((6, 2), np.float32)},
            Utf8(16),
        ),
        {"probabilities": [0.9, 0.4]},
        "old 0.90  long 0.40",
    ),
    Regression: (
        supervised(Regression(model=Line(), inputs="x"), {"x": X, "target": X[:, 0]}),
        {"values": [1.5]},
        "values [1.5]",
    ),
    LanguageModel: (
        windows(Transformer(vocab=256, blocks=BLOCKS)),
        {"log_probabilities": np.log([0.01] * 250 + [0.05, 0.1, 0.2, 0.3, 0.15, 0.04])},
        r"next: b'\xfd' 0.30  b'\xfc' 0.20  b'\xfe' 0.15  b'\xfb' 0.10  b'\xfa' 0.05",
    ),
}


def test_every_task_is_here():
    found = [getattr(jaxtrain.tasks, name) for name in dir(jaxtrain.tasks)]
    kinds = {each for each in found if inspect.isclass(each) and issubclass(each, Task)}
    assert {each for each in kinds if not inspect.isabstract(each)} == {*CASES}


@pytest.mark.parametrize("kind", CASES, ids=lambda kind: kind.__name__)
def test_a_run_and_its_bundle_print_the_same_line(kind):
    experiment, prediction, line = CASES[kind]
    prediction = {name: np.asarray(value, np.float32) for name, value in prediction.items()}
    program = Program(experiment, jax.devices()[:1])
    bundle = Bundle.__new__(Bundle)  # without a folder
    bundle.signature = Predictor.of(experiment, weights_of(program.init())).signature
    assert [(each.name, each.shape) for each in bundle.signature.outputs] == [
        (name, value.shape) for name, value in prediction.items()
    ]
    assert experiment.task.describe(prediction) == line
    assert bundle.describe(prediction) == line

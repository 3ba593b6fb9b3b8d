"""What single recipes promise: sequences of different lengths, an observer and metrics of one's own."""

import csv
import functools
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
import pytest
from test_recipes import RECIPES

from jaxtrain import ConfigError, Experiment, Run, Runtime, load
from jaxtrain.evaluate import predict_run
from jaxtrain.models import Blocks
from jaxtrain.models.variables import Context, Variables
from jaxtrain.optimizers import AdamW, ConstantRate
from jaxtrain.runs.json_lines import read_lines
from jaxtrain.runs.metrics_log import read_metrics
from jaxtrain.sharding.layout import plain
from jaxtrain.train import train

Batch = Mapping[str, np.ndarray]


@functools.cache
def recipe(name: str) -> tuple[Experiment, ModuleType]:
    """A recipe and the module of its file."""
    experiment, _ = load(str(RECIPES / f"{name}.py"))
    return experiment, sys.modules[type(experiment.task).__module__]


@functools.cache
def sequences() -> tuple[Any, Variables, list[Batch]]:
    """The task of sequences to sequences, parameters, and batches of 16 rows, the last one half filled."""
    experiment, _ = recipe("sequence_to_sequence")
    data = replace(experiment.data, batch_size=16, threads=0)
    batches = [data.steps()[step] for step in range(12)]
    half = {**batches[-1], "mask": np.arange(16) < 8}
    model = replace(experiment.task.model, blocks=Blocks(width=16, layers=2, heads=2))
    task: Any = replace(experiment.task, model=model)
    drawn = plain(jax.jit(task.init)(jax.random.key(0), data.example()))
    return task, drawn, [*batches, half]


def mean_loss(task: Any, params: Any, batch: Batch) -> jax.Array:
    mean = task.loss(Variables(params), batch, Context()).mean
    return mean.total / mean.weight


def log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    return (
        wide - wide.max(-1, keepdims=True) - np.log(np.exp(wide - wide.max(-1, keepdims=True)).sum(-1, keepdims=True))
    )


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "zero"),
        (16, "dezesseis"),
        (40, "quarenta"),
        (100, "cem"),
        (101, "cento e um"),
        (321, "trezentos e vinte e um"),
        (1000, "mil"),
        (1100, "mil e cem"),
        (1999, "mil novecentos e noventa e nove"),
        (2005, "dois mil e cinco"),
        (1_000_000, "um milhão"),
        (2_300_040, "dois milhões trezentos mil e quarenta"),
        (700_000_001, "setecentos milhões e um"),
    ],
)
def test_a_number_is_spelled_as_in_portuguese(number: int, words: str) -> None:
    assert recipe("sequence_to_sequence")[1].spelled(number) == words


def test_no_number_is_in_both_splits_and_the_longest_fits() -> None:
    module = recipe("sequence_to_sequence")[1]
    seen = {
        split: {row["digits"] for row in map(module.Numbers(split, 500).__getitem__, range(500))}
        for split in ("train", "test")
    }
    assert not seen["train"] & seen["test"]
    assert {len(digits) for digits in seen["test"]} == set(range(1, 10))
    assert len(module.spelled(999_999_999).split()) <= module.LENGTH
    with pytest.raises(ConfigError, match="'catroze' is no word of a number; did you mean 'catorze'"):
        module.Encode()({"words": "mil e catroze"}, np.random.default_rng(0))


@pytest.mark.slow
def test_loss_and_metrics_are_means_over_the_real_positions_of_real_rows() -> None:
    task, variables, batches = sequences()
    batch = batches[-1]
    loss = jax.jit(task.loss)(variables, batch, Context())
    before = np.concatenate([np.full((16, 1), 11), batch["target"][:, :-1]], 1)
    logits = jax.jit(lambda: task.model.apply(variables, task.read(batch), before_BT=before)[0])()
    scores, target = log_softmax(np.asarray(logits)), batch["target"]
    losses, right, whole = [], [], []
    for row in range(8):  # the others only fill up
        length = int(batch["target_mask"][row].sum())
        assert target[row, length - 1] == 10  # the end
        of_row = [scores[row, place].argmax() == target[row, place] for place in range(length)]
        losses += [-scores[row, place, target[row, place]] for place in range(length)]
        right, whole = right + of_row, [*whole, all(of_row)]
    assert float(loss.mean) == pytest.approx(np.mean(losses), rel=1e-5)
    assert float(loss.metrics["accuracy"]) == pytest.approx(np.mean(right), rel=1e-6)
    assert float(loss.metrics["sequence_accuracy"]) == pytest.approx(np.mean(whole), rel=1e-6)
    assert float(loss.mean.weight) == len(losses)


@pytest.mark.slow
def test_what_is_masked_counts_for_nothing_whatever_it_holds() -> None:
    task, variables, batches = sequences()
    batch = batches[-1]
    filled = {
        **batch,
        "source": np.where(batch["source_mask"], batch["source"], 7).astype(np.int32),
        "target": np.where(batch["target_mask"], batch["target"], 3).astype(np.int32),
    }
    filled["source"][8:], filled["target"][8:] = 5, 2
    gradient = jax.jit(jax.value_and_grad(functools.partial(mean_loss, task)))
    (one, grads), (two, others) = gradient(variables.params, batch), gradient(variables.params, filled)
    assert float(one) == pytest.approx(float(two), rel=1e-6)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-5), grads, others)


@pytest.mark.slow
def test_a_batch_is_computed_at_the_width_of_its_bucket_and_to_the_same_gradient(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task, variables, batches = sequences()
    ran: list[int] = []
    original = type(task.model).apply

    def watched(self: Any, variables: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
        jax.debug.callback(functools.partial(ran.append, inputs["source"].shape[1]))
        return original(self, variables, inputs, *rest, **more)

    def gradient(task: Any) -> Any:
        return jax.jit(jax.grad(functools.partial(mean_loss, task)))

    monkeypatch.setattr(type(task.model), "apply", watched)
    cut, whole = gradient(task), gradient(replace(task, widths=()))
    longest = [int(batch["source_mask"].sum(1).max()) for batch in batches[:-1]]
    expected = [next(width for width in (6, 12, 18) if length <= width) for length in longest]
    assert {6, 12, 18} == set(expected)
    for width in (6, 12, 18):
        batch = batches[expected.index(width)]
        ran.clear()
        grads = cut(variables.params, batch)
        jax.effects_barrier()
        assert {*ran} == {width}  # forward, and again for the backward pass
        others = whole(variables.params, batch)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-5), grads, others)


@pytest.mark.slow
def test_predict_decodes_greedily() -> None:
    task, drawn, batches = sequences()
    batch = batches[0]
    # As drawn, it writes one token all the time: each token's own embedding outweighs what the blocks add.
    variables = Variables({**drawn.params, "decoder": jax.tree.map(lambda x: 5 * x, drawn.params["decoder"])})
    tokens = np.asarray(jax.jit(task.predict)(variables, {name: batch[name] for name in task.inputs})["tokens"])
    before = np.full((16, 1), 11, np.int32)
    for _ in range(10):  # each time from a row of as many tokens as there are
        logits = jax.jit(lambda before=before: task.model.apply(variables, task.read(batch), before_BT=before)[0])()
        before = np.concatenate([before, np.asarray(logits)[:, -1:].argmax(-1).astype(np.int32)], 1)
    np.testing.assert_array_equal(tokens, before[:, 1:])
    assert np.mean([len({*row}) for row in tokens.tolist()]) > 2
    assert task.describe({"tokens": np.array([3, 2, 1, 10, 4, 10])}) == "321"
    assert task.describe({"tokens": np.array([3, 2])}) == "32"


def looked_up(words: str) -> str:
    """The baseline: a number for every word, one after another: right where no digit is 0 and none below 20 is."""
    module = recipe("sequence_to_sequence")[1]
    names = {name: str(number) for number, name in enumerate(module.UNITS)} | {"cem": "100"}
    names |= {name: str(number) for number, name in enumerate(module.TENS, 2)}
    names |= {name: str(number) for number, name in enumerate(module.HUNDREDS, 1)}
    return "".join(names.get(word, "") for word in words.split())


@pytest.mark.full
def test_sequences_are_learned_far_better_than_by_looking_words_up(tmp_path: Path) -> None:
    experiment, module = recipe("sequence_to_sequence")
    run, _ = train(experiment, tmp_path / "run")
    score = [line for line in read_metrics(run.folder) if line["split"] == "test"][-1]["sequence_accuracy"]
    rows = [module.Numbers("test", 500)[index] for index in range(500)]
    baseline = np.mean([looked_up(row["words"]) == row["digits"] for row in rows])
    assert 0.6 < baseline < 0.7
    assert score > 0.9
    # What is reported is what greedy decoding gets right.
    greedy = predict_run(Run(run.folder, experiment=experiment), [row["words"] for row in rows[:100]])
    known = predict_run(Run(run.folder, code=str(RECIPES / "sequence_to_sequence.py")), ["trezentos e vinte e um"])
    assert known == ["321"]
    assert np.mean([one == row["digits"] for one, row in zip(greedy, rows, strict=False)]) == pytest.approx(
        score, abs=0.05
    )


@pytest.mark.slow
def test_an_observer_of_ones_own_writes_its_table_on_over_a_resume(tmp_path: Path) -> None:
    runtime, optimizer = Runtime(log_every=2, eval_every=6, save_every=6), AdamW(schedule=ConstantRate(peak=1e-3))
    experiment = replace(recipe("own_observer")[0], runtime=runtime, optimizer=optimizer)
    train(replace(experiment, steps=6), tmp_path / "run")
    run, _ = train(replace(experiment, steps=12), tmp_path / "run")
    lines = [line for line in read_metrics(run.folder) if line["split"] == "train"]
    with (run.folder / "training.csv").open(newline="") as file:
        table = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    assert [row["step"] for row in table] == [2, 4, 6, 8, 10, 12]
    assert table == [{name: line[name] for name in table[0]} for line in lines]
    assert not [line for line in read_lines(run.folder / "events.jsonl") if line["kind"] == "observer_failed"]


@pytest.mark.parametrize(
    ("norms", "noted"),
    [([1, 2, 3, 19], []), ([1, 2, 3, 21], [4]), ([1, 2, float("nan")], [3]), ([50], []), ([1, 15, 100, 100], [2, 3])],
)
def test_a_gradient_that_explodes_is_noted_once_against_the_median_before(
    norms: list[float], noted: list[int], tmp_path: Path
) -> None:
    class Recorded:
        folder, experiment = tmp_path, recipe("own_observer")[0]

        def __init__(self) -> None:
            self.lines: list[dict[str, Any]] = []
            self.events: list[tuple[str, int]] = []

        def metrics(self) -> list[dict[str, Any]]:
            return self.lines

        def log_event(self, kind: str, **fields: Any) -> None:
            self.events.append((kind, fields["step"]))

    run = Recorded()
    values = [{"loss": 1.0, "accuracy": 0.5, "gradient_norm": norm} for norm in norms]
    for step, of_period in enumerate(values, 1):  # all are written already: an observer may be late
        run.lines += [{"step": step, "split": "test", "loss": 0.0}, {"step": step, "split": "train", **of_period}]
    for step, of_period in enumerate(values, 1):
        recipe("own_observer")[0].observers[0].trained(run, step, of_period, {})
    assert run.events == [("gradient_exploded", step) for step in noted]


def test_metrics_of_ones_own_are_those_of_all_rows_by_hand() -> None:
    module = recipe("own_metric")[1]
    scores = np.array([[3, 1, 0], [0, 2, 1], [2, 1, 0], [0, 1, 5], [9, 0, 0]], np.float32)
    label, counts = np.array([0, 1, 1, 2, 2]), np.array([True, True, True, True, False])
    parts = [module.Recall.of(scores[rows], label[rows], counts[rows]) for rows in (slice(0, 2), slice(2, 5))]
    assert (parts[0] + parts[1]).value() == pytest.approx({"mean": (1 + 1 / 2 + 1) / 3, "least": 1 / 2})
    assert parts[0].value() == pytest.approx({"mean": 1.0, "least": 1.0})  # the third class has no rows
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.55, 0.45]])
    labels = {"label": np.array([0, 0, 0, 0])}
    for share, expected in ((0.25, 1.0), (0.5, 1 / 2), (0.75, 1 / 3), (1.0, 2 / 4)):
        metric = module.SelectiveAccuracy(share)
        assert metric.value({"probabilities": probabilities}, labels) == pytest.approx(expected)

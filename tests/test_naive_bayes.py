"""Log-count ratios of n-grams: held against plain Python, fitted alike on every mesh, kept by a run."""

import functools
import itertools
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxtrain import ConfigError, Experiment, Layout, Program, Run
from jaxtrain.data import Arrays, Pipeline
from jaxtrain.models import NaiveBayes
from jaxtrain.models.variables import Variables
from jaxtrain.optimizers import AdamW
from jaxtrain.step import TrainState, eval_step, init_state
from jaxtrain.tasks import Classification
from jaxtrain.tasks.base import Batch
from jaxtrain.train import train

TEXTS = (
    "good film, good good film",
    "a good story",
    "bad film; a bad bad plot",
    "Good acting and a bad plot",
    "bad story",
    "not good at all",
    "a film",
    "",
    "good plot and a good film",
    "the last row",
)
LABELS = (1, 1, 0, 2, 0, 2, 1, 0, 1, 2)
MODEL = NaiveBayes(outputs=3, order=2, buckets=16, tags=4, words=6, least=2, smoothing=0.5, initial=1.0)


def keys(text: str, order: int, words: int, size: int) -> set[int]:
    """The n-grams of a text: FNV's prime over bytes and words, MurmurHash3's finaliser, modulo `size`."""
    kept = re.findall(rb"[a-z0-9'\x80-\xff]+", text.lower().encode())[:words]
    hashes = [functools.reduce(lambda h, byte: (h * 16777619 + byte + 1) % 2**32, word, 0) for word in kept]
    found = set()
    for start, n in itertools.product(range(len(kept)), range(1, order + 1)):
        if start + n <= len(kept):
            h = functools.reduce(lambda h, word: (h * 16777619 + word) % 2**32, hashes[start : start + n])
            h = (h ^ h >> 16) * 0x85EBCA6B % 2**32
            h = (h ^ h >> 13) * 0xC2B2AE35 % 2**32
            found.add((h ^ h >> 16) % size)
    return found


def ratios(texts: tuple[str, ...], labels: tuple[int, ...], model: NaiveBayes) -> tuple[dict[int, int], np.ndarray]:
    """Of each bucket that is used its key, and the log-count ratios [V, O], by dictionaries and in float64."""
    size = model.buckets * model.tags
    held = [(key, label) for text, label in zip(texts, labels, strict=True) for key in keys(text, 2, 6, size)]
    total, by_label = Counter(key for key, _ in held), Counter(held)
    winners: dict[int, int] = {}
    for key in sorted(total):  # of equal counts the lowest tag
        if total[key] > total[winners.get(key // model.tags, -1)]:
            winners[key // model.tags] = key
    winners = {bucket: key for bucket, key in winners.items() if total[key] >= model.least}
    own = {b: np.array([by_label[key, label] for label in range(3)]) + model.smoothing for b, key in winners.items()}
    rest = {b: total[key] - own[b] + 2 * model.smoothing for b, key in winners.items()}
    found = np.zeros((model.buckets, 3))
    for bucket in winners:
        shares = own[bucket] / sum(own.values()), rest[bucket] / sum(rest.values())
        found[bucket] = np.log(shares[0]) - np.log(shares[1])
    return winners, found


def raw(*texts: str) -> np.ndarray:
    return np.stack([np.frombuffer(text.encode().ljust(32, b"\0"), np.uint8) for text in texts])


def experiment(**changes: Any) -> Experiment:
    data = Pipeline(Arrays({"text": raw(*TEXTS), "label": np.array(LABELS, np.int32)}), batch_size=8)
    other = Arrays({"text": raw("bad bad film"), "label": np.array([1], np.int32)})
    task = Classification(model=MODEL, inputs="text", classes=("bad", "good", "mixed"))
    evals = {"test": replace(data, source=other, shuffle=False)}
    return replace(Experiment(task=task, data=data, optimizer=AdamW(), steps=2, evals=evals), **changes)


def fitted(made: Experiment, devices: int = 1) -> TrainState:
    return Program(made, jax.devices()[:devices]).init()


@pytest.mark.slow
def test_ratios_and_logits_are_those_of_plain_python():
    state = fitted(experiment())
    winners, expected = ratios(TEXTS, LABELS, MODEL)
    assert 3 <= len(winners) < MODEL.buckets
    np.testing.assert_allclose(state.model_state["ratios"], expected, atol=1e-6)
    assert {bucket: int(state.model_state["tags"][bucket]) for bucket in winners} == {
        bucket: key % MODEL.tags for bucket, key in winners.items()
    }
    asked = ("GOOD film bad plot", "good good good", "nothing known here", "", "a bad a bad a bad a bad")
    weights = np.linspace(0.5, 2, MODEL.buckets).astype(np.float32)
    params = {"weights": weights, "bias": np.array([0.1, 0.2, 0.3], np.float32)}
    found, _ = MODEL.apply(Variables(params, state.model_state), raw(*asked))
    for row, text in zip(found, asked, strict=True):
        used = [key // MODEL.tags for key in keys(text, 2, 6, 64) if winners.get(key // MODEL.tags) == key]
        np.testing.assert_allclose(row, params["bias"] + weights[used] @ expected[used], atol=1e-5)


@pytest.mark.parametrize("mesh", [{"data": 2}, {"fsdp": 2, "tensor": 2}, {"data": 2, "fsdp": 2, "tensor": 2}])
@pytest.mark.slow
def test_every_mesh_fits_the_same_bits(mesh: dict[str, int]):
    one, devices = fitted(experiment()), int(np.prod(list(mesh.values())))
    many = fitted(experiment(layout=Layout(mesh)), devices)
    for name in ("tags", "ratios"):
        np.testing.assert_array_equal(one.model_state[name], many.model_state[name])
    wanted = Program(experiment(layout=Layout(mesh)), jax.devices()[:devices]).state.model_state
    assert {name: x.sharding for name, x in many.model_state.items()} == {
        name: x.sharding for name, x in wanted.items()
    }


def test_counting_on_a_mesh_sends_keys_and_not_the_table():
    sizes = {"data": 2, "tensor": 2}
    program = Program(experiment(layout=Layout(sizes)), jax.devices()[:4])
    task, rows = program.experiment.task, next(program.epoch(program.experiment.data))
    counts = jax.device_put(np.zeros((64, 3), np.float32), NamedSharding(program.mesh, P()))
    with program.scope():
        count = jax.jit(lambda *given: task.count(given[0].evaluated, *given[1:]), out_shardings=counts.sharding)
        program_text = count.lower(program.state, rows, counts).compile().as_text()
    assert "all-gather" in str(program_text)
    assert "all-reduce" not in str(program_text)


def test_rows_without_weight_and_microbatches_change_nothing():
    whole = fitted(experiment(microbatches=2)).model_state["ratios"]
    np.testing.assert_array_equal(whole, fitted(experiment()).model_state["ratios"])
    task = replace(experiment().task, ignore=2)
    _, expected = ratios(
        *zip(*[pair for pair in zip(TEXTS, LABELS, strict=True) if pair[1] != 2], strict=True), model=MODEL
    )
    np.testing.assert_allclose(fitted(experiment(task=task)).model_state["ratios"], expected, atol=1e-6)


@pytest.mark.slow
def test_a_run_fits_once_and_keeps_the_ratios(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    counted = []
    count = Classification.count
    monkeypatch.setattr(Classification, "count", lambda *given: counted.append(1) or count(*given))
    made = experiment()
    _, first = train(made, tmp_path / "run")
    assert counted
    counted.clear()
    _, last = train(replace(made, steps=3), tmp_path / "run")
    assert not counted
    _, expected = ratios(TEXTS, LABELS, MODEL)
    for state in (first, last, Run(tmp_path / "run", experiment=made).restore().state):
        np.testing.assert_allclose(state.model_state["ratios"], expected, atol=1e-6)


def test_what_fits_nothing_reads_no_data(monkeypatch: pytest.MonkeyPatch):
    from jaxtrain.models import NGrams

    made = experiment()
    program = Program(replace(made, task=replace(made.task, model=NGrams(outputs=3, buckets=8, width=4))))
    monkeypatch.setattr(Program, "epoch", lambda *_: pytest.fail("it was read"))
    assert int(program.init().step) == 0


def test_a_bare_state_whose_ratios_were_never_fitted_has_no_loss():
    made = experiment()
    batch = next(made.data.batches())

    @jax.jit
    def loss(batch: Batch) -> Any:
        state = init_state(made.task, optax.sgd(1.0), jax.random.key(0), batch)
        loss: Any = eval_step(made.task, state, batch)["loss"]
        return loss.total

    assert np.isnan(float(loss(batch)))


def test_keys_of_more_than_31_bits_are_refused():
    with pytest.raises(ConfigError, match=r"more than 2\*\*31"):
        NaiveBayes(buckets=2**28, tags=16)

"""Data are known by what they hold: they may lie elsewhere, and `predict` needs none of them."""

import logging
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from jaxtrain import ConfigError, Experiment, load
from jaxtrain.base.config import flatten, from_json, to_json
from jaxtrain.data import (
    ArrayRecord,
    Arrays,
    Documents,
    HuggingFace,
    ImageFolder,
    InMemory,
    Mapped,
    Mixture,
    Packed,
    Parquet,
    Pipeline,
    Source,
    Stored,
    Take,
    Tokenize,
    Tokens,
    Tolerant,
    Utf8,
    Windows,
    plan_packing,
    train_bpe,
    write_array_record,
    write_tokens,
)
from jaxtrain.data.remembered import remember
from jaxtrain.data.sources import array_record
from jaxtrain.data.tokens.tokenizers import Bytes
from jaxtrain.evaluate import evaluate_run, predict_run
from jaxtrain.models import NGrams
from jaxtrain.optimizers import AdamW, ConstantRate
from jaxtrain.runs.begin import begin
from jaxtrain.runs.folder import Run
from jaxtrain.tasks import Classification
from jaxtrain.train import train

ROWS = [{"text": text, "label": label} for text, label in [("good", 1), ("bad", 0)] * 8]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Files of every kind."""
    made = tmp_path_factory.mktemp("data")
    write_array_record(made / "t.arrayrecord", ROWS)
    parquet.write_table(pa.table({name: [row[name] for row in ROWS] for name in ROWS[0]}), made / "t.parquet")
    paths = write_tokens(made, "t", [str(row["text"]) * 9 for row in ROWS], Bytes())
    plan_packing(tuple(map(str, paths)), 16)
    train_bpe([str(row["text"]) for row in ROWS], 300, made / "bpe.json")
    for number, name in enumerate(("a", "b")):
        (made / "images" / name).mkdir(parents=True)
        Image.fromarray(np.full((4, 4, 3), number, np.uint8)).save(made / "images" / name / "0.png")
    return made


def records(where: Path) -> Source:
    return ArrayRecord((str(where / "t.arrayrecord"),))


KINDS = {
    "records": records,
    "parquet": lambda where: Parquet((str(where / "t.parquet"),)),
    "tokens": lambda where: Tokens((str(where / "t-00000.bin"),), 16),
    "packed": lambda where: Packed((str(where / "t-00000.bin"),), 16),
    "documents": lambda where: Documents((str(where / "t-00000.bin"),)),
    "images": lambda where: ImageFolder(str(where / "images"), (4, 4), ("a", "b")),
    "stored": lambda where: Stored(records(where), str(where / "stored")),
    "tokenized": lambda where: Mapped(records(where), (Tokenize(HuggingFace(str(where / "bpe.json")), 4),)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_data_at_another_path_are_the_same(folder, tmp_path, kind):
    shutil.copytree(folder, tmp_path / "moved")
    here, there = KINDS[kind](folder), KINDS[kind](tmp_path / "moved")
    assert flatten(here) == flatten(there)
    assert str(folder) not in str(flatten(here))
    assert to_json(here) != to_json(there)  # a run still says where its data lie


def experiment(source: Source) -> Experiment:
    data = Pipeline(source, (Utf8(8),), batch_size=4)
    return Experiment(
        task=Classification(model=NGrams(buckets=64, width=4), inputs="bytes", classes=("bad", "good")),
        data=data,
        optimizer=AdamW(schedule=ConstantRate(peak=1e-1)),
        steps=2,
        evals={"all": data},
    )


def test_a_run_resumes_on_data_that_were_moved_and_not_on_others(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "moved")
    begin(tmp_path / "run", experiment(records(folder)), None)
    run = begin(tmp_path / "run", experiment(records(tmp_path / "moved")), None)
    assert run.saved["experiment"]["data"]["source"]["paths"] == [str(tmp_path / "moved" / "t.arrayrecord")]
    write_array_record(tmp_path / "moved" / "t.arrayrecord", ROWS[1:])
    with pytest.raises(ConfigError, match=r"data\.source\.identity"):
        begin(tmp_path / "run", experiment(records(tmp_path / "moved")), None)


# Relative paths.

FILE = """
from jaxtrain import Experiment
from jaxtrain.data import ArrayRecord, Pipeline, Utf8
from jaxtrain.models import NGrams
from jaxtrain.optimizers import AdamW, ConstantRate
from jaxtrain.tasks import Classification

SOURCE = ArrayRecord(("data/t.arrayrecord",))

def main() -> Experiment:
    data = Pipeline(ArrayRecord(("data/t.arrayrecord",)), (Utf8(8),), batch_size=len(SOURCE) // 4)
    return Experiment(task=Classification(model=NGrams(buckets=64, width=4), inputs="bytes", classes=("bad", "good")),
                      data=data, optimizer=AdamW(schedule=ConstantRate(peak=1e-1)), steps=2, evals={"all": data})
"""


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """An experiment file beside its data; the current folder is another."""
    monkeypatch.setattr("sys.path", list(sys.path))
    (tmp_path / "project" / "data").mkdir(parents=True)
    (tmp_path / "project" / "beside.py").write_text(FILE)
    write_array_record(tmp_path / "project" / "data" / "t.arrayrecord", ROWS)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "project"


def test_relative_paths_count_from_the_folder_of_the_experiment_file(project, monkeypatch):
    made, _ = load("../project/beside.py")
    monkeypatch.chdir("/")
    assert _paths(made) == (str(project / "data" / "t.arrayrecord"),)
    assert made.data.batch_size == 4


def test_outside_of_experiment_files_they_count_from_the_folder_that_was_current_when_they_were_made(
    project, monkeypatch
):
    load(str(project / "beside.py"))
    monkeypatch.chdir(project)
    source = ArrayRecord(("data/../data/t.arrayrecord",))
    monkeypatch.chdir("/")
    assert len(source) == 16
    assert replace(source).paths == from_json(to_json(source)).paths == (str(project / "data" / "t.arrayrecord"),)
    monkeypatch.setenv("HOME", str(project))
    assert ArrayRecord(("~/data/t.arrayrecord",)) == source
    assert ArrayRecord(("gs://bucket/t.arrayrecord",)).paths == ("gs://bucket/t.arrayrecord",)


@pytest.mark.slow
def test_a_run_is_evaluated_from_anywhere_and_predicts_without_its_data(project, tmp_path, monkeypatch, caplog):
    made, origin = load(str(project / "beside.py"))
    train(made, project / "runs" / "one", origin)
    before = evaluate_run(Run(project / "runs" / "one"))
    monkeypatch.chdir("/")
    assert evaluate_run(Run(project / "runs" / "one")) == before
    predicted = predict_run(Run(project / "runs" / "one"), ["good", "bad"])

    (tmp_path / "laptop").mkdir()
    shutil.move(project, tmp_path / "laptop" / "project")  # the run and its data together
    moved = tmp_path / "laptop" / "project"
    with caplog.at_level(logging.WARNING, "jaxtrain.data"):
        assert _paths(Run(moved / "runs" / "one").experiment) == (str(moved / "data" / "t.arrayrecord"),)
    assert caplog.text.count("instead") == 1
    assert f"{project}/data/t.arrayrecord is not there; reading {moved}/data/t.arrayrecord instead" in caplog.text
    assert evaluate_run(Run(moved / "runs" / "one")) == before

    shutil.rmtree(moved / "data")
    array_record._open_records.cache_clear()  # else a deleted file is still read
    assert predict_run(Run(moved / "runs" / "one"), ["good", "bad"]) == predicted
    with pytest.raises(ConfigError, match=r"no ArrayRecord file .*project/data/t.arrayrecord"):
        evaluate_run(Run(moved / "runs" / "one"))


def test_a_run_on_data_in_memory_predicts_without_them(tmp_path):
    columns = {name: [row[name] for row in ROWS] for name in ROWS[0]}
    train(experiment(Arrays(columns)), tmp_path / "run")
    given = predict_run(Run(tmp_path / "run", experiment=experiment(Arrays(columns))), ["good", "bad"])
    assert predict_run(Run(tmp_path / "run"), ["good", "bad"]) == given


@dataclass(frozen=True)
class Upper(Take):
    """Has a `raw` of its own."""

    def raw(self, argument: str) -> dict:
        return {"text": argument.upper()}


@pytest.mark.parametrize(
    ("wrap", "argument", "wanted"),
    [
        (lambda source: source, "hi", {"text": "hi"}),
        (lambda source: InMemory(Tolerant(Take(source, 3), 1)), "hi", {"text": "hi"}),
        (lambda source: Mixture((source, source), (1, 1)), "hi", {"text": "hi"}),
        (lambda source: Mapped(source, (Utf8(3),)), "hi", {"bytes": [104, 105, 0]}),
        (lambda source: Windows(source, 8), "hi", {"tokens": [104, 105]}),
        (lambda source: Windows(Arrays({"text": ["in memory" * 4]}), 8), "hi", {"tokens": [104, 105]}),
        (lambda source: Upper(source, 3), "hi", {"text": "HI"}),
    ],
)
def test_what_is_remembered_of_a_source_makes_raw_inputs_without_its_files(tmp_path, wrap, argument, wanted):
    write_array_record(tmp_path / "t.arrayrecord", ROWS)
    pipeline = Pipeline(wrap(records(tmp_path)), batch_size=2, transforms=(Encode(),))
    example = pipeline.example()
    saved = to_json(remember(pipeline))
    (tmp_path / "t.arrayrecord").unlink()
    kept = from_json(saved)
    found = kept.source.raw(argument)
    assert {
        name: value if isinstance(value, str) else np.asarray(value).tolist() for name, value in found.items()
    } == wanted
    assert {name: (x.dtype, x.shape) for name, x in kept.example().items()} == {
        name: (x.dtype, x.shape) for name, x in example.items()
    }
    assert kept.transforms == pipeline.transforms


@dataclass(frozen=True)
class Encode(Utf8):
    """Refuses the empty text that is remembered, as a vocabulary would."""

    length: int = 4

    def __call__(self, example, rng):
        if example.get("text") == "":
            raise ConfigError("no such word")
        return super().__call__(example, rng) if "text" in example else example


def test_images_and_arrays_are_remembered_by_shape(folder):
    source = from_json(to_json(KINDS["images"](folder).remembered()))
    assert source.raw(str(folder / "images" / "b" / "0.png"))["image"].tolist() == [[[1] * 3] * 4] * 4
    arrays = from_json(to_json(Arrays({"x": np.ones((2, 3, 5), np.float32), "label": [0, 1]}).remembered()))
    one = str(folder / "images" / "b" / "0.png")
    for dtype, value in ((np.uint8, 1), (np.float32, np.float32(1) / 255)):  # as those that are trained on
        like = Arrays({"image": np.zeros((2, 3, 5, 1), dtype)}).remembered().raw(one)["image"]
        assert (like.dtype, like.shape, set(like.flat)) == (dtype, (3, 5, 1), {value})
    np.save(folder / "one.npy", np.arange(15.0))
    found = arrays.raw(str(folder / "one.npy"))
    assert (found["x"].dtype, found["x"][1].tolist()) == (np.float32, [5, 6, 7, 8, 9])


def _paths(experiment: Any) -> tuple[str, ...]:
    return experiment.data.source.paths

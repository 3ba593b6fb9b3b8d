"""An evaluation is of the data that the run recorded, or says that it is not. A resume likewise."""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import nnx

from jaxtrain import ConfigError, Experiment, Run
from jaxtrain.cli import main as cli
from jaxtrain.data import ArrayRecord, Arrays, Pipeline, Standardize, Take, Utf8, write_array_record
from jaxtrain.data.sources import array_record
from jaxtrain.data.sources.contents import by_former_rule
from jaxtrain.evaluate import evaluate_run
from jaxtrain.experiment import Runtime
from jaxtrain.models import Model, NGrams
from jaxtrain.optimizers import AdamW, ConstantRate
from jaxtrain.tasks import Classification, Regression
from jaxtrain.train import train

ROWS = [{"text": text, "label": label} for text, label in [("good", 1), ("bad", 0)] * 4]
OTHER = [{"text": text, "label": 1 - label} for text, label in [("good", 1), ("bad", 0)] * 4]

FILE = """
from jaxtrain import Experiment
from jaxtrain.data import ArrayRecord, Pipeline, Utf8
from jaxtrain.models import NGrams
from jaxtrain.optimizers import AdamW, ConstantRate
from jaxtrain.tasks import Classification

def of(name):
    return Pipeline(ArrayRecord((name,)), (Utf8(8),), batch_size=4)

def main() -> Experiment:
    return Experiment(task=Classification(model=NGrams(buckets=64, width=4), inputs="bytes", classes=("bad", "good")),
                      data=of("train.arrayrecord"), optimizer=AdamW(schedule=ConstantRate(peak=1e-1)), steps=2,
                      evals={"test": of("test.arrayrecord"), "more": of("more.arrayrecord")})

def others() -> Experiment:
    one = main()
    return Experiment(task=one.task, data=one.data, optimizer=one.optimizer, steps=2,
                      evals={"test": one.evals["test"], "late": of("other.arrayrecord")})
"""


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """An experiment file beside its data, and a finished run of it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("sys.path", list(sys.path))
    for name, rows in {"train": ROWS, "test": ROWS[:6], "more": ROWS[:4], "other": OTHER[:5]}.items():
        write(tmp_path / f"{name}.arrayrecord", rows)
    (tmp_path / "kept.py").write_text(FILE)
    from jaxtrain import load

    train(*folder_and(load(str(tmp_path / "kept.py")), tmp_path / "run"))
    return tmp_path


def folder_and(loaded: tuple[Experiment, Any], folder: Path) -> tuple[Experiment, Path, Any]:
    return loaded[0], folder, loaded[1]


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    write_array_record(path, rows)
    array_record._open_records.cache_clear()


def verb(*words: str) -> int:
    return cli.run(["evaluate", *words])


def test_data_that_were_edited_since_are_refused_with_both_hashes_and_what_to_do(project, capsys):
    recorded = Run(project / "run").saved["config"]["evals.test.source.identity"]
    before = evaluate_run(Run(project / "run"))
    assert list(before) == ["test", "more"]
    write(project / "test.arrayrecord", OTHER[:6])
    now = ArrayRecord((str(project / "test.arrayrecord"),)).identity()
    with pytest.raises(ConfigError) as refused:
        verb(str(project / "run"))
    assert str(refused.value) == (
        "evals.test: not the data that the run recorded (run → now): "
        f"source.identity: {recorded} → {now}: put those back, or evaluate on these by --data FILE[:FUNCTION]"
    )
    assert capsys.readouterr().out == ""
    assert evaluate_run(Run(project / "run"), split="more") == {"more": before["more"]}
    write(project / "test.arrayrecord", ROWS[:6])
    assert evaluate_run(Run(project / "run")) == before


def test_other_data_are_evaluated_on_purpose_and_that_is_said(project, capsys):
    before = evaluate_run(Run(project / "run"))
    write(project / "more.arrayrecord", OTHER[:4])
    assert verb(str(project / "run"), "--data", str(project / "kept.py")) == 0
    printed = capsys.readouterr()
    assert [line.split()[0] for line in printed.out.splitlines()] == ["test", "more"]
    lines = [line for line in printed.err.splitlines() if "recorded" in line]
    assert len(lines) == 1
    assert lines[0].startswith("evals.more: not the data that the run recorded (run → now): source.identity: ")
    right = before["more"]["accuracy"]
    turned = evaluate_run(Run(project / "run"), data=_load(project, "main"))
    assert turned["test"] == before["test"]
    assert turned["more"]["accuracy"] == 1 - right  # every label is the other one


def test_a_split_of_another_experiment_is_said_to_be_none_of_the_run(project, capsys):
    assert verb(str(project / "run"), "--data", f"{project / 'kept.py'}:others") == 0
    printed = capsys.readouterr()
    assert [line.split()[0] for line in printed.out.splitlines()] == ["test", "late"]
    assert "evals.late: not the data that the run recorded (run → now): the run has no such split" in printed.err
    with pytest.raises(ConfigError, match="this experiment has no split 'more'"):
        verb(str(project / "run"), "--data", f"{project / 'kept.py'}:others", "--split", "more")


def test_the_data_of_training_need_not_be_there_to_evaluate_on_others(project):
    (project / "train.arrayrecord").unlink()
    array_record._open_records.cache_clear()
    assert evaluate_run(Run(project / "run"), data=_load(project, "main")).keys() == {"test", "more"}


def _load(project: Path, function: str) -> Experiment:
    from jaxtrain import load

    return load(f"{project / 'kept.py'}:{function}")[0]


@dataclass(frozen=True)
class Line(Model):
    def build(self, rngs: nnx.Rngs, inputs: Any) -> nnx.Module:
        return nnx.Linear(1, 1, rngs=rngs)


def test_other_data_in_memory_are_standardized_by_the_values_of_the_run(tmp_path):
    """By hand: the run's mean is 10 and its deviation 2, whatever the other data have."""

    def experiment(x: list[float]) -> Experiment:
        columns = {"x": np.array(x, np.float32)[:, None], "target": np.zeros(len(x), np.float32)}
        data = Pipeline(Arrays(columns), (Standardize(("x",)),), batch_size=2)
        optimizer = AdamW(schedule=ConstantRate(peak=1e-1))
        task = Regression(model=Line(), inputs="x")
        return Experiment(task=task, data=data, optimizer=optimizer, steps=1, evals={"test": data})

    run, _ = train(experiment([8, 12]), tmp_path / "run")
    found = Run(run.folder).on(experiment([14, 20]))
    batch = next(found.experiment.evals["test"].epoch())
    np.testing.assert_allclose(batch["x"].ravel(), [2, 5])
    assert evaluate_run(Run(run.folder), data=experiment([14, 20]))["test"].keys() >= {"loss"}


# Runs whose data were recorded by the former rule.


def as_before(folder: Path, experiment: Experiment) -> None:
    """Makes the record of a run what it was before all of a file was read."""
    from jaxtrain.base.config import flatten
    from jaxtrain.base.files import digest

    saved = json.loads((folder / "experiment.json").read_text())
    with by_former_rule():
        former = flatten(experiment)
    identities = {path: value for path, value in former.items() if path.endswith("source.identity")}
    assert saved["config"].keys() >= identities.keys()
    saved["config"] |= identities
    saved["fingerprint"] = digest(json.dumps(saved["config"], sort_keys=True), length=16)
    (folder / "experiment.json").write_text(json.dumps(saved))


def long_texts(middle: bytes) -> list[dict[str, Any]]:
    """Records of 3 MB, which differ in the middle of their file."""
    noise = [np.random.default_rng(row).bytes(300_000) for row in range(10)]
    noise[5] = noise[5][:150_000] + middle + noise[5][150_000:]
    return [{"text": text, "label": row % 2} for row, text in enumerate(noise)]


def on_long_texts(path: Path) -> Experiment:
    data = Pipeline(Take(ArrayRecord((str(path),)), 4), (Utf8(8),), batch_size=4)
    return Experiment(
        task=Classification(model=NGrams(buckets=64, width=4), inputs="bytes", classes=("bad", "good")),
        data=data,
        optimizer=AdamW(schedule=ConstantRate(peak=1e-1)),
        steps=2,
        evals={"test": data},
        runtime=Runtime(log_every=1, eval_every=2, save_every=2),
    )


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [record.getMessage() for record in caplog.records if "sizes and ends" in record.getMessage()]
    caplog.clear()
    return found


@pytest.mark.slow
def test_a_run_recorded_by_the_former_rule_resumes_says_so_once_and_is_recorded_anew(tmp_path, caplog):
    path = tmp_path / "long.arrayrecord"
    write(path, long_texts(b"one"))
    experiment = on_long_texts(path)
    train(experiment, tmp_path / "run")
    saved: Mapping[str, str] = Run(tmp_path / "run").saved["config"]
    as_before(tmp_path / "run", experiment)
    evaluate_run(Run(tmp_path / "run"))
    assert warnings(caplog) == [
        "evals.test: source.identity was recorded by the sizes and ends of files (of images, names and sizes), and those "
        "are equal: an edit between them would not be seen. Resuming the run records all that the files hold"
    ]
    train(replace(experiment, steps=3), tmp_path / "run")
    assert [line.split(" was ")[0] for line in warnings(caplog)] == [
        "the run: data.source.identity, evals.test.source.identity"
    ]
    assert Run(tmp_path / "run").saved["config"] == saved
    train(replace(experiment, steps=4), tmp_path / "run")
    assert warnings(caplog) == []
    before = path.stat().st_size
    write(path, long_texts(b"two"))
    assert path.stat().st_size == before
    with pytest.raises(
        ConfigError, match=r"data\.source\.identity: take:4:array_record:\w+ → take:4:array_record:\w+\n"
    ):
        train(replace(experiment, steps=5), tmp_path / "run")


def test_a_run_recorded_by_the_former_rule_is_refused_on_data_of_other_ends_and_for_other_values(tmp_path, caplog):
    path = tmp_path / "long.arrayrecord"
    write(path, long_texts(b"one"))
    experiment = on_long_texts(path)
    train(experiment, tmp_path / "run")
    as_before(tmp_path / "run", experiment)
    with pytest.raises(ConfigError) as refused:
        train(replace(experiment, seed=5), tmp_path / "run")
    assert str(refused.value).splitlines()[1:] == ["  seed: 0 → 5"]
    write(path, long_texts(b"one")[1:])
    with pytest.raises(ConfigError, match=r"data\.source\.identity"):
        train(experiment, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"evals\.test: not the data that the run recorded"):
        evaluate_run(Run(tmp_path / "run"))


def test_the_command_prints_one_line_and_ends_with_2(project):
    write(project / "test.arrayrecord", OTHER[:6])
    done = subprocess.run(
        [sys.executable, "-m", "jaxtrain", "evaluate", str(project / "run")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert len([line for line in done.stderr.splitlines() if "evals.test" in line]) == 1

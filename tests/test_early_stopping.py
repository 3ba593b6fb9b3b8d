"""A run whose evaluations improve no more ends by itself, and counts on when it is resumed."""

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import launch
import pytest
import tiny

from jaxtrain import ConfigError, EarlyStopping, Experiment
from jaxtrain.base.files import read_json
from jaxtrain.evaluate import check_metrics
from jaxtrain.experiment import Runtime
from jaxtrain.experiment.experiment import fingerprint
from jaxtrain.program import Program
from jaxtrain.runs.json_lines import read_lines
from jaxtrain.runs.metrics_log import read_metrics
from jaxtrain.train import train


class History:
    """A run of which only the metrics are known."""

    folder, experiment = Path(), None

    def __init__(self, *values: float) -> None:
        self.lines = [
            line
            for step, value in enumerate(values, 1)
            for line in (
                {"step": step, "split": "train", "loss": -step},
                {"step": step, "split": "validation", "loss": value, "all/right": value},
            )
        ]

    def metrics(self) -> list[dict[str, Any]]:
        return self.lines

    def log_event(self, kind: str, **fields: object) -> None:
        raise AssertionError(kind)


def reason(stopping: EarlyStopping, *values: float) -> str | None:
    return stopping.evaluated(History(*values), len(values), {})


def test_patience_is_the_number_of_evaluations_in_a_row_without_an_improvement() -> None:
    stopping = EarlyStopping(patience=2)
    assert reason(stopping, 3.0) is None
    assert reason(stopping, 3.0, 2.0, 2.5) is None
    assert reason(stopping, 3.0, 2.0, 2.5, 1.5, 1.6) is None
    why = "validation/loss did not improve in 2 evaluations: last at step 2, to 2"
    assert reason(stopping, 3.0, 2.0, 2.5, 2.0) == why


def test_a_maximum_a_least_improvement_and_a_value_of_a_metric_with_several() -> None:
    highest = EarlyStopping(metric="validation/all/right", patience=1, mode="max", least=0.1)
    assert reason(highest, 0.5, 0.7) is None
    assert reason(highest, 0.5, 0.55) == "validation/all/right did not improve in 1 evaluations: last at step 1, to 0.5"


def test_nan_is_never_an_improvement() -> None:
    nan = float("nan")
    assert reason(EarlyStopping(patience=2), nan, 1.0) is None
    assert reason(EarlyStopping(patience=2), nan, nan) == "validation/loss did not improve in 2 evaluations: never"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"patience": 0}, "EarlyStopping.patience: 0 is not at least 1"),
        ({"least": -0.5}, "EarlyStopping.least: -0.5 is not at least 0"),
        ({"mode": "lowest"}, "mode: 'lowest'"),
    ],
)
def test_numbers_that_cannot_be_are_refused(fields: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EarlyStopping(**fields)


def stopping(**fields: Any) -> Experiment:
    """Evaluated after each second step; a loss that has to fall by 1000 never improves after the first evaluation."""
    runtime = Runtime(log_every=5, eval_every=2, save_every=100)
    return replace(tiny.main(), observers=(EarlyStopping(least=1000.0, **fields),), runtime=runtime)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("validation/los", "observers.0: no evaluation reports 'validation/los'; did you mean 'validation/loss'?"),
        ("valid/loss", "observers.0: 'valid/loss' is of no split in evals; did you mean 'validation'?"),
        ("validation/gradient_norm", "observers.0: no evaluation reports 'validation/gradient_norm'"),
    ],
)
def test_a_metric_that_no_evaluation_reports_is_refused_before_anything_is_written(
    metric: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as error:
        train(stopping(metric=metric), tmp_path / "run")
    assert message in str(error.value)
    assert not (tmp_path / "run").exists()
    check_metrics(Program(stopping()))


@pytest.mark.slow
def test_the_run_ends_with_a_checkpoint_says_why_and_stays_ended(tmp_path: Path) -> None:
    run, state = train(stopping(patience=2), tmp_path / "run")
    assert int(state.step) == 6  # the evaluation after step 2 is the first, those after 4 and 6 are no better
    with run.checkpoints(read_only=True) as checkpoints:
        assert checkpoints.steps() == [6]
    (event,) = [event for event in read_lines(run.folder / "events.jsonl") if event["kind"] == "stopped"]
    first = next(line["loss"] for line in read_metrics(run.folder) if line["split"] == "validation")
    assert (event["step"], event["observer"]) == (6, "EarlyStopping")
    assert event["reason"] == f"validation/loss did not improve in 2 evaluations: last at step 2, to {first:.6g}"
    lines = [(line["step"], line["split"]) for line in read_metrics(run.folder)]
    expected = [(2, "validation"), (4, "validation"), (5, "train"), (6, "validation"), (6, "train")]
    assert lines == expected
    run, state = train(stopping(patience=2), tmp_path / "run")
    assert int(state.step) == 6
    assert [(line["step"], line["split"]) for line in read_metrics(run.folder)] == expected


@pytest.mark.slow
def test_a_resumed_run_counts_on_and_another_patience_is_the_same_run(tmp_path: Path) -> None:
    train(replace(stopping(patience=3), steps=4), tmp_path / "run")
    _, state = train(stopping(patience=3), tmp_path / "run")
    assert int(state.step) == 8
    _, state = train(stopping(patience=4), tmp_path / "run")
    assert int(state.step) == 10
    assert fingerprint(stopping(patience=1)) == fingerprint(tiny.main())


STOPPING = """
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, {folder!r})
import tiny

from jaxtrain import EarlyStopping, Experiment, Runtime


def main() -> Experiment:
    observers = (EarlyStopping(patience=1, least=1000.0),)
    return replace(tiny.data(), observers=observers, runtime=Runtime(log_every=3, eval_every=2, save_every=100))
"""


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_all_processes_end_at_the_same_step_with_exit_code_0(processes: int, tmp_path: Path) -> None:
    file = tmp_path / "stopping.py"
    file.write_text(STOPPING.format(folder=str(launch.HERE)))
    port, command = launch.free_port(), [sys.executable, "-m", "jaxtrain", "train", str(file)]
    started = [
        subprocess.Popen(
            [*command, "--run", str(tmp_path / "run")],
            env=launch.environment(1, process if processes > 1 else None, processes, port),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for process in range(processes)
    ]
    printed = [process.communicate(timeout=240)[0] for process in started]
    assert [process.returncode for process in started] == [0] * processes, "\n".join(printed)
    assert "did not improve in 1 evaluations" in printed[0]
    assert "resume with" not in printed[0]
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["4"]
    assert read_json(tmp_path / "run" / "experiment.json")["horizon"] == 12

"""`Prune`: which trials of a sweep end early, against the median by hand."""

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from jaxtrain import Prune
from jaxtrain.base.config import from_json, to_json


class Trial:
    """A run as an observer sees it."""

    experiment: Any = None

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def metrics(self) -> list[dict[str, Any]]:
        return []

    def log_event(self, kind: str, **fields: object) -> None:
        raise AssertionError(kind)


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    (tmp_path / "sweep.json").write_text(json.dumps({"metric": "test/accuracy", "mode": "max"}))
    return tmp_path


def trial(sweep: Path, number: int) -> Trial:
    return Trial(sweep / "trials" / f"{number:04d}")


def reach(prune: Prune, run: Trial, *values: float, start: int = 1) -> list[str | None]:
    """What the observer answers to these accuracies, at steps 10, 20 …"""
    return [
        prune.evaluated(run, 10 * step, {"test": {"accuracy": value, "loss": 0.0}, "other": {"accuracy": 9.0}})
        for step, value in enumerate(values, start)
    ]


def test_a_trial_ends_where_its_best_is_worse_than_the_median_of_the_others_at_that_step(sweep: Path):
    prune = Prune(least=3, warmup=1)
    others = ([0.3, 0.5, 0.6], [0.2, 0.4, 0.7], [0.4, 0.3, 0.8])
    for number, values in enumerate(others, 1):
        assert reach(prune, trial(sweep, number), *values) == [None] * 3
    reached = [max(values[:2]) for values in others]  # 0.5, 0.4, 0.4
    bad, good = reach(prune, trial(sweep, 4), 0.1, 0.39), reach(prune, trial(sweep, 5), 0.1, 0.41)
    assert statistics.median([*reached, 0.39]) == 0.4
    assert bad == [
        None,  # the first evaluation is not judged
        "pruned: test/accuracy was 0.39 at best until step 20, and that of the median of 3 other trials 0.4",
    ]
    assert good == [None, None]


def test_the_best_value_counts_and_not_the_last_one(sweep: Path):
    prune = Prune(least=1, warmup=1)
    reach(prune, trial(sweep, 1), 0.5, 0.5, 0.5)
    assert reach(prune, trial(sweep, 2), 0.6, 0.1, 0.1) == [None] * 3


def test_lower_is_better_where_the_sweep_says_so(sweep: Path):
    (sweep / "sweep.json").write_text(json.dumps({"metric": "test/accuracy", "mode": "min"}))
    prune = Prune(least=1, warmup=0)
    reach(prune, trial(sweep, 1), 0.5)
    (why,) = reach(prune, trial(sweep, 2), 0.6)
    assert why == "pruned: test/accuracy was 0.6 at best until step 10, and that of the median of 1 other trials 0.5"
    assert reach(prune, trial(sweep, 3), 0.4) == [None]


def test_no_trial_ends_before_enough_others_have_reached_its_step(sweep: Path):
    prune = Prune(least=2, warmup=0)
    reach(prune, trial(sweep, 1), 0.9, 0.9)
    reach(prune, trial(sweep, 2), 0.9)
    assert reach(prune, trial(sweep, 3), 0.1)[0] is not None
    assert reach(prune, trial(sweep, 4), 0.1, start=2) == [None]  # only one was evaluated at step 20
    assert reach(prune, trial(sweep, 5), 0.1, start=3) == [None]


def test_a_trial_whose_value_is_nan_ends_and_one_that_was_pruned_does_not_begin_again(sweep: Path):
    prune = Prune(least=1, warmup=0)
    reach(prune, trial(sweep, 1), 0.5)
    (why,) = reach(prune, trial(sweep, 2), float("nan"))
    assert why is not None
    assert prune.begun(trial(sweep, 2), 0) == why
    assert prune.begun(trial(sweep, 1), 0) is None


def test_a_file_that_cannot_be_read_counts_as_a_trial_without_evaluations(sweep: Path):
    prune = Prune(least=1, warmup=0)
    (sweep / "evaluations").mkdir()
    for number, text in ((1, "{"), (2, "[]"), (3, '{"values": {"10": "many"}}'), (4, '{"values": 3}')):
        (sweep / "evaluations" / f"{number:04d}.json").write_text(text)
    assert reach(prune, trial(sweep, 5), 0.1) == [None]


def test_in_a_run_that_is_no_trial_it_does_nothing_and_it_is_saved_as_any_value(tmp_path: Path):
    prune = Prune(least=1, warmup=0)
    assert reach(prune, trial(tmp_path, 1), 0.1, 0.2) == [None, None]
    assert prune.begun(trial(tmp_path, 1), 0) is None
    assert list(tmp_path.iterdir()) == []
    assert from_json(to_json(prune)) == prune

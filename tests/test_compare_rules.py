"""The rules of comparisons, on runs whose facts are written by hand."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats

from jaxtrain.reports.compare.code import by_file, code_differences
from jaxtrain.reports.compare.comparison import Comparison
from jaxtrain.reports.compare.differences import Difference, config_differences
from jaxtrain.reports.compare.facts import RunFacts
from jaxtrain.reports.compare.parting import parting
from jaxtrain.reports.compare.scores import scores
from jaxtrain.reports.compare.seeds import seed_groups, seed_scores

LOSSES = np.linspace(3, 1, 10, dtype=np.float32)


def run(
    name: str = "a",
    config: Mapping[str, Any] | None = None,
    losses: np.ndarray = LOSSES,
    batches: np.ndarray | None = None,
    final: Mapping[str, float] | None = None,
    **others: Any,
) -> RunFacts:
    steps = np.arange(1, len(losses) + 1)
    columns = {"step": steps, "loss": losses, "batch": steps if batches is None else batches}
    lines = [] if final is None else [{"step": 10, "split": "test", **final}]
    facts: dict[str, Any] = {"saved": {"horizon": 10}, "origins": {}, "environment": {}, "file": None, "wrong": ()}
    return RunFacts(
        name=name,
        folder=Path("/none") / name,
        config=config or {"steps": 10},
        steps=columns,
        lines=lines,
        **facts | others,
    )


def compared(one: RunFacts, two: RunFacts, *differences: Difference) -> Comparison:
    return Comparison((one, two), differences, (parting(one, two),), (), ())


@pytest.mark.parametrize(
    ("one", "two", "named"),
    [
        ({"steps": 10, "optimizer.schedule.steps": 10}, {"steps": 20, "optimizer.schedule.steps": 20}, ["steps"]),
        ({"steps": 10, "optimizer.schedule.steps": 10}, {"steps": 20, "optimizer.schedule.steps": 15}, None),
        (
            {"data.source.identity": "1", "data.source.rows": 1},
            {"data.source.identity": "2", "data.source.rows": 2},
            None,
        ),
        ({"data.source.identity": "1"}, {"data.source.identity": "2"}, ["data.source"]),
        ({"seed": 0}, {"seed": 0.0}, ["seed"]),
        ({"seed": 0}, {"seed": 0, "new": None}, ["new"]),
    ],
)
def test_what_follows_from_another_difference_is_left_out(one, two, named):
    runs = [run(name, config, saved={"horizon": config.get("steps")}) for name, config in (("a", one), ("b", two))]
    found = config_differences(runs)
    names = [each.name for each in found]
    if named is None:
        named = ["steps", "optimizer.schedule.steps"] if "steps" in one else ["data.source.rows"]
    assert sorted(names) == sorted(named)


def test_kinds_follow_from_paths():
    paths = {
        "seed": "seed",
        "data.seed": "seed",
        "steps": "length",
        "layout.mesh.data": "layout",
        "runtime.log_every": "runtime",
        "data.workers": "runtime",
        "evals.test.source.rows": "data",
        "task.model.width": "experiment",
    }
    one, two = (run(name, {path: f"{name} {path}" for path in paths}) for name in "ab")
    assert {each.name: each.kind for each in config_differences([one, two])} == paths


def test_rounding_explains_only_small_differences_that_nothing_else_explains():
    near, far = LOSSES * np.float32(1 + 1e-6), LOSSES * np.float32(1 + 1e-3)
    mesh, rate = (Difference(kind, "x", (1, 2)) for kind in ("layout", "experiment"))
    for losses, difference, by_rounding in ((near, mesh, True), (far, mesh, False), (near, rate, False)):
        words = compared(run(), run("b", losses=losses), difference).acts_from(1)
        assert ("by rounding" in words) == by_rounding
    other = np.arange(2, 12)
    assert "by rounding" not in compared(run(), run("b", losses=near, batches=other), mesh).acts_from(1)


def test_steps_that_both_have_are_compared_and_nan_equals_nan():
    losses = LOSSES.copy()
    losses[4] = np.nan
    found = parting(run(losses=losses), run("b", losses=losses.copy()[:7]))
    assert found is not None
    assert (found.steps, found.first, found.largest) == (7, None, 0)
    found = parting(run(losses=losses), run("b"))
    assert found is not None
    assert (found.loss, found.relative) == (5, np.inf)
    later = run("b")
    assert later.steps is not None
    later = replace(later, steps={**later.steps, "step": later.steps["step"] + 100})
    assert parting(run(), later) is None
    assert compared(run(), later).acts_from(1) == "they have no step in common"


def diff(*lines: tuple[str, str]) -> str:
    return "".join(f"diff --git a/{name} b/{name}\n--- a/{name}\n+++ b/{name}\n{line}\n" for name, line in lines)


def test_a_change_of_the_experiments_file_is_not_said_again_as_one_of_the_repository():
    git = [{"revision": "a" * 40, "diff": diff(*lines)} for lines in ((), (("exp.py", "+x"), ("other.py", "+y")))]
    one, two = (
        run(name, file=("exp.py", text), environment={"git": each}, saved={"origin": "sub/exp.py:main"})
        for name, text, each in zip("ab", ("x = 1\n", "x = 2\n"), git, strict=True)
    )
    assert [each.name for each in code_differences([one, two])] == [
        "the experiment's file exp.py",
        "not committed: other.py",
    ]
    assert by_file(git[1]["diff"]).keys() == {"exp.py", "other.py"}
    assert code_differences([one, run("c", file=one.file)]) == []  # without a repository


@pytest.mark.parametrize(
    ("path", "metric", "why"),
    [
        ("task.smoothing", "loss", "task.smoothing differs, by which the loss is another quantity"),
        ("task.smoothing", "accuracy", None),
        ("task.model.width", "loss", None),
        ("evals.test.source.identity", "accuracy", "the data of test differ: evals.test.source"),
        ("evals.test.batch_size", "accuracy", None),
        ("evals.other.source.identity", "accuracy", None),
        ("evals.test.transforms.0.mean", "loss", "evals.test.transforms.0.mean differs, by which the targets may"),
    ],
)
def test_what_makes_a_metric_another_quantity_is_said(path, metric, why):
    one, two = (run(name, {path: name}, final={metric: value}) for name, value in (("a", 0.5), ("b", 0.25)))
    (score,) = scores([one, two], config_differences([one, two]), ["test"])
    verdict = score.against[1]
    assert verdict is not None
    assert verdict.kind == ("no interval" if why is None else "not comparable")
    assert why is None or why in verdict.words


def seeded(name: str, rate: float, values: Sequence[float], first: int = 0) -> list[RunFacts]:
    return [
        run(f"{name}{seed}", {"rate": rate, "seed": seed, "runtime.log_every": seed}, final={"accuracy": value})
        for seed, value in enumerate(values, first)
    ]


A, B = [0.80, 0.85, 0.83], [0.82, 0.88, 0.85]


def test_groups_with_the_same_seeds_are_compared_in_pairs():
    (score,) = seed_scores([*seeded("a", 1, A), *seeded("b", 2, B)], ["test"])
    verdict = score.against[1]
    assert verdict is not None
    by_hand = scipy.stats.ttest_rel(B, A).confidence_interval()
    assert (verdict.low, verdict.high) == pytest.approx((by_hand.low, by_hand.high))
    assert verdict.words.startswith("the mean of b0, b1, b2 is better by 2.3 ± 1.4 points (95 %) over 3 and 3 seeds")


def test_groups_with_other_seeds_are_compared_by_welch():
    (score,) = seed_scores([*seeded("a", 1, A), *seeded("b", 2, B, first=7)], ["test"])
    verdict = score.against[1]
    assert verdict is not None
    by_hand = scipy.stats.ttest_ind(B, A, equal_var=False).confidence_interval()
    assert (verdict.low, verdict.high) == pytest.approx((by_hand.low, by_hand.high))
    assert verdict.kind == "not told apart"


def test_only_runs_that_differ_in_their_seed_alone_are_a_group():
    runs = [*seeded("a", 1, A), *seeded("b", 2, B[:1])]
    assert [len(group) for group in seed_groups(runs)] == [3, 1]
    again = replace(runs[0], name="again")
    assert [len(group) for group in seed_groups([*runs[:3], again])] == [3, 1]
    changed = replace(runs[0], name="changed", file=("exp.py", "x"), config={"rate": 1, "seed": 9})
    assert [len(group) for group in seed_groups([*runs[:3], changed])] == [3, 1]
    unknown = [replace(each, config={}) for each in runs[:2]]
    assert [len(group) for group in seed_groups(unknown)] == [1, 1]

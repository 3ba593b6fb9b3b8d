"""What a sweep's table and page say: by hand and by scipy, of made folders with known numbers."""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import films
import numpy as np
import pytest
from browser import Site, page
from scipy import stats

from jaxtrain.base.errors import ConfigError
from jaxtrain.experiment.experiment import fingerprint
from jaxtrain.experiment.files import load
from jaxtrain.experiment.override import override_all, settings
from jaxtrain.launch.sweep.begin import begin_sweep
from jaxtrain.reports.sweep.findings import importance, response, winner_file
from jaxtrain.reports.sweep.read import Sweep, read_sweep, short_names
from jaxtrain.reports.sweep.report import sweep_report
from jaxtrain.reports.sweep.space import Between, Choices, Space
from jaxtrain.reports.sweep.text import sweep_text

PEAKS, CLIPS, SEEDS = (1e-4, 1e-3, 1e-2), (None, 1.0), (0, 1, 2)
PEAK = "optimizer.schedule.peak"
GRID = Space("grid", (Choices(PEAK, PEAKS), Choices("optimizer.clip", CLIPS), Choices("seed", SEEDS)))


def made(folder: Path, space: Space, values: Sequence[float | None], **changes: Any) -> Sweep:
    """A sweep whose trials ended with these values; None failed, NaN was never begun."""
    begun = Sweep(folder, "films.py:main", (), {"steps": 4}, space, "test/accuracy", "max", False, {"steps": 4})
    begin_sweep(replace(begun, **changes))
    for place in ("asked", "results"):
        (folder / place).mkdir()
    for number, value in enumerate(values, 1):
        if value is not None and math.isnan(value):
            continue
        ended = {
            "state": "failed" if value is None else "finished",
            "why": "" if value is not None else "<b>it broke</b>",
        }
        write(folder, "asked", number, {"number": number, "values": space.point(number)})
        write(folder, "results", number, {"number": number, **ended, "step": 4, "value": value})
    return read_sweep(folder)


def write(folder: Path, place: str, number: int, value: Mapping[str, Any]) -> None:
    (folder / place / f"{number:04d}.json").write_text(json.dumps(value))


def accuracies(seed: int = 0) -> np.ndarray:
    """f64[3, 2, 3] by peak, clip and seed, best at the second peak with clipping."""
    noise = np.random.default_rng(seed).normal(0, 0.01, (3, 2, 3))
    return np.array([0.6, 0.9, 0.7])[:, None, None] + np.array([0.0, 0.05])[None, :, None] + noise


def test_the_winner_is_the_setting_with_the_best_mean_over_seeds_and_not_the_luckiest_trial(tmp_path: Path):
    values = accuracies()
    values[0, 0] = [0.0, 0.0, 0.99]  # one lucky seed
    sweep = made(tmp_path, GRID, values.ravel().tolist())
    winner = sweep.winner()
    assert winner is not None
    assert dict(winner.values) == {PEAK: 1e-3, "optimizer.clip": 1.0}
    assert winner.mean == pytest.approx(values[1, 1].mean())
    assert [setting.mean for setting in sweep.settings()] == sorted(values.mean(-1).ravel().tolist(), reverse=True)
    text = sweep_text(sweep)
    assert f"best: test/accuracy {winner.mean:.4g}, the mean of 3 seeds, with {PEAK}=0.001  optimizer.clip=1" in text


def test_a_setting_of_which_a_seed_failed_does_not_win_over_complete_ones(tmp_path: Path):
    values = accuracies().ravel().tolist()
    values[9:12] = [2.0, 2.0, None]  # the best setting
    sweep = made(tmp_path, GRID, values)
    winner = sweep.winner()
    assert winner is not None
    assert dict(winner.values) == {PEAK: 1e-3, "optimizer.clip": None}
    assert "trial 12 failed: <b>it broke</b>" in sweep_text(sweep)


def test_response_curves_have_the_t_interval_over_seeds_of_means_over_the_other_fields(tmp_path: Path):
    values = accuracies()
    sweep = made(tmp_path, GRID, values.ravel().tolist())
    points = response(sweep, PEAK)
    assert [point.value for point in points] == list(PEAKS)
    for at, point in enumerate(points):
        means = values[at].mean(0)  # one number a seed
        low, high = stats.t.interval(0.95, 2, means.mean(), stats.sem(means))
        found = point.interval
        assert (found.value, found.low, found.high) == pytest.approx((means.mean(), low, high), rel=1e-6)
        assert point.best == pytest.approx(values[at].mean(1).max())
        assert point.trials == 6


def test_a_response_curve_compares_only_settings_that_are_complete(tmp_path: Path):
    values = accuracies()
    incomplete = values.copy()
    incomplete[0, 1, 2] = np.nan  # of the first peak with clipping, one seed is missing
    sweep = made(tmp_path, GRID, incomplete.ravel().tolist())
    first, second, _ = response(sweep, PEAK)
    assert (first.interval.value, first.trials) == (pytest.approx(values[0, 0].mean()), 3)
    assert (second.interval.value, second.trials) == (pytest.approx(values[1].mean()), 6)


def test_importance_is_that_of_a_one_way_analysis_of_variance(tmp_path: Path):
    values = accuracies()
    sweep = made(tmp_path, GRID, values.ravel().tolist())
    found = importance(sweep)
    assert next(iter(found)) == PEAK
    for path, axis in ((PEAK, 0), ("optimizer.clip", 1), ("seed", 2)):
        groups = [values.take(at, axis).ravel() for at in range(values.shape[axis])]
        f = stats.f_oneway(*groups).statistic
        between, within = len(groups) - 1, 18 - len(groups)
        # ε² by F (Kelley 1935): (F - 1) / (F + within / between).
        assert found[path] == pytest.approx(max(0.0, (f - 1) / (f + within / between)), abs=1e-9)


def test_a_field_that_explains_nothing_is_not_important_however_many_values_it_has(tmp_path: Path):
    generator = np.random.default_rng(0)
    space = Space("random", (), (Between(PEAK, 1e-4, 1e-1, log=True), Between("seed", 0, 10**6, whole=True)), 60)
    peaks = np.log10([space.point(number)[PEAK] for number in range(1, 61)])
    sweep = made(tmp_path, space, (-((peaks + 2.5) ** 2) + generator.normal(0, 0.1, 60)).tolist())
    found = importance(sweep)
    assert found[PEAK] > 0.6
    assert found["seed"] < 0.2


def test_nothing_is_said_of_importance_where_nothing_can_be_known(tmp_path: Path):
    assert importance(made(tmp_path / "few", GRID, [0.1, 0.2, 0.3])) == {}
    assert importance(made(tmp_path / "equal", GRID, [0.5] * 18)) == {}


def test_the_winner_as_a_file_loads_and_is_the_experiment_of_the_winning_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys, "path", list(sys.path))
    axes = (Choices("data.shuffle", (True, False)), Choices("layout.mesh", ({}, {"data": 8})), *GRID.grid[1:2])
    sweep = made(tmp_path / "out", Space("grid", axes), [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 0.7])
    winner = sweep.winner()
    assert winner is not None
    values = winner.trials[0].values
    assert dict(values) == {"data.shuffle": False, "layout.mesh": {"data": 8}, "optimizer.clip": None}
    (tmp_path / "pasted_winner.py").write_text(winner_file(sweep, values))
    loaded, _ = load(str(tmp_path / "pasted_winner.py"))
    trained = override_all(films.main(), {**sweep.fixed, **values})
    assert settings(loaded) == settings(trained)
    assert fingerprint(loaded) == fingerprint(trained) != fingerprint(films.main())
    assert loaded.steps == 4


def test_the_page_has_all_of_it_and_escapes_what_comes_from_files(tmp_path: Path):
    values = [*accuracies().ravel().tolist()[:17], None]
    made(tmp_path, GRID, values, experiment="<script>films</script>.py:main")
    text = sweep_report(tmp_path).read_text()
    for part in ("Settings", "The winner", "Response curves", "Importance", "Parallel coordinates", "Trials"):
        assert f">{part}</h2>" in text
    assert "<script>films" not in text
    assert "<b>it broke" not in text
    assert "&lt;b&gt;it broke&lt;/b&gt;" in text
    assert "17 finished, 1 failed" in text
    assert text.count("<polyline") == 17
    assert sweep_report(tmp_path, tmp_path / "other.html").name == "other.html"


def test_a_sweep_without_a_trial_has_a_page_and_a_table_too(tmp_path: Path):
    sweep = made(tmp_path, GRID, [])
    assert sweep_text(sweep) == f"{tmp_path}: 18 not begun"
    assert "18 not begun" in sweep_report(tmp_path).read_text()


DAMAGED: dict[str, tuple[str, str]] = {
    "no object": ("[]", "it is not an object"),
    "half": ('{"space": {', "is not JSON"),
    "no space": ("{}", "None is not what a sweep wrote there"),
    "another mode": ('"mode": "best"', "mode or flags are not what a sweep wrote there"),
    "a space without values": ('"values": []', "has no values"),
    "another method": ('"method": "guess"', "'guess' is not"),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_or_foreign_sweep_is_refused_in_one_message(tmp_path: Path, what: str):
    made(tmp_path, GRID, [])
    file = tmp_path / "sweep.json"
    text, message = DAMAGED[what]
    saved = json.loads(file.read_text())
    if text.startswith('"'):
        name, value = next(iter(json.loads(f"{{{text}}}").items()))
        place = {"mode": saved, "method": saved["space"], "values": saved["space"]["grid"][0]}[name]
        place[name] = value
        text = json.dumps(saved)
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        read_sweep(tmp_path)
    assert message in str(error.value)
    assert str(file) in str(error.value)
    with pytest.raises(ConfigError, match=r"is not a sweep: it has no sweep\.json"):
        read_sweep(tmp_path / "asked")


def test_a_damaged_file_of_a_trial_is_that_of_a_failed_trial_and_stops_nothing(tmp_path: Path):
    sweep = made(tmp_path, GRID, [0.1, 0.2, 0.3, 0.4])
    (tmp_path / "results" / "0001.json").write_text("{")
    write(tmp_path, "results", 2, {"state": "won", "why": "", "step": 1, "value": 1})
    write(tmp_path, "asked", 3, {"values": [1]})
    (tmp_path / "results" / "0004.json").unlink()
    (tmp_path / "results" / "junk.json").write_text("{")
    assert [trial.state for trial in sweep.trials] == ["finished"] * 4
    found = read_sweep(tmp_path).trials
    assert [trial.state for trial in found] == ["failed", "failed", "failed", "unfinished"]
    assert "its files are damaged" in found[0].why
    assert "no sweep wrote such a result" in found[1].why
    sweep_report(tmp_path)


def test_fields_have_the_shortest_names_that_tell_them_apart():
    paths = ["optimizer.schedule.peak", "data.batch_size", "evals.test.batch_size", "seed"]
    assert list(short_names(paths).values()) == ["peak", "data.batch_size", "test.batch_size", "seed"]


@pytest.mark.slow
def test_the_page_opens_in_a_browser_without_a_fault_and_draws_its_plots(tmp_path: Path):
    made(tmp_path / "sweep", GRID, accuracies().ravel().tolist())
    (tmp_path / "site").mkdir()
    sweep_report(tmp_path / "sweep", tmp_path / "site" / "index.html")
    site = Site(tmp_path / "site")
    with page(site, tmp_path / "profile") as tab:
        tab.open()
        assert tab.wait("document.querySelectorAll('.drawing canvas').length >= 1", 30)
        drawn = "[...document.querySelectorAll('.drawing canvas')].every(c => c.getContext('2d')"
        drawn += ".getImageData(0, 0, c.width, c.height).data.some(x => x))"
        assert tab.wait(drawn, 30)
        assert tab.run("document.querySelectorAll('.svg polyline').length") == 18
        assert tab.problems() == []
    assert not [address for address in site.elsewhere if "google" not in address]

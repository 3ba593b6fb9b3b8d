"""`jaxtrain sweep`: what it tries, how trials are shared and recorded. Trials here are a small program in place of a
training; those of tests/test_sweep_kills.py are real ones.
"""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import films
import numpy as np
import pytest

from jaxtrain.base.errors import ConfigError
from jaxtrain.cli import main as cli
from jaxtrain.cli.flags import parse
from jaxtrain.experiment import Experiment
from jaxtrain.experiment.override import override
from jaxtrain.launch.sweep.begin import begin_sweep
from jaxtrain.launch.sweep.claims import Claims
from jaxtrain.launch.sweep.search import Adaptive
from jaxtrain.launch.sweep.slots import divide, visible_gpus
from jaxtrain.launch.sweep.wanted import Wanted, check_trials, objective, space_wanted
from jaxtrain.reports.sweep.read import Sweep, read_sweep
from jaxtrain.reports.sweep.space import Between, Choices, Space, space_of
from jaxtrain.runs.begin import new_folder

FILMS = f"{Path(__file__).parent / 'films.py'}"

TOY = """
import json, math, os, sys
from pathlib import Path

folder = Path(sys.argv[sys.argv.index("--run") + 1])
flags = dict(word[2:].split("=") for word in sys.argv if word.startswith("--") and "=" in word)
folder.mkdir(parents=True, exist_ok=True)
starts = folder / "starts"
starts.write_text(str(int(starts.read_text() if starts.exists() else 0) + 1))
peak = float(flags.get("optimizer.schedule.peak", 0.01))
print("here", os.environ.get("CUDA_VISIBLE_DEVICES"))
if peak == 0.5:
    print("jaxtrain: the loss is NaN in step 3", file=sys.stderr)
    sys.exit(4)
if peak == 0.25 and starts.read_text() == "1":
    sys.exit(75)
loss = math.nan if peak == 0.125 else (math.log10(peak) + 2) ** 2 + 0.01 * float(flags.get("seed", 0))
if peak == 0.0625:
    (folder.parent.parent / "evaluations").mkdir(exist_ok=True)
    pruned = json.dumps(dict(values={"6": 1.0}, pruned="pruned: it was worse"))
    (folder.parent.parent / "evaluations" / (folder.name + ".json")).write_text(pruned)
line = dict(step=6, split="test", loss=loss if peak != 0.125 else "nan")
(folder / "metrics.jsonl").write_text(json.dumps(line) + chr(10))
"""
"""In place of a training: its loss is lowest at a peak of 0.01, and some peaks fail."""


class Called:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, " ".join(err.replace("│", " ").split())


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Called]:
    """`jaxtrain sweep tests/films.py` with these words in an empty working directory, in this process."""
    (tmp_path / "toy.py").write_text(TOY)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)

    def call(*words: str, program: str = "toy.py") -> Called:
        own = ["--program", f"{sys.executable} {program}", "--restarts", "1"]
        end = words.index("--") if "--" in words else len(words)
        monkeypatch.setattr(sys, "argv", ["jaxtrain", "sweep", FILMS, *words[:end], *own, *words[end:]])
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        printed = capsys.readouterr()
        return Called(code, printed.out, printed.err)

    return call


def read(words: Any) -> Experiment:
    return parse(FILMS, words).experiment


def test_a_grid_trains_every_combination_and_shows_the_best_mean_over_seeds(sweep: Callable[..., Called]):
    done = sweep("--grid", "optimizer.schedule.peak=1e-3,1e-2,1e-1", "seed=0,1", "--out", "out", "--", "--steps", "6")
    assert done.code == 0
    found = read_sweep("out")
    peaks, seeds = (0.001, 0.01, 0.1), (0, 1)
    expected = [{"optimizer.schedule.peak": peak, "seed": seed} for peak in peaks for seed in seeds]
    assert [dict(trial.values) for trial in found.trials] == expected
    assert [trial.value for trial in found.trials] == [1.0, 1.01, 0.0, 0.01, 1.0, 1.01]
    winner = found.winner()
    assert winner is not None
    assert (dict(winner.values), winner.mean) == ({"optimizer.schedule.peak": 0.01}, 0.005)
    assert "out: 6 finished" in done.out
    assert "best: test/loss 0.005, the mean of 2 seeds, with optimizer.schedule.peak=0.01" in done.out
    assert done.out.index("0.005 (0 to 0.01)  3, 4") < done.out.index("1.005 (1 to 1.01)  1, 2")
    assert "the best has the lowest test/loss of its last evaluation" in done.err


def test_a_trial_that_fails_is_recorded_with_its_reason_and_stops_no_other(sweep: Callable[..., Called]):
    words = ("--grid", "optimizer.schedule.peak=0.5,0.25,0.125,0.0625,0.01", "--out", "out")
    done = sweep(*words)
    assert done.code == 0
    diverged, resumed, infinite, pruned, good = read_sweep("out").trials
    assert (pruned.state, pruned.why) == ("pruned", "it was worse")
    assert (diverged.state, diverged.why) == ("failed", "exit code 4: the loss is NaN in step 3")
    assert (infinite.state, infinite.why) == ("failed", "test/loss is nan at step 6")
    assert (resumed.state, Path("out/trials/0002/starts").read_text()) == ("finished", "2")
    assert (good.state, good.value) == ("finished", 0.0)
    assert "trial 1 failed: exit code 4: the loss is NaN in step 3" in done.out
    again = sweep(*words)
    assert again.out == done.out
    starts = [path.read_text() for path in sorted(Path("out/trials").glob("*/starts"))]
    assert starts == ["1", "2", "1", "1", "1"]  # nothing was trained again


def wanted_in(folder: Path, space: Space, **changes: Any) -> Sweep:
    """A sweep of tests/films.py by the loss."""
    config = {"steps": 6, "optimizer.clip": None}
    return replace(Sweep(folder, "films.py:main", (), {}, space, "test/loss", "min", False, config), **changes)


SEEDS = Space("grid", (Choices("seed", (0, 1)),))

OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "other values": ({"space": Space("grid", (Choices("seed", (0, 1, 2)),))}, "seed: 0, 1 → 0, 1, 2"),
    "another field": ({"space": Space("grid", (Choices("steps", (0, 1)),))}, "seed: 0, 1 → —"),
    "another method": ({"space": Space("random", (), (Choices("seed", (0, 1)),))}, "method: grid → random"),
    "another metric": ({"metric": "test/accuracy"}, "metric: test/loss → test/accuracy"),
    "the other end": ({"mode": "max"}, "mode: min → max"),
    "a flag": ({"fixed": {"runtime.log_every": 7}}, "flag runtime.log_every: — → 7"),
    "another file": ({"experiment": "digits.py:main"}, "experiment: films.py:main → digits.py:main"),
    "a file that was edited": ({"config": {"steps": 7, "optimizer.clip": None}}, "steps: 6 → 7"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_another_search_in_the_same_folder_is_refused_with_the_difference(tmp_path: Path, what: str):
    first = begin_sweep(wanted_in(tmp_path / "out", SEEDS))
    assert begin_sweep(wanted_in(tmp_path / "out", SEEDS)) == first  # the same one is resumed
    assert begin_sweep(wanted_in(tmp_path / "out", SEEDS, experiment="elsewhere/films.py:main")) == first
    before = (tmp_path / "out" / "sweep.json").read_bytes()
    changes, message = OTHERS[what]
    with pytest.raises(ConfigError, match="out is another sweep; resume it with the same command") as error:
        begin_sweep(wanted_in(tmp_path / "out", **{"space": SEEDS, **changes}))
    assert message in str(error.value)
    assert (tmp_path / "out" / "sweep.json").read_bytes() == before


def test_a_folder_of_something_else_is_refused(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="exists and is not a sweep: choose another --out"):
        begin_sweep(wanted_in(tmp_path, SEEDS))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_more_draws_extend_a_random_sweep_with_the_same_first_ones(tmp_path: Path):
    drawn = (Between("optimizer.schedule.peak", 1e-4, 1e-1, log=True),)
    begin_sweep(wanted_in(tmp_path, Space("random", (), drawn, 2)))
    larger, smaller = (Space("random", (), drawn, draws) for draws in (3, 1))
    assert begin_sweep(wanted_in(tmp_path, larger)).space.draws == read_sweep(tmp_path).space.draws == 3
    assert begin_sweep(wanted_in(tmp_path, smaller)).space.draws == 1  # this driver does one trial
    assert read_sweep(tmp_path).space.draws == 3
    assert [larger.point(number) for number in (1, 2)] == [read_sweep(tmp_path).space.point(n) for n in (1, 2)]


def test_two_sweeps_that_begin_in_the_same_second_have_folders_of_their_own(
    sweep: Callable[..., Called], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("jaxtrain.runs.begin.time.time", lambda: 1e9)
    taken = new_folder(Path("sweeps/films"))
    sweep("--grid", "seed=0")
    other = next(folder for folder in Path("sweeps/films").iterdir() if folder != taken)
    assert other.name == f"{taken.name}-2"
    assert len(read_sweep(other).trials) == 1


MISTAKES: dict[str, tuple[Wanted, str]] = {
    "nothing": (Wanted(), "give --grid, --random or --adaptive"),
    "two methods": (Wanted(random=("2", "seed=0:9"), adaptive=("2", "seed=0:9")), "give --grid, --random or"),
    "a grid beside Optuna": (Wanted(grid=("seed=0",), adaptive=("2", "steps=1:9")), "--grid does not go with --adapt"),
    "no values": (Wanted(grid=("seed",)), "--grid seed: give a field and its values, as in --grid seed=0,1,2"),
    "no such field": (Wanted(grid=("sede=1",)), "no field 'sede' in this experiment; did you mean 'seed'?"),
    "a value twice": (Wanted(grid=("seed=1,1",)), "1 is there twice"),
    "a field twice": (Wanted(grid=("seed=1", "seed=2")), "seed is given twice"),
    "out of range": (Wanted(grid=("optimizer.schedule.peak=1e-3,-1",)), "-1.0 is not at least 0"),
    "neither yes nor no": (Wanted(grid=("data.shuffle=maybe",)), "'maybe' is not true or false"),
    "no number of draws": (Wanted(random=("seed=0:9",)), "give the number of trials first, as in --random 20"),
    "no draws": (Wanted(random=("0", "seed=0:9")), "give the number of trials first"),
    "draws of nothing": (Wanted(random=("3",)), "--random 3: name what varies"),
    "an empty range": (Wanted(random=("3", "seed=9:0")), "the first number must be less than the second"),
    "three numbers": (Wanted(random=("3", "seed=0:1:2")), "give two numbers, LOW:HIGH or LOW:HIGH:log"),
    "a logarithm of 0": (Wanted(random=("3", "optimizer.schedule.peak=0:1:log")), "a logarithm needs numbers above 0"),
    "a range of no number": (Wanted(random=("3", "data.shuffle=false:true")), "data.shuffle is no number"),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_in_what_varies_is_named(what: str):
    wanted, message = MISTAKES[what]
    with pytest.raises(ConfigError) as error:
        space_wanted(wanted, films.main(), read)
    assert message in str(error.value)


def test_values_that_do_not_fit_are_refused_before_any_trial_and_nothing_is_written(sweep: Callable[..., Called]):
    for words, message in (
        (["--grid", "microbatches=1,3"], "with microbatches = 3: microbatches: 3 do not divide a batch of 8"),
        (["--grid", "seed=0,many"], "--seed: invalid literal for int() with base 10: 'many'"),
        (["--grid", "seed=0", "--metric", "test/acuracy", "--mode", "max"], "did you mean 'test/accuracy'?"),
        (["--grid", "seed=0", "--metric", "tst/loss"], "no such split in evals; did you mean 'test'?"),
        (["--grid", "seed=0", "--workers", "999"], "--workers 999: this machine has"),
        (["--grid", "seed=0", "--", "--run", "x"], "every trial has a run of its own"),
    ):
        refused = sweep(*words)
        assert refused.code == 2
        assert message in refused.err
        assert [path.name for path in Path().iterdir()] == ["toy.py"]


def test_every_trial_of_a_grid_is_created_before_the_first_one_begins():
    space = Space("grid", (Choices("seed", tuple(range(100))), Choices("microbatches", (1, 3))))
    with pytest.raises(ConfigError, match="with seed = 0, microbatches = 3: "):
        check_trials(space, films.main())
    check_trials(Space("grid", (Choices("microbatches", (1, 2)),)), films.main())


def test_trials_are_judged_by_keep_best_else_by_the_loss_of_the_first_split():
    assert objective(Wanted(), films.main()) == ("test/loss", "min", False)
    kept = override(override(films.main(), "keep.best", "test/accuracy"), "keep.mode", "max")
    assert objective(Wanted(), kept) == ("test/accuracy", "max", True)
    assert objective(Wanted(metric="test/loss"), kept) == ("test/loss", "min", False)
    with pytest.raises(ConfigError, match=r"say whether the lowest \(min\) or the highest \(max\) test/accuracy"):
        objective(Wanted(metric="test/accuracy"), films.main())


def test_values_are_read_as_flags_read_them():
    texts = ("data.shuffle=true,false", "optimizer.clip=None,2", "layout.mesh=data 1,fsdp 1", "task.classes=a b,c d")
    space = space_wanted(Wanted(grid=texts), films.main(), read)
    values = [axis.values for axis in space.grid]
    assert values == [(True, False), (None, 2.0), ({"data": 1}, {"fsdp": 1}), (("a", "b"), ("c", "d"))]
    assert space_of(json.loads(json.dumps(space.json()))) == space


def test_draws_have_the_distribution_that_was_asked_for_and_never_change():
    axes = (Between("a", 1e-4, 1e-1, log=True), Between("b", -2.0, 2.0), Between("c", 1, 4, whole=True))
    space = Space("random", (), (*axes, Choices("d", ("x", "y"))), 4000, 7)
    points = [space.point(number) for number in range(1, len(space) + 1)]
    assert points[100] == space.point(101)
    assert points != [Space("random", (), space.drawn, 4000, 8).point(number) for number in range(1, 4001)]
    logs, plain = np.log10([point["a"] for point in points]), np.array([point["b"] for point in points])
    for found, low, high in ((logs, -4, -1), (plain, -2, 2)):
        assert low <= found.min() <= found.max() <= high
        # Kolmogorov and Smirnov: 1.63 / √n is passed once in a hundred times.
        uniform = (np.sort(found) - low) / (high - low)
        assert np.abs(uniform - (np.arange(4000) + 0.5) / 4000).max() < 1.63 / np.sqrt(4000)
    counts = np.unique([point["c"] for point in points], return_counts=True)
    assert counts[0].tolist() == [1, 2, 3, 4]
    assert np.abs(counts[1] - 1000).max() < 4 * np.sqrt(4000 * 0.25 * 0.75)
    assert {point["d"] for point in points} == {"x", "y"}


def test_a_grid_beside_draws_repeats_each_draw_at_every_point_of_the_grid():
    drawn = (Between("optimizer.schedule.peak", 1e-3, 1e-1, log=True),)
    space = Space("random", (Choices("seed", (0, 1)),), drawn, 3)
    points = [space.point(number) for number in range(1, 7)]
    assert [point["seed"] for point in points] == [0, 1, 0, 1, 0, 1]
    peaks = [point["optimizer.schedule.peak"] for point in points]
    assert peaks[::2] == peaks[1::2]
    assert len(set(peaks)) == 3


def test_only_one_driver_has_a_trial_until_it_gives_it_up(tmp_path: Path):
    with Claims(tmp_path) as one, Claims(tmp_path) as other:
        assert one.take(1)
        assert other.take(2)
        assert not other.take(1)
        assert not one.take(2)
        assert (one.holds(1), one.holds(2), other.holds(2)) == (True, False, True)
        with Claims(tmp_path) as third:
            assert third.take(3)
            assert not other.take(3)
        assert other.take(3)  # the third has ended
        assert not third.holds(3)
    assert list((tmp_path / "drivers").iterdir()) == []


def test_a_claim_that_cannot_be_read_is_that_of_a_dead_driver(tmp_path: Path):
    with Claims(tmp_path) as claims:
        (tmp_path / "claims" / "0001.1").write_text('{"driver": "../..')
        (tmp_path / "claims" / "0002.1").write_text('{"driver": "../../etc"}')
        assert claims.take(1)
        assert claims.take(2)


def test_devices_are_divided_among_trials():
    cores = frozenset(range(8))
    gpus = ["4", "5", "6", "7"]

    def seen(*arguments: Any) -> list[str]:
        return [slot.variables["CUDA_VISIBLE_DEVICES"] for slot in divide(*arguments)]

    assert seen(None, {}, gpus, cores) == gpus
    assert seen(None, {"data": 2}, gpus, cores) == ["4,5", "6,7"]
    assert seen(None, {"data": -1}, gpus, cores) == ["4,5,6,7"]
    assert seen(2, {"data": -1}, gpus, cores) == ["4,5", "6,7"]
    assert seen(6, {}, gpus, cores) == ["4", "5", "6", "7", "4", "5"]
    shared = divide(6, {}, gpus, cores)[0].variables["XLA_PYTHON_CLIENT_MEM_FRACTION"]
    assert float(shared) == 0.45
    assert [sorted(slot.cores) for slot in divide(None, {}, [], cores)] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert [sorted(slot.cores) for slot in divide(3, {}, [], cores)] == [[0, 1], [2, 3], [4, 5]]
    assert len(divide(None, {"data": 4}, [], cores)) == 2
    assert len(divide(None, {"data": -1}, [], cores)) == 1
    with pytest.raises(ConfigError, match="3 trials of 2 GPUs each, and this machine has 4"):
        divide(3, {"data": 2}, gpus, cores)
    with pytest.raises(ConfigError, match="this machine has 8 cores"):
        divide(9, {}, [], cores)


def test_gpus_are_those_that_the_environment_shows(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-ab")
    assert visible_gpus() == []  # JAX_PLATFORMS is cpu in tests
    monkeypatch.setenv("JAX_PLATFORMS", "cuda,cpu")
    assert visible_gpus() == ["2", "GPU-ab"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == []


def test_a_trial_has_devices_of_its_own_and_is_no_process_of_another_run(
    sweep: Callable[..., Called], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    done = sweep("--grid", "seed=0", "--out", "out", program=f"-c '{PRINTING}'")
    assert done.code == 1  # it made no run
    printed = json.loads(Path("out/logs/0001.log").read_text().splitlines()[0])
    assert printed == {"tasks": None, "cores": len(os.sched_getaffinity(0))}


PRINTING = (
    "import json, os; "
    'print(json.dumps({"tasks": os.environ.get("SLURM_STEP_NUM_TASKS"), "cores": len(os.sched_getaffinity(0))}))'
)


def test_two_drivers_share_a_study_of_optuna(tmp_path: Path):
    drawn = (Between("x", 1e-4, 1.0, log=True), Between("n", 1, 8, whole=True), Choices("c", (None, (1, 2))))
    space = Space("adaptive", (), drawn, 40, 3)
    one, other = (Adaptive(tmp_path, space, "min") for _ in range(2))
    found = []
    for number in range(1, 41):
        search = (one, other)[number % 2]
        asked = search.ask(number)
        values = asked["values"]
        assert type(values["n"]) is int
        assert values["c"] in (None, (1, 2))
        value = (np.log10(values["x"]) + 2) ** 2 + (values["n"] - 3) ** 2 + (values["c"] is None)
        found.append(value)
        search.tell(asked, "failed" if number == 5 else "pruned" if number == 6 else "finished", value)
        search.tell(asked, "failed", None)  # a second answer counts for nothing
    assert np.mean(found[-10:]) < np.mean(found[:10]) / 2  # it has learned
    assert len({asked for asked in map(str, found)}) > 30  # two drivers do not draw the same values

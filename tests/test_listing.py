"""`jaxtrain runs`: which folders it lists, in which order, with what; whatever lies among them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_status import BEGUN, NOW, locked, logged, made, tree

from jaxtrain.base.errors import ConfigError
from jaxtrain.base.text import printable
from jaxtrain.cli.main import run as command
from jaxtrain.reports.find import find_runs
from jaxtrain.reports.listing import as_table, best_of, keep_runs, list_runs, sort_runs
from jaxtrain.runs.heartbeat import Beat

ENDED = {"kind": "ended", "step": 100, "of": 100, "code": 0}


def lines(folder: Path, *found: dict[str, Any]) -> Path:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in found))
    return folder


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Three runs, one of them a trial of a sweep, and odd folders."""
    keep = {"start": {"source": "runs/first"}, "runtime": {"keep": {"best": "test/accuracy", "mode": "max"}}}
    first = logged(made(tmp_path / "a"), BEGUN, ENDED)
    lines(first, *({"step": step, "split": "test", "loss": loss} for step, loss in ((50, 0.5), (100, 0.75))))
    second = locked(logged(made(tmp_path / "deep" / "b", **keep), BEGUN), Beat(9, 40, "step", 1, 1))
    scores = ((10, 0.25), (20, 0.75), (30, 0.5))
    lines(second, *({"step": step, "split": "test", "accuracy": value, "loss": 0.1} for step, value in scores))
    logged(
        made(tmp_path / "sweep" / "trials" / "1"), BEGUN, {"kind": "failed", "step": 3, "error": "OSError: \033[31m"}
    )
    (tmp_path / "sweep" / "sweep.json").write_text("{}")
    (tmp_path / ".hidden").mkdir()
    made(tmp_path / ".hidden" / "run")
    (tmp_path / "loop").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    made(tmp_path / "a" / "inside")
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "experiment.json").write_text("{")
    return tmp_path


def test_runs_are_found_once_below_a_folder_and_not_inside_of_runs(place: Path) -> None:
    assert [str(folder.relative_to(place)) for folder, _ in find_runs(place)] == [
        "a",
        "damaged",
        "deep/b",
        "sweep/trials/1",
    ]
    assert [folder for folder, _ in find_runs(place / "a")] == [place / "a"]


def test_each_run_has_its_state_progress_best_metric_and_origin(place: Path) -> None:
    found = {run.folder.name: run for run in list_runs(place, NOW)}
    assert {name: (run.status.state, run.status.step) for name, run in found.items()} == {
        "a": ("finished", 100),
        "damaged": ("unreadable", 0),
        "b": ("running", 40),
        "1": ("crashed", 3),
    }
    assert [found[name].best for name in ("damaged", "1")] == [None, None]
    assert str(found["a"].best) == "Best(metric='test/loss', value=0.5, step=50, lowest=True)"
    assert str(found["b"].best) == "Best(metric='test/accuracy', value=0.75, step=20, lowest=False)"
    assert (found["b"].parent, found["a"].parent, found["a"].experiment) == ("runs/first", "", "digits")
    assert (found["1"].sweep, found["a"].sweep) == (str(place / "sweep"), "")


def test_the_table_shows_them_with_control_characters_escaped_and_no_empty_column(place: Path) -> None:
    shown = as_table(sort_runs(list_runs(place, NOW), "run"), place, NOW).splitlines()
    assert shown[0].split() == ["run", "state", "step", "best", "age", "parent", "sweep", "why"]
    assert shown[2].split()[:6] == ["a", "finished", "100/100", "test/loss", "0.5", "at"]
    assert shown[3].startswith("damaged         unreadable")
    assert r"OSError: \x1b[31m" in shown[5]
    only = as_table([run for run in list_runs(place, NOW) if run.folder.name == "a"], place, NOW).splitlines()
    assert only[0].split() == ["run", "state", "step", "best", "age"]


def test_runs_are_sorted_with_unknown_values_last(place: Path) -> None:
    runs = list_runs(place, NOW)
    assert [run.folder.name for run in sort_runs(runs, "step")] == ["a", "b", "1", "damaged"]
    assert [run.folder.name for run in sort_runs(runs, "state")] == ["1", "a", "b", "damaged"]
    assert [run.folder.name for run in sort_runs(runs, "best")][:2] == ["b", "a"]
    assert next(run.folder.name for run in sort_runs(runs, "parent")) == "b"
    assert [run.folder.name for run in sort_runs(runs, "step", reverse=True)] == ["damaged", "1", "b", "a"]
    with pytest.raises(ConfigError, match="--sort stat: runs have no 'stat'; did you mean 'state'"):
        sort_runs(runs, "stat")


@pytest.mark.parametrize(
    ("conditions", "names"),
    [
        (["state=running"], ["b"]),
        (["state!=running"], ["a", "damaged", "1"]),
        (["step>3", "step<100"], ["b"]),
        (["experiment=dig*"], ["a", "b", "1"]),
        (["parent!="], ["b"]),
        (["best > 0.6"], ["b"]),
        (["step=100"], ["a"]),
    ],
)
def test_runs_are_filtered(conditions: list[str], names: list[str], place: Path) -> None:
    assert [run.folder.name for run in keep_runs(list_runs(place, NOW), conditions)] == names


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("running", "give KEY=VALUE"),
        ("sate=running", "did you mean 'state'"),
        ("step>many", "'many' is not a number"),
        ("state>3", "state is a text"),
    ],
)
def test_a_wrong_condition_is_refused(condition: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        keep_runs([], [condition])


def test_without_evaluations_the_last_loss_stands_there(tmp_path: Path) -> None:
    folder = lines(tmp_path, *({"step": step, "split": "train", "loss": loss} for step, loss in ((1, 2.0), (2, 3.0))))
    saved: dict[str, Any] = {"experiment": {"steps": 2, "evals": {}}}
    assert str(best_of(folder, saved)) == "Best(metric='train/loss', value=3.0, step=2, lowest=True)"
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "split": "train", "loss": "nan"}\n{"step": 4, "split": "train", "lo')
    assert str(best_of(folder, saved)) == "Best(metric='train/loss', value=3.0, step=2, lowest=True)"


def test_a_long_name_is_cut_and_a_name_in_no_encoding_is_shown() -> None:
    assert printable("x" * 200, 100).endswith("…")
    assert len(printable("x" * 200, 100)) <= 100
    assert printable("a\ud800b\x1b[2J") == r"a\ud800b\x1b[2J"


def test_the_verb_prints_a_table_or_json_and_writes_nothing(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree(place)
    assert command(["runs", str(place), "--sort", "run"]) == 0
    assert capsys.readouterr().out.splitlines()[2].startswith("a ")
    assert command(["runs", str(place), "--json", "--where", "state=finished", "step>1"]) == 0
    assert [run["status"]["state"] for run in json.loads(capsys.readouterr().out)] == ["finished"]
    assert command(["runs", str(place / "empty")]) == 0
    assert capsys.readouterr().err == f"{place / 'empty'}: there is no run\n"
    assert tree(place) == before
    with pytest.raises(ConfigError, match="there is no folder"):
        command(["runs", str(place / "missing")])


def test_neither_runs_nor_watch_imports_jax(place: Path) -> None:
    program = (
        "import sys; from jaxtrain.cli.main import run; run(sys.argv[1:]); print({'jax', 'numpy'} & {*sys.modules})"
    )
    for words in (["runs", str(place)], ["watch", str(place / "a")]):
        done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "set()"


def test_folders_that_may_not_be_read_are_shown_as_such(place: Path) -> None:
    # Root may read all; so this is another user's process.
    program = (
        "import os, sys; from pathlib import Path; from jaxtrain.reports.listing import list_runs\n"
        "os.setuid(65534) if os.getuid() == 0 else None\n"
        "for run in list_runs(Path(sys.argv[1])): print(run.folder.name, run.status.state, run.status.why)"
    )
    for folder in (place, *place.parents):
        if folder.stat().st_uid == os.getuid() and "pytest" in str(folder):
            folder.chmod(0o755)
    (place / "a" / "experiment.json").chmod(0)
    (place / "deep").chmod(0)
    own = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program, str(place)], capture_output=True, text=True, env=own, check=True
    )
    (place / "deep").chmod(0o755)
    assert "a unreadable Permission denied" in done.stdout
    assert "deep unreadable Permission denied" in done.stdout
    assert "1 crashed" in done.stdout


def test_a_bundle_is_no_run_though_it_has_an_experiment(tmp_path: Path) -> None:
    for name, files in {
        "bundle": ("experiment.json", "manifest.json", "signature.json"),
        "run": ("experiment.json",),
    }.items():
        for file in files:
            (tmp_path / name / "1").mkdir(parents=True, exist_ok=True)
            (tmp_path / name / "1" / file).write_text("{}")
    assert [folder for folder, _ in find_runs(tmp_path)] == [tmp_path / "run" / "1"]

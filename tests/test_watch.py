"""`jaxtrain watch`: a run seen from its folder alone, without writing; and reading files as they grow."""

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
from test_listing import lines
from test_status import BEGUN, locked, logged, made, tree

from jaxtrain.base.errors import ConfigError
from jaxtrain.cli.main import run as command
from jaxtrain.reports import watch as module
from jaxtrain.reports.tail import Follower
from jaxtrain.reports.watch import WatchedRun, watch
from jaxtrain.runs.heartbeat import Beat

ENDED = {"kind": "ended", "step": 100, "of": 100, "code": 0}


def train_line(step: int, loss: float, **more: float) -> dict[str, Any]:
    return {"step": step, "split": "train", "loss": loss, "examples_per_second": 64.0, **more}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run on another machine, in its step 40."""
    folder = logged(made(tmp_path / "run", data={"batch_size": 16}), BEGUN)
    (folder / "checkpoints" / "20").mkdir(parents=True)
    lines(folder, train_line(20, 2.0), {"step": 20, "split": "test", "accuracy": 0.5}, train_line(40, 1.0))
    locked(folder, Beat(9, 40, "step", 1, 1))
    os.utime(folder / "lock.json")
    return folder


def test_it_ends_when_the_run_ends_and_prints_each_line_once(folder: Path) -> None:
    looks = 0

    def passes(_: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 1:
            with (folder / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(train_line(60, 0.5)) + '\n{"step": 80, "split": "tr')
        if looks == 2:
            with (folder / "metrics.jsonl").open("a") as file:
                file.write('ain", "loss": "nan"}\n')
        if looks == 3:
            logged(folder, BEGUN, ENDED)
            (folder / "lock.json").unlink()

    stream = io.StringIO()
    assert watch(folder, stream, sleep=passes).state == "finished"
    assert looks == 3
    shown = stream.getvalue().splitlines()
    assert shown[0] == "begun  step 0  of 100"
    assert [line.split()[1] for line in shown if "  train " in line] == ["20/100", "40/100", "60/100", "80/100"]
    assert "step 80/100  train loss nan" in shown
    assert shown[-1] == f"{folder}: finished, step 100/100"


def test_once_shows_what_there_is_and_writes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (*folder.rglob("*"), folder):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = tree(folder)
    assert command(["watch", str(folder), "--once"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "run  step 40/100  eta 15s",  # at 64 examples a second, in batches of 16
        "  loss: 1  █▁",
        "  speed: 4 steps/s, 64 examples/s",
        "  test: accuracy 0.5  at step 20",
        "  saved: step 20",
        f"{folder}: running, step 40/100",
    ]
    assert tree(folder) == before
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def test_a_run_that_resumes_is_shown_from_its_checkpoint_on(folder: Path) -> None:
    seen = WatchedRun(folder)
    seen.look()
    kept = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()[:2]]
    (folder / "new").write_text("".join(json.dumps(line) + "\n" for line in kept))
    (folder / "new").replace(folder / "metrics.jsonl")
    locked(folder, Beat(9, 20, "step", 1, 1))
    os.utime(folder / "lock.json")
    seen.look()
    assert (seen.view.done, dict(seen.view.facts())["loss"]) == (20, "2  ▁")


def test_what_is_no_run_is_refused_and_one_that_begins_is_awaited(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ConfigError, match="is not a run: "):
            watch(place, io.StringIO())
    folder = tmp_path / "begins"
    folder.mkdir()
    locked(folder, Beat(0, 0, "compile"))
    os.utime(folder / "lock.json")

    def passes(_: float) -> None:
        logged(made(folder), BEGUN, ENDED)
        (folder / "lock.json").unlink()

    assert watch(folder, io.StringIO(), sleep=passes).state == "finished"


def test_a_follower_reads_whole_lines_as_they_come_and_anew_where_the_file_is_another(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    follower = Follower(path)
    assert follower.read() == []
    path.write_bytes(b'{"a": 1}\nnot json\n[]\n{"a"')
    assert follower.read() == [{"a": 1}]
    with path.open("ab") as file:
        file.write(b': 2}\n{"a": 3}')
    assert (follower.read(), follower.begun_anew) == ([{"a": 2}], False)
    path.write_bytes(b'{"a": 4}\n')
    assert (follower.read(), follower.begun_anew) == ([{"a": 4}], True)
    path.unlink()
    os.mkfifo(path)
    assert follower.read() == []


def test_saved_steps_are_the_names_of_whole_checkpoints(folder: Path) -> None:
    for name in ("40", "60.orbax-checkpoint-tmp", "²", "notes"):
        (folder / "checkpoints" / name).mkdir()
    assert sorted(module.saved_steps_of(folder)) == [20, 40]
    assert module.saved_steps_of(folder / "missing") == []

import contextlib
import io
import json
import math
import subprocess
import time
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from jaxtrain.base import files as module
from jaxtrain.base.errors import ConfigError
from jaxtrain.base.files import read_json, write_json
from jaxtrain.base.provenance import environment
from jaxtrain.runs.clock import Clock
from jaxtrain.runs.console import Console, duration, number
from jaxtrain.runs.metrics_log import Recorder, read_metrics


def board(folder: Path) -> list[Event]:
    events = []
    for path in sorted((folder / "tensorboard").iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            length = data[at : at + 8]
            size = int.from_bytes(length, "little")
            event, end = data[at + 12 : at + 12 + size], data[at + 12 + size : at + 16 + size]
            assert int.from_bytes(data[at + 8 : at + 12], "little") == masked_crc32c(length)
            assert int.from_bytes(end, "little") == masked_crc32c(event)
            events.append(Event.FromString(event))
            at += size + 16
    return events


def scalars(folder: Path) -> list[tuple[int, str, float]]:
    return [(e.step, v.tag, v.simple_value) for e in board(folder) for v in e.summary.value]


def test_the_environment_says_what_ran_where_and_is_json(monkeypatch):
    monkeypatch.setenv("JAX_SOMETHING", "1")
    monkeypatch.setenv("UNRELATED_SECRET", "1")
    env = json.loads(json.dumps(environment()))
    assert {
        "git",
        "command",
        "python",
        "platform",
        "hostname",
        "packages",
        "variables",
        "hardware",
    } <= env.keys()
    assert env["packages"]["numpy"]
    assert env["variables"]["JAX_SOMETHING"] == "1"
    assert "UNRELATED_SECRET" not in env["variables"]
    assert env["hardware"]["devices"] >= 1
    assert env["hardware"]["memory_bytes"] > 1e8


def test_the_revision_the_diff_and_untracked_files_are_of_the_repository_around(tmp_path, monkeypatch):
    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True)

    git("init")
    (tmp_path / "code.py").write_text("one\n")
    git("add", ".")
    git("commit", "-m", "first")
    (tmp_path / "code.py").write_text("two\n")
    (tmp_path / "nächstes.py").write_text("")
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "inner")
    found = environment()["git"]
    assert found["revision"] == git("rev-parse", "HEAD").stdout.strip()
    assert "-one\n+two\n" in found["diff"]
    assert found["untracked"] == ["nächstes.py"]


def test_without_a_repository_or_without_git_there_is_no_revision(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.chdir(tmp_path)
    assert environment()["git"] is None
    monkeypatch.setenv("PATH", "")
    assert environment()["git"] is None


def test_json_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json(path, {"x": [1, 2.5, float("nan")], "where": Path("b")})
    assert read_json(path) == {"x": [1, 2.5, "nan"], "where": "b"}

    def cut_off(file):
        raise OSError("disk full")

    monkeypatch.setattr(module.os, "fsync", cut_off)
    with pytest.raises(OSError, match="disk full"):
        write_json(path, {"y": 1})
    assert read_json(path)["where"] == "b"
    assert list(tmp_path.iterdir()) == [path]


def test_json_that_is_missing_or_damaged_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no .*a\.json"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ConfigError, match=r"a\.json is not JSON"):
        read_json(tmp_path / "a.json")


def test_metrics_are_lines_that_any_json_reader_takes_and_tensorboard_shows(tmp_path):
    recorder = Recorder(tmp_path)
    recorder.metrics(10, "train", {"loss": 0.5, "norm": math.inf})
    recorder.metrics(10, "validation", {"loss": math.nan, "low": -math.inf})

    def refuse(constant):
        raise AssertionError(constant)

    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line, parse_constant=refuse) for line in lines] == [
        {"step": 10, "split": "train", "loss": 0.5, "norm": "inf"},
        {"step": 10, "split": "validation", "loss": "nan", "low": "-inf"},
    ]
    shown = scalars(tmp_path)
    assert shown[:2] == [(10, "train/loss", 0.5), (10, "train/norm", math.inf)]
    assert board(tmp_path)[0].file_version == "brain.Event:2"
    assert [tag for _, tag, _ in shown[2:]] == ["validation/loss", "validation/low"]


def test_a_metric_cannot_overwrite_the_step(tmp_path):
    with pytest.raises(TypeError):
        Recorder(tmp_path).metrics(1, "train", {"step": 2})


def test_events_have_a_time_a_kind_and_their_fields(tmp_path):
    Recorder(tmp_path).event("resumed", step=3)
    (event,) = read_metrics(tmp_path / "events.jsonl")
    assert (event["kind"], event["step"]) == ("resumed", 3)
    assert event["time"].startswith("20")
    assert event["time"].endswith("+00:00")


def test_processes_other_than_the_first_write_nothing(tmp_path):
    recorder = Recorder(tmp_path / "run", active=False)
    recorder.metrics(1, "train", {"loss": 1.0})
    recorder.event("started")
    recorder.rewind(0)
    assert not (tmp_path / "run").exists()
    Recorder(tmp_path).metrics(1, "train", {})
    Recorder(tmp_path, active=False).rewind(0)
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1


def test_a_line_cut_off_by_kill_9_is_not_read_and_not_written_behind(tmp_path):
    for name in ("metrics.jsonl", "events.jsonl"):
        (tmp_path / name).write_text('{"step": 1}\n{"step": 2')
        assert read_metrics(tmp_path / name) == [{"step": 1}]
    recorder = Recorder(tmp_path)
    recorder.metrics(2, "train", {})
    recorder.event("resumed")
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]
    assert [line.get("kind") for line in read_metrics(tmp_path / "events.jsonl")] == [None, "resumed"]
    assert read_metrics(tmp_path / "missing.jsonl") == []


def test_a_damaged_line_in_the_middle_is_not_passed_over(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1\n{"step": 2}\n')
    with pytest.raises(ConfigError, match=r"metrics\.jsonl has a line that is not JSON"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_a_resumed_run_forgets_what_came_after_its_checkpoint(tmp_path):
    recorder = Recorder(tmp_path)
    for step in (1, 2, 3):
        recorder.metrics(step, "train", {"loss": step, "bad": math.nan})
    recorder = Recorder(tmp_path)
    recorder.rewind(2)
    recorder.metrics(3, "train", {"loss": 30})
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 1), (2, 2), (3, 30)]
    assert lines[0]["bad"] == "nan"
    assert [(e.step, e.session_log.status) for e in board(tmp_path) if e.HasField("session_log")] == [(3, 1)]
    assert (3, "train/loss", 30) in scalars(tmp_path)
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2


def test_a_failing_tensorboard_is_said_once_and_never_stops_the_run(tmp_path):
    (tmp_path / "tensorboard").write_text("in the way")
    recorder = Recorder(tmp_path)
    recorder.metrics(1, "train", {"loss": 1.0})
    recorder.metrics(2, "train", {"loss": 1.0})
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 2
    assert [event["kind"] for event in read_metrics(tmp_path / "events.jsonl")] == ["tensorboard_failed"]


def test_the_clock_charges_the_inner_context_and_sums_to_the_total():
    began = time.perf_counter()
    clock = Clock()
    time.sleep(0.02)
    with clock("step"):
        time.sleep(0.02)
        with clock("data"):
            time.sleep(0.04)
        time.sleep(0.02)
        with contextlib.suppress(ValueError), clock("eval"):
            raise ValueError
        inside = clock.account()
    time.sleep(0.02)
    account = clock.account()
    passed = time.perf_counter() - began
    assert list(account) == ["compile", "data", "step", "eval", "checkpoint", "other", "total"]
    assert 0.04 <= inside["step"] <= account["step"]
    assert account["data"] >= 0.04
    assert account["other"] >= 0.04
    assert account["step"] + account["data"] + account["other"] <= passed
    assert account["total"] == sum(seconds for name, seconds in account.items() if name != "total")
    assert account["total"] == pytest.approx(passed, abs=0.01)


def test_the_clock_knows_its_accounts():
    with pytest.raises(ConfigError, match="did you mean 'compile'"):
        Clock()("compiling")


class Screen(io.StringIO):
    def isatty(self):
        return True


def test_a_log_file_gets_plain_lines_with_speed_and_what_is_left(monkeypatch):
    now = iter([10.0, 12.0, 14.0])
    monkeypatch.setattr("jaxtrain.runs.console.time.perf_counter", lambda: next(now))
    stream = io.StringIO()
    console = Console(930, 0, True, stream)
    for n in range(1, 101):
        console.step(n)
    console.metrics(100, "train", {"loss": 0.41, "accuracy": 0.83})
    console.metrics(100, "validation", {"loss": 0.5})
    console.say("saved")
    console.close()
    assert stream.getvalue().splitlines() == [
        "step 100/930  train loss 0.41  accuracy 0.83  49.5 steps/s  eta 17s",
        "step 100/930  validation loss 0.5",
        "saved",
    ]


def test_a_terminal_gets_a_bar_with_the_lines_above_it():
    stream = Screen()
    console = Console(10, 2, True, stream)
    console.step(5)
    console.metrics(5, "train", {"loss": 0.41})
    console.step(10)
    console.close()
    shown = stream.getvalue()
    assert "step 5/10  train loss 0.41\n" in shown
    assert "steps/s" not in shown.split("step 5/10")[1].split("\n")[0]
    assert "2/10" in shown
    assert "10/10" in shown.splitlines()[-1]
    assert "train loss 0.41" in shown.splitlines()[-1]


def test_processes_other_than_the_first_show_nothing():
    for stream in (io.StringIO(), Screen()):
        console = Console(10, 0, False, stream)
        console.step(1)
        console.metrics(1, "train", {"loss": 1.0})
        console.say("hello")
        console.close()
        assert stream.getvalue() == ""


def test_numbers_and_durations_read_well():
    shown = [number(value) for value in (0.412345, 12345.6, 1.5e-5, 3, 2.5e12, math.nan)]
    assert shown == ["0.4123", "12346", "1.5e-05", "3", "2.5e+12", "nan"]
    assert [duration(s) for s in (9, 59.7, 70, 7500, 273600)] == ["9s", "1m00s", "1m10s", "2h05m", "3d04h"]

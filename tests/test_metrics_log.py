"""A run's metrics.jsonl, events.jsonl and TensorBoard files, read back without the code that wrote them."""

import json
import math
import re
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
from google.protobuf import message_factory
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c

from jaxtrain.cluster.stop import StopSignal
from jaxtrain.runs import tensorboard
from jaxtrain.runs.json_lines import read_lines
from jaxtrain.runs.metrics_log import MetricsLog, missing_lines, read_metrics
from jaxtrain.runs.observers import Observers
from jaxtrain.runs.tensorboard import TensorBoard
from jaxtrain.train import train

RUN: Any = None
"""Files need nothing of the run that they are called with."""
Event = message_factory.GetMessageClass(event_pb2.DESCRIPTOR.message_types_by_name["Event"])


def tensorboard_events(folder: Path) -> list[Any]:
    """The events of all TensorBoard files of a run, with their checksums checked."""
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
    """Step, name and value of everything that TensorBoard shows."""
    return [(e.step, v.tag, v.simple_value) for e in tensorboard_events(folder) for v in e.summary.value]


def test_metrics_are_lines_that_any_json_reader_takes_and_tensorboard_shows(tmp_path: Path) -> None:
    for observer in (MetricsLog(tmp_path), TensorBoard(tmp_path / "tensorboard", 0)):
        observer.trained(RUN, 10, {"loss": 0.5}, {"norm": math.inf})
        observer.evaluated(RUN, 10, {"validation": {"loss": math.nan, "low": -math.inf}})

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line, parse_constant=refuse) for line in lines] == [
        {"step": 10, "split": "train", "loss": 0.5, "norm": "inf"},
        {"step": 10, "split": "validation", "loss": "nan", "low": "-inf"},
    ]
    shown = scalars(tmp_path)
    assert shown[:2] == [(10, "train/loss", 0.5), (10, "train/norm", math.inf)]
    assert tensorboard_events(tmp_path)[0].file_version == "brain.Event:2"
    assert [tag for _, tag, _ in shown[2:]] == ["validation/loss", "validation/low"]


def test_numbers_that_are_not_finite_are_read_as_floats(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    log.metrics(3, "inf", {"loss": math.nan, "low": -math.inf, "high": math.inf, "norm": 0.5})
    (line,) = read_metrics(tmp_path)
    assert {name: repr(value) for name, value in line.items()} == {
        "step": "3",
        "split": "'inf'",
        "loss": "nan",
        "low": "-inf",
        "high": "inf",
        "norm": "0.5",
    }


def test_a_metric_cannot_overwrite_the_step(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        MetricsLog(tmp_path).metrics(1, "train", {"step": 2})


def test_events_have_a_time_a_kind_and_their_fields(tmp_path: Path) -> None:
    MetricsLog(tmp_path).event("resumed", step=3)
    (event,) = read_lines(tmp_path / "events.jsonl")
    assert (event["kind"], event["step"]) == ("resumed", 3)
    assert event["time"].startswith("20")
    assert event["time"].endswith("+00:00")


def test_processes_other_than_the_first_write_nothing(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "run", active=False)
    log.metrics(1, "train", {"loss": 1.0})
    log.event("started")
    log.rewind(0)
    assert not (tmp_path / "run").exists()
    MetricsLog(tmp_path).metrics(1, "train", {})
    MetricsLog(tmp_path, active=False).rewind(0)
    assert len(read_lines(tmp_path / "metrics.jsonl")) == 1


def test_cut_off_at_any_byte_of_its_last_line_a_file_is_read_and_continued(tmp_path: Path) -> None:
    path, first, last = (
        tmp_path / "metrics.jsonl",
        b'{"step": 1, "split": "train", "a": 1.5}\n',
        b'{"step": 2, "split": "train", "a": 2.5}\n',
    )
    for size in range(len(last) + 1):
        path.write_bytes(first + last[:size])
        whole = size >= len(last) - 1  # only the newline is missing
        assert [line["step"] for line in read_metrics(tmp_path)] == ([1, 2] if whole else [1])
        log = MetricsLog(tmp_path)
        assert log.rewind(2) == []
        if not whole:
            log.metrics(2, "train", {"a": 2.5})
        assert path.read_bytes() == first + last, size
    assert not (tmp_path / "metrics.damaged.jsonl").exists()
    assert read_lines(tmp_path / "missing.jsonl") == []


GOOD = [b'{"step": 1, "split": "train", "loss": 1.5}', b'{"step": 2, "split": "train", "loss": "nan"}']


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b'{"step": 1', "it is not JSON"),
        (b'{"step": 1, "split": "\xff"}', "it is not JSON"),
        (b"\0" * 40, "it is not JSON"),
        (b"[" * 100_000, "it is not JSON"),
        (b"[1]", "it is not a JSON object"),
        (b'{"split": "train"}', "it has no step and split"),
        (b'{"step": "1", "split": "train"}', "it has no step and split"),
        (b'{"step": true, "split": "train"}', "it has no step and split"),
        (b'{"step": 1.5, "split": "train"}', "it has no step and split"),
        (b'{"step": 1, "split": 3}', "it has no step and split"),
        (b'{"step": 3, "split": "test", "loss": null}', "loss is not a number"),
        (b'{"step": 3, "split": "test", "loss": "high"}', "loss is not a number"),
        (b'{"step": 3, "split": "test", "loss": [1]}', "loss is not a number"),
        (GOOD[0], "step 1 of train is there twice"),
    ],
)
def test_a_damaged_line_is_left_out_named_and_set_aside_when_the_run_resumes(
    line: bytes, why: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"\n".join([GOOD[0], line, GOOD[1], b""]))
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]
    assert f"{path}, line 2 is left out: {why}" in caplog.text
    found = MetricsLog(tmp_path).rewind(2)
    assert [each.startswith(f"{path}, line 2: {why}") for each in found] == [True]
    assert path.read_bytes() == b"\n".join([*GOOD, b""])
    assert (tmp_path / "metrics.damaged.jsonl").read_bytes() == line + b"\n"
    assert MetricsLog(tmp_path).rewind(2) == []


def test_a_run_resumes_over_damaged_and_missing_files_and_an_event_says_so(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_bytes(b'{"kind": "begun"}\nhalf\n\0\0\0')
    Observers(tmp_path, tiny.main(), 3, StopSignal()).close()
    events = read_lines(tmp_path / "events.jsonl")
    assert [event["kind"] for event in events] == ["begun"] + ["damaged"] * 4
    notes = " | ".join(event.get("note", "") for event in events)
    for part in (
        "metrics.jsonl has no line of the 3",
        "events.jsonl, line 2: ",
        "events.jsonl, line 3: ",
        "steps.bin lacks 3",
    ):
        assert part in notes
    assert (tmp_path / "events.damaged.jsonl").read_bytes() == b"half\n\0\0\0\n"


def test_an_empty_file_of_metrics_is_said_and_one_before_the_first_period_is_not(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").touch()
    assert [line.partition("metrics.jsonl ")[2] for line in MetricsLog(tmp_path).rewind(4, log_every=4)] == [
        "has no line of the 4 steps until here"
    ]
    assert MetricsLog(tmp_path).rewind(3, log_every=4) == []


@pytest.mark.parametrize("name", ["metrics.jsonl", "events.jsonl", "steps.bin"])
@pytest.mark.parametrize("kind", ["a link to nothing", "no file"])
def test_what_stands_in_the_place_of_a_file_is_set_aside_when_the_run_resumes(
    name: str, kind: str, tmp_path: Path
) -> None:
    for number in ("", "-2"):
        if kind == "no file":
            (tmp_path / name).mkdir()
            (tmp_path / name / "own").touch()
        else:
            (tmp_path / name).symlink_to("/nonexistent/place")
        Observers(tmp_path, tiny.main(), 3, StopSignal()).close()
        aside = tmp_path / "damaged" / f"{name}{number}"
        note = f"{tmp_path / name} is {kind}: it is set aside in {aside}"
        assert note in [event.get("note") for event in read_lines(tmp_path / "events.jsonl")]
        assert aside.is_symlink() or (aside / "own").is_file()
        if (tmp_path / name).exists():
            (tmp_path / name).unlink()


def test_a_resumed_run_drops_the_metrics_after_its_checkpoint(tmp_path: Path) -> None:
    log, shown = MetricsLog(tmp_path), TensorBoard(tmp_path / "tensorboard", 0)
    for step in (1, 2, 3):
        for observer in (log, shown):
            observer.trained(RUN, step, {"loss": step}, {"bad": math.nan})
    log, shown = MetricsLog(tmp_path), TensorBoard(tmp_path / "tensorboard", 2)
    log.rewind(2)
    for observer in (log, shown):
        observer.trained(RUN, 3, {"loss": 30}, {})
    lines = read_lines(tmp_path / "metrics.jsonl")
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 1), (2, 2), (3, 30)]
    assert lines[0]["bad"] == "nan"
    sessions = [e for e in tensorboard_events(tmp_path) if e.HasField("session_log")]
    assert [(e.step, e.session_log.status) for e in sessions] == [(1, 1), (3, 1)]
    assert (3, "train/loss", 30) in scalars(tmp_path)
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2


def test_a_tensorboard_that_cannot_be_written_is_reported_once_and_never_stops_the_run(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("in the way")
    observers = Observers(tmp_path, tiny.main(), 0, StopSignal())
    observers.trained(1, {"loss": 1.0}, {})
    observers.trained(2, {"loss": 1.0}, {})
    assert len(read_lines(tmp_path / "metrics.jsonl")) == 2
    assert [event["kind"] for event in read_lines(tmp_path / "events.jsonl")] == ["tensorboard_failed"]


def with_a_tracker_that(write: Callable[..., object], folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kinds of events of three periods and the end, and that all of them are in metrics.jsonl."""
    monkeypatch.setattr(TensorBoard, "_append", write)
    monkeypatch.setattr(tensorboard, "WAIT_SECONDS", 0.05)
    observers = Observers(folder, tiny.main(), 0, StopSignal())
    for step in (1, 2, 3):
        observers.trained(step, {"loss": 1.0}, {})
    observers.ended(3)
    observers.close()
    assert [line["step"] for line in read_lines(folder / "metrics.jsonl")] == [1, 2, 3]
    events = read_lines(folder / "events.jsonl")
    return [f"{event['kind']} {event['step']} {event['error']}".partition(" (")[0] for event in events]


@pytest.mark.parametrize("error", [OSError("no space"), TimeoutError("no answer")])
def test_a_tensorboard_write_that_raises_is_an_event_and_no_stop(
    error: OSError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(*arguments: object) -> None:
        raise error

    found = with_a_tracker_that(write, tmp_path, monkeypatch)
    assert found == [f"tensorboard_failed 1 {type(error).__name__}: {error}"]


def test_a_tensorboard_write_that_hangs_is_an_event_and_no_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hung = threading.Event()
    monkeypatch.setattr(tensorboard, "HANG_SECONDS", 0.0)
    (event,) = with_a_tracker_that(lambda *_: hung.wait(), tmp_path, monkeypatch)
    assert re.fullmatch(r"tensorboard_failed 1 TimeoutError: .*tfevents.* was not written within 0 s", event)
    hung.set()


def test_a_tensorboard_write_that_takes_long_is_waited_for_once_and_all_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, original = threading.Event(), TensorBoard._append

    def write(*arguments: Any) -> None:
        slow.wait()
        original(*arguments)

    monkeypatch.setattr(tensorboard, "WAIT_SECONDS", 0.05)
    monkeypatch.setattr(TensorBoard, "_append", write)
    shown = TensorBoard(tmp_path / "tensorboard", 0)
    for step in (1, 2):
        shown.trained(RUN, step, {"loss": step}, {})
    assert not (tmp_path / "tensorboard").exists()
    monkeypatch.setattr(tensorboard, "WAIT_SECONDS", 20)
    slow.set()
    shown.ended(RUN, 2)
    assert scalars(tmp_path) == [(1, "train/loss", 1), (2, "train/loss", 2)]


def test_a_tensorboard_whose_folder_is_deleted_goes_on_in_a_new_one(tmp_path: Path) -> None:
    observers = Observers(tmp_path, tiny.main(), 0, StopSignal())
    observers.trained(1, {"loss": 1.0}, {})
    shutil.rmtree(tmp_path / "tensorboard")
    observers.trained(2, {"loss": 2.0}, {})
    assert scalars(tmp_path) == [(2, "train/loss", 2)]
    assert tensorboard_events(tmp_path)[0].file_version == "brain.Event:2"
    assert read_lines(tmp_path / "events.jsonl") == []


def begun(step: int, **intervals: int) -> dict[str, Any]:
    return {"kind": "begun", "step": step, "intervals": intervals}


def at(split: str, *steps: int) -> list[dict[str, Any]]:
    return [{"step": step, "split": split} for step in steps]


@pytest.mark.parametrize(
    ("lines", "events", "missing"),
    [
        (at("train", 2, 4, 6, 8), [begun(0, train=2)], []),
        (at("train", 2, 6, 8), [begun(0, train=2)], [(4, "train")]),
        (at("train", 4, 6, 8), [begun(0, train=2)], [(2, "train")]),
        (at("train", 2, 4, 6), [begun(0, train=2)], [(8, "train")]),
        # An evaluation of step 8 itself may follow; that of step 4 can not.
        (at("train", 4, 8), [begun(0, train=4, test=4)], [(4, "test")]),
        # Another interval since step 4, which it had gone back to from 6; and one that ended between two periods.
        (at("train", 2, 4, 7), [begun(0, train=2), begun(6, train=1), begun(4, train=7)], []),
        (at("train", 2, 3, 6), [begun(0, train=2), begun(3, train=3)], []),
        (at("train", 2, 3), [begun(0, train=2), begun(3, train=3)], [(6, "train")]),
        # Of a version that did not write the intervals, and of damaged events.
        (at("train", 5, 6), [{"kind": "begun", "step": 0}, begun(5, train=1)], [(7, "train"), (8, "train")]),
        (at("train", 1), [begun(0, train=0), {"kind": "begun", "step": "x"}, {"kind": "begun"}, {"step": 0}], []),
        (at("train", 1), [{"kind": "begun", "step": 0, "intervals": {"train": "2", "x": None}}], []),
        ([], [begun(0, train=2)], []),  # a file that is lost is said as that
    ],
)
def test_a_line_that_is_not_there_is_found_by_the_intervals_of_each_time_the_run_was_begun(
    lines: list[dict[str, Any]], events: list[dict[str, Any]], missing: list[tuple[int, str]]
) -> None:
    assert missing_lines(lines, events, 8, log_every=5) == missing


@pytest.mark.slow
def test_a_lost_line_between_others_is_said_once_and_keeps_no_run_from_resuming(tmp_path: Path) -> None:
    run, path = tmp_path / "run", tmp_path / "run" / "metrics.jsonl"
    for steps in (8, 9, 10):
        train(replace(tiny.main(), steps=steps), run)
        notes = [event["note"] for event in read_lines(run / "events.jsonl") if event["kind"] == "damaged"]
        assert notes == (
            []
            if steps == 8
            else [
                f"{path} lacks a line for each of these, which were there once: that of train at step 3, that of "
                "validation at step 6"
            ]
        )
        lines = path.read_bytes().splitlines(keepends=True)
        lost = [b'"step": 3, "split": "train"', b'"step": 6, "split": "validation"']
        path.write_bytes(b"".join(line for line in lines if not any(each in line for each in lost)))

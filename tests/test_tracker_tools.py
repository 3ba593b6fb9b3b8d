"""Trackers and the tools themselves: Weights & Biases off-line, and a real server of MLflow. What arrived is read without
our own code.
"""

import importlib
import json
import os
import socket
import struct
import subprocess
import sys
import time
import urllib.request
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
from test_trackers import events, observers, periods

from jaxtrain.runs.trackers import MLflow, WandB
from jaxtrain.train import train

pytestmark = pytest.mark.slow


def records(file: Path) -> list[Any]:
    """The records of a .wandb file: a log as of LevelDB, in blocks of 32 KiB, of protocol buffers."""
    record: Any = vars(importlib.import_module("wandb.proto.wandb_internal_pb2"))["Record"]
    data, place, whole, found = file.read_bytes(), 7, b"", []
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            found.append(record.FromString(whole))
            whole = b""
    return found


def logged(file: Path) -> list[dict[str, Any]]:
    """The lines of metrics in a .wandb file."""
    return [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records(file)
        if record.WhichOneof("record_type") == "history"
    ]


def processes() -> list[tuple[int, str]]:
    """Session and command of every process."""
    found = subprocess.run(["ps", "-ewwo", "sid,args"], capture_output=True, text=True, check=True).stdout
    return [(int(line.split()[0]), line) for line in found.splitlines()[1:]]


def own_sessions() -> set[int]:
    """The sessions of the processes that this one has started for trackers."""
    return {session for session, line in processes() if "wandb_process" in line and f" {os.getpid()} " in line}


def test_wandb_keeps_a_run_off_line_with_its_config_metrics_and_events_and_a_resumed_run_has_the_same_id(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "run"
    tracker = WandB(project="tests", group="mine", tags=("a",), mode="offline", wait=60)
    experiment = replace(tiny.main(), steps=2, observers=(tracker,))
    run, _ = train(experiment, folder)
    train(replace(experiment, steps=4), folder)
    assert events(folder, "observer_failed") == events(folder, "tracker") == []
    files = sorted((folder / "trackers" / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2
    own = json.loads((folder / "trackers" / "wandb.json").read_text())["id"]
    assert {file.stem for file in files} == {f"run-{own}"}
    expected = run.metrics()
    lines = [line for file in files for line in logged(file)]
    for split in ("train", "validation"):
        mirrored = {line["step"]: line[f"{split}/loss"] for line in lines if f"{split}/loss" in line}
        written = expected[expected.split == split]
        assert mirrored == dict(zip(written.step, written.loss, strict=True))
    (begun,) = [
        each.run for each in records(files[0]) if each.WhichOneof("record_type") == "run" and each.run.config.update
    ]
    config = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in begun.config.update}
    assert (begun.project, begun.run_group, list(begun.tags)) == ("tests", "mine", ["a"])
    assert config["optimizer.schedule.peak"] == 0.01
    assert config["folder"] == str(folder)
    summary = {
        item.key or item.nested_key[0]: json.loads(item.value_json)
        for record in records(files[1])
        if record.WhichOneof("record_type") == "summary"
        for item in record.summary.update
    }
    assert json.loads(summary["event/ended"])["step"] == 4
    assert own_sessions() == set()


def test_a_tracker_of_wandb_whose_process_hangs_is_ended_with_the_run(tmp_path: Path) -> None:
    # Nobody answers at this address, and the library goes on trying.
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        os.environ |= {"WANDB_BASE_URL": f"http://127.0.0.1:{silent.getsockname()[1]}", "WANDB_API_KEY": "0" * 40}
        try:
            run = observers(tmp_path, WandB(wait=1.0))
            periods(run, 3)
            latest = time.monotonic() + 30
            while not (sessions := own_sessions()):
                assert time.monotonic() < latest
                time.sleep(0.05)
            before = time.monotonic()
            run.ended(3)
            run.close()
        finally:
            del os.environ["WANDB_BASE_URL"], os.environ["WANDB_API_KEY"]
        assert time.monotonic() - before < 30
        (event,) = events(tmp_path, "tracker")
        assert "WandB did not get 3 of 3 lines of metrics: it did not answer" in event["note"]
        deadline = time.monotonic() + 20
        while left := [line for session, line in processes() if session in sessions and "<defunct>" not in line]:
            assert time.monotonic() < deadline, left
            time.sleep(0.2)


def test_an_error_of_wandb_is_said_in_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_API_KEY", "short")
    run = observers(tmp_path, WandB(wait=60))
    run.ended(0)
    run.close()
    (event,) = events(tmp_path, "observer_failed")
    assert "RuntimeError: wandb: " in event["error"]
    assert "API key" in event["error"]


# MLflow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    """The address of a tracking server."""
    place = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("mlflow")), "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{place}/runs.db"]
    command += ["--artifacts-destination", str(place / "artifacts")]
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (place / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=place, env=environment, stdout=log, stderr=log, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(1000):
            assert process.poll() is None, (place / "log").read_text()
            try:
                with urllib.request.urlopen(f"{address}/health", timeout=5):
                    break
            except OSError:
                time.sleep(0.1)
        yield address
    finally:
        os.killpg(process.pid, 15)
        process.wait()


def asked(server: str, path: str) -> Any:
    with urllib.request.urlopen(f"{server}/api/2.0/mlflow/{path}", timeout=30) as answer:
        return json.loads(answer.read())


def test_mlflow_gets_config_metrics_and_events_and_a_resumed_run_has_the_same_id(server: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    experiment = replace(tiny.main(), steps=2, observers=(MLflow(url=server, experiment="tests", wait=60),))
    train(experiment, folder)
    own = json.loads((folder / "trackers" / "mlflow.json").read_text())["id"]
    run, _ = train(replace(experiment, steps=4), folder)
    assert events(folder, "observer_failed") == events(folder, "tracker") == []
    assert json.loads((folder / "trackers" / "mlflow.json").read_text())["id"] == own
    found = asked(server, f"runs/get?run_id={own}")["run"]
    params = {each["key"]: each["value"] for each in found["data"]["params"]}
    tags = {each["key"]: each["value"] for each in found["data"]["tags"]}
    assert (found["info"]["status"], found["info"]["run_name"]) == ("FINISHED", "run")
    assert (params["optimizer.schedule.peak"], params["steps"], tags["jaxtrain.now.steps"]) == ("0.01", "2", "4")
    assert tags["jaxtrain.folder"] == str(folder)
    assert json.loads(tags["jaxtrain.event.ended"])["step"] == 4
    expected = run.metrics()
    for split in ("train", "validation"):
        history = asked(server, f"metrics/get-history?run_id={own}&metric_key={split}/loss")["metrics"]
        written = expected[expected.split == split]
        mirrored = sorted((int(each["step"]), each["value"]) for each in history)
        assert mirrored == list(zip(written.step, written.loss, strict=True))
    (number,) = {found["info"]["experiment_id"]}
    assert asked(server, f"experiments/get?experiment_id={number}")["experiment"]["name"] == "tests"


def test_mlflow_gets_nan_and_many_metrics_at_once_and_names_that_it_does_not_take(server: str, tmp_path: Path) -> None:
    run = observers(tmp_path / "odd", MLflow(url=server, wait=60))
    run.trained(1, {f"m{number}": float(number) for number in range(1500)}, {})
    run.trained(2, {"loss": float("nan"), "größe%": 1.0}, {})
    run.ended(2)
    run.close()
    assert events(tmp_path / "odd", "observer_failed") == []
    own = json.loads((tmp_path / "odd" / "trackers" / "mlflow.json").read_text())["id"]
    data = asked(server, f"runs/get?run_id={own}")["run"]["data"]["metrics"]
    found = {each["key"]: each["value"] for each in data}
    assert found["train/m1499"] == 1499.0
    assert found["train/loss"] == "NaN"
    assert found["train/gr__e_"] == 1.0
    assert len(found) == 1502


def test_a_server_that_refuses_is_quoted_and_one_that_is_down_is_waited_for_and_given_up(
    server: str, tmp_path: Path
) -> None:
    (tmp_path / "refused" / "trackers").mkdir(parents=True)
    (tmp_path / "refused" / "trackers" / "mlflow.json").write_text('{"id": "nobody"}')
    run = observers(tmp_path / "refused", MLflow(url=server, wait=60))
    run.ended(0)
    run.close()
    (event,) = events(tmp_path / "refused", "observer_failed")
    assert "answered 404" in event["error"]
    assert "nobody" in event["error"]
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
    run = observers(tmp_path / "down", MLflow(url=address, wait=0.3))
    periods(run, 2)
    run.ended(2)
    run.close()
    (event,) = events(tmp_path / "down", "tracker")
    assert "did not get 2 of 2 lines" in event["note"]
    assert "Connection refused" in event["note"]

"""One writer of a run folder: who owns it, who is refused, and who takes over; with processes that are killed."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import launch
import pytest
import tiny
from cluster import until

from jaxtrain.base.errors import ConfigError, Retry
from jaxtrain.runs import lock as module
from jaxtrain.runs.heartbeat import Beat
from jaxtrain.runs.json_lines import read_lines
from jaxtrain.runs.lock import Lock, Owner, owner_of
from jaxtrain.train import train

HOLDS = """
import sys, time
from pathlib import Path
from jaxtrain.runs.lock import Lock
lock = Lock()
lock.take(Path(sys.argv[1]))
print("owned", flush=True)
time.sleep(100)
"""
ELSEWHERE = "another-system pid:[1]"


@pytest.fixture(scope="module")
def holder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """A folder, and the process that owns it."""
    folder = tmp_path_factory.mktemp("held")
    process = subprocess.Popen([sys.executable, "-c", HOLDS, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "owned\n"
    yield folder, process
    process.kill()
    process.communicate()


def written_by(folder: Path, beats: int = 0, **fields: str) -> Owner:
    """Write the lock of a process on another host."""
    owner = replace(Owner("elsewhere", 7, ELSEWHERE, "12", "a" * 32, "yesterday"), **fields)
    (folder / "lock.json").write_bytes(owner.text(Beat(beats)))
    return owner


def test_a_second_process_is_refused_with_the_owner_named_and_takes_over_once_it_is_killed(
    holder: tuple[Path, subprocess.Popen[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, process = holder
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with Lock(wait=0.2, silent=5) as second, pytest.raises(Retry, match=rf"by process {process.pid} on host .*, since"):
        second.take(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert f"is owned by process {process.pid} on host" in capsys.readouterr().err
    found = owner_of(folder)
    assert found is not None
    assert found.pid == process.pid
    process.kill()  # and nobody has waited for it: a zombie is dead
    until(lambda: owner_of(folder) is None, 10, lambda: "the killed process still owns the folder")
    with Lock(wait=0, silent=100) as second:
        second.take(folder)
        assert json.loads((folder / "lock.json").read_text())["pid"] == os.getpid()
        assert [path.name for path in folder.iterdir()] == ["lock.json"]


@pytest.mark.parametrize("content", ["garbage", "", None], ids=["garbage", "empty", "a link to nothing"])
def test_a_damaged_lock_is_replaced_after_the_silence(
    content: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "lock.json"
    file.symlink_to(tmp_path / "nowhere" / "else") if content is None else file.write_text(content)
    with Lock(wait=0, silent=0.2) as lock:
        lock.take(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["lock.json"]
        assert not file.is_symlink()
        assert json.loads(file.read_text())["pid"] == os.getpid()
    assert "is owned by another process: waiting" in capsys.readouterr().err


def test_a_folder_in_the_place_of_the_lock_is_named(tmp_path: Path) -> None:
    (tmp_path / "lock.json").mkdir()
    with Lock() as lock, pytest.raises(ConfigError, match=r"lock\.json is a folder, and not the lock"):
        lock.take(tmp_path)


def test_what_was_given_back_is_free_at_once(tmp_path: Path) -> None:
    with Lock() as first:
        first.take(tmp_path)
        assert owner_of(tmp_path) is not None
    assert owner_of(tmp_path, silent=100) is None
    with Lock(wait=0, silent=100) as second:
        second.take(tmp_path)


def test_an_owner_on_another_host_is_dead_once_its_content_has_not_changed_and_lives_while_it_does(
    tmp_path: Path,
) -> None:
    written_by(tmp_path)
    with Lock(wait=0, silent=0.3) as second:
        second.take(tmp_path)  # although it waits for no living one: it must become certain that it is dead
    owner, ended = written_by(tmp_path, token="b" * 32), threading.Event()

    def beat() -> None:
        with (tmp_path / "lock.json").open("r+b") as file:
            for number in range(1, 10**6):
                if ended.wait(0.02):
                    return
                file.seek(0)
                file.write(owner.text(Beat(number)))
                file.flush()

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with Lock(wait=1, silent=0.5) as second, pytest.raises(Retry, match="process 7 on host elsewhere"):
            second.take(tmp_path)
    finally:
        ended.set()
        thread.join()


@pytest.mark.parametrize("days", [1, -1])
def test_jumps_of_the_time_of_day_change_nothing(days: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began, jumped = time.time(), [0]

    def jumping() -> float:
        jumped[0] += 1
        return began + jumped[0] * days * 86400

    monkeypatch.setattr(time, "time", jumping)
    with Lock(beat=0.02) as first, Lock(wait=0.2, silent=0.5) as second:
        first.take(tmp_path)
        with pytest.raises(Retry):
            second.take(tmp_path)
        first.check()


@pytest.mark.slow
def test_of_many_that_take_over_a_dead_owners_lock_one_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "broadcast_from_first", lambda number: number)  # no barrier between these
    monkeypatch.setattr(module, "is_first_process", lambda: True)
    for round_ in range(10):
        folder = tmp_path / str(round_)
        folder.mkdir()
        written_by(folder, state="free")
        start, locks, owned = threading.Barrier(8), [Lock(wait=0, silent=100) for _ in range(8)], []

        def contend(
            lock: Lock, start: threading.Barrier = start, owned: list[Lock] = owned, folder: Path = folder
        ) -> None:
            start.wait()
            try:
                lock.take(folder)
                owned.append(lock)
            except Retry:
                pass

        threads = [threading.Thread(target=contend, args=(lock,)) for lock in locks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(owned) == 1
        owned[0].check()
        assert [path.name for path in folder.iterdir()] == ["lock.json"]
        owned[0].release()


def test_a_claim_of_a_lock_that_was_taken_over_meanwhile_is_void(tmp_path: Path) -> None:
    # Its process saw the death of "a", slept, and claims now that another has taken over.
    with Lock() as owner, Lock() as late:
        owner.take(tmp_path)
        late._folder = tmp_path
        assert not late._claim(tmp_path / f"lock.json.{'a' * 32}")
        owner.check()
        assert [path.name for path in tmp_path.iterdir()] == ["lock.json"]


def test_an_owner_that_was_taken_over_learns_who_did_and_harms_nothing(tmp_path: Path) -> None:
    heard: list[str] = []
    with Lock(on_loss=heard.append, beat=0.05) as sleeper:
        sleeper.take(tmp_path)
        (tmp_path / "new").write_bytes(Owner("elsewhere", 7, ELSEWHERE, "12", "c" * 32, "now").text(Beat(5)))
        os.replace(tmp_path / "new", tmp_path / "lock.json")
        until(lambda: bool(heard), 10, lambda: "it did not notice")
        assert "taken over by process 7 on host elsewhere, since now" in heard[0]
        with pytest.raises(Retry, match="taken over by process 7"):
            sleeper.check()
    assert json.loads((tmp_path / "lock.json").read_text())["state"] == "held"


@pytest.mark.parametrize("text", ["", "[]", "{" * 3000, '{"host": 5, "token": "../../x", "heartbeat": 1}'])
def test_a_lock_that_cannot_be_read_is_dead_once_it_does_not_change(text: str, tmp_path: Path) -> None:
    (tmp_path / "lock.json").write_text(text)
    with Lock(wait=0, silent=0.2) as lock:
        lock.take(tmp_path)
        lock.check()
        assert [path.name for path in tmp_path.iterdir()] == ["lock.json"]


def test_without_hard_links_there_is_one_owner_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", none)
    with Lock() as first, Lock(wait=0, silent=1) as second:
        first.take(tmp_path)
        with pytest.raises(Retry):
            second.take(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["lock.json"]


def test_no_lock_is_left_in_a_folder_that_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="exists and is not a run"):
        train(tiny.main(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.slow
def test_of_three_starts_on_one_folder_one_trains_and_the_others_write_nothing_and_end_with_75(tmp_path: Path) -> None:
    run = tmp_path / "run"
    started = [
        launch.start("main", run, "--steps", "1000000", "--save-every", "5", "--deadlines.lock", "300")
        for _ in range(2)
    ]
    until(lambda: (run / "metrics.jsonl").is_file(), 60, lambda: "no run began")
    started += [launch.start("main", run, "--steps", "1000000", "--deadlines.lock", "1")]
    try:
        printed = started[2].communicate(timeout=60)[0]
        assert started[2].returncode == 75
        owner = json.loads((run / "lock.json").read_text())["pid"]
        assert f"is being written by process {owner} on host" in printed
        assert "Traceback" not in printed
        assert owner in {process.pid for process in started[:2]}
        [trains] = [process for process in started[:2] if process.pid == owner]
        [waits] = [process for process in started[:2] if process.pid != owner]
        trains.send_signal(signal.SIGKILL)  # in the middle, perhaps of a save: the one that waits goes on at once
        trains.communicate()
        until(lambda: json.loads((run / "lock.json").read_text())["pid"] == waits.pid, 60, lambda: "nobody took over")
        until(lambda: (run / "events.jsonl").read_text().count("compiled") == 2, 60, lambda: "it did not go on")
        size = (run / "metrics.jsonl").stat().st_size
        until(lambda: (run / "metrics.jsonl").stat().st_size > size, 60, lambda: "it did not train")
        waits.send_signal(signal.SIGTERM)
        printed = waits.communicate(timeout=60)[0]
        assert waits.returncode == 75, printed
        launch.losses(run)  # asserts that each step is there once
        assert json.loads((run / "lock.json").read_text())["state"] == "free"
    finally:
        for process in started:
            process.kill()
            process.wait()


def contents(run: Path) -> dict[str, bytes]:
    """Every file of a run but its lock."""
    files = [path for path in run.rglob("*") if path.is_file() and path.name != "lock.json"]
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in files}


@pytest.mark.slow
def test_of_three_starts_while_the_first_restores_one_is_refused_and_the_other_goes_on_once_the_first_is_dead(
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    launch.train_killed("main", run, 9, "step")  # with step 8 being saved, and step 4 durable
    (tmp_path / "gone").unlink()
    started = [launch.start("main", run, program=launch.RESTORING)]
    try:
        until((tmp_path / "gone").is_file, 120, lambda: "it does not restore")
        before = contents(run)
        assert json.loads((run / "lock.json").read_text())["pid"] == started[0].pid
        started.append(launch.start("main", run, "--deadlines.lock", "1"))
        started.append(launch.start("main", run, "--deadlines.lock", "300"))
        printed = started[1].communicate(timeout=120)[0]
        assert started[1].returncode == 75, printed
        assert f"is being written by process {started[0].pid} on host" in printed
        assert "Traceback" not in printed
        assert started[2].stdout is not None
        assert any("waiting for it to end" in line for line in started[2].stdout)
        assert contents(run) == before
        started[0].send_signal(signal.SIGKILL)
        printed = started[2].communicate(timeout=240)[0]
        assert started[2].returncode == 0, printed
    finally:
        for process in started:
            process.kill()
            with process:  # closes its pipe, too
                pass
    assert launch.losses(run).keys() == {*range(1, 13)}
    kinds = [line["kind"] for line in read_lines(run / "events.jsonl")]
    assert (kinds.count("damaged"), kinds.count("ended")) == (0, 1)
    assert [path.name for path in (run / "checkpoints").iterdir() if not path.name.isdecimal()] == []

"""A file system that answers with ESTALE or EIO for a moment: one message, nothing lost, and later all is as before."""

import builtins
import errno
import io
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import jax.numpy as jnp
import pytest
import tiny

from jaxtrain.base.errors import ExitCode, Retry
from jaxtrain.cli.failures import kind_of, message_lines
from jaxtrain.experiment import Retention
from jaxtrain.runs import lock as locks
from jaxtrain.runs.checkpoints import Checkpoints
from jaxtrain.runs.lock import Lock
from jaxtrain.runs.metrics_log import read_metrics
from jaxtrain.runs.owner import parsed
from jaxtrain.train import train

CALLS = [(os, "stat"), (os, "open"), (os, "listdir"), (os, "scandir"), (io, "open"), (builtins, "open")]
KEEP = Retention(last=2, best="v/loss")


class Fault:
    """Within it, call number `number` (from 0) of the system about a path below `root` fails once."""

    def __init__(self, root: Path, number: int, code: int) -> None:
        self._root, self._number, self._code = str(root), number, code
        self.calls: list[str] = []

    def __enter__(self) -> Self:
        self._before = [(module, name, getattr(module, name)) for module, name in CALLS]
        for module, name, original in self._before:
            setattr(module, name, self._faulty(name, original))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for module, name, original in self._before:
            setattr(module, name, original)

    def _faulty(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *arguments: Any, **options: Any) -> Any:
            if isinstance(path, str | os.PathLike) and os.fspath(path).startswith(self._root):
                self.calls.append(f"{name} {os.fspath(path)[len(self._root) :]}")
                if len(self.calls) - 1 == self._number:
                    raise OSError(self._code, os.strerror(self._code), os.fspath(path))
            return original(path, *arguments, **options)

        return call


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of steps 1, 2 and 3, of which 1 is the best."""
    folder = tmp_path_factory.mktemp("stale")
    with Checkpoints(folder / "checkpoints", KEEP) as checkpoints:
        for step, score in ((1, 1.0), (2, 5.0), (3, 3.0)):
            checkpoints.save(step, {"x": jnp.full(4, step, jnp.float32)}, {"step": step}, {"v/loss": score})
            checkpoints.wait()
    return folder


def resumed(folder: Path) -> tuple[int | None, float, int | None]:
    """The step that is resumed from, what it holds, and the best."""
    wanted: Any = {"x": jax.ShapeDtypeStruct((4,), jnp.float32)}
    with Checkpoints(folder / "checkpoints", KEEP) as checkpoints:
        checkpoints.report_to(lambda kind, **facts: None)
        step = checkpoints.latest()
        return step, float(checkpoints.restore(wanted)[0]["x"][0]), checkpoints.best()


def files(folder: Path) -> list[str]:
    """Every file below a folder, wherever its checkpoint was moved."""
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return sorted(name.partition("/")[2] for name in names)


def check_one(saved: Path, folder: Path, number: int, code: int) -> str:
    """What is wrong after one fault; "" for nothing."""
    shutil.copytree(saved, folder)
    try:
        with Fault(folder, number, code) as fault:
            found = resumed(folder)
    except (Retry, OSError) as error:
        if kind_of(error).code != ExitCode.RETRY or len(message_lines(error)) > 4:
            return f"{fault.calls[number]}: {error!r}"
        found = (3, 3.0, 1)
    if files(folder) != files(saved):
        return f"{fault.calls[number]}: files are lost"
    # A file that the disk cannot read is damage: its checkpoint is set aside, and the one before used.
    after, allowed = resumed(folder), {(3, 3.0, 1)} | ({(2, 2.0, 1), (3, 3.0, 3)} if code == errno.EIO else set())
    return "" if {found, after} <= allowed else f"{fault.calls[number]}: {found}, then {after}"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of the reads that tensorstore leaves
@pytest.mark.parametrize("code", [errno.ESTALE, errno.EIO], ids=["ESTALE", "EIO"])
def test_whichever_call_fails_while_a_checkpoint_is_read_it_is_one_message_and_nothing_is_lost(
    code: int, saved: Path, tmp_path: Path
) -> None:
    with Fault(saved, -1, code) as none:
        assert resumed(saved) == (3, 3.0, 1)
    assert len(none.calls) > 60
    wrong = [check_one(saved, tmp_path / str(number), number, code) for number in range(len(none.calls))]
    assert [each for each in wrong if each] == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of the reads that tensorstore leaves
@pytest.mark.parametrize("code", [errno.ESTALE, errno.EIO], ids=["ESTALE", "EIO"])
@pytest.mark.parametrize("call", ["listdir /checkpoints", "stat /checkpoints/3", "stat /checkpoints/1/metrics/metrics"])
def test_a_folder_that_does_not_answer_is_no_folder_without_checkpoints(
    call: str, code: int, saved: Path, tmp_path: Path
) -> None:
    with Fault(saved, -1, code) as none:
        resumed(saved)
    for number in [number for number, each in enumerate(none.calls) if each == call][:2]:
        assert check_one(saved, tmp_path / str(number), number, code) == ""


@pytest.mark.parametrize("code", [errno.ESTALE, errno.EIO], ids=["ESTALE", "EIO"])
def test_a_heartbeat_that_cannot_be_written_or_read_for_a_while_ends_nothing_and_goes_on(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    faulty, failed, lost = [False], [0], list[str]()

    def failing(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if faulty[0]:
                failed[0] += 1
                raise OSError(code, os.strerror(code))
            return original(*arguments)

        return call

    for name in ("pwrite", "fsync", "read"):
        monkeypatch.setattr(locks.os, name, failing(getattr(os, name)))

    def beats() -> str:
        return (tmp_path / "lock.json").read_text().partition('"heartbeat"')[2]

    def until(condition: Callable[[], bool]) -> None:
        for _ in range(2000):
            if condition():
                return
            threading.Event().wait(0.005)
        raise AssertionError("it did not come to that")

    with Lock(on_loss=lost.append, beat=0.005) as lock:
        lock.take(tmp_path)
        before = beats()
        until(lambda: beats() != before)
        faulty[0] = True
        until(lambda: failed[0] > 20)
        lock.check()
        before, faulty[0] = beats(), False
        until(lambda: beats() != before)
        lock.check()
        faulty[0] = True  # and when it is given back
    faulty[0] = False
    assert (lost, capfd.readouterr().err) == ([], "")
    owner = parsed((tmp_path / "lock.json").read_bytes())
    assert owner is not None
    with Lock(wait=0) as again:  # the process lives, but says so itself
        assert owner.pid == os.getpid()
        if owner.state == "held":
            with pytest.raises(Retry, match="is being written by process"):
                again.take(tmp_path)


def test_a_lock_file_whose_closing_fails_does_not_fail_a_run_that_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = os.close
    with Lock() as lock:
        lock.take(tmp_path)

        def close(number: int) -> None:
            original(number)
            raise OSError(errno.EIO, "what was written late failed")

        monkeypatch.setattr(locks.os, "close", close)
    monkeypatch.setattr(locks.os, "close", original)
    with Lock(wait=0) as again:
        again.take(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("code", [errno.ESTALE, errno.EIO], ids=["ESTALE", "EIO"])
def test_a_run_whose_heartbeat_always_fails_ends_as_any_other(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(locks.os, "pwrite", fails)
    monkeypatch.setattr(Lock.__init__, "__defaults__", (30, lambda text: None, 0.01, 45.0, lambda: (0, "")))
    run, state = train(tiny.main(), tmp_path / "run")
    assert int(state.step) == 12
    assert [line["step"] for line in read_metrics(run.folder) if line["split"] == "train"] == [*range(1, 13)]

"""Reading in threads and processes: none outlives the trainer, a killed one is replaced, a hung one holds nobody up."""

import contextlib
import gc
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxtrain.base.errors import Retry
from jaxtrain.data import workers as workers_module
from jaxtrain.data.reading import read

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Numbered:
    """Item i is the number i and the process that read it. At `index` it does something else, in the first process that
    comes there, or in all of them.
    """

    at: int = -1
    does: str = ""
    once: str = ""
    """A file that the first process makes."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if index == self.at and not (self.once and os.path.exists(self.once)):
            if self.once:
                Path(self.once).write_text(str(os.getpid()))
            getattr(self, self.does)()
        return {"number": np.full(3, index), "process": np.array(os.getpid())}

    def killed(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def leaves(self) -> None:
        os._exit(3)

    def exits(self) -> None:
        sys.exit("no more")

    def sleeps(self) -> None:
        time.sleep(1000)

    def hangs(self) -> None:
        """In C, with the interpreter's lock: no thread of this process runs any more, and no handler of a signal."""
        re.match(r"(a+)+$", "a" * 60 + "b")

    def raises(self) -> None:
        class OfItsOwn(Exception):
            """Known in this process only."""

        raise OfItsOwn("wrong row")

    def signalled(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            os.kill(os.getpid(), number)

    def starts(self) -> None:
        with subprocess.Popen(["sleep", "1000"]) as program:
            program.terminate()


def numbers(items: Numbered, **ways: int) -> list[list[int]]:
    with contextlib.closing(read(items, **{"threads": 1, "workers": 2, "prefetch": 2} | ways)) as reading:
        return [item["number"].tolist() for item in reading]


ALL = [[index] * 3 for index in range(12)]


def gone(process: int) -> bool:
    """Whether a process has ended; what init has not yet fetched counts as ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


def until(true: Callable[[], bool], what: str) -> None:
    """Poll for 20 seconds."""
    for _ in range(400):
        if true():
            return
        time.sleep(0.05)
    pytest.fail(what)


TRAINER = """
import os, sys
from test_workers import Numbered
from jaxtrain.data.reading import read

reading = read(Numbered(at=8, does=sys.argv[1], once=sys.argv[2]), threads=1, workers=2, prefetch=2)
print(*{int(next(reading)["process"]) for _ in range(4)}, flush=True)
"""
ENDS = {
    "SIGKILL": "sys.stdin.read()",
    "SIGTERM": "sys.stdin.read()",
    "exit": "sys.stdin.readline()",
    "an exit without cleaning": "sys.stdin.readline(); os._exit(0)",
    "an error": "sys.stdin.readline(); raise KeyboardInterrupt",
}


@pytest.mark.slow
@pytest.mark.parametrize("does", ["sleeps", "hangs"])
@pytest.mark.parametrize("by", ENDS)
def test_workers_end_with_the_trainer_however_it_ends_and_whatever_they_do(by: str, does: str, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    environment = {**os.environ, "PYTHONPATH": f"{HERE}:{HERE.parent}", "TMPDIR": str(tmp_path / "tmp")}
    reached = tmp_path / "reached"
    trainer = subprocess.Popen(
        [sys.executable, "-c", TRAINER + ENDS[by], does, str(reached)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert trainer.stdout is not None
    assert trainer.stdin is not None
    workers = [int(word) for word in trainer.stdout.readline().split()]
    assert len(workers) == 2
    until(reached.exists, "item 8 is not read")
    # Nothing that they use has a name of its own in the file system.
    for process in (trainer.pid, *workers):
        used = [os.readlink(link) for link in Path(f"/proc/{process}/fd").iterdir()]
        used += Path(f"/proc/{process}/maps").read_text().split("\n")
        assert not [each for each in used if "/dev/shm" in each or str(tmp_path / "tmp") in each]
    if by.startswith("SIG"):
        trainer.send_signal(signal.Signals[by])
    else:
        trainer.stdin.write("\n")
        trainer.stdin.flush()
    try:
        until(lambda: all(gone(process) for process in workers), f"{workers} are left")
    finally:
        for process in workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
    trainer.communicate(timeout=20)
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.slow
def test_a_worker_that_the_kernel_kills_is_replaced_and_every_item_comes_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "jaxtrain.data"):
        assert numbers(Numbered(at=5, does="killed", once=str(tmp_path / "once"))) == ALL
    pid = (tmp_path / "once").read_text()
    assert [line.message for line in caplog.records] == [
        f"data worker 2 of 2 (pid {pid}) was killed by SIGKILL, as the kernel does when memory runs out; "
        "another one reads on where it was"
    ]


@pytest.mark.slow
def test_a_worker_that_is_killed_again_and_again_ends_the_run_as_one_to_be_tried_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(Retry, match=r"data worker 1 of 1 .* was killed by SIGKILL.*, 4 times: fewer data.workers"):
        numbers(Numbered(at=1, does="killed"), workers=1)
    assert len(caplog.records) == 3


@pytest.mark.slow
@pytest.mark.parametrize("forgiven_after", [2, 100])
def test_only_kills_that_follow_each_other_closely_are_counted(
    forgiven_after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers_module, "REPLACEMENTS", 1)
    monkeypatch.setattr(workers_module, "FORGIVEN_AFTER", forgiven_after)
    expected = pytest.raises(Retry) if forgiven_after == 100 else contextlib.nullcontext()
    with expected, contextlib.closing(read(Numbered(), threads=0, workers=1, prefetch=1)) as reading:
        for index, item in enumerate(reading):
            assert item["number"].tolist() == [index] * 3
            if index in (2, 8):
                os.kill(int(item["process"]), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("does", "message"),
    [
        ("leaves", "data worker 1 of 2 ended with exit code 3 before"),
        ("exits", "SystemExit: no more"),
        ("raises", "OfItsOwn: wrong row"),
    ],
)
def test_an_error_of_any_kind_in_a_worker_is_raised_with_its_name_and_place(does: str, message: str) -> None:
    with pytest.raises(RuntimeError, match=message) as found:
        numbers(Numbered(at=4, does=does))
    if does != "leaves":
        (note,) = found.value.__notes__
        assert note.startswith("in data worker 1 of 2:\nTraceback")
        assert re.search(rf'test_workers.py", line \d+, in {does}\n', note)


@pytest.mark.slow
@pytest.mark.parametrize("does", ["signalled", "starts"])
def test_a_worker_leaves_signals_to_the_trainer_and_programs_it_starts_hear_them(
    does: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert numbers(Numbered(at=4, does=does)) == ALL
    assert caplog.records == []


@pytest.mark.slow
def test_a_signal_while_a_worker_starts_does_not_end_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    start: Any = subprocess.Popen

    def signalled(*arguments: object, **named: object) -> subprocess.Popen:
        process = start(*arguments, **named)
        process.send_signal(signal.SIGTERM)
        return process

    monkeypatch.setattr(subprocess, "Popen", signalled)
    assert numbers(Numbered()) == ALL
    assert caplog.records == []
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) & {signal.SIGTERM, signal.SIGINT} == set()


HUNG = """
import sys
from test_workers import Numbered
from jaxtrain.data.reading import read

reading = read(Numbered(at=3, does="sleeps", once=sys.argv[1]), threads=1, workers=int(sys.argv[2]), prefetch=2)
print(*(next(reading)["number"][0] for _ in range(2)), flush=True)
while not __import__("os").path.exists(sys.argv[1]):
    pass
reading.close()
print("closed", flush=True)

from jaxtrain.base.threads import leave_hanging_threads

leave_hanging_threads(0)  # as the command does
"""


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_a_reader_that_hangs_keeps_neither_closing_nor_the_interpreter_from_ending(
    workers: int, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HUNG, str(tmp_path / "once"), str(workers)],
        env={**os.environ, "PYTHONPATH": f"{HERE}:{HERE.parent}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "0 1\nclosed\n", done.stderr
    assert done.returncode == 0
    assert gone(int((tmp_path / "once").read_text()))


@pytest.mark.slow
def test_closing_ends_the_processes_and_gives_back_every_descriptor() -> None:
    gc.collect()  # what earlier tests have left
    before = sorted(os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.exists())
    with contextlib.closing(read(Numbered(), threads=1, workers=3, prefetch=2)) as reading:
        processes = {int(next(reading)["process"]) for _ in range(9)}
    assert len(processes) == 3
    assert all(gone(process) for process in processes)
    assert sorted(os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.exists()) == before


@dataclass(frozen=True)
class Kinds:
    """Items of every kind of array."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> dict[str, object]:
        return KINDS


KINDS: dict[str, object] = {
    "large": np.arange(3 << 20, dtype=np.float64),
    "odd": np.arange(7, dtype=np.uint8),
    "columns": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "strided": np.arange(20)[::3],
    "empty": np.zeros((0, 4), np.float32),
    "texts": np.array(["a", "bc"], object),
    "bytes": np.array([b"a", b"bc"]),
    "none": None,
}


@pytest.mark.slow
def test_arrays_of_every_kind_come_as_they_are_aligned_and_writable() -> None:
    kinds: Any = Kinds()
    (found,) = list(read(kinds, threads=0, workers=2, prefetch=1))
    assert list(found) == list(KINDS)
    for name, expected in KINDS.items():
        if isinstance(expected, np.ndarray):
            assert (found[name].dtype, found[name].shape) == (expected.dtype, expected.shape)
            assert found[name].tolist() == expected.tolist()
            assert found[name].flags.writeable
            assert found[name].dtype == object or found[name].ctypes.data % found[name].itemsize == 0
    assert found["none"] is None


@pytest.mark.slow
def test_a_script_without_a_main_guard_reads_its_own_classes_in_workers(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from dataclasses import dataclass\nimport numpy as np\nfrom jaxtrain.data import Pipeline, Source\n\n"
        "@dataclass(frozen=True)\nclass Squares(Source):\n    def __len__(self):\n        return 5\n"
        "    def __getitem__(self, index):\n        return {'x': np.int32(index**2)}\n"
        "    def identity(self):\n        return 'squares'\n\n"
        "batches = Pipeline(Squares(), batch_size=5, shuffle=False, workers=2).batches()\n"
        "print(next(batches)['x'].tolist())\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[0, 1, 4, 9, 16]\n", done.stderr
    assert done.stderr == ""

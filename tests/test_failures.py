"""How a command fails: the exit code, at most five lines, and where the traceback is."""

import errno
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest
import tiny
from small_disk import run_on_small_disk

from jaxtrain.analysis.replay.reproduced import differences
from jaxtrain.base.config import NOT_IN_FINGERPRINT
from jaxtrain.base.errors import ConfigError, Damaged, Diverged, ExitCode, Retry, cannot_write
from jaxtrain.base.files import write_json
from jaxtrain.base.tracebacks import keep_tracebacks_in
from jaxtrain.cli import main as cli
from jaxtrain.cli.replay import simulate_devices
from jaxtrain.cli.terminal import report_error, report_stray_errors, show_tracebacks
from jaxtrain.cluster.watchdog import Watchdog
from jaxtrain.data import Transform
from jaxtrain.experiment.files import Origin
from jaxtrain.experiment.observers import Observer
from jaxtrain.runs.begin import begin
from jaxtrain.runs.checkpoints import Checkpoints
from jaxtrain.train import train


def unraisable(error: Exception) -> None:
    """What Python calls for an error that nothing can catch."""
    found: Any = SimpleNamespace(exc_value=error)
    sys.unraisablehook(found)


OTHER_KINDS = ("a folder", "a link", "a link to nothing", "a pipe")


def put(path: Path, kind: str, elsewhere: Path) -> Callable[[], bool]:
    """Puts something else in the place of a file. Returns whether it, and what it leads to, is still as it was."""
    target = elsewhere / "target"
    if kind == "a folder":
        path.mkdir()
        return lambda: path.is_dir() and not [*path.iterdir()]
    if kind == "a pipe":
        os.mkfifo(path)
        return path.is_fifo
    if kind == "a link":
        target.write_text("own")
    path.symlink_to(target)
    return lambda: target.read_text() == "own" if kind == "a link" else not target.exists()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of each test's own; no run is failing before it or after it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    keep_tracebacks_in(None)
    show_tracebacks(False)  # as a test of another file may have left it
    yield tmp_path / "cache" / "jaxtrain"
    keep_tracebacks_in(None)


@pytest.fixture
def run(tmp_path):
    """The folder of a run, which errors are of from now on."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "experiment.json").touch()
    keep_tracebacks_in(folder)
    return folder


def raised(error):
    """The error as it is where it has been raised."""
    try:
        raise error
    except BaseException as caught:
        return caught


def raised_by(code, file):
    """The error that the text of a file raises."""
    file.write_text(code)
    try:
        exec(compile(code, str(file), "exec"), {})
    except BaseException as caught:
        return caught.with_traceback(caught.__traceback__ and caught.__traceback__.tb_next)


def from_library(error):
    """The error as a library raises it, with no frame of the user's or of jaxtrain's."""
    return error.with_traceback(None)


def os_error(number, path="/data/x"):
    return from_library(OSError(number, os.strerror(number), str(path)))


XLA = jax.errors.JaxRuntimeError
GPU = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 12884901888 bytes."
TENSORSTORE = "RESOURCE_EXHAUSTED: Error writing local file [os_error_code='28']"


@pytest.mark.parametrize(
    ("error", "code", "first"),
    [
        (ConfigError("no such thing"), 2, "jaxtrain: no such thing"),
        (KeyboardInterrupt(), 130, "jaxtrain: interrupted"),
        (Damaged("a.bin", 3, "cut off"), 1, "jaxtrain: damaged data: a.bin, record 3: cut off"),
        (Diverged("step 3: loss is nan"), 4, "jaxtrain: step 3: loss is nan"),
        (Retry("held by host"), 75, "jaxtrain: held by host"),
        (os_error(errno.ENOSPC), 75, "jaxtrain: No space left on device: '/data/x'"),
        (os_error(errno.EROFS), 75, "jaxtrain: Read-only file system: '/data/x'"),
        (os_error(errno.EIO), 75, "jaxtrain: Input/output error: '/data/x'"),
        (os_error(errno.ESTALE), 75, "jaxtrain: Stale file handle: '/data/x'"),
        (os_error(errno.EMFILE), 75, "jaxtrain: Too many open files: '/data/x'"),
        (os_error(errno.ENOENT), 2, "jaxtrain: No such file or directory: '/data/x'"),
        (os_error(errno.EACCES), 2, "jaxtrain: Permission denied: '/data/x'"),
        (os_error(errno.ENOMEM), 3, "jaxtrain: Cannot allocate memory: '/data/x'"),
        (from_library(MemoryError()), 3, "jaxtrain: MemoryError"),
        (from_library(XLA(GPU)), 3, f"jaxtrain: JaxRuntimeError: {GPU}"),
        (from_library(XLA("UNAVAILABLE: device lost")), 75, "jaxtrain: JaxRuntimeError: UNAVAILABLE: device lost"),
        (from_library(XLA("INTERNAL: x")), 1, "jaxtrain: JaxRuntimeError: INTERNAL: x"),
        (from_library(ValueError(TENSORSTORE)), 75, f"jaxtrain: ValueError: {TENSORSTORE}"),
        (ExceptionGroup("two", [os_error(errno.EIO), ValueError()]), 75, "jaxtrain: Input/output error: '/data/x'"),
        (from_library(KeyError("a bug")), 1, "jaxtrain: KeyError: 'a bug'"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_each_kind_of_error_has_its_exit_code_and_is_told_in_at_most_five_lines(error, code, first, capsys):
    assert report_error(error) == code
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == first
    assert len(lines) <= 5
    assert "Traceback" not in "".join(lines)


def test_what_causes_an_error_decides_where_that_is_a_full_disk():
    error = RuntimeError("saving failed")
    error.__cause__ = os_error(errno.ENOSPC)
    assert report_error(from_library(error)) == ExitCode.RETRY


def test_in_a_run_a_path_in_its_folder_may_come_back_and_another_may_not(run):
    assert report_error(os_error(errno.ENOENT, run / "metrics.jsonl")) == ExitCode.RETRY
    assert report_error(os_error(errno.EACCES, run / "metrics.jsonl")) == ExitCode.RETRY
    assert report_error(os_error(errno.ENOENT)) == ExitCode.FAILED


def test_the_traceback_is_appended_to_a_file_of_the_run_with_command_and_versions(run, cache, capsys):
    for number in (1, 2):
        report_error(raised(RuntimeError(f"wrong {number}")))
    assert f"the traceback is at the end of {run / 'traceback.txt'}" in capsys.readouterr().err
    text = (run / "traceback.txt").read_text()
    assert text.count("Traceback (most recent call last)") == 2
    assert re.search(r"^20\d\d-\S+\+00:00  \S+", text)
    assert f"jax {jax.__version__}, jaxlib" in text
    assert not cache.exists()


def test_a_later_process_keeps_its_traceback_in_a_file_of_its_own(run, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 3)
    report_error(raised(RuntimeError("wrong")))
    assert [path.name for path in run.glob("traceback*")] == ["traceback-3.txt"]


def test_without_a_run_and_where_its_folder_is_gone_the_traceback_is_in_the_cache(run, cache, capsys):
    (run / "experiment.json").unlink()
    report_error(raised(RuntimeError("wrong")))
    assert "RuntimeError: wrong" in (cache / "traceback.txt").read_text()
    assert [*run.iterdir()] == []
    assert str(cache / "traceback.txt") in capsys.readouterr().err


def test_without_any_place_for_the_traceback_that_is_said(monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nothing")
    report_error(raised(RuntimeError("wrong")))
    assert "could not be written to a file; --debug shows it" in capsys.readouterr().err


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_what_stands_in_the_place_of_the_tracebacks_is_left_as_it_is_and_they_are_in_the_cache(
    kind, run, cache, tmp_path, capsys
):
    left_alone = put(run / "traceback.txt", kind, tmp_path)
    report_error(raised(RuntimeError("wrong")))
    assert f"the traceback is at the end of {cache / 'traceback.txt'}" in capsys.readouterr().err
    assert "RuntimeError: wrong" in (cache / "traceback.txt").read_text()
    assert left_alone()


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_what_stands_in_the_place_of_the_stacks_is_left_as_it_is_and_they_are_printed(kind, run, tmp_path, capfd):
    left_alone, dog = put(run / "stacks.txt", kind, tmp_path), Watchdog({}, lambda: (0, "step"))
    dog.folder = run
    assert dog.write_stacks("step 3") == "the stacks of its threads are above"
    assert "test_what_stands_in_the_place_of_the_stacks" in capfd.readouterr().err
    assert left_alone()


@pytest.mark.parametrize("name", ["environment.json", "tiny.py"])
@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_what_stands_in_the_place_of_a_file_of_the_run_is_replaced_and_no_link_followed(name, kind, tmp_path, caplog):
    folder, origin = tmp_path / "run", Origin(Path(tiny.__file__), "main")
    begin(folder, tiny.main(), origin)
    (folder / name).unlink()
    left_alone = put(folder / name, kind, tmp_path)
    begin(folder, tiny.main(), origin)
    assert (folder / name).is_file()
    assert not (folder / name).is_symlink()
    set_aside = folder / "damaged" / name
    assert (f"it is set aside in {set_aside}" in caplog.text) == (kind != "a link")
    if kind == "a link":
        assert left_alone()
    else:
        assert set_aside.is_dir() or set_aside.is_symlink() or set_aside.is_fifo()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "is not JSON"),
        ("[]", "holds no environment"),
        ('{"packages": 3}', "holds no environment"),
        ('{"hardware": []}', "holds no environment"),
        ('{"git": "abc"}', "holds no environment"),
        ('{"git": {"revision": 3}}', "holds no environment"),
        (None, "there is no file"),
    ],
)
def test_an_environment_that_is_damaged_is_one_message_of_a_replay_and_simulates_nothing(content, why, tmp_path):
    if content is None:
        (tmp_path / "environment.json").mkdir()
    else:
        (tmp_path / "environment.json").write_text(content)
    [said] = differences(tmp_path)
    assert why in said
    simulate_devices(tmp_path)


def test_an_environment_that_may_not_be_read_is_one_message_too(tmp_path, monkeypatch):
    def refuses(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    write_json(tmp_path / "environment.json", {})
    monkeypatch.setattr(Path, "read_bytes", refuses)
    assert differences(tmp_path) == (f"{tmp_path / 'environment.json'} cannot be read: Permission denied",)
    simulate_devices(tmp_path)


def test_a_file_of_tracebacks_does_not_grow_for_ever(run):
    (run / "traceback.txt").write_text("x" * (1 << 20) + "x")
    report_error(raised(RuntimeError("wrong")))
    assert (run / "traceback.txt").stat().st_size < 1 << 16


def test_a_user_error_keeps_no_traceback(cache):
    report_error(raised(ConfigError("no such thing")))
    assert not cache.exists()


def test_a_long_message_is_cut_and_its_control_characters_are_shown(capsys):
    report_error(ConfigError("\n".join(["first \x1b[31mred", *map(str, range(30))])))
    lines = capsys.readouterr().err.splitlines()
    assert lines == [r"jaxtrain: first \x1b[31mred", "0", "1", "2", "  and 27 lines more, which --debug shows"]
    report_error(ConfigError("x" * 10_000))
    assert len(capsys.readouterr().err) < 1000


def test_an_error_of_the_users_code_names_its_line_and_whose_it_is(tmp_path, run, capsys):
    error = raised_by("def loss():\n    return 1 / 0\n\nloss()", tmp_path / "mine.py")
    assert report_error(error) == ExitCode.FAILED
    first, second, _ = capsys.readouterr().err.splitlines()
    assert first == f"jaxtrain: ZeroDivisionError: division by zero ({tmp_path / 'mine.py'}, line 2, loss)"
    assert second == "the error is in your own code, or in how it calls jaxtrain"
    keep_tracebacks_in(None)
    assert report_error(error) == ExitCode.USER_ERROR  # nothing is written yet


def test_an_error_of_ours_names_our_line_and_the_users_that_called_it(tmp_path, capsys):
    report_error(raised_by("from jaxtrain.base.text import table\ntable([])", tmp_path / "mine.py"))
    first, *_ = capsys.readouterr().err.splitlines()
    assert re.search(
        r"IndexError: .* \(jaxtrain/base/text\.py, line \d+, table, called from \S+/mine\.py, line 2", first
    )
    nothing: Any = None
    try:
        cli.run(nothing)
    except TypeError as error:
        trace = error.__traceback__
        report_error(error.with_traceback(trace and trace.tb_next))
    lines = capsys.readouterr().err.splitlines()
    assert "jaxtrain/cli/main.py, line " in lines[0] or "jaxtrain/cli/verbs.py, line " in lines[0]
    assert lines[1] == "this is probably a bug of jaxtrain, worth reporting together with the traceback"


def test_an_error_in_a_worker_process_is_told_as_if_it_were_here(tmp_path, run, capsys):
    (tmp_path / "mine.py").write_text("")
    text = f'Grain worker process 0 failed:\nTraceback (most recent call last):\n  File "{tmp_path}/mine.py", line 7, in f\n'
    assert report_error(from_library(RuntimeError(f"{text}OSError: [Errno 28] No space left\n"))) == ExitCode.RETRY
    assert report_error(from_library(RuntimeError(f"{text}ValueError: no such token\n"))) == ExitCode.FAILED
    first = capsys.readouterr().err.splitlines()[-3]
    assert first == f"jaxtrain: ValueError: no such token ({tmp_path}/mine.py, line 7, f)"


def test_debug_prints_the_traceback_too(capsys, monkeypatch):
    monkeypatch.setattr("jaxtrain.cli.terminal._show_tracebacks", True)
    report_error(raised(ConfigError("no such thing")))
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback (most recent call last)")
    assert shown.endswith("\njaxtrain: no such thing\n")


def test_an_error_that_nothing_can_catch_is_told_in_one_line_and_none_while_python_ends(run, monkeypatch, capsys):
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)
    monkeypatch.setattr("jaxtrain.cli.terminal._reported", False)
    report_stray_errors()
    thread = threading.Thread(target=lambda: [][0], name="reader")
    thread.start()
    thread.join()

    class Broken:
        def __del__(self):
            raise ValueError("late")

    del (broken := {"it": Broken()})["it"]
    assert broken == {}
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert re.match(r"jaxtrain: an error in the thread reader: IndexError: list index out of range", lines[0])
    assert lines[1].startswith("jaxtrain: an error in closing what is no longer used: ValueError: late")
    assert (run / "traceback.txt").read_text().count("Traceback (most") == 2
    report_error(ConfigError("over"))
    capsys.readouterr()
    unraisable(ValueError("a consequence"))
    assert capsys.readouterr().err == ""
    assert "a consequence" in (run / "traceback.txt").read_text()
    monkeypatch.setattr("jaxtrain.cli.terminal._reported", False)
    monkeypatch.setattr(sys, "is_finalizing", lambda: True)
    unraisable(ValueError("late"))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, Retry), (errno.EROFS, Retry), (errno.EACCES, ConfigError)])
def test_what_cannot_be_written_is_a_user_error_unless_it_can_be_mended(number, kind):
    found = cannot_write("the run folder r", os_error(number))
    assert type(found) is kind
    assert str(found).startswith(f"the run folder r cannot be written: {os.strerror(number)}")


def test_an_unknown_compiler_option_is_refused_before_the_folder_is_written(tmp_path):
    for options, said in (
        ({"xla_nope": True}, "compiler_options: No such compile option: 'xla_nope'"),
        ({"xla_cpu_enable_fast_math": "perhaps"}, "compiler_options: .*'perhaps' is not a valid bool"),
    ):
        experiment = tiny.main()
        experiment = replace(experiment, runtime=replace(experiment.runtime, compiler_options=options))
        with pytest.raises(ConfigError, match=said):
            train(experiment, tmp_path / "run")
        assert not (tmp_path / "run").exists()


@dataclass(frozen=True)
class At(Observer):
    """Does something to the run's folder after a step."""

    step: int
    command: str = field(metadata=NOT_IN_FINGERPRINT)

    def trained(self, run, step, metrics, rates):
        if step == self.step:
            subprocess.run(self.command.format(run=run.folder), shell=True, check=True, capture_output=True)


def ended(folder, command):
    """The error and the exit code of a run to whose folder something happens after its 2nd step."""
    experiment = replace(tiny.main(), observers=(At(2, command),), steps=50)
    with pytest.raises((Retry, OSError, ValueError)) as caught:
        train(experiment, folder)
    return caught.value, report_error(caught.value)


def test_a_run_whose_folder_is_deleted_ends_with_75_and_says_so(tmp_path, capsys):
    error, code = ended(tmp_path / "run", "rm -rf {run} || rm -rf {run}")
    assert code == ExitCode.RETRY
    assert f"the run folder {tmp_path / 'run'} is gone, after step" in str(error)
    assert not (tmp_path / "run" / "experiment.json").exists()


def test_a_run_folder_that_is_deleted_before_a_save_is_not_made_again(tmp_path, monkeypatch, caplog):
    folder, save = tmp_path / "run", Checkpoints.save

    def deleted(self, *arguments):
        shutil.rmtree(folder)
        return save(self, *arguments)

    monkeypatch.setattr(Checkpoints, "save", deleted)
    with pytest.raises(Retry, match="is gone"):
        train(replace(tiny.main(), steps=12), folder)
    assert not folder.exists()
    assert "flight.json" not in caplog.text


ON_A_DISK = """
import os, sys
sys.path.insert(0, sys.argv[3])
import conftest  # as the tests compile
from pathlib import Path
from test_failures import ended
code = ended(Path(sys.argv[1]) / "run", sys.argv[2])[1]
sys.stderr.flush()
os._exit(code)  # not by threads of orbax that have failed
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "said"),
    [
        # Not the whole file system: that has a file that is open for writing, the lock.
        ("mount --bind {run} {run} && mount -o remount,bind,ro {run}", "Read-only file system"),
        ("head -c 20m /dev/zero >{run}/../fill || true", "No space left on device"),
    ],
)
def test_a_run_on_a_disk_that_fails_in_the_middle_ends_with_75(tmp_path, command, said):
    done = run_on_small_disk(ON_A_DISK, tmp_path / "disk", "8m", command, str(Path(__file__).parent))
    lines = done.stderr.splitlines()
    assert done.returncode == ExitCode.RETRY, done.stderr
    first = next(number for number, line in enumerate(lines) if line.startswith("jaxtrain: "))
    assert said in lines[first]
    assert len(lines) - first <= 5


@dataclass(frozen=True)
class Broken(Transform):
    """Fails on some examples, in one of several ways."""

    way: str = "value"

    def __call__(self, example, rng):
        if int(example["tokens"][0]) == 7:
            if self.way == "exit":
                sys.exit(3)
            raise {"value": ValueError("no such token"), "memory": MemoryError(), "full": os_error(errno.ENOSPC)}[
                self.way
            ]
        return example


EXPERIMENT = """
from dataclasses import replace

import tiny
from test_failures import Broken

from jaxtrain import Experiment


def main() -> Experiment:
    made = tiny.main()
    return replace(made, data=replace(made.data, transforms=(Broken(),)))
"""


@pytest.mark.parametrize(("way", "code"), [("value", 1), pytest.param("full", 75, marks=pytest.mark.slow), ("exit", 1)])
def test_a_transform_that_fails_ends_the_command_by_the_table(way, code, tmp_path, monkeypatch, capsys):
    (tmp_path / "wrong.py").write_text(EXPERIMENT)
    monkeypatch.chdir(tmp_path)
    flags = ["--run", "run", "--data.transforms.0.way", way]
    monkeypatch.setattr(sys, "argv", ["jaxtrain", "train", "wrong.py", *flags])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == code
    lines = capsys.readouterr().err.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("jaxtrain: "))
    assert "test_failures.py, line " in lines[first]
    assert len(lines) - first <= 5
    assert (tmp_path / "run" / "traceback.txt").is_file()

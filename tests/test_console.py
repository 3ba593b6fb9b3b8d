"""What a person sees of a run: lines in a log file, a view on a terminal, which is a real pseudo-terminal here."""

import contextlib
import io
import os
import pty
import select
import sys
import termios
import threading
from collections.abc import Iterator
from typing import Any, TextIO

import pytest
from terminal import Shown, resize

from jaxtrain.runs.console import Console
from jaxtrain.runs.screen import MOST_WAITING, QUICKEST, SLOWEST, draws, may_block, pause_after
from jaxtrain.runs.view import POINTS, Curve, RunView, event_text


class Terminal:
    """A terminal that this process writes to and reads from."""

    def __init__(self, columns: int = 100) -> None:
        self.main, self.other = pty.openpty()
        resize(self.main, columns)
        self.stream: TextIO = open(self.other, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        self.shown = Shown(columns)

    def read(self) -> list[str]:
        """All lines that it shows by now."""
        while select.select([self.main], [], [], 0.05)[0]:
            try:
                self.shown.feed(os.read(self.main, 1 << 16).decode())
            except OSError:
                break
        return self.shown.lines

    def close(self) -> None:
        for file in (self.main, self.other):
            with contextlib.suppress(OSError):
                os.close(file)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    made = Terminal()
    yield made
    made.close()


def test_a_log_file_gets_plain_lines_with_speed_and_remaining_time() -> None:
    stream, times = io.StringIO(), iter([10.0, 12.0, 14.0])
    console = Console(930, 0, True, stream, now=lambda: next(times))
    for done in range(1, 101):
        console.step(done)
    console.metrics(100, "train", {"loss": 0.41, "accuracy": 0.83})
    console.metrics(100, "validation", {"loss": 0.5})
    console.print("saved")
    console.close()
    # 99 steps in the 2 seconds after the first; 830 are left.
    assert stream.getvalue().splitlines() == [
        "step 100/930  train loss 0.41  accuracy 0.83  49.5 steps/s  eta 17s",
        "step 100/930  validation loss 0.5",
        "saved",
    ]


SECONDS = {"seconds_data": 1.0, "seconds_step": 3.0, "seconds_compile": 9.0, "seconds_total": 14.0}


def trained(console: Console, step: int, loss: float) -> None:
    rates = {"examples_per_second": 64.0, "mfu": 0.25, "learning_rate": 1e-3}
    rates |= {name: seconds * step for name, seconds in SECONDS.items()}
    console.trained(NOTHING, step, {"loss": loss, "accuracy": 0.5, "confusion/f1/class_3": 0.5}, rates)


class Nothing:
    """An observed run of which the console reads nothing."""

    def __getattr__(self, name: str) -> object:
        raise AssertionError(name)


NOTHING: Any = Nothing()


def test_a_terminal_gets_a_view_with_events_and_evaluations_above_it(terminal: Terminal) -> None:
    console = Console(40, 2, True, terminal.stream, name="digits", batch=16)
    console.event("begun", step=2, of=40, intervals={"train": 1})
    for step, loss in ((3, 4.0), (4, 3.0), (5, 1.0), (20, 2.0)):
        console.step(step)
        trained(console, step, loss)
    console.evaluated(NOTHING, 20, {"test": {"accuracy": 0.75, "confusion/f1/class_3": 0.5}})
    console.saved(NOTHING, 20)
    console.event("compiled", seconds=1.5, peak_memory=3 << 20)
    console.close()
    assert terminal.read() == [
        "begun  step 2  of 40",
        "step 20/40  test accuracy 0.75",
        "compiled  seconds 1.5  peak_memory 3145728",
        terminal.shown.lines[3],
        "  loss    2  █▆▁▃  accuracy 0.5  learning_rate 0.001",
        "  speed   4 steps/s, 64 examples/s, MFU 25.0%, 25% of it waiting for data",
        "  test    accuracy 0.75  at step 20",
        "  saved   step 20",
        "  memory  3 MiB a device",
        "",
    ]
    head = terminal.shown.lines[3]
    assert head.startswith("digits  step 20/40  50%  ━━━")
    assert head.endswith("  eta 6s")  # 20 steps at 64 / 16 a second; all but compiling took 5 s for 4 s of training
    assert terminal.shown.codes <= {"A", "J", "K", "m"}


def test_what_others_print_meanwhile_goes_above_the_view_in_order(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", terminal.stream)
    monkeypatch.setattr(sys, "stderr", terminal.stream)
    console = Console(10, 0, True, terminal.stream)
    print("a user's line")
    print("Traceback\n  of two lines", file=sys.stderr)
    print("10%\r20%\rdone", file=sys.stderr)
    print("its end is missing", end="")
    console.close()
    assert sys.stdout is terminal.stream
    assert sys.stderr is terminal.stream
    lines = terminal.read()
    assert lines[:5] == ["a user's line", "Traceback", "  of two lines", "done", "its end is missing"]
    assert lines[5].startswith("run  step 0/10  0%")


def test_what_a_library_in_c_prints_takes_the_empty_line_above_the_view(terminal: Terminal) -> None:
    console = Console(10, 0, True, terminal.stream)
    while not any("run  step" in line for line in terminal.read()):
        pass
    os.write(terminal.other, b"from C\n")
    console.close()
    assert [line[:12] for line in terminal.read()] == ["from C", "run  step 0/", ""]


def test_a_terminal_that_is_stopped_does_not_stop_the_run_and_gets_the_newest_lines_later(terminal: Terminal) -> None:
    console = Console(10, 0, True, terminal.stream)
    while not any("run  step" in line for line in terminal.read()):
        pass
    termios.tcflow(terminal.other, termios.TCOOFF)  # as Ctrl-S
    many = MOST_WAITING + 5000
    for number in range(many):
        console.print(f"line {number}")
    console.step(10)
    termios.tcflow(terminal.other, termios.TCOON)
    reader = threading.Thread(target=terminal.read)
    reader.start()
    console.close()
    reader.join()
    lines = terminal.read()
    shown = [line for line in lines if line.startswith("line ")]
    left_out = sum(int(line.split()[0].strip("(")) for line in lines if line.endswith(" lines are left out)"))
    assert shown[-1] == f"line {many - 1}"
    assert len(shown) + left_out == many
    assert left_out >= many - 2 * MOST_WAITING - 1
    assert any(line.startswith("run  step 10/10  100%") for line in lines)


def test_a_pipe_that_nobody_reads_does_not_stop_the_run() -> None:
    reading, writing = os.pipe()
    with open(writing, "w", encoding="utf-8", closefd=False) as stream:
        console = Console(10, 0, True, stream)
        for number in range(MOST_WAITING + 5000):
            console.print(f"line {number}" + "x" * 100)
        assert os.read(reading, 1)
    os.close(reading)
    console.close()
    os.close(writing)


def test_a_terminal_that_is_gone_does_not_stop_the_run(terminal: Terminal) -> None:
    console = Console(10, 0, True, terminal.stream)
    os.close(terminal.main)
    for number in range(100):
        console.print(f"line {number}")
        console.step(1)
    console.close()


def test_a_window_that_was_made_narrow_or_low_gets_a_view_that_fits(terminal: Terminal) -> None:
    console = Console(1000, 0, True, terminal.stream, name="a" * 30)
    resize(terminal.main, 40)
    trained(console, 500, 1.0)
    console.close()
    assert all(len(line) < 40 for line in terminal.read()[-3:])
    view = RunView("digits", 10)
    view.trained(5, {"loss": 1.0, **SECONDS, "examples_per_second": 5.0})
    for width, height in ((30, 10), (100, 1), (100, 4), (60, 3)):
        lines = view.lines(width, height, color=False)
        assert 0 < len(lines) <= height
        assert max(map(len, lines)) <= width


@pytest.mark.parametrize(
    ("environment", "encoding", "columns", "live"),
    [
        ({"TERM": "xterm-256color"}, "utf-8", 60, True),
        ({"TERM": "screen", "NO_COLOR": ""}, "UTF8", 200, True),
        ({"TERM": "xterm"}, "utf-8", 59, False),
        ({"TERM": "xterm", "NO_COLOR": "1"}, "utf-8", 100, False),
        ({"TERM": "dumb"}, "utf-8", 100, False),
        ({}, "utf-8", 100, False),
        ({"TERM": "xterm"}, "latin-1", 100, False),
        ({"TERM": "xterm"}, "ascii", 100, False),
    ],
)
def test_a_view_needs_a_wide_terminal_with_utf_8_and_colors(
    environment: dict[str, str], encoding: str, columns: int, live: bool, terminal: Terminal
) -> None:
    resize(terminal.main, columns)
    with open(terminal.other, "w", encoding=encoding, closefd=False) as stream:
        assert draws(stream, environment) == live


def test_without_a_terminal_there_is_no_view() -> None:
    reading, writing = os.pipe()
    with open(writing, "w", encoding="utf-8") as pipe:
        assert (draws(pipe, {"TERM": "xterm"}), may_block(pipe)) == (False, True)
    os.close(reading)
    assert (draws(io.StringIO(), {"TERM": "xterm"}), may_block(io.StringIO())) == (False, False)


def test_an_encoding_without_the_letters_gets_ascii_alone(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    with open(terminal.other, "w", encoding="latin-1", closefd=False) as stream:
        console = Console(10, 0, True, stream)
        console.metrics(1, "teste_de_opinião", {"loss": 1.0})
        console.close()
    assert terminal.read()[0] == "step 1/10  teste_de_opini?o loss 1"


def test_drawing_takes_an_eighth_of_a_percent_of_a_cpu_at_most() -> None:
    assert pause_after(0.0) == QUICKEST == 0.25
    assert pause_after(0.004) == pytest.approx(3.2)
    assert pause_after(1.0) == SLOWEST == 5.0


def test_a_view_that_fails_leaves_the_lines(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = threading.Event()

    def fails(*_: object, **__: object) -> list[str]:
        failed.set()
        raise RuntimeError("no view")

    monkeypatch.setattr(RunView, "lines", fails)
    console = Console(10, 0, True, terminal.stream)
    assert failed.wait(60)
    while console._live:
        threading.Event().wait(0.01)
    trained(console, 1, 0.5)
    console.metrics(1, "test", {"loss": 0.25})
    console.close()
    shown = [line.split("  ")[:2] for line in terminal.read() if line]
    assert shown[:2] == [["step 1/10", "train loss 0.5"], ["step 1/10", "test loss 0.25"]]
    assert shown[2:] == [["no view: RuntimeError: no view"]]


def test_the_curve_shows_the_whole_run_however_long_and_what_is_not_finite() -> None:
    curve = Curve()
    assert curve.text() == ""
    for value in range(8):
        curve.add(float(value))
    assert curve.text() == "▁▂▃▄▅▆▇█"
    curve.add(float("nan"))
    assert curve.text() == "▁▂▃▄▅▆▇█×"
    long = Curve()
    for value in range(100 * POINTS):
        long.add(-float(value))
    text = long.text(8)
    assert text == "█▇▆▅▄▃▂▁"


def test_processes_other_than_the_first_print_nothing(terminal: Terminal) -> None:
    for stream in (io.StringIO(), terminal.stream):
        console = Console(10, 0, False, stream)
        console.step(1)
        console.metrics(1, "train", {"loss": 1.0})
        console.print("hello")
        console.close()
    assert terminal.read() == [""]


def test_values_of_single_classes_are_left_to_the_files() -> None:
    stream = io.StringIO()
    console = Console(10, 0, True, stream)
    console.metrics(1, "test", {"loss": 0.5, "confusion/f1_macro": 0.25, "confusion/f1/class_3": 0.75})
    assert stream.getvalue() == "step 1/10  test loss 0.5  confusion/f1_macro 0.25\n"


def test_what_only_programs_read_of_an_event_is_not_printed() -> None:
    begun = {"step": 2, "of": 9, "startup": 1.5, "seconds_by_phase": {"step": 1.0}, "before": {"step": 1}}
    assert event_text("begun", begun) == "begun  step 2  of 9"
    assert event_text("ended", {"step": 9, "code": 0, "seconds_by_phase": {"step": 3.0}}) == "ended  step 9"

"""Runs on a real terminal: the view, Ctrl-S, Ctrl-C, an error, and what the terminal is like afterwards."""

import json
import signal
import sys
import termios
from pathlib import Path

import pytest
from cluster import until
from terminal import InTerminal
from test_terminals import EXPERIMENT

from jaxtrain.reports.status import read_status
from jaxtrain.runs.json_lines import read_lines

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with an experiment."""
    (tmp_path / "lm.py").write_text(EXPERIMENT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


def train(*flags: str, **environment: str) -> InTerminal:
    return InTerminal([sys.executable, "-m", "jaxtrain", "train", "lm.py", "--run", "run", *flags], 100, **environment)


def kinds(folder: Path) -> list[str]:
    return [event["kind"] for event in read_lines(folder / "events.jsonl")]


def test_a_run_goes_on_to_its_end_while_its_terminal_is_stopped(place: Path) -> None:
    terminal = train("--steps", "3000", "--log-every", "1")  # more lines than a terminal holds
    before = termios.tcgetattr(terminal.main)
    terminal.read(lambda text: "begun  step 0" in text)
    termios.tcflow(terminal.main, termios.TCOOFF)  # what Ctrl-S does
    until(lambda: "ended" in kinds(place / "run"), 100, lambda: str(kinds(place / "run")))
    termios.tcflow(terminal.main, termios.TCOON)
    terminal.read()
    assert terminal.process.wait(20) == 0
    assert any(line.startswith("run  step 3000/3000  100%") for line in terminal.shown.lines)
    assert termios.tcgetattr(terminal.main) == before
    terminal.close()


def test_ctrl_c_leaves_the_last_view_the_message_below_it_and_the_terminal_as_it_was(place: Path) -> None:
    terminal = train("--steps", "1000000", "--log-every", "10")
    before = termios.tcgetattr(terminal.main)
    terminal.read(lambda text: "steps/s" in text)
    terminal.process.send_signal(signal.SIGINT)
    terminal.read()
    assert terminal.process.wait(20) == 130
    lines = terminal.shown.lines
    view = max(number for number, line in enumerate(lines) if line.startswith("run  step "))
    message = next(number for number, line in enumerate(lines) if line.startswith("stopped after step "))
    assert view < message
    assert "speed" in [line.split()[0] for line in lines[view + 1 : message]]
    assert termios.tcgetattr(terminal.main) == before
    assert terminal.shown.codes <= {"A", "J", "K", "m"}
    assert read_status(place / "run").state == "stopped"
    terminal.close()


def test_an_error_is_below_the_view_and_the_run_is_crashed_by_it(place: Path) -> None:
    failing = EXPERIMENT.replace("(Utf8(16),)", "(Fails(), Utf8(16))").replace(
        "def main()", FAILS + "\n\ndef main()", 1
    )
    (place / "lm.py").write_text(failing)
    terminal = train("--steps", "1000000")
    terminal.read()
    assert terminal.process.wait(20) == 1
    lines = terminal.shown.lines
    view = max(number for number, line in enumerate(lines) if line.startswith("run  step "))
    message = next(number for number, line in enumerate(lines) if line.startswith("jaxtrain: "))
    assert view < message
    assert "a line of the user's" in lines[:view]
    found = read_status(place / "run")
    assert found.state == "crashed"
    assert "row 77 is bad" in found.why
    terminal.close()


FAILS = """
import itertools
from dataclasses import dataclass
from jaxtrain.data import Transform

count = itertools.count()


@dataclass(frozen=True)
class Fails(Transform):
    def __call__(self, example, rng):
        if next(count) == 400:
            print("a line of the user's")
            raise ValueError("row 77 is bad")
        return example
"""


@pytest.mark.parametrize(
    "environment",
    [{"NO_COLOR": "1"}, {"TERM": "dumb"}, {"LC_ALL": "en_US.ISO-8859-1", "PYTHONIOENCODING": "latin-1"}],
    ids=str,
)
def test_a_terminal_without_colors_cursor_or_letters_gets_plain_lines(environment: dict[str, str], place: Path) -> None:
    terminal = train(**environment)
    text = terminal.read()
    assert terminal.process.wait(20) == 0
    assert "\x1b" not in text
    assert text.isascii()
    assert "step 20/20  train" in text
    terminal.close()


def test_watch_shows_the_view_of_a_run_on_its_terminal_until_it_ends(place: Path) -> None:
    terminal = train("--steps", "1000000", "--log-every", "10")
    until(lambda: (place / "run" / "metrics.jsonl").is_file(), 60, lambda: terminal.text)
    watching = InTerminal([sys.executable, "-m", "jaxtrain", "watch", "run"])
    watching.read(lambda text: "examples/s" in text)
    terminal.process.send_signal(signal.SIGTERM)
    terminal.read()
    watching.read()
    assert watching.process.wait(20) == 0
    assert any(line.startswith("run: preempted (stopped by SIGTERM") for line in watching.shown.lines)
    assert json.loads((place / "run" / "lock.json").read_text())["state"] == "free"
    watching.close()
    terminal.close()

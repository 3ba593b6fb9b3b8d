"""Commands with lost pipes, closed streams, full disks, other encodings, and Ctrl-C: real pipes and processes."""

import functools
import io
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from jaxtrain.base.errors import ExitCode
from jaxtrain.cli import main as cli
from jaxtrain.cli.terminal import Output
from jaxtrain.runs.console import Console
from jaxtrain.runs.metrics_log import read_lines

ROOT = Path(__file__).parents[1]

EXPERIMENT = """
import time
from pathlib import Path

from jaxtrain import Experiment, Runtime
from jaxtrain.data import Arrays, Pipeline, Utf8
from jaxtrain.datasets import Dataset, HashSplits
from jaxtrain.models import NGrams
from jaxtrain.optimizers import AdamW
from jaxtrain.tasks import Classification


def main() -> Experiment:
    data = Pipeline(Arrays({"text": ["good", "bad"] * 8, "label": [1, 0] * 8}), (Utf8(16),), batch_size=4)
    model = NGrams(buckets=24, words=4, width=4)
    return Experiment(
        task=Classification(model=model, inputs="bytes", classes=("péssimo", "ótimo")),
        data=data,
        optimizer=AdamW(),
        steps=20,
        evals={"all": data},
        runtime=Runtime(log_every=1),
    )


def slow() -> Experiment:
    Path("slow").touch()
    time.sleep(100)
    return main()


def opinions() -> Dataset:
    return Dataset(
        name="opinions",
        version="1.0.0",
        description="Opiniões – curtas.",
        origin="Made up.",
        licence="CC0",
        access="Anyone.",
        retention="For ever.",
        records=Arrays({"text": ["Adorei!", "Péssimo.", "Gostei", "Não gostei"], "label": [1, 0, 1, 0]}),
        splits=HashSplits({"train": 0.5, "test": 0.5}, by=("text",)),
        label="label",
    )
"""

C_LOCALE = "LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0"
LATIN_1 = "PYTHONIOENCODING=latin-1"

COMMANDS = {
    "explain | true": "jaxtrain explain lm.py | true",
    "predict | true": "jaxtrain predict trained ótimo --code lm.py | true",
    "card | true": "jaxtrain data card lm.py:opinions --out sets | true",
    "both | true": "jaxtrain explain lm.py 2>&1 | true",
    "to a full disk": "jaxtrain explain lm.py >/dev/full",
    "train | true": "jaxtrain train lm.py --run piped 2>&1 | true",
    "train | head": "jaxtrain train lm.py --run headed 2>&1 | head -1",
    "train, closed": "jaxtrain train lm.py --run closed >&- 2>&-",
    "train to a full disk": "jaxtrain train lm.py --run full >/dev/full 2>&1",
    "build | true": "jaxtrain data build lm.py:opinions --out others 2>&1 | true",
    "explain, closed": "jaxtrain explain lm.py >&-",
    "explain in ascii": "PYTHONIOENCODING=ascii jaxtrain explain lm.py",
    "predict in ascii": "PYTHONIOENCODING=ascii jaxtrain predict trained ótimo --code lm.py",
    "predict in latin-1": f"{LATIN_1} jaxtrain predict trained ótimo --code lm.py",
    "card in ascii": "PYTHONIOENCODING=ascii jaxtrain data card lm.py:opinions --out sets",
    "help in ascii": "PYTHONIOENCODING=ascii jaxtrain train lm.py --help",
    "predict in C": f"{C_LOCALE} jaxtrain predict trained ótimo --code lm.py",
    "train in C": f"{C_LOCALE} jaxtrain train lm.py --run é/ü",
}


@dataclass(frozen=True)
class Done:
    code: int
    out: bytes
    err: str


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working directory with an experiment, its run and a built data set."""
    place = tmp_path_factory.mktemp("terminals")
    (place / "lm.py").write_text(EXPERIMENT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", list(sys.path))
        patch.chdir(place)
        for words in ("train lm.py --run trained", "data build lm.py:opinions --out sets"):
            patch.setattr(sys, "argv", ["jaxtrain", *words.split()])
            cli.main()
    return place


def start(folder, command, **streams):
    shell = f'jaxtrain() {{ "{sys.executable}" -m jaxtrain "$@"; }}; {command}; exit ${{PIPESTATUS[0]}}'
    own = {**os.environ, "PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8"}
    return subprocess.Popen(["bash", "-c", shell], cwd=folder, env=own, stdout=-1, stderr=-1, **streams)


@pytest.fixture(scope="module")
def done(folder):
    """What came of a command; each is run once."""

    @functools.cache
    def run(name):
        process = start(folder, COMMANDS[name])
        out, err = process.communicate(timeout=200)
        return Done(process.returncode, out, err.decode())

    return run


def slow(*values):
    """A case that only the slow tests have: each is a process of its own."""
    return pytest.param(*values, marks=pytest.mark.slow)


def slow_but(*quick):
    """Every command, those that are not named marked as slow."""
    return [name if name in quick else slow(name) for name in COMMANDS]


@pytest.mark.slow
@pytest.mark.parametrize("name", slow_but("explain | true", "train | head", "predict in ascii"))
def test_no_command_ends_in_a_traceback(done, name):
    assert "Traceback" not in done(name).err + done(name).out.decode("latin-1")
    assert "Exception ignored" not in done(name).err


@pytest.mark.parametrize("name", ["explain | true", *map(slow, ["predict | true", "card | true", "both | true"])])
def test_a_verb_that_only_prints_ends_as_by_sigpipe_and_says_nothing(done, name):
    assert (done(name).code, done(name).err) == (141, "")


@pytest.mark.slow
def test_output_that_cannot_be_written_is_an_error_with_its_reason(done):
    error = "jaxtrain: standard output cannot be written: No space left on device\n"
    assert (done("to a full disk").code, done("to a full disk").err) == (1, error)


@pytest.mark.parametrize(
    ("name", "run"),
    [
        ("train | head", "headed"),
        slow("train | true", "piped"),
        slow("train, closed", "closed"),
        slow("train to a full disk", "full"),
        slow("train in C", "é/ü"),
    ],
)
def test_a_run_whose_console_is_lost_goes_on_to_its_end(folder, done, name, run):
    assert done(name).code == 0
    steps = [line["step"] for line in read_lines(folder / run / "metrics.jsonl") if line["split"] == "train"]
    assert steps == list(range(1, 21))
    assert (folder / run / "checkpoints" / "20").is_dir()


def test_the_first_line_of_a_run_reaches_its_reader(done):
    assert done("train | head").out.startswith(b"begun  step 0  of 20")
    assert done("train | head").out.count(b"\n") == 1


@pytest.mark.slow
def test_a_build_whose_reader_has_gone_is_complete(folder, done):
    assert done("build | true").code == 0
    assert (folder / "others" / "opinions" / "1.0.0" / "card.json").is_file()


@pytest.mark.slow
def test_a_closed_output_is_printed_to_as_if_it_were_there(done):
    assert (done("explain, closed").code, done("explain, closed").err) == (0, "")


def test_letters_that_an_encoding_lacks_are_question_marks(done):
    assert done("predict in ascii").out.endswith(b"?timo\n")
    assert b"p?ssimo" in done("predict in ascii").out


@pytest.mark.slow
def test_letters_that_an_encoding_lacks_are_question_marks_in_every_verb(done):
    assert done("explain in ascii").code == 0
    assert b"\n????" in done("explain in ascii").out  # the line below the head of the table
    assert done("predict in latin-1").out.endswith("ótimo\n".encode("latin-1"))
    assert done("card in ascii").code == 0
    assert b"Opini?es ? curtas." in done("card in ascii").out
    assert b"usage: jaxtrain train" in done("help in ascii").out


@pytest.mark.slow
def test_in_a_locale_that_is_not_utf_8_texts_are_read_as_they_were_typed(done):
    assert done("predict in C").code == 0
    assert done("predict in C").out.endswith("ótimo\n".encode())


HEARD = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
"""Runs Python with its arguments; Ctrl-C, which a shell's background jobs ignore, is heard."""


@pytest.mark.parametrize("verb", ["explain", *map(slow, ["train", "data bench"])])
def test_ctrl_c_ends_a_verb_with_130_and_no_traceback(folder, verb):
    (folder / "slow").unlink(missing_ok=True)
    command = [sys.executable, "-c", HEARD, "-m", "jaxtrain", *verb.split(), "lm.py:slow"]
    own = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=folder, env=own, stdout=-1, stderr=-1, text=True)
    while not (folder / "slow").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "jaxtrain: interrupted\n")


class Lost(io.StringIO):
    """A stream that fails after some lines."""

    encoding = "utf-8"

    def __init__(self, lines, error, terminal=False):
        super().__init__()
        self.lines, self.error, self.terminal, self.tries = lines, error, terminal, 0

    def write(self, text):
        self.tries += 1
        if self.lines == 0:
            raise self.error
        self.lines -= text.count("\n")
        return len(text)

    def flush(self):
        pass

    def isatty(self):
        return self.terminal


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(5, "I/O"), ValueError("I/O operation on closed file")])
@pytest.mark.parametrize("terminal", [True, False])
def test_a_console_that_fails_once_is_not_tried_again(error, terminal):
    stream = Lost(0 if terminal else 1, error, terminal)
    console = Console(3, 0, active=True, stream=stream)
    for step in (1, 2, 3):
        console.step(step)
        console.metrics(step, "train", {"loss": 1.0})
    tries = stream.tries  # tqdm tries a few times itself
    console.print("more")
    console.close()
    assert stream.tries == tries


def test_a_console_without_standard_error_shows_nothing(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    console = Console(3, 0, active=True)
    console.metrics(1, "train", {"loss": 1.0})
    console.close()


def test_what_is_written_after_a_pipe_was_lost_goes_nowhere_and_only_needed_output_ends_the_command():
    for needed in (True, False):
        reading, writing = os.pipe()
        os.close(reading)
        with open(writing, "w") as stream:
            output = Output(stream, needed)
            output.write("in the buffer")
            if needed:
                with pytest.raises(SystemExit) as ended:
                    output.flush()
                assert ended.value.code == ExitCode.BROKEN_PIPE == 128 + signal.SIGPIPE
            else:
                output.flush()
            os.write(writing, b"by a library in C")  # would raise
            output.write("more")
            output.flush()

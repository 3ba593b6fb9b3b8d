"""Predictions for a file of rows: killed as a real process, stopped, on a full disk, with inputs that change."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_disk import run_on_small_disk
from terminal import InTerminal
from test_bundle import REPLACE, TEXTS, Made, made, rows_file

from jaxtrain import ConfigError
from jaxtrain.base.text import size
from jaxtrain.deploy import batch_job
from jaxtrain.deploy.batch_job import CHUNK, predict_file
from jaxtrain.deploy.bundle import Bundle


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return made(tmp_path_factory.mktemp("films"), TEXTS, "films")


@pytest.fixture
def bundle(films: Made) -> Bundle:
    return Bundle(films.out)


def part_of(output: Path) -> Path:
    return output.with_name(f".{output.name}.part")


def kill_at_the_end(monkeypatch: pytest.MonkeyPatch, bundle: Bundle, source: Path, output: Path) -> None:
    """A job whose process is killed before its last act, after all rows."""

    def killed(source: Any, target: Any) -> None:
        if Path(source) != part_of(output):
            return REPLACE(source, target)
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxtrain.deploy.batch_job.os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        predict_file(bundle, source, output)
    monkeypatch.setattr("jaxtrain.deploy.batch_job.os.replace", REPLACE)


def test_rows_of_another_job_are_neither_gone_on_with_nor_lost(bundle, tmp_path):
    source, output = rows_file(tmp_path, CHUNK + 10), tmp_path / "scores.jsonl"
    rows = '{"probabilities": [1, 0]}\n' * CHUNK
    part_of(output).write_text(rows)
    for note in ('{"bundle": "another"}', "[]", ""):
        Path(f"{part_of(output)}.json").write_text(note)
        with pytest.raises(ConfigError, match=rf"holds {CHUNK} rows that were made of another .*delete this file"):
            predict_file(bundle, source, output)
        assert part_of(output).read_text() == rows
    part_of(output).unlink()
    predict_file(bundle, source, output)
    assert '{"probabilities": [1, 0]}' not in output.read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl", "scores.jsonl"]


def test_rows_that_are_less_than_a_chunk_are_begun_anew_whatever_they_are_of(bundle, tmp_path):
    source, output = rows_file(tmp_path, 10), tmp_path / "scores.jsonl"
    part_of(output).write_text('{"probabilities": [1, 0]}\n' * 10)
    predict_file(bundle, source, output)
    assert len(output.read_text().splitlines()) == 10
    assert '{"probabilities": [1, 0]}' not in output.read_text()


EDITS: dict[str, Callable[[bytes], bytes]] = {
    "a byte in its middle": lambda text: text[: len(text) // 2] + b"b" + text[len(text) // 2 + 1 :],
    "a row more": lambda text: text + b'{"text": "more"}\n',
    "its last row gone": lambda text: text[: text[:-1].rindex(b"\n") + 1],
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_job_whose_input_was_edited_since_it_was_killed_is_refused_and_its_rows_stay(
    edit, bundle, tmp_path, monkeypatch
):
    source, output = rows_file(tmp_path, CHUNK + 10), tmp_path / "scores.jsonl"
    text = source.read_text().replace("film 100 ", f"film {'a' * (3 << 20)} ")  # more than a MiB from both ends
    source.write_text(text)
    kill_at_the_end(monkeypatch, bundle, source, output)
    before = part_of(output).read_bytes()
    source.write_bytes(EDITS[edit](text.encode()))
    with pytest.raises(ConfigError, match="that were made of another input: put that back to go on"):
        predict_file(bundle, source, output)
    assert part_of(output).read_bytes()[: len(before)] == before
    source.write_text(text)
    assert predict_file(bundle, source, output).rows == CHUNK + 10


def test_an_input_that_grows_while_it_is_read_is_refused(bundle, tmp_path, monkeypatch):
    source, output = rows_file(tmp_path, 10), tmp_path / "scores.jsonl"
    run = bundle.run

    def grows(tensors: Any) -> Any:
        with source.open("a") as file:
            file.write('{"text": "late"}\n')
        return run(tensors)

    monkeypatch.setattr(bundle, "run", grows)
    with pytest.raises(ConfigError, match=r"rows.jsonl was changed while it was read"):
        predict_file(bundle, source, output)
    assert not output.exists()
    monkeypatch.undo()
    assert predict_file(bundle, source, output).rows == 11


def test_what_is_no_file_is_neither_read_nor_replaced(bundle, tmp_path):
    source, pipe = rows_file(tmp_path, 10), tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "link").symlink_to(source)
    os.link(source, tmp_path / "same")
    for given, output, why in (
        (source, pipe, "--output: .*pipe is a pipe or a device"),
        (source, Path("/dev/stdout"), "--output: /dev/stdout is a pipe or a device"),
        (source, tmp_path, "--output: .* is a folder"),
        (pipe, tmp_path / "out", "--input: .*pipe is a pipe or a device"),
        (tmp_path, tmp_path / "out", "--input: .* is a folder"),
        (tmp_path / "row.jsonl", tmp_path / "out", "did you mean 'rows.jsonl'"),
        (source, source, "--output is --input"),
        (source, tmp_path / "link", "--output is --input"),
        (source, tmp_path / "same", "--output is --input"),
        (source, tmp_path / "none" / "out", "cannot be written: No such file or directory"),
    ):
        if output != Path("/dev/stdout") or not output.is_file():  # a test runner may send it to a file
            with pytest.raises(ConfigError, match=why):
                predict_file(bundle, given, output)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "pipe", "rows.jsonl", "same"]
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to("target")
    predict_file(bundle, source, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert len((tmp_path / "target").read_text().splitlines()) == 10


def test_two_jobs_do_not_write_one_output(bundle, tmp_path):
    source, output = rows_file(tmp_path, 10), tmp_path / "scores.jsonl"
    with part_of(output).open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match=r"another process writes .*scores.jsonl at the moment"):
            predict_file(bundle, source, output)
    assert predict_file(bundle, source, output).rows == 10


ROWS: dict[str, Any] = {
    '{"text": "a", "text": "b"}': "the key 'text' occurs twice",
    '{"text": NaN}': "NaN is no JSON",
    '{"text": 1e400}': "1e400 is beyond float64",
    '{"text": ' + "9" * 5000 + "}": "Exceeds the limit",
    "[" * 10_000 + "]" * 10_000: "too deep",
    "null": "it has to be a text, not null",
    "{}": "input 'text' is missing",
    '{"txt": "a"}': "there is no input 'txt'; did you mean 'text'?",
    '{"text": "\\ud800"}': "it is no Unicode text",
    '{"text": {"base64": "!"}}': "it is no base64",
    '{"' + "t" * 1000 + '": 1}': "there is no input 'ttt",
    '{"text": ' + json.dumps([0] * 100_000) + "}": "it has to be a text, not [0, 0",
    "": "it is empty",
    '{"text": {"float": null}}': "is no number: nan, inf or -inf",
    '{"text": {"float": 1' + "0" * 400 + "}}": "is no number: nan, inf or -inf",
    '{"text": {"float": ""}}': "is no number: nan, inf or -inf",
    '{"text": "a", "id": {"base64": "AA=="}}': {"base64": "AA=="},
    '{"text": "a", "id": {"float": "nan"}}': {"float": "nan"},
    '{"text": "a", "id": "\\ud800"}': "\ud800",
    '{"text": "a", "id": [1, null]}': [1, None],
    '\ufeff{"text": "a", "id": "a mark of order"}': "a mark of order",
}


def test_every_odd_row_has_one_line_that_says_why_or_its_id(bundle, tmp_path):
    (tmp_path / "rows.jsonl").write_text("\n".join(ROWS) + "\n")
    predict_file(bundle, tmp_path / "rows.jsonl", tmp_path / "out.jsonl")
    lines = (tmp_path / "out.jsonl").read_bytes().split(b"\n")[:-1]
    assert len(lines) == len(ROWS)
    for (row, wanted), line in zip(ROWS.items(), lines, strict=True):
        found = json.loads(line.decode())
        if "id" in found:
            assert found["id"] == wanted
            assert np.isfinite(found["probabilities"]).all()
        else:
            assert wanted in found["error"].replace("None", "null"), row[:80]
            assert len(line) < 400


def test_a_line_that_is_too_long_is_one_bad_row(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(batch_job, "_LONGEST", 64)
    monkeypatch.setattr(batch_job, "CHUNK", 1)
    (tmp_path / "rows.jsonl").write_text(f'"{"a" * 500}"\n"b"\n')
    kill_at_the_end(monkeypatch, bundle, tmp_path / "rows.jsonl", tmp_path / "out.jsonl")
    os.truncate(part_of(tmp_path / "out.jsonl"), len('{"error": "it has 64 bytes or more"}\n'))
    predict_file(bundle, tmp_path / "rows.jsonl", tmp_path / "out.jsonl")
    first, second = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert first == {"error": "it has 64 bytes or more"}
    np.testing.assert_allclose(second["probabilities"], bundle.predict(["b"])["probabilities"][0], rtol=1e-6)


# As processes.


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def command(films: Made, source: Path, output: Path) -> list[str]:
    words = ["predict", str(films.out), "--input", str(source), "--output", str(output)]
    return [sys.executable, "-m", "jaxtrain", *words]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_job_that_is_killed_at_any_moment_ends_with_the_same_bytes(number, bundle, films, tmp_path):
    source, output = rows_file(tmp_path, 100 * CHUNK), tmp_path / "scores.jsonl"
    predict_file(bundle, source, output)
    whole = output.read_bytes()
    output.unlink()
    killed, code = 0, {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 75, signal.SIGINT: 130}[number]
    for share in (0.0, 0.3, 0.8):
        least = max(share * len(whole), size_of(part_of(output)) + 1)  # it has gone on
        process = subprocess.Popen(command(films, source, output), stderr=subprocess.PIPE, text=True)
        while process.poll() is None:
            if size_of(part_of(output)) >= least:
                process.send_signal(number)
                _, said = process.communicate()
                if process.returncode == code and not output.exists():
                    killed += 1
                    assert number == signal.SIGKILL or "the same command goes on after them" in said
                break
            time.sleep(0.005)
        if output.exists():  # the signal came once all rows were there, or a library swallowed its exception
            assert process.returncode in (1, code)
            assert output.read_bytes() == whole
            output.unlink()
    last = subprocess.run(command(films, source, output), capture_output=True, check=False)
    assert last.returncode == 1  # three rows are bad
    assert output.read_bytes() == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl", "scores.jsonl"]
    assert killed >= 1


ON_A_DISK = """
import os, subprocess, sys
disk, bundle, rows = sys.argv[1:]
command = [sys.executable, "-m", "jaxtrain", "predict", bundle, "--input", rows, "--output", f"{disk}/scores.jsonl"]
with open(f"{disk}/filler", "wb") as filler:
    filler.write(bytes(600_000))
first = subprocess.run(command, capture_output=True, text=True)
os.remove(f"{disk}/filler")
second = subprocess.run(command, capture_output=True, text=True)
print(first.returncode, second.returncode, first.stderr)
sys.stdout.write(open(f"{disk}/scores.jsonl").read())
"""


@pytest.mark.slow
def test_a_job_on_a_full_disk_goes_on_once_there_is_place(bundle, films, tmp_path):
    source = rows_file(tmp_path, 20 * CHUNK)
    predict_file(bundle, source, tmp_path / "whole.jsonl")
    done = run_on_small_disk(ON_A_DISK, tmp_path / "disk", "900k", str(films.out), str(source))
    first, rest = done.stdout.split("\n\n", 1)
    assert first.startswith("75 1 ")
    assert "No space left on device; free some of that disk, then run the same command again" in first
    assert rest == (tmp_path / "whole.jsonl").read_text()


@pytest.mark.slow
def test_there_is_a_bar_on_a_terminal_alone(films, tmp_path):
    source = rows_file(tmp_path, 2 * CHUNK)
    terminal = InTerminal(command(films, source, tmp_path / "one.jsonl"), columns=80)
    terminal.read()
    terminal.close()
    shown = size(source.stat().st_size)
    assert f"one.jsonl  {shown} of {shown}  100%" in terminal.shown.lines
    plain = subprocess.run(command(films, source, tmp_path / "two.jsonl"), capture_output=True, text=True, check=False)
    assert "%" not in plain.stderr
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()

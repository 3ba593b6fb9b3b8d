"""Which streams can make a writer wait, and what a view leaves room for."""

import io
import os
from typing import TextIO, cast

from jaxtrain.cli.terminal import Output
from jaxtrain.runs.console import Console
from jaxtrain.runs.screen import may_block
from jaxtrain.runs.view import RunView


def test_a_pipe_may_block_unbuffered_and_through_the_wrapper_of_the_command_too() -> None:
    reading, writing = os.pipe()
    with open(reading, "rb"), io.TextIOWrapper(open(writing, "wb", 0), write_through=True) as stream:  # as `python -u`
        assert may_block(stream)
        assert may_block(cast(TextIO, Output(stream, needed=False)))


def test_a_notebook_shows_the_lines_though_its_stream_names_a_file_beneath_it() -> None:
    class Cell(io.StringIO):
        def fileno(self) -> int:
            return writing

    reading, writing = os.pipe()
    stream = Cell()
    console = Console(10, 0, True, stream)
    console.print("hello")
    console.close()
    os.close(writing)
    with open(reading, "rb") as beneath:
        assert (stream.getvalue(), beneath.read()) == ("hello\n", b"")


def test_a_line_of_many_metrics_leaves_the_names_of_the_lines():
    view = RunView("run", 100, 0, 8)
    view.trained(
        5, {"loss": 0.3, **{f"a_long_metric_{number}": 0.5 for number in range(9)}, "examples_per_second": 9.0}
    )
    assert [line.split()[0] for line in view.lines(100, 24, color=False)][:3] == ["run", "loss", "speed"]

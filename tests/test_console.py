"""What a person sees of a run: lines in a log file, a bar on a terminal."""

import io

from jaxtrain.runs.console import Console


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


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


def test_a_terminal_gets_a_bar_with_the_lines_above_it() -> None:
    stream = Terminal()
    console = Console(10, 2, True, stream)
    console.step(5)
    console.metrics(5, "train", {"loss": 0.41})
    console.step(10)
    console.close()
    shown = stream.getvalue()
    assert "step 5/10  train loss 0.41\n" in shown
    assert "steps/s" not in shown.split("step 5/10")[1].split("\n")[0]
    assert "2/10" in shown
    assert "10/10" in shown.splitlines()[-1]
    assert "train loss 0.41" in shown.splitlines()[-1]


def test_processes_other_than_the_first_print_nothing() -> None:
    for stream in (io.StringIO(), Terminal()):
        console = Console(10, 0, False, stream)
        console.step(1)
        console.metrics(1, "train", {"loss": 1.0})
        console.print("hello")
        console.close()
        assert stream.getvalue() == ""


def test_values_of_single_classes_are_left_to_the_files() -> None:
    stream = io.StringIO()
    console = Console(10, 0, True, stream)
    console.metrics(1, "test", {"loss": 0.5, "confusion/f1_macro": 0.25, "confusion/f1/class_3": 0.75})
    assert stream.getvalue() == "step 1/10  test loss 0.5  confusion/f1_macro 0.25\n"

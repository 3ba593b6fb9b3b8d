"""Signals: heard from the first line on and in every phase; all processes stop at one place; nothing is lost by it."""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import launch
import numpy as np
import pytest
import tiny

from jaxtrain import evaluate as evaluate_module
from jaxtrain.cluster.stop import Stopped, StopSignal, signals_of_command
from jaxtrain.data import reading
from jaxtrain.program import Program
from jaxtrain.runs.folder import Run
from jaxtrain.runs.json_lines import read_lines
from jaxtrain.train import train

SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGUSR1, 75)]


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


@pytest.mark.parametrize(("number", "code"), SIGNALS, ids=["INT", "TERM", "USR1"])
def test_each_signal_requests_a_stop_with_its_own_exit_code_and_handlers_are_put_back(number: int, code: int) -> None:
    before = signal.getsignal(number)
    with StopSignal() as stop:
        assert not stop.requested()
        os.kill(os.getpid(), number)
        assert stop.requested()
        assert stop.code == code
    assert signal.getsignal(number) is before


def test_before_the_first_place_a_signal_ends_what_the_main_thread_does() -> None:
    with StopSignal() as stop, pytest.raises(Stopped) as raised:
        os.kill(os.getpid(), signal.SIGTERM)
    assert (raised.value.code, stop.code) == (75, 75)


def test_a_second_signal_ends_it_too_but_not_the_echo_of_the_first() -> None:
    now = Clock()
    with StopSignal(now=now) as stop:
        stop.requested()
        os.kill(os.getpid(), signal.SIGTERM)
        now.seconds += 0.4
        os.kill(os.getpid(), signal.SIGTERM)  # as `timeout` sends it twice
        now.seconds += 0.2
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGTERM)


def test_another_signal_right_after_the_first_is_a_second_one() -> None:
    with StopSignal(now=Clock()) as stop:
        stop.requested()
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGINT)


def test_signals_are_heard_in_a_thread_of_a_notebook_by_nobody() -> None:
    found: list[int] = []

    def enter() -> None:
        with StopSignal() as stop:
            found.append(stop.code)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [0]


def test_the_signals_of_a_command_are_those_of_what_it_calls() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with signals_of_command() as outer:
        with signals_of_command() as inner:
            assert inner is outer
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("seed", range(20))
def test_processes_that_are_asked_at_any_moment_stop_at_the_same_place_and_none_waits_for_ever(seed: int) -> None:
    """Threads in place of processes. As with collectives, none is more than two places ahead of another."""
    rng, count = np.random.default_rng(seed), 3
    stops, at, moved = [StopSignal() for _ in range(count)], [0] * count, threading.Condition()
    asked_at, ended = int(rng.integers(1, 200)), [0] * count

    def run(process: int) -> None:
        for place in itertools.count(1):
            if stops[process].requested():
                ended[process] = place
                return
            with moved:
                at[process] = place
                moved.notify_all()
                assert moved.wait_for(lambda place=place: min(at) >= place - 2, timeout=30)

    threads = [threading.Thread(target=run, args=(process,)) for process in range(count)]
    for thread in threads:
        thread.start()
    with moved:
        assert moved.wait_for(lambda: max(at) >= asked_at, timeout=30)
    promised = [stop.promise() for stop in stops]
    for stop in stops:
        stop.stop_at(max(promised), 75)
    for thread in threads:
        thread.join(30)
    assert ended == [max(promised)] * count


def test_a_process_waits_at_the_place_that_it_promised_not_to_pass_until_all_know_where_to_stop() -> None:
    stop, answers = StopSignal(), list[bool]()
    answers.append(stop.requested())
    assert stop.promise() == 2
    thread = threading.Thread(target=lambda: answers.extend([stop.requested(), stop.requested()]))
    thread.start()
    thread.join(0.2)
    stop.stop_at(3, 75)
    thread.join(30)
    assert answers == [False, False, True]


IMPORTED = """
import importlib.abc, os, signal, sys, time

class Signalled(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "jax":
            os.kill(os.getpid(), signal.{name})
            time.sleep(60)

sys.meta_path.insert(0, Signalled())
from jaxtrain.__main__ import main

main()
"""


@pytest.mark.parametrize(("number", "code"), SIGNALS, ids=["INT", "TERM", "USR1"])
def test_a_signal_is_heard_while_the_command_imports(number: signal.Signals, code: int, tmp_path: Path) -> None:
    command = [sys.executable, "-c", IMPORTED.format(name=number.name), "train", "nothing.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=50, check=False)
    again = ": run the same command again" if code == 75 else ""
    assert (done.returncode, done.stderr) == (code, f"jaxtrain: stopped by a signal before anything began{again}\n")


STUCK_IN_C = """
import os, signal, sqlite3
import jax
from jaxtrain.cluster import stop

stop.GRACE = 0.2

def stuck(*arguments, **options):
    os.kill(os.getpid(), signal.SIGTERM)
    # Runs for minutes without the interpreter, as the compiler does.
    sqlite3.connect(":memory:").execute(
        "with recursive n(i) as (select 1 union all select i + 1 from n where i < 100000000000) select count(*) from n"
    ).fetchone()

jax.stages.Lowered.compile = stuck
from jaxtrain.__main__ import main

main()
"""


@pytest.mark.slow
def test_a_signal_while_the_compiler_runs_ends_the_command_though_no_python_runs(tmp_path: Path) -> None:
    process = launch.start("main", tmp_path / "run", program=STUCK_IN_C)
    printed = process.communicate(timeout=100)[0]
    assert process.returncode == 75, printed
    assert "jaxtrain: stopped by a signal (compile): nothing was to be saved" in printed


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, bytes]:
    run, state = train(tiny.main(), tmp_path_factory.mktemp("undisturbed") / "run")
    return run, words(state)


def words(state: Any) -> bytes:
    import jax

    plain = jax.tree.map(
        lambda x: jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x, state
    )
    return b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(plain))


def lines(run: Run) -> list[dict[str, Any]]:
    """The metrics without what the clock gives."""
    return [
        {name: value for name, value in line.items() if "second" not in name and name != "mfu"}
        for line in read_lines(run.folder / "metrics.jsonl")
    ]


def stopped_at(number: int, original: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """Batches of a source that hangs before batch `number`, when a signal comes."""

    def batches(*arguments: Any) -> Iterator[Any]:
        for count, batch in enumerate(original(*arguments), 1):
            if count == number:
                os.kill(os.getpid(), signal.SIGTERM)
                threading.Event().wait(60)
                pytest.fail("the signal did not end the wait")
            yield batch

    return batches


def test_a_signal_while_a_source_hangs_saves_the_last_step_and_the_run_resumes_bitwise(
    undisturbed: tuple[Run, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(reading, "to_device", stopped_at(8, reading.to_device))
        stop = StopSignal()
        _, state = train(tiny.main(), tmp_path / "run", stop=stop)
    assert (int(state.step), stop.code) == (7, 75)
    run, state = train(tiny.main(), tmp_path / "run")
    assert words(state) == undisturbed[1]
    assert lines(run) == lines(undisturbed[0])


@pytest.mark.parametrize(
    "batch", [pytest.param(1, marks=pytest.mark.slow), 3], ids=["before its first batch", "before its last batch"]
)
def test_a_signal_during_an_evaluation_ends_it_and_the_resumed_run_makes_it_first(
    batch: int, undisturbed: tuple[Run, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated, original = [0], Program.evaluate

    def signalled(self: Program, *arguments: Any) -> Any:
        evaluated[0] += 1
        if evaluated[0] == batch:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Program, "evaluate", signalled)
        patch.setattr("jaxtrain.train.check_metrics", lambda program: None)  # it traces an evaluation
        run, state = train(tiny.main(), tmp_path / "run")
    assert int(state.step) == 6
    assert [line["split"] for line in lines(run)] == ["train"] * 6
    run, state = train(tiny.main(), tmp_path / "run")
    assert words(state) == undisturbed[1]
    assert lines(run) == lines(undisturbed[0])


def test_an_evaluation_that_is_not_to_stop_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    program = Program(tiny.main())
    stop, data = StopSignal(), tiny.main().evals["validation"]
    state = program.init()
    assert evaluate_module.evaluate(program, state, data, stop) == evaluate_module.evaluate(program, state, data)
    stop.stop_at(0, 75)
    with pytest.raises(Stopped):
        evaluate_module.evaluate(program, state, data, stop)


def test_a_signal_after_the_last_step_does_not_cost_the_end_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jaxtrain.runs.checkpoints import Checkpoints

    original = Checkpoints.wait

    def wait(self: Checkpoints) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        original(self)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "wait", wait)
        patch.setattr(Checkpoints, "latest", lambda self: None)
        run, _ = train(tiny.main(), tmp_path / "run")
    assert read_lines(run.folder / "events.jsonl")[-1]["kind"] == "ended"


def together(run: Path, number: signal.Signals, programs: Sequence[str | None], *flags: str) -> list[tuple[int, str]]:
    """Exit code and output of two processes of a run, of which one sends itself a signal."""
    port = launch.free_port()
    started = [
        launch.start("tensor", run, *flags, program=program, process=process, processes=2, port=port)
        for process, program in enumerate(programs)
    ]
    printed = [process.communicate(timeout=200)[0] for process in started]
    return [(process.returncode, text) for process, text in zip(started, printed, strict=True)]


@pytest.fixture(scope="module")
def losses_of_two(tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """Those of an undisturbed run in two processes."""
    whole = tmp_path_factory.mktemp("two") / "run"
    launch.train("tensor", whole, processes=2)
    return launch.losses(whole)


@pytest.mark.slow
@pytest.mark.parametrize("process", [0, 1])
def test_two_processes_stop_at_the_same_step_when_one_of_them_is_signalled_whatever_log_every_is(
    process: int, losses_of_two: dict[int, float], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    programs: list[str | None] = [None, None]
    programs[process] = launch.killed(5, by="SIGTERM")
    ended = together(run, signal.SIGTERM, programs, "--log-every", "1000", "--save-every", "1000")
    assert [code for code, _ in ended] == [75, 75], ended
    steps = [int(path.name) for path in (run / "checkpoints").iterdir() if path.name.isdigit()]
    assert len(steps) == 1
    assert 5 <= steps[0] < 12
    for _, printed in ended:
        assert f"stopped after step {steps[0]} of 12" in printed
    launch.train("tensor", run, processes=2)
    assert launch.losses(run)[12] == losses_of_two[12]


@pytest.mark.slow
def test_a_checkpoint_that_was_saved_in_an_evaluation_gets_the_scores_of_the_one_that_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from jaxtrain.experiment.saved import faults, read_scores

    experiment = tiny.main()
    keep = replace(experiment.runtime.keep, best="validation/loss")
    experiment = replace(experiment, runtime=replace(experiment.runtime, keep=keep))
    original = Program.evaluate

    def signalled(self: Program, *arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Program, "evaluate", signalled)
        patch.setattr("jaxtrain.train.check_metrics", lambda program: None)
        run, _ = train(experiment, tmp_path / "run")
    assert read_scores(run.folder / "checkpoints" / "6") == {}
    train(experiment, tmp_path / "run")
    losses = {line["step"]: line["loss"] for line in lines(run) if line["split"] == "validation"}
    for step in (6, 12):
        assert read_scores(run.folder / "checkpoints" / str(step)) == {"validation/loss": losses[step]}
        assert list(faults(run.folder / "checkpoints" / str(step))) == []


ENDING = """
import atexit, sys, time
atexit.register(lambda: (print("ending", flush=True), time.sleep(1)))
sys.argv[1:] = ["completion", "fish"]
from jaxtrain.__main__ import main
main()
"""


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, *(pytest.param(n, marks=pytest.mark.slow) for n in (signal.SIGINT, signal.SIGUSR1))]
)
def test_a_signal_while_the_interpreter_ends_does_not_change_the_exit_code(number: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", ENDING], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert any(line == "ending\n" for line in process.stdout)
        process.send_signal(number)
        assert process.wait(60) == 0


def test_the_echo_of_a_signal_does_not_interrupt_what_the_first_one_ends() -> None:
    with StopSignal(now=Clock()) as stop:
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.code == 75


def test_a_verb_with_handlers_of_its_own_is_not_ended_by_those_of_the_command() -> None:
    heard: list[int] = []
    with StopSignal(watched=True) as stop:
        stop.leave = lambda message, code: pytest.fail("the command was ended")
        before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
        os.kill(os.getpid(), signal.SIGTERM)
        assert not stop._noticed.wait(0.3)
        signal.signal(signal.SIGTERM, before)
    assert (heard, stop.code) == ([signal.SIGTERM], 0)


class Swallowing:
    """Its end takes a while in Python, where nothing can catch an error."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


def lose_a_signal(swallowed: bool) -> None:
    """As the import of a module in C does, in which a handler raises; or where something is closed."""
    try:
        if swallowed:
            value = Swallowing()
            del value
        else:
            os.kill(os.getpid(), signal.SIGTERM)
    except Stopped:
        pass
    raise ImportError("initialization failed")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("lost", ["made another error", "swallowed"])
def test_a_signal_that_a_library_loses_or_makes_another_error_of_is_what_the_command_ends_by(lost: str) -> None:
    reported: list[BaseException] = []
    with StopSignal() as stop:
        stop.report = reported.append
        stack = contextlib.ExitStack()
        stack.push(stop.failed)
        with pytest.raises(ImportError) as raised, stack:
            lose_a_signal(swallowed=lost == "swallowed")
    [error] = reported
    assert isinstance(error, Stopped)
    assert error is stop.cause(raised.value)
    assert error.code == 75


def test_within_the_steps_such_an_error_ends_them_and_one_that_comes_later_is_itself() -> None:
    with StopSignal() as stop:
        with stop.steps():
            stop.requested()
            stop.progress = lambda: (1, "data")
            lose_a_signal(swallowed=False)
        full = OSError(28, "No space left on device")
        assert stop.cause(full) is full


def test_an_error_without_a_signal_is_itself() -> None:
    stop = StopSignal()
    stop.requested()
    with pytest.raises(ImportError), stop.steps():
        raise ImportError("initialization failed")

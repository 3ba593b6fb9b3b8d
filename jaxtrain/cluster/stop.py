"""Stop signals: SIGTERM, SIGUSR1 and Ctrl-C, and the place in a run at which all of its processes stop.

Imports only the standard library, so that signals are handled before jax is imported.

A process counts the places where it may stop: before each step, and before each batch of an evaluation. All processes
count alike. When one receives a signal, each promises not to pass its next place, and all stop at the highest promised
place. Without a signal this costs one comparison a step. Not here: the messages between processes (`rendezvous`).
"""

import contextlib
import fcntl
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator
from types import FrameType, TracebackType
from typing import Self

from jaxtrain.base.errors import ExitCode

CODES = {
    signal.SIGINT: ExitCode.INTERRUPTED,
    signal.SIGTERM: ExitCode.RETRY,
    signal.SIGUSR1: ExitCode.RETRY,
}

GRACE = 5.0
"""Seconds that the main thread, which may be compiling in C++, gets to end by itself where there is nothing to save."""

ECHO = 0.5
"""The same signal again within these seconds does not count as a second one: `timeout` and others send each twice."""

WAITING = ("data", "eval")
"""The phases in which a process waits for data, perhaps forever. No step is running, so the state can be saved."""

_NEVER = sys.maxsize


class Stopped(KeyboardInterrupt):
    """Raised in the main thread by a signal, where nothing is lost by ending there."""

    def __init__(self, code: int, phase: str) -> None:
        """`code`: the exit code."""
        super().__init__(f"stopped by a signal ({phase})")
        self.code, self.phase = code, phase


class StopSignal:
    """A request to stop, by a signal or an observer. As a context it handles signals within the block.

    A second signal ends the process at once; checkpoints that are complete by then stay valid.
    """

    def __init__(
        self, watched: bool = False, now: Callable[[], float] = time.monotonic, ignored_after: bool = False
    ) -> None:
        """watched: a thread receives the signals too, and may end the process where the main thread is stuck.

        now: the time in seconds, from any origin.
        ignored_after: whether signals are ignored after the block, since the process ends; else their former handlers
            are restored.
        """
        self.watched, self._now, self._ignored_after = watched, now, ignored_after
        self.code = ExitCode.FINISHED
        """The exit code of a run that stops on a signal; FINISHED while none has come."""
        self.reason: str | None = None
        """Why an observer ended the run, with the exit code FINISHED; set in process 0."""
        self.ended = False
        """Whether an observer ended the run; agreed on by all processes."""
        self.progress: Callable[[], tuple[int, str]] = lambda: (0, "start")
        """The step and the phase that the run is in."""
        self.ask_others: Callable[[int], None] | None = None
        """Asks all processes of the run to stop with an exit code; None where this is the only one."""
        self.leave: Callable[[str, int], None] = exit_now
        """Ends the process at once, with a message and an exit code."""
        self.report: Callable[[BaseException], None] = lambda error: None
        """Called with an error before anything is closed, since closing may wait for the other processes."""
        self.importing = False
        """Whether the command is still importing modules, so that the process may end at once."""
        self.over = False
        """Whether no more steps follow."""
        self._lock, self._decided, self._noticed = threading.Lock(), threading.Event(), threading.Event()
        self._place, self._promised, self._end = 0, _NEVER, _NEVER
        self.heard: tuple[int, float] | None = None
        """The first signal, and the time at which it came."""
        self._entered, self._raised = 0, False
        self._thrown: Stopped | None = None
        """What was raised wherever the main thread was, until it has ended the steps."""

    def requested(self) -> bool:
        """Whether to stop here. Every process calls this at the same places and gets the same answer."""
        with self._lock:
            self._place += 1
            place = self._place
            wait = place >= self._promised
        if wait:
            self._decided.wait()
        return self.ended or place >= self._end

    def check(self) -> None:
        """Raises Stopped where `requested`."""
        if self.requested():
            raise Stopped(self.code, self.progress()[1])

    def promise(self) -> int:
        """Promise not to pass the next place until `stop_at` is called; its number. Called from another thread."""
        with self._lock:
            self._promised = min(self._promised, self._place + 1)
            return self._promised

    def stop_at(self, place: int, code: int) -> None:
        """Stop at a place, with an exit code."""
        self.code = self.code or ExitCode(code)
        self._end = self._promised = place
        self._decided.set()

    @contextlib.contextmanager
    def steps(self) -> Generator[None]:
        """The context of a run's steps. `Stopped` ends the block without an error, unless no step was reached; after
        the block a signal only sets `code`.
        """
        try:
            yield
        except (Stopped, Exception) as error:
            if self._place == 0 or not isinstance(self.cause(error), Stopped):
                raise
            self._thrown = None
        finally:
            self.over = True

    def cause(self, error: BaseException) -> BaseException:
        """What to report of an error: the signal, where its `Stopped` was raised in a library that lost it or made
        another error of it, as the import of a module in C does.
        """
        return self._thrown if self._thrown is not None and isinstance(error, Exception) else error

    def failed(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """For `ExitStack.push`: reports an error."""
        if error is not None:
            self.report(self.cause(error))

    def __enter__(self) -> Self:
        self._entered += 1
        if self._entered == 1 and threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._receive) for number in CODES}
            if self.watched:
                reading, writing = map(_above_streams, os.pipe())
                os.set_blocking(writing, False)
                self._pipe = (signal.set_wakeup_fd(writing, warn_on_full_buffer=False), reading, writing)
                threading.Thread(target=self._watch, args=(reading,), name="signals", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._entered -= 1
        if self._entered == 0 and threading.current_thread() is threading.main_thread():
            if self.watched:
                before, _, writing = self._pipe
                signal.set_wakeup_fd(before)
                os.close(writing)  # ends the thread, which closes the other end
            for number, handler in self._previous.items():
                signal.signal(number, signal.SIG_IGN if self._ignored_after else handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        """The signal handler: runs in the main thread once that executes Python, after `_watch` in its own thread."""
        if self.watched:
            self._noticed.wait(GRACE)
        else:
            self._hear(number)
        _, phase = self.progress()
        waiting = phase in WAITING and self.ask_others is None
        if not self.over and not self._raised and self.code and (self._place == 0 or waiting):
            self._raised = True  # once: a repeated signal would interrupt the cleanup
            self._thrown = Stopped(self.code, phase)
            raise self._thrown

    def _watch(self, reading: int) -> None:
        while numbers := os.read(reading, 64):
            for number in numbers:
                # `launch local` replaces the handlers while its processes run.
                if number in CODES and signal.getsignal(number) == self._receive:
                    self._hear(number)
                    self._noticed.set()
        os.close(reading)

    def _hear(self, number: int) -> None:
        code, now = CODES[signal.Signals(number)], self._now()
        if self.heard is None:
            self.heard = (number, now)
            self.code = self.code or code
            if self.importing:
                self.leave("stopped by a signal before anything began", code)
            if self.ask_others is None:
                self.stop_at(0, code)
            else:
                self.ask_others(code)
            if self.watched:
                timer = threading.Timer(GRACE, self._leave_unbegun)
                timer.daemon = True
                timer.start()
        elif number != self.heard[0] or now - self.heard[1] > ECHO:
            if not self.watched:
                raise Stopped(code, self.progress()[1])
            self.leave(f"stopped by a second signal in step {self.progress()[0]} ({self.progress()[1]})", code)

    def _leave_unbegun(self) -> None:
        if self._place == 0 and not self.over:
            self.leave(f"stopped by a signal ({self.progress()[1]}): nothing was to be saved", self.code)


def _above_streams(file: int) -> int:
    """A duplicate of a file descriptor above 2: where the shell closed a standard stream, its number is free."""
    other = fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, 3)
    os.close(file)
    return other


def exit_now(message: str, code: int) -> None:
    """Ends this process at once, without waiting for its threads."""
    again = ": run the same command again" if code == ExitCode.RETRY else ""
    with contextlib.suppress(OSError):
        os.write(2, f"jaxtrain: {message}{again}\n".encode())
    os._exit(code)


_of_command: StopSignal | None = None


@contextlib.contextmanager
def signals_of_command(ignored_after: bool = False) -> Generator[StopSignal]:
    """The stop signal of the command, which handles signals within the block; a nested call yields the same object."""
    global _of_command
    if _of_command is not None:
        yield _of_command
        return
    _of_command = StopSignal(watched=True, ignored_after=ignored_after)
    try:
        with _of_command:
            yield _of_command
    finally:
        _of_command = None

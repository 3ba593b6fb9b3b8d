"""Stop signals: SIGTERM, SIGUSR1 and Ctrl-C, and the place in a run at which all of its processes stop.

Imports only the standard library, so that the command hears signals before jax is imported.

A process counts the places where it may stop: before each step, and before each batch of an evaluation. All processes
count the same. When one hears a signal, each promises not to pass its next place, and all then stop at the last of the
promised places: until a signal comes, that costs a comparison a step. Not here: the messages in between (`rendezvous`).
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
"""Seconds in which the main thread ends by itself where nothing has to be saved: it may be stuck in C++, compiling."""

ECHO = 0.5
"""A signal that follows the same one within these seconds is no second one: `timeout` and others send each twice."""

WAITING = ("data", "eval")
"""The phases in which a process waits for a source that may hang: the state is whole then, and can be saved."""

_NEVER = sys.maxsize


class Stopped(KeyboardInterrupt):
    """A signal ends what the main thread does, since nothing is lost by it."""

    def __init__(self, code: int, phase: str) -> None:
        """`code`: the exit code."""
        super().__init__(f"stopped by a signal ({phase})")
        self.code, self.phase = code, phase


class StopSignal:
    """A request to stop: a signal, or an observer's. A context: its signals are heard within it.

    A second signal ends the process at once. What is saved by then stays whole.
    """

    def __init__(
        self, watched: bool = False, now: Callable[[], float] = time.monotonic, ignored_after: bool = False
    ) -> None:
        """watched: a thread hears the signals too, for a main thread that is stuck; it may end the process.

        now: seconds from any origin.
        ignored_after: the signals are ignored after the context, since the process ends; else they do what they did
            before it.
        """
        self._watched, self._now, self._ignored_after = watched, now, ignored_after
        self.code = ExitCode.FINISHED
        """The exit code of a run that stops on a signal; FINISHED while none has come."""
        self.reason: str | None = None
        """Why an observer ended the run, with the exit code FINISHED; set in process 0."""
        self.ended = False
        """Whether an observer ended the run: the same in all processes."""
        self.progress: Callable[[], tuple[int, str]] = lambda: (0, "start")
        """The step and the phase that the run is in."""
        self.ask_others: Callable[[int], None] | None = None
        """Asks the other processes of the run to stop with an exit code; None where there are none."""
        self.leave: Callable[[str, int], None] = exit_now
        """Ends the process at once, with a message and an exit code."""
        self.report: Callable[[BaseException], None] = lambda error: None
        """Called with an error first of all: to close anything may wait for the other processes."""
        self.importing = False
        """Whether nothing has begun, so that the process may end at once."""
        self.over = False
        """Whether no more steps follow."""
        self._lock, self._decided, self._noticed = threading.Lock(), threading.Event(), threading.Event()
        self._place, self._promised, self._end = 0, _NEVER, _NEVER
        self._heard: tuple[int, float] | None = None
        """The first signal, and when it came."""
        self._entered, self._raised = 0, False
        self._thrown: Stopped | None = None
        """What was raised wherever the main thread was, until it has ended the steps."""

    def requested(self) -> bool:
        """Whether to stop here: the same answer in every process. Every process calls it at the same places."""
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
        """The next place, which this process does not pass until `stop_at` is called. For another thread."""
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
        """The steps of a run: `Stopped` ends the block, and a signal after the block only sets `code`."""
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
            if self._watched:
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
            if self._watched:
                before, _, writing = self._pipe
                signal.set_wakeup_fd(before)
                os.close(writing)  # ends the thread, which closes the other end
            for number, handler in self._previous.items():
                signal.signal(number, signal.SIG_IGN if self._ignored_after else handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        """In the main thread, once it runs Python; by then the thread has heard of it."""
        if self._watched:
            self._noticed.wait(GRACE)
        else:
            self._hear(number)
        _, phase = self.progress()
        waiting = phase in WAITING and self.ask_others is None
        if not self.over and not self._raised and self.code and (self._place == 0 or waiting):
            self._raised = True  # once: the echo of a signal would interrupt the cleaning up
            self._thrown = Stopped(self.code, phase)
            raise self._thrown

    def _watch(self, reading: int) -> None:
        while numbers := os.read(reading, 64):
            for number in numbers:
                # A verb that starts processes has handlers of its own for a while.
                if number in CODES and signal.getsignal(number) == self._receive:
                    self._hear(number)
                    self._noticed.set()
        os.close(reading)

    def _hear(self, number: int) -> None:
        code, now = CODES[signal.Signals(number)], self._now()
        if self._heard is None:
            self._heard = (number, now)
            self.code = self.code or code
            if self.importing:
                self.leave("stopped by a signal before anything began", code)
            if self.ask_others is None:
                self.stop_at(0, code)
            else:
                self.ask_others(code)
            if self._watched:
                timer = threading.Timer(GRACE, self._leave_unbegun)
                timer.daemon = True
                timer.start()
        elif number != self._heard[0] or now - self._heard[1] > ECHO:
            if not self._watched:
                raise Stopped(code, self.progress()[1])
            self.leave(f"stopped by a second signal in step {self.progress()[0]} ({self.progress()[1]})", code)

    def _leave_unbegun(self) -> None:
        if self._place == 0 and not self.over:
            self.leave(f"stopped by a signal ({self.progress()[1]}): nothing was to be saved", self.code)


def _above_streams(file: int) -> int:
    """The same file by a number above 2: where the shell closed a standard stream, its number is free."""
    other = fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, 3)
    os.close(file)
    return other


def exit_now(message: str, code: int) -> None:
    """Ends this process at once, whatever its threads do."""
    again = ": run the same command again" if code == ExitCode.RETRY else ""
    with contextlib.suppress(OSError):
        os.write(2, f"jaxtrain: {message}{again}\n".encode())
    os._exit(code)


_of_command: StopSignal | None = None


@contextlib.contextmanager
def signals_of_command(ignored_after: bool = False) -> Generator[StopSignal]:
    """The stop signal of the whole command, heard from here on; within it, the same one again."""
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

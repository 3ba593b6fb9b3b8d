"""Threads that do not keep the process from ending."""

import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


class CallThread:
    """Calls functions in a thread of its own, in order.

    Not a `ThreadPoolExecutor(1)`: at its exit the interpreter waits for the calls of those, forever if one hangs.
    """

    def __init__(self, name: str) -> None:
        self._tasks: queue.SimpleQueue[tuple[Callable[..., Any], tuple[Any, ...], Future[Any]] | None]
        self._tasks, self._closed = queue.SimpleQueue(), False
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Queue a call; the future gets its result or exception."""
        done: Future[Any] = Future()
        self._tasks.put((function, arguments, done))
        return done

    def close(self) -> None:
        """Call nothing more. Does not wait for a call in progress."""
        self._closed = True
        self._tasks.put(None)

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None and not self._closed:
            function, arguments, done = task
            try:
                done.set_result(function(*arguments))
            except BaseException as error:  # the future raises it
                done.set_exception(error)


def leave_hanging_threads(code: int, patience: float = 3.0) -> None:
    """Ends this process with an exit code if threads that the interpreter would wait for, such as one that reads from a
    source that hangs, do not end within `patience` seconds.
    """
    end = time.monotonic() + patience
    others = [thread for thread in threading.enumerate() if thread is not threading.main_thread() and not thread.daemon]
    for thread in others:
        thread.join(max(0.0, end - time.monotonic()))
    if any(thread.is_alive() for thread in others):
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        os._exit(code)

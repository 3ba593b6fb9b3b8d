"""Reading ahead in threads of this process. Not here: worker processes."""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")

PATIENCE = 2.0
"""Seconds that closing waits for threads or worker processes that are still reading."""


def ahead(read: Callable[[int], T], count: int, threads: int, depth: int) -> Generator[T, None, None]:
    """Yield `read(0)` to `read(count - 1)` in order, computed by threads up to `depth` items ahead; without threads,
    each item is computed when it is needed.

    An exception of `read` is raised where its item would be yielded. Closing waits `PATIENCE` for the threads. A thread
    that hangs in `read` is abandoned, and blocks neither this generator nor the exit of the interpreter.
    """
    if not threads:
        yield from map(read, range(count))
        return
    tasks: queue.SimpleQueue[tuple[int, Future[T]] | None] = queue.SimpleQueue()
    closed, submitted, waiting = threading.Event(), 0, deque[Future[T]]()
    # Not an executor: at exit the interpreter waits for its threads, forever if one hangs.
    running = [threading.Thread(target=_work, args=(read, tasks, closed), daemon=True) for _ in range(threads)]
    for thread in running:
        thread.start()
    try:
        for index in range(count):
            while submitted < min(index + 1 + depth, count):
                waiting.append(Future())
                tasks.put((submitted, waiting[-1]))
                submitted += 1
            yield waiting.popleft().result()
    finally:
        closed.set()
        for _ in running:
            tasks.put(None)
        end = time.monotonic() + PATIENCE
        for thread in running:
            thread.join(max(0.0, end - time.monotonic()))


def _work(read: Callable[[int], Any], tasks: queue.SimpleQueue, closed: threading.Event) -> None:
    while (task := tasks.get()) is not None and not closed.is_set():
        index, found = task
        try:
            found.set_result(read(index))
        except BaseException as error:  # the future raises it
            found.set_exception(error)
        del task, found  # else the item stays in memory until the next one

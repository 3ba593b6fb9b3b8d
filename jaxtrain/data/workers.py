"""Reading in worker processes, which end with the process that started them and leave nothing behind.

Batches are passed in anonymous memory files, which the kernel frees once no process has them open. Not here: what is
read.
"""

import contextlib
import fcntl
import logging
import mmap
import os
import pickle
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Generator
from itertools import accumulate
from typing import Any, TypeVar

import cloudpickle

from jaxtrain.base.errors import Retry
from jaxtrain.data.ahead import PATIENCE, ahead
from jaxtrain.data.sources.base import Indexed

T = TypeVar("T")

REPLACEMENTS = 3
"""How often in a row a killed worker is replaced."""

FORGIVEN_AFTER = 100
"""The number of batches from a worker after which the count of its replacements starts again."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_ALIGNED = 64  # bytes, the alignment that jax and numpy read fastest
_ITEM, _ERROR = b"i", b"e"


def read_in_workers(items: Indexed[T], workers: int, threads: int, depth: int) -> Generator[T, None, None]:
    """Yield every item in order; worker w of n reads the items w, w + n, …, by `ahead(…, threads, depth)`.

    Items are numpy arrays in dicts, or anything picklable. A worker that is killed is replaced; the items stay the
    same, since each depends only on its index. Closing waits `PATIENCE` for the workers, and then kills them.

    Raises the exceptions of reading, with the worker's traceback as a note; `Retry` where a worker is killed again and
    again; RuntimeError where one ends by itself.
    """
    count = len(items)
    workers = min(workers, count)
    packed = _pack((items, workers, threads, depth), cloudpickle.dumps)
    running: list[_Worker] = []
    try:
        running += [_Worker(packed, number, workers) for number in range(workers)]
        for index in range(count):
            yield running[index % workers].take(index)
    finally:
        os.close(packed)
        _end(running)


class _Worker:
    """A process that reads, and its replacements."""

    def __init__(self, packed: int, number: int, count: int) -> None:
        self._packed, self._name = packed, f"data worker {number + 1} of {count}"
        self._killed, self._taken = 0, 0
        self._start(number)

    def _start(self, index: int) -> None:
        """Start a process that reads from item `index` on."""
        self.socket, other = socket.socketpair()
        code = f"import sys; sys.path[:] = {sys.path!r}; from jaxtrain.data.workers import serve; serve()"
        # Blocked until the worker ignores them: Ctrl-C and a scheduler's signals reach all processes.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", code, str(other.fileno()), str(index)],
                stdin=subprocess.PIPE,  # closed by the kernel when this process ends
                pass_fds=[other.fileno()],
                env={**os.environ, "PYTHONUTF8": str(sys.flags.utf8_mode)},
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            other.close()
        with contextlib.suppress(OSError):  # it has ended already, which `take` notices
            socket.send_fds(self.socket, [_ITEM], [self._packed])

    def take(self, index: int) -> Any:
        """Item `index`. A process that ends before it sends the item is replaced."""
        while True:
            with contextlib.suppress(ConnectionError):
                kind, received, *_ = socket.recv_fds(self.socket, 1, 1)
                if kind:
                    break
            self._replace(index)
        with contextlib.suppress(OSError):
            self.socket.send(_ITEM)
        self._taken += 1
        found = _unpack(received[0])
        if kind == _ERROR:
            error, text = found
            error.add_note(f"in {self._name}:\n{text}")
            raise error
        return found

    def _replace(self, index: int) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(PATIENCE)
        code = self.process.poll()
        if code is None or code >= 0:
            _end([self])
            raise RuntimeError(f"{self._name} ended with exit code {code} before it had read all")
        name, pid = signal.Signals(-code).name, self.process.pid
        self._killed = 1 if self._taken >= FORGIVEN_AFTER else self._killed + 1
        why = ", as the kernel does when memory runs out" if -code == signal.SIGKILL else ""
        what = f"{self._name} (pid {pid}) was killed by {name}{why}"
        if self._killed > REPLACEMENTS:
            raise Retry(f"{what}, {self._killed} times: fewer data.workers, threads and prefetch take less memory")
        logging.getLogger("jaxtrain.data").warning("%s; another one reads on where it was", what)
        _end([self])
        self._taken = 0
        self._start(index)


def _end(workers: list[_Worker]) -> None:
    """End worker processes."""
    for worker in workers:
        worker.socket.close()
    end = time.monotonic() + PATIENCE
    for worker in workers:
        try:
            worker.process.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.process.wait(PATIENCE)
        if worker.process.stdin is not None:
            worker.process.stdin.close()


def serve() -> None:
    """The main function of a worker. Its arguments: the descriptor of its socket, and the index of its first item."""
    _end_with_parent()
    for number in _SIGNALS:
        # Not SIG_IGN, which programs that a transform starts would inherit.
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    connection, first = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
    _, received, *_ = socket.recv_fds(connection, 1, 1)

    def attempt(act: Callable[[], int]) -> tuple[bytes, int]:
        try:
            return _ITEM, act()
        except BaseException as error:  # the trainer raises it
            return _ERROR, _pack((_picklable(error), traceback.format_exc()))

    def send(kind: bytes, packed: int) -> None:
        with contextlib.suppress(OSError):  # closed, which the next receive notices
            socket.send_fds(connection, [kind], [packed])
        os.close(packed)

    try:
        items, every, threads, depth = _unpack(received[0])
    except BaseException as error:  # such as a module that cannot be imported here
        packed = _pack((_picklable(error), traceback.format_exc()))
        return send(_ERROR, packed)

    def read(number: int) -> tuple[bytes, int]:
        return attempt(lambda: _pack(items[first + number * every]))

    with contextlib.closing(ahead(read, -(-(len(items) - first) // every), threads, depth)) as reading:
        for kind, packed in reading:
            send(kind, packed)
            with contextlib.suppress(ConnectionError):
                if connection.recv(1):  # the trainer has taken an item, so the next may be sent
                    continue
            return None
    return None


def _end_with_parent() -> None:
    """From here on this process is killed when the one that started it ends, in any way."""
    alive = os.dup(0)
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    if hasattr(fcntl, "F_SETSIG"):  # then the kernel kills it, even if it hangs in C
        fcntl.fcntl(alive, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(alive, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(alive, fcntl.F_SETFL, fcntl.fcntl(alive, fcntl.F_GETFL) | os.O_ASYNC)
        if select.select([alive], [], [], 0)[0]:
            os._exit(1)
    else:
        threading.Thread(target=lambda: os._exit(len(os.read(alive, 1))), daemon=True).start()


def _picklable(error: BaseException) -> BaseException:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # methods of the exception's class may raise anything
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error if isinstance(error, Exception) else RuntimeError(f"{type(error).__name__}: {error}")


def _pack(value: object, dumps: Callable[..., bytes] = pickle.dumps) -> int:
    """The descriptor of an anonymous file that holds a value: sizes, the pickle, and the bytes of arrays."""
    buffers: list[pickle.PickleBuffer] = []
    parts = [dumps(value, protocol=5, buffer_callback=buffers.append), *(each.raw() for each in buffers)]
    sizes = [len(part) for part in parts]
    if hasattr(os, "memfd_create"):
        number = os.memfd_create("jaxtrain-batch")
    else:
        with tempfile.TemporaryFile() as nameless:
            number = os.dup(nameless.fileno())
    with open(number, "wb", closefd=False) as file:
        file.write(struct.pack(f"<{1 + len(sizes)}Q", len(sizes), *sizes))
        for start, part in zip(_part_offsets(sizes), parts, strict=True):
            file.seek(start)
            file.write(part)
    return number


def _unpack(number: int) -> Any:
    """The value that `_pack` wrote to a descriptor, which is closed; arrays are views of its memory."""
    with open(number, "rb") as file:
        memory = memoryview(mmap.mmap(file.fileno(), 0))
    (count,) = struct.unpack_from("<Q", memory)
    sizes = struct.unpack_from(f"<{count}Q", memory, 8)
    parts = [memory[start : start + size] for start, size in zip(_part_offsets(list(sizes)), sizes, strict=True)]
    return pickle.loads(parts[0], buffers=parts[1:])


def _part_offsets(sizes: list[int]) -> list[int]:
    """The offset of each part in the file."""
    lengths = [8 * (1 + len(sizes)), *sizes[:-1]]
    return list(accumulate(-(-length // _ALIGNED) * _ALIGNED for length in lengths))

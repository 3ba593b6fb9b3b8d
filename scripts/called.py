"""Runs a Python program and writes down which functions of one folder it enters, and how its train step is reached.

    python scripts/called.py OUT.json FOLDER -m jaxtrain train tests/tiny.py --steps 2
    python scripts/called.py OUT.json FOLDER program.py arguments …

OUT.json then holds `functions`, every function of the folder that was entered, as [file, first line, name]; `jits`, the
functions on the stack at each place in the folder that calls `jax.jit`; and `matmul`, those on the stack when the first
matmul within a gradient is traced. Runs under any Python with jax; imports nothing of ours.
"""

import inspect
import json
import os
import runpy
import sys
import threading
from types import CodeType, FrameType
from typing import Any

OWN, JIT, MATMUL, OTHER = range(4)
Place = tuple[str, int, str]


class Calls:
    """A profile function that collects calls."""

    def __init__(self, folder: str) -> None:
        self.folder = os.path.realpath(folder) + os.sep
        self.functions: dict[Place, None] = {}
        self.jits: dict[tuple[Place, ...], None] = {}
        self.matmul: tuple[Place, ...] = ()
        self._kinds: dict[int, tuple[int, CodeType]] = {}  # holds the code, so that its id is not used again

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        if event != "call":
            return
        code = frame.f_code
        if id(code) not in self._kinds:
            self._kinds[id(code)] = self._kind(code), code
        kind = self._kinds[id(code)][0]
        if kind == OWN:
            self.functions.setdefault(_place(code))
        elif kind == JIT:
            caller = frame.f_back
            while caller is not None and caller.f_code.co_filename.endswith("traceback_util.py"):  # jax's own wrapper
                caller = caller.f_back
            if caller is not None and self._own(caller.f_code):
                self.jits.setdefault(self._stack(caller))
        elif kind == MATMUL and not self.matmul and _within_gradient(frame):
            self.matmul = self._stack(frame)

    def _own(self, code: CodeType) -> bool:
        # Bodies of modules and classes are no functions.
        return bool(code.co_flags & inspect.CO_OPTIMIZED) and os.path.realpath(code.co_filename).startswith(self.folder)

    def _kind(self, code: CodeType) -> int:
        if self._own(code):
            return OWN
        where = code.co_filename.replace(os.sep, "/")
        if code.co_name == "jit" and "/jax/_src/" in where:
            return JIT
        return MATMUL if code.co_name == "dot_general" and where.endswith("/jax/_src/lax/lax.py") else OTHER

    def _stack(self, frame: FrameType | None) -> tuple[Place, ...]:
        found: list[Place] = []
        while frame is not None:
            if self._own(frame.f_code):
                found.append(_place(frame.f_code))
            frame = frame.f_back
        return tuple(reversed(found))


def _place(code: CodeType) -> Place:
    return os.path.realpath(code.co_filename), code.co_firstlineno, getattr(code, "co_qualname", code.co_name)


def _within_gradient(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_name == "value_and_grad_f":  # `jax.grad` goes through it too
            return True
        frame = frame.f_back
    return False


def main() -> None:
    """Run the program, then write the file, however the program ends."""
    out, folder, *command = sys.argv[1:]
    calls = Calls(folder)
    sys.path[0] = os.getcwd() if command[0] == "-m" else os.path.dirname(os.path.abspath(command[0]))
    sys.argv = command[command[0] == "-m" :]
    threading.setprofile(calls)
    sys.setprofile(calls)
    try:
        if command[0] == "-m":
            runpy.run_module(command[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(command[0], run_name="__main__")
    finally:
        sys.setprofile(None)
        found = {"functions": [*calls.functions], "jits": [*calls.jits], "matmul": calls.matmul}
        with open(out, "w", encoding="utf-8") as file:
            json.dump(found, file)


if __name__ == "__main__":
    main()

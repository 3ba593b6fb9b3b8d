"""The source line and the modules that an equation of a traced program comes from, and summaries of its values."""

import linecache
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtrain.base.packages import PACKAGE
from jaxtrain.base.text import cut, number

_PACKAGE_FOLDER = str(PACKAGE)
LIBRARIES = (sysconfig.get_path("purelib"), sysconfig.get_path("stdlib"))


@dataclass(frozen=True)
class Frame:
    """A source line in the call stack at which an equation was traced."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        path = Path(self.file)
        near = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else Path(*path.parts[-3:])
        return f"{near}:{self.line}"

    @property
    def source(self) -> str:
        """The text of the line."""
        return cut(linecache.getline(self.file, self.line), 90)

    @property
    def own(self) -> bool:
        """Whether it is not in jaxtrain."""
        return not self.file.startswith(_PACKAGE_FOLDER)


def frames_of(equation: Any) -> tuple[Frame, ...]:
    """The call stack of an equation, innermost first, without jax and other libraries."""
    trace = equation.source_info.traceback
    found = [] if trace is None else [Frame(each.file_name, each.line_num, each.function_name) for each in trace.frames]
    return tuple(each for each in found if not _is_library_file(each.file))


def _is_library_file(file: str) -> bool:
    return file.startswith("<") or "site-packages" in file or file.startswith(LIBRARIES)


def best_frame(frames: Sequence[Frame]) -> Frame | None:
    """The line to show: the innermost one of user code within the step, that is of the task or the model; without any,
    the innermost one of jaxtrain.
    """
    inside = [frame for frame in frames[: _first_outside(frames)] if frame.own]
    return next(iter(inside), next(iter(frames), None))


def _first_outside(frames: Sequence[Frame]) -> int:
    """The number of frames within the step. Those of its callers, such as a notebook, explain nothing."""
    ends = (f"{_PACKAGE_FOLDER}/step.py", f"{_PACKAGE_FOLDER}/analysis/")
    return next((n for n, each in enumerate(frames) if each.file.startswith(ends)), len(frames))


def modules_of(frames: Sequence[Frame]) -> str:
    """The nested modules that the equation is in, outermost first, such as `Encoder › Block › RMSNorm`."""
    inside = [frame.function for frame in frames[: _first_outside(frames)]]
    calls = [name.rpartition(".")[0].rpartition(".")[2] for name in inside if "<locals>" not in name and "." in name]
    names = [name for name, before in zip(calls, ["", *calls], strict=False) if name != before]
    return " › ".join(reversed(names))


def finite(x: Any) -> bool:
    """Whether an array holds neither NaN nor infinity; True for dtypes that are not float or complex."""
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        return True
    if isinstance(x, jax.Array) and x.sharding.device_set and next(iter(x.sharding.device_set)).platform != "cpu":
        return bool(jnp.isfinite(x).all())
    return bool(np.isfinite(np.asarray(x)).all())


def largest(x: Any) -> float:
    """The largest absolute value, in f32; 0 for an empty array."""
    return float(np.max(np.abs(np.asarray(x).astype(np.float32)), initial=0))


def range_of(x: Any) -> str:
    """Dtype, shape and range of an array, and how many of its values are not finite:
    `f32[8,4] in -1.2…3.4, 2 of 32 not finite (1 NaN, 1 inf), first at [3,0]`.
    """
    kind = f"{_short(x.dtype)}[{','.join(map(str, np.shape(x)))}]"
    if jnp.issubdtype(x.dtype, jax.dtypes.extended) or not np.size(x):
        return kind
    values = np.asarray(x)
    if not jnp.issubdtype(values.dtype, jnp.floating):
        whole = jnp.issubdtype(values.dtype, jnp.integer)
        return f"{kind} in {values.min()}…{values.max()}" if whole else kind
    wide = values.astype(np.float64)
    bad = ~np.isfinite(wide)
    good = wide[~bad]
    if wide.ndim == 0:
        return f"{kind} {number(float(wide))}"
    text = f"{kind} in {number(good.min())}…{number(good.max())}" if good.size else kind
    if not bad.any():
        return text
    first = ",".join(map(str, np.argwhere(bad)[0]))
    kinds = {"NaN": np.isnan(wide).sum(), "inf": (wide == np.inf).sum(), "-inf": (wide == -np.inf).sum()}
    which = ", ".join(f"{count} {name}" for name, count in kinds.items() if count)
    return f"{text}, {bad.sum()} of {bad.size} not finite ({which}), first at [{first}]"


def _short(dtype: Any) -> str:
    name = str(dtype)
    for long, short in (("bfloat", "bf"), ("float", "f"), ("uint", "u"), ("int", "i")):
        if name.startswith(long):
            return short + name[len(long) :]
    return name

"""Accounts for a run's wall-clock time: the seconds spent compiling, reading, training, evaluating and saving."""

import time
from collections.abc import Callable
from types import TracebackType


class Clock:
    """Accounts for wall-clock time by phase: `with clock("compile"): …`. Time outside of any phase is "other".

    Phases may be nested: only the innermost is charged, so that they sum to the total. To be used from one thread.

    now: the time in seconds, from any origin.
    """

    PHASES = ("compile", "restore", "data", "step", "eval", "save", "other")

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._seconds = dict.fromkeys(self.PHASES, 0.0)
        self._contexts = {phase: _Phase(self, phase) for phase in self.PHASES}
        self._stack = ["other"]
        self._since = now()

    def __call__(self, phase: str) -> "_Phase":
        """A context that charges its time to a phase. Raises ValueError for one that is not in `PHASES`."""
        if phase not in self._contexts:
            raise ValueError(f"the clock has no phase {phase!r}, only {', '.join(self.PHASES)}")
        return self._contexts[phase]

    @property
    def phase(self) -> str:
        """The phase that is being charged."""
        return self._stack[-1]

    def account(self) -> dict[str, float]:
        """Seconds by phase until now, and their sum as "total"."""
        self._charge()
        return {**self._seconds, "total": sum(self._seconds.values())}

    def _charge(self) -> None:
        now = self._now()
        self._seconds[self._stack[-1]] += now - self._since
        self._since = now


class _Phase:
    """A context that charges one phase. It is stateless, so one object serves all steps."""

    def __init__(self, clock: Clock, phase: str) -> None:
        self._clock = clock
        self._phase = phase

    def __enter__(self) -> None:
        self._clock._charge()
        self._clock._stack.append(self._phase)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._clock._charge()
        self._clock._stack.pop()

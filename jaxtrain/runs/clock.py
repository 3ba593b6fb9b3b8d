"""The account of a run's wall-clock time."""

import time
from types import TracebackType

from jaxtrain.base.errors import ConfigError, nearest


class Clock:
    """Accounts for the wall clock: `with clock("compile"): ...`; what is in no context is "other".

    Of nested contexts the inner one is charged. For one thread.
    """

    NAMES = ("compile", "data", "step", "eval", "checkpoint", "other")

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(self.NAMES, 0.0)
        self._spans = {name: _Span(self, name) for name in self.NAMES}
        self._open = ["other"]
        self._since = time.perf_counter()

    def __call__(self, name: str) -> "_Span":
        """The context that charges `name`. Raises `ConfigError` for a name that is not in `NAMES`."""
        span = self._spans.get(name)
        if span is None:
            raise ConfigError(f"the clock has no account {name!r}{nearest(name, self.NAMES)}")
        return span

    @property
    def phase(self) -> str:
        """What is charged at the moment."""
        return self._open[-1]

    def account(self) -> dict[str, float]:
        """Seconds by name until now, and their sum as "total"."""
        self._charge()
        return {**self._seconds, "total": sum(self._seconds.values())}

    def _charge(self) -> None:
        now = time.perf_counter()
        self._seconds[self._open[-1]] += now - self._since
        self._since = now


class _Span:
    def __init__(self, clock: Clock, name: str) -> None:
        self._clock = clock
        self._name = name

    def __enter__(self) -> None:
        self._clock._charge()
        self._clock._open.append(self._name)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._clock._charge()
        self._clock._open.pop()

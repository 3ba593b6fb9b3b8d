"""Which checkpoints of a run stay on disk: a value in the experiment. Not what writes or deletes them."""

from dataclasses import dataclass
from typing import Literal

from jaxtrain.errors import ConfigError


@dataclass(frozen=True)
class Keep:
    """A checkpoint stays while any of these wants it.

    last: the newest this many, at least 1.
    every: also each step that this number divides, for ever.
    best: also the best one by this metric, e.g. `"validation/accuracy"`, of those saved with a finite value.
    mode: whether the best is the lowest or the highest.

    Raises `ConfigError` for numbers below 1 and another mode.
    """

    last: int = 2
    every: int | None = None
    best: str | None = None
    mode: Literal["min", "max"] = "min"

    def __post_init__(self) -> None:
        if self.last < 1:
            raise ConfigError(f"Keep(last={self.last}): at least the newest checkpoint has to stay")
        if self.every is not None and self.every < 1:
            raise ConfigError(f"Keep(every={self.every}): give a number of steps of at least 1, or None")
        if self.mode not in ("min", "max"):
            raise ConfigError(f"Keep(mode={self.mode!r}): use 'min' or 'max'")

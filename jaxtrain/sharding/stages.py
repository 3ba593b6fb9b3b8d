"""Arithmetic of pipeline stages: whether microbatches fill them, and how long they idle.

Not here: running them, which is `models/stages.py`.
"""

from jaxtrain.base.errors import ConfigError


def fits(rows: int, count: int, stages: int, groups: int, what: str) -> None:
    """Raises ConfigError, naming `what`, where so many rows cannot go through in `count` parts."""
    if count % stages:
        raise ConfigError(
            f"microbatches: {count} parts of a batch cannot keep {stages} pipeline stages at work: a multiple of "
            f"{stages}, better {4 * stages} or more"
        )
    if rows % (count * groups):
        on = f" on each of {groups} groups of devices" if groups > 1 else ""
        raise ConfigError(f"microbatches: {what} cannot be cut into {count} equal parts{on}")


def bubble(stages: int, rounds: int, count: int) -> float:
    """The part of the time that each device waits for others, where a batch goes through in `count` parts."""
    return (stages - 1) / (count * rounds + stages - 1)

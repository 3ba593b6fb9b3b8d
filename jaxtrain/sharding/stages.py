"""Arithmetic of pipeline parallelism: which numbers of microbatches are possible, and the bubble.

Not here: running them, which is `models/stages.py`.
"""

from jaxtrain.base.errors import ConfigError


def fits(rows: int, count: int, stages: int, groups: int, what: str) -> None:
    """Raises ConfigError, naming `what`, where a batch of `rows` cannot run through the stages in `count` microbatches.

    groups: the groups of devices that split the rows along other mesh axes.
    """
    if count % stages:
        raise ConfigError(
            f"microbatches: {count} is not a multiple of the {stages} pipeline stages: set it to {stages} or, for a "
            f"smaller bubble, to {4 * stages} or more"
        )
    if rows % (count * groups):
        on = f" on each of {groups} groups of devices" if groups > 1 else ""
        raise ConfigError(f"microbatches: {what} cannot be cut into {count} equal microbatches{on}")


def bubble(stages: int, rounds: int, count: int) -> float:
    """The pipeline bubble: the fraction of time that each device idles, with `count` microbatches."""
    return (stages - 1) / (count * rounds + stages - 1)

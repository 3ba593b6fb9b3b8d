"""The verbs about the checkpoints of a run: list, verify, prune, restore-to. Not here: anything that they do."""

import contextlib
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Annotated

import tyro

from jaxtrain.base.errors import ExitCode
from jaxtrain.cli.verbs import RunFolder, Verbs
from jaxtrain.experiment.experiment import Retention
from jaxtrain.runs import upkeep
from jaxtrain.runs.lock import Lock

VERBS = Verbs("The checkpoints of a run: list, verify, prune, resume from an earlier one.")

DEFAULT = Retention()


@VERBS.verb
def list(run: RunFolder) -> None:  # the name of the verb
    """Show step, size, age, metrics and health of each checkpoint.

    Args:
        run: The run's folder.
    """
    for line in upkeep.listed(run):
        print(line)


@VERBS.verb
def verify(run: RunFolder) -> int:
    """Read every file of every checkpoint and hold it against its checksum; exit code 1 where one is damaged.

    Args:
        run: The run's folder.
    """
    faults = upkeep.damage(run)
    for fault in faults:
        print(fault)
    print(f"{run}: {len(faults)} damaged files" if faults else f"{run}: all checkpoints are good", file=sys.stderr)
    return ExitCode.FAILED if faults else ExitCode.FINISHED


@VERBS.verb
def prune(run: RunFolder, keep: Retention = DEFAULT) -> None:
    """Delete the checkpoints that --keep.* does not want. The newest good one always stays.

    Args:
        run: The run's folder.
        keep: Which checkpoints stay.
    """
    with _owned(run):
        for line in upkeep.prune(run, keep):
            print(line)


@VERBS.verb
def restore_to(run: RunFolder, step: Annotated[int, tyro.conf.Positional]) -> None:
    """Set aside the checkpoints that are later than a step, so that the run resumes from that one.

    Args:
        run: The run's folder.
        step: The saved step.
    """
    with _owned(run):
        for line in upkeep.restore_to(run, step):
            print(line)
    print(f"{run} resumes from step {step}")


@contextlib.contextmanager
def _owned(run: Path) -> Generator[None]:
    """The lock of a run. Raises Retry, naming the owner, while a process trains it; ConfigError for what is no run."""
    upkeep.checkpoints_of(run)  # so that no lock is left in what is no run
    with Lock(wait=0) as lock:
        lock.take(run)
        yield

"""The verbs about datasets: build, card, check, diff, bench. Not here: their implementation."""

import sys
from pathlib import Path
from typing import Annotated

import tyro

from jaxtrain.base.errors import ConfigError, ExitCode
from jaxtrain.cli.flags import Fields
from jaxtrain.cli.terminal import output_not_needed
from jaxtrain.cli.verbs import Verbs
from jaxtrain.datasets.card import FILE, Card
from jaxtrain.datasets.spec import Dataset
from jaxtrain.experiment.files import load_kind
from jaxtrain.experiment.fit import fit

VERBS = Verbs("Datasets with cards: build, show, check, compare; measure how fast an experiment reads its data.")

Spec = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE[:FUNCTION]")]
Folder = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]


@VERBS.verb
def build(spec: Spec, out: Path | None = None) -> None:
    """Build a dataset: a folder of files with a card.

    Args:
        spec: The function that describes the dataset, annotated `-> Dataset`.
        out: The folder of all datasets; $JAXTRAIN_DATA or the user's cache by default.
    """
    from jaxtrain.base.provenance import revision
    from jaxtrain.datasets.build import build as build_files

    output_not_needed()
    folder = build_files(load_kind(spec, Dataset)[0], out, revision(), lambda text: print(text, file=sys.stderr))
    _show(folder)


@VERBS.verb
def card(
    what: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DIR|FILE[:FUNCTION]")], out: Path | None = None
) -> None:
    """Show the card of a dataset.

    Args:
        what: Its folder, or the function that it was built from.
        out: The folder of all datasets, if a function is given.
    """
    from jaxtrain.datasets.source import home

    folder = Path(what)
    if not folder.is_dir():
        spec: Dataset = load_kind(what, Dataset)[0]
        folder = (out or home()) / spec.name / spec.version
        if not (folder / FILE).is_file():
            raise ConfigError(f"{spec.name} {spec.version} is not built: jaxtrain data build {what}")
    _show(folder)


def _show(folder: Path) -> None:
    print(Card.read(folder), "", folder / "card.html", sep="\n")


@VERBS.verb
def check(folder: Folder) -> int:
    """Read a whole dataset again and compare it with its card; exit code 1 where they differ.

    Args:
        folder: The dataset's folder.
    """
    from jaxtrain.datasets.check import check as find_faults

    count = 0
    for fault in find_faults(folder):
        print(fault)
        count += 1
    if count:
        print(f"{folder}: {count} faults", file=sys.stderr)
        return ExitCode.FAILED
    records = sum(split.records for split in Card.read(folder).splits.values())
    print(f"{folder}: all {records:,} records are as the card says")
    return ExitCode.FINISHED


@VERBS.verb
def diff(before: Folder, after: Folder) -> None:
    """Show what changed from one dataset to another.

    Args:
        before: A dataset's folder.
        after: Another's.
    """
    from jaxtrain.datasets.check import diff as compare

    print(compare(before, after))


@VERBS.verb
def bench(
    experiment: Fields,
    batches: int = 30,
    tune: bool = False,
    step_seconds: float | None = None,
    picture: Path | None = None,
) -> None:
    """Measure the chain from record to step, stage by stage.

    Args:
        batches: How many to measure.
        tune: Also try threads, workers and prefetch, and name the fastest.
        step_seconds: Sleep this long instead of running the step, as if on an accelerator, which leaves the CPU free.
        picture: A PNG file for the timeline, sequential and overlapped.
    """
    from jaxtrain.analysis.databench.advise import advice
    from jaxtrain.analysis.databench.measure import bench as measure

    report = measure(fit(experiment.experiment), batches, tune, step_seconds)
    print(report, advice(report))
    if picture is not None:
        from jaxtrain.analysis.databench.draw import timeline

        timeline(report, picture)
        print(picture)

"""The verbs about data sets: `jaxtrain data build | card | check | diff | bench`. Not here: anything that they do."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from jaxtrain.base.errors import ConfigError, nearest
from jaxtrain.datasets.build import build
from jaxtrain.datasets.card import FILE, Card
from jaxtrain.datasets.source import home
from jaxtrain.datasets.spec import Dataset
from jaxtrain.experiment.experiment import Experiment
from jaxtrain.experiment.files import load, load_kind

USAGE = """\
jaxtrain data build file.py[:function] [--out DIR]   build a data set into DIR/name/version, with its card
jaxtrain data card DIR|file.py[:function]            show the card
jaxtrain data check DIR                              re-read everything; name file and record of any damage
jaxtrain data diff DIR DIR                           what changed from one version to another
jaxtrain data bench EXPERIMENT [--tune] [--picture]  what the step waits for, and which value to change"""


@dataclass(frozen=True, kw_only=True)
class Build:
    """Build a data set: a folder of files with a card."""

    spec: Annotated[str, tyro.conf.Positional]
    """file.py[:function], a function annotated `-> Dataset`."""
    out: Path | None = None
    """Where data sets are kept; $JAXTRAIN_DATA or the user's cache by default."""


@dataclass(frozen=True, kw_only=True)
class Show:
    """Show the card of a data set."""

    what: Annotated[str, tyro.conf.Positional]
    """Its folder, or the file.py[:function] it was built from."""
    out: Path | None = None
    """Where data sets are kept, if a file is given."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """Re-read all of a data set and compare it with its card."""

    folder: Annotated[Path, tyro.conf.Positional]
    """The data set's folder."""


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Say what changed from one data set to another."""

    before: Annotated[Path, tyro.conf.Positional]
    """A data set's folder."""
    after: Annotated[Path, tyro.conf.Positional]
    """Another's."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Measure the chain from record to step, stage by stage."""

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    batches: int = 30
    """How many to measure."""
    tune: bool = False
    """Also try threads, workers and prefetch, and say the fastest."""
    step_seconds: float | None = None
    """Put a sleep of so long in the step's place: an accelerator that shares no cores with reading."""
    picture: Path | None = None
    """A PNG file for the timeline, sequential and overlapped."""


def build_verb(arguments: Sequence[str]) -> None:
    """`jaxtrain data build`."""
    given = tyro.cli(Build, args=list(arguments), prog="jaxtrain data build")
    from jaxtrain.base.provenance import revision

    folder = build(load_kind(given.spec, Dataset)[0], given.out, revision(), lambda text: print(text, file=sys.stderr))
    print(Card.read(folder), "", folder / "card.html", sep="\n")


def card_verb(arguments: Sequence[str]) -> None:
    """`jaxtrain data card`."""
    given = tyro.cli(Show, args=list(arguments), prog="jaxtrain data card")
    folder = Path(given.what)
    if not folder.is_dir():
        spec: Dataset = load_kind(given.what, Dataset)[0]
        folder = (given.out or home()) / spec.name / spec.version
        if not (folder / FILE).is_file():
            raise ConfigError(f"{spec.name} {spec.version} is not built: jaxtrain data build {given.what}")
    print(Card.read(folder), "", folder / "card.html", sep="\n")


def check_verb(arguments: Sequence[str]) -> None:
    """`jaxtrain data check`; exits with 1 where something is wrong."""
    given = tyro.cli(Check, args=list(arguments), prog="jaxtrain data check")
    from jaxtrain.datasets.check import check

    count = 0
    for fault in check(given.folder):
        print(fault)
        count += 1
    if count:
        print(f"{given.folder}: {count} faults", file=sys.stderr)
        sys.exit(1)
    records = sum(split.records for split in Card.read(given.folder).splits.values())
    print(f"{given.folder}: all {records:,} records are as the card says")


def diff_verb(arguments: Sequence[str]) -> None:
    """`jaxtrain data diff`."""
    given = tyro.cli(Compare, args=list(arguments), prog="jaxtrain data diff")
    from jaxtrain.datasets.check import diff

    print(diff(given.before, given.after))


def bench_verb(arguments: Sequence[str]) -> None:
    """`jaxtrain data bench`."""
    if not arguments or arguments[0].startswith("-"):
        raise ConfigError(f"data bench: name an experiment first\n\n{USAGE}")
    experiment, _ = load(arguments[0])
    prog = f"jaxtrain data bench {arguments[0]}"
    given = tyro.cli(Bench, default=Bench(experiment=experiment), args=list(arguments[1:]), prog=prog)
    from jaxtrain.analysis.databench.advise import advice
    from jaxtrain.analysis.databench.draw import timeline
    from jaxtrain.analysis.databench.measure import bench

    report = bench(given.experiment, given.batches, given.tune, given.step_seconds)
    print(report, advice(report))
    if given.picture is not None:
        timeline(report, given.picture)
        print(given.picture)


VERBS: dict[str, Callable[[Sequence[str]], None]] = {
    "build": build_verb,
    "card": card_verb,
    "check": check_verb,
    "diff": diff_verb,
    "bench": bench_verb,
}


def data(arguments: Sequence[str]) -> None:
    """`jaxtrain data`."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE)
        return
    if arguments[0] not in VERBS:
        raise ConfigError(f"there is no verb 'data {arguments[0]}'{nearest(arguments[0], VERBS)}\n\n{USAGE}")
    VERBS[arguments[0]](arguments[1:])

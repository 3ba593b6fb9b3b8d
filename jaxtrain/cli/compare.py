"""The verbs `compare` and `diff`. Not here: their implementation."""

from pathlib import Path
from typing import Annotated

import tyro

from jaxtrain.base.errors import ConfigError
from jaxtrain.base.files import json_text

RunFolders = Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN RUN …")]


def compare(
    runs: RunFolders,
    split: str | None = None,
    metric: tuple[str, ...] = (),
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Compare runs with the first of them: what they differ in, from which step on, and whether one is better.

    A difference of a metric is said with an interval, on the examples that both were evaluated on, if their rows were
    kept; over seeds too, where runs differ in their seed alone. Nothing is written into the runs.

    Args:
        runs: The folders of two runs or more.
        split: The only split to compare; all by default.
        metric: The only metrics to compare.
        json: Print JSON.
    """
    from jaxtrain.reports.compare.comparison import compare as compared

    found = compared(runs, split, metric)
    print(json_text(found.as_json()) if json else found.text())


def diff(runs: RunFolders, json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False) -> None:
    """Show what two runs differ in and from which step on: the first half of `compare`.

    Args:
        runs: The folders of two runs.
        json: Print JSON.
    """
    from jaxtrain.reports.compare.comparison import compare as compared
    from jaxtrain.reports.compare.text import differences_page

    if len(runs) != 2:
        raise ConfigError(f"diff: {len(runs)} runs are given: name two run folders, or call `jaxtrain compare`")
    found = compared(runs)
    print(json_text(found.as_json()) if json else differences_page(found))

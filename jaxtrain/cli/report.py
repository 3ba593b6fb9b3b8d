"""The verb `report`. Not here: what the page holds."""

from pathlib import Path

from jaxtrain.base.errors import ConfigError
from jaxtrain.cli.verbs import Code, RunFolder

MOST_SAMPLES = 20
"""Texts that a page may have."""


def report(run: RunFolder, out: Path | None = None, code: Code = None, samples: int = 3) -> None:
    """Write a page about a run: what it was, its curves, how well it does, where its time went, what happened.

    The page is one HTML file that needs no network. A crashed or damaged run has one too: it says what is missing.

    Args:
        run: The run's folder, or that of a sweep.
        out: The file to write; report.html in the folder by default.
        code: The experiment's file, or one that imports it: needed for classes and data in memory of your own.
        samples: How many texts a language model writes for the page; 0 reads no checkpoint.
    """
    from jaxtrain.reports.report import report as write
    from jaxtrain.reports.sweep.read import SWEEP_FILE
    from jaxtrain.reports.sweep.report import sweep_report

    if not 0 <= samples <= MOST_SAMPLES:
        raise ConfigError(f"--samples {samples}: give a number from 0 to {MOST_SAMPLES}")
    print(sweep_report(run, out) if (run / SWEEP_FILE).is_file() else write(run, out, code, samples))

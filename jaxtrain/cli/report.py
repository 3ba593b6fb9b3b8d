"""The verb `report`. Not here: what the page holds."""

from pathlib import Path

from jaxtrain.cli.verbs import Code, RunFolder


def report(run: RunFolder, out: Path | None = None, code: Code = None) -> None:
    """Write a page about a run: what it was, its curves, how well it does, where its time went, what happened.

    The page is one HTML file that needs no network. A crashed or damaged run has one too: it says what is missing.

    Args:
        run: The run's folder, or that of a sweep.
        out: The file to write; report.html in the folder by default.
        code: The experiment's file, or one that imports it: needed for classes and data in memory of your own.
    """
    from jaxtrain.reports.report import report as write

    print(write(run, out, code))

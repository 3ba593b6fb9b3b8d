"""The verb `lineage`. Imports no jax. Not here: how it is found and drawn."""

import sys
from pathlib import Path
from typing import Annotated

import tyro

from jaxtrain.base.files import json_text


def lineage(
    thing: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN|DATASET|BUNDLE|SWEEP")],
    within: tuple[Path, ...] = (),
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Show what a run, built dataset, bundle or sweep was made from, and what was made from it. Writes nothing.

    Args:
        thing: Its folder.
        within: The folders to search for what was made from it, and for what was moved; by default the folder that it
            is in, and runs/ and bundles/ here.
        json: Print JSON instead of a tree.
    """
    from jaxtrain.reports.lineage.text import draw
    from jaxtrain.reports.lineage.tree import trace_lineage

    found = trace_lineage(thing, within)
    print(json_text(found.as_facts()) if json else draw(found, sys.stdout.encoding))

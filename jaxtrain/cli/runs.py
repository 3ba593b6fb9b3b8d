"""The verbs that show runs: runs, watch. Imports no jax. Not here: what they show."""

import sys
from pathlib import Path
from typing import Annotated

import tyro

from jaxtrain.base.files import json_text
from jaxtrain.cli.verbs import RunFolder


def runs(
    place: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")] = Path("runs"),
    sort: str = "updated",
    reverse: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    where: tuple[str, ...] = (),
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """List the runs below a folder: state, step, best metric, age, parent and sweep of each. Writes nothing.

    States: running; finished; stopped (Ctrl-C); preempted (by a signal of the machine: the same command resumes it);
    crashed; stalled (it lives, and nothing goes on, or there is no heartbeat); unreadable.

    Args:
        place: The folder; by default runs/.
        sort: run, state, experiment, step, of, phase, best, began, updated, parent, sweep or host.
        reverse: In reverse order.
        where: Conditions, such as state=running, "experiment=digits*", "step>100", "parent!=".
        json: Print JSON instead of a table.
    """
    from jaxtrain.reports.listing import as_facts, as_table, keep_runs, list_runs, sort_runs

    found = list_runs(place)
    shown = sort_runs(keep_runs(found, where), sort, reverse)
    if json:
        print(json_text(as_facts(shown)))
    elif shown:
        print(as_table(shown, place))
    else:
        what = "none of its runs is so" if found else "there is no run"
        print(f"{place}: {what}", file=sys.stderr)


def watch(run: RunFolder, once: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False) -> None:
    """Show a run as it goes on, from any shell or machine that sees its folder, until it ends. Writes nothing.

    Args:
        run: The run's folder.
        once: Show it as it is, and end.
    """
    from jaxtrain.reports.watch import watch as follow

    follow(run, once=once)

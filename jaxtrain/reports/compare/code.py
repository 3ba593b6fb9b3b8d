"""Differences of code: the experiment's file, the git revisions, and changes that were not committed.

Not here: reading the run folders.
"""

import difflib
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxtrain.reports.compare.differences import Difference
from jaxtrain.reports.compare.facts import RunFacts

LONGEST = 200_000
"""Characters of a diff that are kept."""

_SECONDS = 20

NOT_HERE = "the repository of these revisions is not here: call this in it to see what changed"


def code_differences(runs: Sequence[RunFacts]) -> list[Difference]:
    """What the code of some runs differs in: each run beside the first. A change in the experiment's file is not said
    again as one of the repository.
    """
    return [replace(each, place=place) for place in range(1, len(runs)) for each in _of_pair(runs[0], runs[place])]


def _of_pair(one: RunFacts, two: RunFacts) -> Iterator[Difference]:
    said: set[str] = set()
    if one.file and two.file and one.file != two.file:
        text = _diff(one.file[1], two.file[1], f"{one.name}/{one.file[0]}", f"{two.name}/{two.file[0]}")
        names = one.file[0] if one.file[0] == two.file[0] else f"{one.file[0]} → {two.file[0]}"
        yield Difference("code", f"the experiment's file {names}", ("", ""), (), text)
        said = {Path(_origin(run)).name for run in (one, two)}
    git = [_git(run) for run in (one, two)]
    if not all(git):
        return
    revisions = [str(each.get("revision")) for each in git]
    if revisions[0] != revisions[1]:
        changes = between(revisions[0], revisions[1])
        files = {name: part for name, part in by_file(changes or "").items() if Path(name).name not in said}
        if changes is None or files or not said:
            name = "git revision" + (f": {_listed(files)}" if files else "")
            text = f"{NOT_HERE}\n" if changes is None else "".join(files.values())
            yield Difference("code", name, tuple(each[:12] for each in revisions), (), text[:LONGEST])
    dirty = [by_file(each.get("diff") or "") for each in git]
    for name in dict.fromkeys([*dirty[0], *dirty[1]]):
        before, after = (each.get(name, "") for each in dirty)
        if before != after and Path(name).name not in said:
            values = tuple("changed" if each else "as committed" for each in (before, after))
            text = _diff(before, after, f"{one.name}, not committed", f"{two.name}, not committed")
            text = text if before and after else before or after
            yield Difference("code", f"not committed: {name}", values, (), text)


def between(one: str, two: str, folder: Path | None = None) -> str | None:
    """`git diff` from one revision to another in the repository of a folder (default: the working directory); None
    where it does not have them. Revisions come from run folders, so that nothing but a hash is given to git.
    """
    if not all(re.fullmatch(r"[0-9a-f]{7,64}", each) for each in (one, two)):
        return None
    command = ["git", "diff", "--no-color", "--no-ext-diff", "--no-textconv", one, two, "--"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None


def by_file(diff: str) -> dict[str, str]:
    """The parts of a git diff by the name of the file."""
    parts = re.split(r"^(?=diff --git )", diff, flags=re.MULTILINE)
    named = {}
    for part in parts:
        if found := re.match(r"diff --git (?:\"?a/.*?\"?) \"?b/(.*?)\"?\n", part):
            named[found[1]] = part
    return named


def _diff(before: str, after: str, one: str, two: str) -> str:
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), one, two, n=2, lineterm="")
    return "\n".join(lines)[:LONGEST] + "\n"


def _listed(files: Mapping[str, str]) -> str:
    names = [*files]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more files" if len(names) > 3 else "")


def _origin(run: RunFacts) -> str:
    return str(run.saved.get("origin") or "").rpartition(":")[0]


def _git(run: RunFacts) -> Mapping[str, Any]:
    found = run.environment.get("git")
    return found if isinstance(found, dict) else {}

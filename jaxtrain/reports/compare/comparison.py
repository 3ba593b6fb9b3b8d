"""`compare(folders)`: what runs differ in, from which step on, and whether one is better. Not here: how it is shown."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jaxtrain.base.errors import ConfigError, nearest
from jaxtrain.base.packages import needs
from jaxtrain.reports.compare.code import code_differences
from jaxtrain.reports.compare.differences import (
    DIFFERENCE_KINDS,
    MISSING,
    ROUNDING_KINDS,
    Difference,
    config_differences,
)
from jaxtrain.reports.compare.facts import RunFacts, read_facts
from jaxtrain.reports.compare.parting import BY_ROUNDING, Parting, parting
from jaxtrain.reports.compare.scores import ReadRows, Score, scores
from jaxtrain.reports.compare.seeds import SeedsScore, seed_scores

MOST_RUNS = 50
"""Runs that are compared at once: of more, a sweep has a report."""


@dataclass(frozen=True)
class Comparison:
    """Some runs beside the first of them."""

    runs: tuple[RunFacts, ...]
    differences: tuple[Difference, ...]
    partings: tuple[Parting | None, ...]
    """How the steps of each run but the first differ from those of the first; None without a common step."""
    scores: tuple[Score, ...]
    seeds: tuple[SeedsScore, ...]

    @property
    def wrong(self) -> list[str]:
        """What could not be read."""
        return [each for run in self.runs for each in run.wrong]

    def text(self) -> str:
        """What a terminal shows."""
        from jaxtrain.reports.compare.text import comparison_page

        return comparison_page(self)

    def between(self, place: int) -> list[Difference]:
        """What the run at a place differs from the first in."""
        return [each for each in self.differences if each.is_between(place)]

    def acts_from(self, place: int) -> str:
        """From which step on the differences of the run at a place from the first act, in words."""
        found = self.partings[place - 1]
        if found is None:
            return "they have no step in common"
        what = f"{found.steps:,} steps" if found.per_step else f"{found.steps:,} logged lines"
        if found.first is None:
            return f"batches and losses are the same in all {what}, to the last bit"
        said = []
        if found.per_step and found.batch is None:
            said.append(f"batches are the same in all {what}")
        elif found.batch is not None:
            said.append(f"batches part at step {found.batch}")
        if found.loss is not None and found.losses is not None:
            one, two = found.losses
            said.append(
                f"losses part at step {found.loss}{self._how(found, place)}: {one:.7g} and {two:.7g}{_since(found)}"
            )
        elif found.batch is not None:
            said.append(f"losses are the same in all {what}")
        if found.gradient is not None and found.gradient < (found.loss or 2**63):
            said.append(f"gradient norms part at step {found.gradient}")
        if found.skipped is not None:
            said.append(f"step {found.skipped} was skipped in one of them alone")
        return "; ".join(said)

    def _how(self, found: Parting, place: int) -> str:
        """Whether rounding explains a difference of losses: it is small, and nothing else may have made it."""
        kinds = {each.kind for each in self.between(place) if each.kind != "length"}
        if found.batch is None and found.relative <= BY_ROUNDING and kinds <= {*ROUNDING_KINDS}:
            return f" by rounding (relative {found.relative:.0e}, at most {found.largest:.0e})"
        return f" (relative {found.relative:.0e})"

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            "runs": [
                {
                    "name": run.name,
                    "folder": str(run.folder),
                    "fingerprint": run.saved.get("fingerprint"),
                    "step": run.last_step,
                    "of": run.config.get("steps"),
                }
                for run in self.runs
            ],
            "not_read": self.wrong,
            "comparable": {name: same for name, same, _ in comparable(self)},
            "differences": [asdict(each) for each in self.differences],
            "partings": [
                None if found is None else {**asdict(found), "first": found.first, "words": self.acts_from(place)}
                for place, found in enumerate(self.partings, 1)
            ],
            "scores": [asdict(each) for each in self.scores],
            "seeds": [asdict(each) for each in self.seeds],
        }

    def frame(self) -> Any:
        """The scores as a pandas DataFrame: a row for each split, metric and run. Raises ConfigError without pandas."""
        with needs("a frame of a comparison", "pandas", "notebook"):
            import pandas as pd
        rows = [
            {
                "split": score.split,
                "metric": score.metric,
                "run": run.name,
                "step": score.steps[place],
                "value": score.values[place],
                **{
                    name: None if verdict is None else getattr(verdict, name)
                    for name in ("difference", "low", "high", "examples")
                },
                "verdict": "" if verdict is None else verdict.words,
            }
            for score in self.scores
            for place, (run, verdict) in enumerate(zip(self.runs, score.against, strict=True))
        ]
        columns = ["split", "metric", "run", "step", "value", "difference", "low", "high", "examples", "verdict"]
        return pd.DataFrame(rows, columns=columns)


def compare(
    folders: Sequence[Path | str],
    split: str | None = None,
    metrics: Sequence[str] = (),
    read_rows: ReadRows | None = None,
) -> Comparison:
    """Compare runs, each with the first.

    split: the only split to compare; by default all. metrics: the only ones. read_rows: reads the rows that a run kept
    of an evaluation.

    Raises ConfigError for fewer than two runs, a folder that is not a run, and an unknown split or metric.
    """
    if len(folders) < 2:
        raise ConfigError(f"compare: {len(folders)} runs are given: name at least two run folders")
    if len(folders) > MOST_RUNS:
        raise ConfigError(f"compare: {len(folders)} runs are given, and at most {MOST_RUNS} are compared at once")
    runs = read_facts([Path(folder) for folder in folders])
    splits = list(dict.fromkeys(name for run in runs for name in run.splits))
    if split is not None and split not in splits:
        raise ConfigError(f"--split {split}: none of the runs was evaluated on it{nearest(split, splits)}")
    splits = splits if split is None else [split]
    known = {name for run in runs for one in splits for name in run.final(one)} - {"step", "split"}
    for metric in metrics:
        if metric not in known | {name.partition("/")[0] for name in known}:
            raise ConfigError(f"--metric {metric}: none of the runs has it{nearest(metric, known)}")
    found = [*config_differences(runs), *code_differences(runs)]
    found.sort(key=lambda each: [*DIFFERENCE_KINDS].index(each.kind))
    return Comparison(
        runs=tuple(runs),
        differences=tuple(found),
        partings=tuple(parting(runs[0], run) for run in runs[1:]),
        scores=tuple(scores(runs, found, read_rows or _read_rows, splits, metrics)),
        seeds=tuple(seed_scores(runs, splits, metrics)),
    )


def _read_rows(folder: Path, split: str) -> Any:
    raise ConfigError(f"{folder} keeps no rows of {split}")


def comparable(found: Comparison) -> list[tuple[str, bool | None, str]]:
    """What has to be equal for a comparison to be fair: its name, whether it is (None: not known), and its value where
    it is equal.
    """
    runs = found.runs
    kinds = {each.kind for each in found.differences}
    config, environment = all(run.config for run in runs), all(run.environment for run in runs)
    first = runs[0]
    git = first.environment.get("git") or {}
    hardware = first.environment.get("hardware") or {}
    revision = str(git.get("revision") or "no repository")[:12] + (" with changes" if git.get("diff") else "")
    tasks = {_task(run) for run in runs}
    steps = {run.last_step for run in runs}
    prints = {run.saved.get("fingerprint") for run in runs}
    machine = f"{hardware.get('devices')} × {hardware.get('device')}"
    rows: list[tuple[str, bool | None, str]] = [
        ("data", "data" not in kinds if config else None, "the same hash"),
        ("task", len(tasks) == 1 if config else None, " of ".join(_task(first))),
        ("fingerprint", len(prints) == 1 if config else None, str(first.saved.get("fingerprint"))),
        ("code", "code" not in kinds if environment else None, revision),
        ("seed", "seed" not in kinds if config else None, str(first.config.get("seed"))),
        ("packages", "packages" not in kinds if environment else None, f"jaxtrain {first.saved.get('version')}"),
        ("hardware", "machine" not in kinds if environment else None, machine),
        ("layout", "layout" not in kinds if config else None, "the same mesh and rules"),
        ("steps", None if None in steps else len(steps) == 1, str(first.last_step)),
    ]
    return rows


def _task(run: RunFacts) -> tuple[str, str]:
    return str(run.config.get("task.kind", MISSING)), str(run.config.get("task.model.kind", MISSING))


def _since(found: Parting) -> str:
    """The update that made the losses part, where it was one."""
    if found.loss is None or found.loss == 1 or found.batch is not None or not found.per_step:
        return ""
    return f", so the difference acts from the update of step {found.loss - 1} on"

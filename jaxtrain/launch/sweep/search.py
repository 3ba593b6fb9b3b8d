"""Where the values of a trial come from: the grid or the draws, or a study of Optuna that learns from earlier trials.

Not here: who runs which trial (`claims`), and what is recorded.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxtrain.base.packages import needs
from jaxtrain.reports.sweep.space import Between, Space, as_values

STUDY = "study.log"
"""The journal of Optuna's study, to which all drivers append."""


class Search:
    """Chooses the values of trials."""

    def ask(self, number: int) -> dict[str, Any]:
        """What is kept of a trial that begins: `values` by path, and what `tell` needs. Asked once for each trial."""
        raise NotImplementedError

    def tell(self, asked: Mapping[str, Any], state: str, value: float | None) -> None:
        """How that trial ended: its state, and its value where it finished."""


class GridOrDraws(Search):
    """A grid and draws that are known beforehand."""

    def __init__(self, space: Space) -> None:
        self._space = space

    def ask(self, number: int) -> dict[str, Any]:
        return {"number": number, "values": self._space.point(number)}


class Adaptive(Search):
    """Optuna's tree-structured Parzen estimator (Bergstra et al. 2011), which proposes values that resemble the good
    trials more than the bad ones. The first `max(4, draws / 4)`, at most 10, are drawn at random.

    The study is a journal file, which Optuna locks by creating a second one, so that drivers need no server.
    """

    def __init__(self, folder: Path, space: Space, mode: str) -> None:
        """Raises ConfigError without the package optuna."""
        with needs("an adaptive sweep", "optuna", "sweep"):
            import optuna
            from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space, self._optuna = space, optuna
        journal = str(folder / STUDY)
        storage = optuna.storages.JournalStorage(JournalFileBackend(journal, lock_obj=JournalFileOpenLock(journal)))
        direction = "maximize" if mode == "max" else "minimize"
        self._study = optuna.create_study(storage=storage, study_name="sweep", direction=direction, load_if_exists=True)
        named = optuna.distributions
        self._ranges: dict[str, Any] = {}
        for axis in space.drawn:
            if not isinstance(axis, Between):
                self._ranges[axis.path] = named.CategoricalDistribution([json.dumps(value) for value in axis.values])
            elif axis.whole:
                self._ranges[axis.path] = named.IntDistribution(int(axis.low), int(axis.high), log=axis.log)
            else:
                self._ranges[axis.path] = named.FloatDistribution(axis.low, axis.high, log=axis.log)

    def ask(self, number: int) -> dict[str, Any]:
        # A sampler for each trial: drivers with one seed would otherwise begin with the same draws.
        seed = int(np.random.SeedSequence([self._space.seed, number]).generate_state(1)[0])
        first = min(10, max(4, math.ceil(self._space.draws / 4)))
        sampler = self._optuna.samplers.TPESampler(seed=seed, n_startup_trials=first, constant_liar=True)
        self._study.sampler = sampler
        trial = self._study.ask(self._ranges)
        return {"number": number, "optuna": trial.number, "values": self._values(trial.params)}

    def tell(self, asked: Mapping[str, Any], state: str, value: float | None) -> None:
        if type(asked.get("optuna")) is not int:
            return
        states = self._optuna.trial.TrialState
        known = {"finished": states.COMPLETE, "pruned": states.PRUNED, "failed": states.FAIL}
        values = value if state == "finished" else None
        self._study.tell(asked["optuna"], values, state=known[state], skip_if_finished=True)

    def _values(self, params: Mapping[str, Any]) -> dict[str, Any]:
        found = {}
        for axis in self._space.drawn:
            value = params[axis.path]
            found[axis.path] = value if isinstance(axis, Between) else as_values(json.loads(value))
        return found

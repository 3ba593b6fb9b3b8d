"""Parameter groups: another optimizer for every group, or none. Not here: the optimizers."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import jax
import optax

from jaxtrain.base.errors import ConfigError, nearest
from jaxtrain.optimizers.guarded import Guarded
from jaxtrain.optimizers.standard import Optimizer


@dataclass(frozen=True, kw_only=True)
class Frozen(Optimizer):
    """Leaves the parameters of a group as they are: `TrainState.frozen` holds them, without gradients and optimizer
    state.
    """

    def build(self, steps: int) -> optax.GradientTransformation:
        """Raises ConfigError: it is for groups only."""
        raise ConfigError("optimizer: Frozen() trains nothing: use it in Groups({pattern: Frozen(), '*': AdamW()})")


@dataclass(frozen=True, kw_only=True)
class Groups(Optimizer):
    """An optimizer for each group of parameters, given by patterns of their paths:

        Groups(groups={"head/*": AdamW(schedule=CosineDecay(peak=1e-3)), "*": Frozen()})

    A parameter belongs to the first pattern that matches its path, in which `*` stands for anything. An optimizer sees
    its group alone: `clip` is of the norm of the group's gradient, and each may keep its own average of parameters.

    Raises ConfigError where a pattern gets no parameter and where a parameter gets no optimizer.
    """

    groups: Mapping[str, Optimizer]

    def __post_init__(self) -> None:
        """Raises ConfigError for no groups, for groups of groups, and for what is no `Optimizer`."""
        if not (isinstance(self.groups, Mapping) and self.groups):
            raise ConfigError(f"optimizer.groups: {self.groups!r} has no patterns: give at least {{'*': AdamW()}}")
        for pattern, each in self.groups.items():
            if not isinstance(each, Optimizer):
                instead = "for one of optax, subclass Optimizer, whose build returns it"
                raise ConfigError(f"optimizer.groups: {pattern!r} has a {type(each).__name__}, no Optimizer: {instead}")
            if isinstance(each, Groups):
                raise ConfigError(f"optimizer.groups: {pattern!r} has Groups: write their patterns here, in one Groups")
            if isinstance(each, Guarded):
                raise ConfigError(
                    f"optimizer.groups: {pattern!r} is Guarded: a guard judges whole steps: Guarded(Groups(…))"
                )

    def build(self, steps: int) -> optax.GradientTransformation:
        """All but the frozen groups."""
        trained = {pattern: each for pattern, each in self.groups.items() if not isinstance(each, Frozen)}
        if not trained:
            raise ConfigError("optimizer.groups: all groups are Frozen(): nothing is left to train")
        return optax.partition({pattern: each.build(steps) for pattern, each in trained.items()}, self._labels)

    def rates(self, steps: int) -> Mapping[str, optax.Schedule]:
        """Those of all groups, each with its pattern, as `learning_rate/head/*`."""
        return {
            f"{name}/{pattern}": rate
            for pattern, each in self.groups.items()
            for name, rate in each.rates(steps).items()
        }

    def frozen(self, paths: Collection[str]) -> list[str]:
        """The parameters of frozen groups."""
        groups = {path: self._group(path) for path in paths}
        for pattern in self.groups:
            if pattern not in groups.values():
                matched = [path for path in paths if fnmatchcase(path, pattern)]
                why = f"those it matches are of groups before it, such as {groups[matched[0]]!r}" if matched else ""
                raise ConfigError(
                    f"optimizer.groups: {pattern!r} gets no parameter{f': {why}' if why else nearest(pattern, paths)}"
                )
        return [path for path, group in groups.items() if isinstance(self.groups[group], Frozen)]

    def _labels(self, params: Any) -> Any:
        def label(path: Any, _: Any) -> str:
            return self._group(jax.tree_util.keystr(path, simple=True, separator="/"))

        return jax.tree_util.tree_map_with_path(label, params)

    def _group(self, path: str) -> str:
        group = next((pattern for pattern in self.groups if fnmatchcase(path, pattern)), None)
        if group is None:
            raise ConfigError(
                f"optimizer.groups: no pattern matches the parameter {path}: add one, such as '*': Frozen()"
            )
        return group

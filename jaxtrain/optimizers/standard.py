"""Optimizers and schedules as values that build optax transformations.

Not here: the update itself. `train_step` takes any `optax.GradientTransformation`, also one written by hand.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

import jax
import optax
from optax import contrib

from jaxtrain.base.config import changed
from jaxtrain.base.errors import ConfigError
from jaxtrain.base.ranges import (
    Checked,
    Fraction,
    FractionBelow1,
    NonNegative,
    NonNegativeInt,
    Positive,
    PositiveInt,
    Range,
)
from jaxtrain.optimizers.state import average_parameters, has_narrow, master_weights


@dataclass(frozen=True, kw_only=True)
class Schedule(Checked, ABC):
    """A learning rate for every step. All of them warm up linearly to `peak`, and keep the rate at the end of their
    horizon for all steps after it.
    """

    peak: NonNegative = 1e-3
    warmup: NonNegativeInt = 0
    """Steps of warm-up."""
    start: Fraction = 0.0
    """The rate of the first step of a warm-up, as a fraction of `peak`."""
    steps: PositiveInt | None = None
    """The horizon: how many steps the schedule is made for. None is the run's steps when it begins; a run keeps that
    when it is resumed with other `steps`.
    """

    def __post_init__(self) -> None:
        """Raises ConfigError for a first rate without warm-up."""
        if self.start and not self.warmup:
            raise ConfigError(f"optimizer.schedule.start: {self.start} is where a warm-up begins, but warmup is 0")

    def build(self, steps: int) -> optax.Schedule:
        """Step to learning rate, for a run of `steps` updates unless the schedule has its own horizon.

        Raises ConfigError if the warm-up does not fit in.
        """
        horizon, own = (steps, "") if self.steps is None else (self.steps, ", which is the schedule's own horizon")
        if self.warmup > horizon:
            raise ConfigError(f"optimizer.schedule.warmup: {self.warmup} steps do not fit in a run of {horizon}{own}")
        rise = optax.linear_schedule(self.start * self.peak, self.peak, self.warmup)
        return optax.join_schedules([rise, self.after(max(horizon - self.warmup, 1))], [self.warmup])

    @abstractmethod
    def after(self, steps: int) -> optax.Schedule:
        """The schedule of the steps after the warm-up, which begins at `peak`."""


@dataclass(frozen=True, kw_only=True)
class ConstantRate(Schedule):
    """`peak` to the end."""

    def after(self, steps: int) -> optax.Schedule:
        """A constant."""
        return optax.constant_schedule(self.peak)


@dataclass(frozen=True, kw_only=True)
class CosineDecay(Schedule):
    """A half cosine to `floor` × `peak` (Loshchilov & Hutter 2017, arXiv:1608.03983)."""

    floor: Fraction = 0.1

    def after(self, steps: int) -> optax.Schedule:
        """A half cosine."""
        return optax.cosine_decay_schedule(self.peak, steps, self.floor)


@dataclass(frozen=True, kw_only=True)
class LinearDecay(Schedule):
    """A straight line to `floor` × `peak`."""

    floor: Fraction = 0.0

    def after(self, steps: int) -> optax.Schedule:
        """A straight line."""
        return optax.linear_schedule(self.peak, self.peak * self.floor, steps)


@dataclass(frozen=True, kw_only=True)
class WSD(Schedule):
    """Warm-up, stable, decay: `peak` until the last `decay` fraction of the steps, then a line to `floor` × `peak`
    (Hu et al. 2024, arXiv:2404.06395).
    """

    decay: Fraction = 0.2
    floor: Fraction = 0.0

    def after(self, steps: int) -> optax.Schedule:
        """A constant, then a straight line."""
        falling = max(round(steps * self.decay), 1)
        fall = optax.linear_schedule(self.peak, self.peak * self.floor, falling)
        return optax.join_schedules([optax.constant_schedule(self.peak), fall], [steps - falling])


@dataclass(frozen=True, kw_only=True)
class Optimizer(Checked, ABC):
    """A config that builds an optax transformation. Any of optax's, or your own, is a subclass with one method:

        @dataclass(frozen=True, kw_only=True)
        class Adan(Optimizer):
            rate: Positive = 1e-3

            def build(self, steps: int) -> optax.GradientTransformation:
                return optax.adan(self.rate)

    Optimizer state that has the shape of its parameter is sharded like it.
    """

    @abstractmethod
    def build(self, steps: int) -> optax.GradientTransformation:
        """The transformation for a run of `steps` steps.

        A run that is resumed with other steps keeps the horizon it began with.
        """

    def transformation(self, steps: int, params: Any) -> optax.GradientTransformation:
        """What a run uses: `build`, by `master_weights` where a parameter is narrower than f32.

        Raises ConfigError where `build` returns no optax transformation.
        """
        built = self.build(steps)
        if not (hasattr(built, "init") and hasattr(built, "update")):
            found = f"{type(self).__name__}.build returned {built!r}"
            raise ConfigError(f"optimizer: {found}, not an optax transformation, such as optax.adamw(1e-3)")
        return master_weights(built) if has_narrow(params) else built

    def rates(self, steps: int) -> Mapping[str, optax.Schedule]:
        """The learning rates to log, by name, as functions of the step; none by default."""
        return {}

    def frozen(self, paths: Collection[str]) -> list[str]:
        """The paths of the parameters that are not trained; none by default. `paths`: those of all parameters."""
        return []


@dataclass(frozen=True, kw_only=True)
class Standard(Optimizer):
    """A learning rate schedule, clipping, decoupled weight decay and an average of the parameters, around `scale`."""

    schedule: Schedule = CosineDecay()
    clip: Annotated[float, Range(above=0, hint="None: no clipping")] | None = 1.0
    """The largest global norm of a gradient; None does not clip."""
    weight_decay: NonNegative = 0.0
    decayed: tuple[str, ...] = ("kernel",)
    """The names of the parameters that decay: those whose last path part is one of these."""
    ema: Annotated[float, Range(above=0, below=1, hint="None: no average")] | None = None
    """The decay of an exponential moving average of the parameters, which evaluation then uses; None keeps none."""

    def build(self, steps: int) -> optax.GradientTransformation:
        """Clipping, `scale`, weight decay, learning rate and averaging, in this order."""
        parts = [self.scale(), optax.add_decayed_weights(self.weight_decay, self.decays)]
        parts += [optax.scale_by_learning_rate(self.schedule.build(steps))]
        clipped = [optax.clip_by_global_norm(self.clip)] if self.clip is not None else []
        averaged = [average_parameters(self.ema)] if self.ema is not None else []
        return optax.chain(*clipped, *parts, *averaged)

    def rates(self, steps: int) -> Mapping[str, optax.Schedule]:
        """The schedule, as `learning_rate`."""
        return {"learning_rate": self.schedule.build(steps)}

    @abstractmethod
    def scale(self) -> optax.GradientTransformation:
        """From gradients to directions, before decay and learning rate."""

    def decays(self, params: Any) -> Any:
        """True at the parameters that decay. Raises ConfigError where a name matches none."""
        names = jax.tree_util.tree_map_with_path(lambda path, _: last_name(path), params)
        for name in self.decayed if self.weight_decay else ():
            if name not in (known := set(jax.tree.leaves(names))):
                raise ConfigError(
                    f"optimizer.decayed: no parameter is named {name!r}; known: {', '.join(sorted(known))}"
                )
        return jax.tree.map(lambda name: name in self.decayed, names)


def with_horizon(optimizer: Optimizer, steps: int) -> Optimizer:
    """The optimizer with `steps` as the horizon of all of its schedules that have none of their own."""
    return changed(optimizer, Schedule, lambda one: replace(one, steps=steps) if one.steps is None else one)


def last_name(path: Any) -> str:
    """The last part of a key path: `kernel` for params/blocks/up/kernel."""
    return jax.tree_util.keystr(path[-1:], simple=True)


@dataclass(frozen=True, kw_only=True)
class AdamW(Standard):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, arXiv:1711.05101)."""

    b1: FractionBelow1 = 0.9
    b2: FractionBelow1 = 0.999
    epsilon: Positive = 1e-8

    def scale(self) -> optax.GradientTransformation:
        """Adam's moments."""
        return optax.scale_by_adam(self.b1, self.b2, self.epsilon)


@dataclass(frozen=True, kw_only=True)
class SGD(Standard):
    """Stochastic gradient descent with momentum."""

    momentum: FractionBelow1 = 0.9
    nesterov: bool = False

    def scale(self) -> optax.GradientTransformation:
        """A trace of gradients."""
        return optax.trace(self.momentum, self.nesterov)


@dataclass(frozen=True, kw_only=True)
class Lion(Standard):
    """The sign of a momentum (Chen et al. 2023, arXiv:2302.06675); wants a 3–10 times smaller `peak` than AdamW."""

    b1: FractionBelow1 = 0.9
    b2: FractionBelow1 = 0.99

    def scale(self) -> optax.GradientTransformation:
        """Signs."""
        return optax.scale_by_lion(self.b1, self.b2)


@dataclass(frozen=True, kw_only=True)
class Muon(Standard):
    """Orthogonalised momentum for kernels (Jordan et al. 2024, kellerjordan.github.io/posts/muon), scaled to Adam's
    size (Liu et al. 2025, arXiv:2502.16982); Adam for everything else.
    """

    beta: FractionBelow1 = 0.95
    b1: FractionBelow1 = 0.9
    b2: FractionBelow1 = 0.999

    def scale(self) -> optax.GradientTransformation:
        """Newton–Schulz on the last two dims of every kernel, Adam's moments elsewhere."""
        orthogonal = optax.chain(
            contrib.scale_by_muon(beta=self.beta, weight_dimension_numbers=_matrices),
            optax.stateless(_like_adam),
        )
        adam = optax.scale_by_adam(self.b1, self.b2)
        parts: Mapping[Hashable, optax.GradientTransformation] = {"muon": orthogonal, "adam": adam}
        return optax.partition(parts, lambda params: jax.tree_util.tree_map_with_path(_muon_or_adam, params))


def _muon_or_adam(path: Any, leaf: Any) -> str:
    return "muon" if last_name(path) == "kernel" else "adam"


def _matrices(params: Any) -> Any:
    return jax.tree.map(lambda leaf: contrib.MuonDimensionNumbers(leaf.ndim - 2, leaf.ndim - 1), params)


def _like_adam(updates: Any, params: Any) -> Any:
    # An orthogonal matrix has entries of size max(shape)^-½; Adam's are about 0.2.
    return jax.tree.map(lambda update: update * 0.2 * max(update.shape[-2:]) ** 0.5, updates)

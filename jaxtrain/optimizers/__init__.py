"""Optimizers, schedules and parameter groups as values that build optax transformations.

Not here: the update itself. `train_step` takes any `optax.GradientTransformation`, also one written by hand.
"""

from jaxtrain.optimizers.groups import Frozen, Groups
from jaxtrain.optimizers.guarded import Guarded, Policy, Rewind, Skip, SkipAndShrink, SkipSpikes
from jaxtrain.optimizers.standard import (
    SGD,
    WSD,
    AdamW,
    ConstantRate,
    CosineDecay,
    LinearDecay,
    Lion,
    Muon,
    Optimizer,
    Schedule,
    Standard,
    with_horizon,
)
from jaxtrain.optimizers.state import (
    AverageState,
    GuardState,
    average_parameters,
    averaged,
    guard_of,
    has_narrow,
    map_state,
    master_weights,
    widened,
)

__all__ = [
    "SGD",
    "WSD",
    "AdamW",
    "AverageState",
    "ConstantRate",
    "CosineDecay",
    "Frozen",
    "Groups",
    "GuardState",
    "Guarded",
    "LinearDecay",
    "Lion",
    "Muon",
    "Optimizer",
    "Policy",
    "Rewind",
    "Schedule",
    "Skip",
    "SkipAndShrink",
    "SkipSpikes",
    "Standard",
    "average_parameters",
    "averaged",
    "guard_of",
    "has_narrow",
    "map_state",
    "master_weights",
    "widened",
    "with_horizon",
]

"""What a model tells `jaxtrain verify` about its sizes: of its activations, and how to make it small."""

import math
from dataclasses import dataclass
from typing import Literal

from jaxtrain.base.ranges import Checked, NonNegativeInt, PositiveInt


@dataclass(frozen=True, kw_only=True)
class Activations(Checked):
    """The sizes of a model's activations, from which the textbook computes what a step has to send."""

    length: PositiveInt
    """Positions of a row in the blocks."""
    width: PositiveInt
    """Entries of the residual stream at each position."""
    layers: PositiveInt
    rounds: PositiveInt = 1
    """How often a batch passes through the stages of a pipeline."""
    heads: PositiveInt = 1
    kv_heads: NonNegativeInt = 0
    """Key/value heads; 0 where there is no attention."""
    state: NonNegativeInt = 0
    """Entries of a recurrent state, which is passed on along `length`; 0 where there is none."""
    ring: bool = False
    """Whether attention runs as a ring where `length` is split."""
    compute: Literal["float32", "bfloat16"] = "float32"
    """The dtype of matmul operands."""
    experts: NonNegativeInt = 0
    top_k: NonNegativeInt = 0
    """Experts a token is routed to."""
    expert_slots: NonNegativeInt = 0
    """Tokens of a row that one expert takes at most."""
    vocab: PositiveInt | None = None
    """Rows of the table that integer inputs index; None where the inputs are no such integers."""
    scores: NonNegativeInt = 0
    """Products with the vocabulary that give logits at every position."""
    tied: bool = False
    """Whether the table gives the logits too."""


def smaller(size: int, least: int, devices: int) -> int:
    """The smallest size from `least` on that has the same common divisor with `devices`; `size` if there is none."""
    return next((small for small in range(least, size) if divide_alike(small, size, devices)), size)


def divide_alike(one: int, other: int, devices: int) -> bool:
    """Whether the same divisors of `devices` divide both sizes, so that the same meshes fit."""
    return math.gcd(one, devices) == math.gcd(other, devices)

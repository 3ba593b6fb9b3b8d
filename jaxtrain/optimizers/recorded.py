"""What the flight recorder keeps of the parameters after each step. Not here: who keeps it.

For one device: on several, it would have to be sent. The update of a large parameter is estimated, from some of its
numbers before and after: the norm of all would read every parameter twice, 2 to 5% of a step with large tables of
embeddings. The norms of gradients by group are not reported: with them XLA rounds the
losses of some models otherwise.
"""

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtrain.base.ranges import Checked, Fraction, NonNegativeInt
from jaxtrain.models.params import STACKED
from jaxtrain.sharding.layout import named_leaves, path_name

SAMPLED = 4096
"""The most numbers of a group whose updates are measured: more are estimated from a regular grid of as many."""


@dataclass(frozen=True)
class Group(Checked):
    """A parameter, or each of the blocks that are stacked in one."""

    path: str
    stacked: tuple[NonNegativeInt, ...]
    """The sizes of its leading dims along which blocks are stacked; () for one that is not."""
    sampled: NonNegativeInt
    """Of the numbers of a block, how many are in a sample."""
    share: Fraction
    """What part of them that is."""

    @property
    def names(self) -> list[str]:
        """`path`, or `path[i]` for each block."""
        places = itertools.product(*map(range, self.stacked))
        return [self.path + (f"[{','.join(map(str, place))}]" if place else "") for place in places]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sampled:
    """Of one step: some numbers of each parameter after it."""

    sample: Any
    """f32[numbers]."""
    groups: tuple[Group, ...] = field(metadata={"static": True})


def groups_of(named: Any, trained: Any) -> tuple[Group, ...]:
    """The groups of the trained parameters; named: the `AxisNamed` leaves of all."""
    axes = {path_name(path): leaf.axes for path, leaf in named_leaves(named)}
    return tuple(_group(path, leaf, axes[path]) for path, leaf in _leaves(trained).items())


def _group(path: str, leaf: Any, axes: tuple[str | None, ...]) -> Group:
    stacked = leaf.shape[: sum(1 for _ in itertools.takewhile(lambda name: name in STACKED, axes))]
    dims = leaf.shape[len(stacked) :]
    kept = math.prod(-(-size // _stride(dims)) for size in dims)
    parts = 2 if jnp.issubdtype(leaf.dtype, jnp.complexfloating) else 1
    return Group(path, tuple(stacked), parts * kept, kept / max(1, math.prod(dims)))


def _stride(dims: tuple[int, ...]) -> int:
    """Of each dim, such that at most `SAMPLED` numbers are left."""
    stride = 1
    while math.prod(-(-size // stride) for size in dims) > SAMPLED:
        stride += 1
    return stride


def recorded(params: Any, groups: tuple[Group, ...]) -> Sampled:
    """What is reported of a step that led to these parameters."""
    return Sampled(_sample(params, groups), groups)


def _sample(params: Any, groups: tuple[Group, ...]) -> jax.Array:
    found = []
    for group, param in zip(groups, _leaves(params).values(), strict=True):
        stacked = len(group.stacked)
        strided = slice(None, None, _stride(param.shape[stacked:]))
        some = param[(slice(None),) * stacked + (strided,) * (param.ndim - stacked)]
        parts = (some.real, some.imag) if jnp.iscomplexobj(some) else (some,)
        blocks = [part.reshape(math.prod(group.stacked), -1) for part in parts]
        found.append(jnp.concatenate(blocks, axis=1).reshape(-1).astype(jnp.float32))
    return jnp.concatenate(found)


def update_squares(before: Sampled, after: Sampled) -> jax.Array:
    """Squared norms of the updates between two steps by group, f32[groups], from their samples."""
    return squares_between(after.groups)([before.sample, after.sample])[0]


@functools.lru_cache(maxsize=16)
def squares_between(groups: tuple[Group, ...]) -> Callable[[Sequence[jax.Array]], jax.Array]:
    """A compiled function of the samples of steps in a row, f32[numbers] each, to the squared norms of the updates
    between them, f32[steps - 1, groups]. One call for several steps costs far less than a call for each.
    """
    return jax.jit(lambda samples: squares_by_group(jnp.stack(samples), groups, jnp))


def squares_by_group(samples_SN: Any, groups: tuple[Group, ...], xp: Any = np) -> Any:
    """Squared norms of the updates between steps in a row, f32[steps - 1, groups], from their samples,
    f32[steps, numbers].
    """
    squares, place, found = xp.square(samples_SN[1:] - samples_SN[:-1]), 0, []
    for group in groups:
        blocks, size = math.prod(group.stacked), max(1, group.sampled)
        end = place + blocks * group.sampled
        found.append(squares[:, place:end].reshape(len(squares), -1, size).sum(2) / (group.share or 1))
        place = end
    return xp.concatenate(found, axis=1)


def norms_by_group(squares: np.ndarray | jax.Array, groups: tuple[Group, ...]) -> Mapping[str, float]:
    """Norms by the name of their group."""
    names = [name for group in groups for name in group.names]
    return dict(zip(names, np.sqrt(np.asarray(squares, np.float64)).tolist(), strict=True))


def _leaves(tree: Any) -> dict[str, Any]:
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}

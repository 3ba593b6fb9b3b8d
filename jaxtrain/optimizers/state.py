"""What optimizers keep besides the parameters: averages and wide copies of them. Not here: optimizers."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


def widened(x: Any) -> Any:
    """In f32 if its dtype is a narrower float."""
    return jnp.asarray(x, jnp.promote_types(x.dtype, jnp.float32))


class MasterState(NamedTuple):
    """The state of an optimizer of wide parameters, and those whose own dtype is narrower."""

    inner: Any
    master: Any


def master_weights(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Trains f32 copies of the parameters of narrower dtypes, which then are these copies, rounded (Micikevicius et al.
    2018, arXiv:1710.03740, section 3.1). Moments are in f32 too.

    In bf16 an update of less than 1/256 of a parameter changes nothing, and a moment's decay of 0.999 is 1.
    """
    inner = optax.with_extra_args_support(inner)

    def init(params: Any) -> MasterState:
        wide = jax.tree.map(widened, params)
        narrow = jax.tree.map(lambda leaf, copy: optax.MaskedNode() if leaf.dtype == copy.dtype else copy, params, wide)
        return MasterState(inner.init(wide), narrow)

    def update(updates: Any, state: Any, params: Any = None, **others: Any) -> tuple[Any, MasterState]:
        def either(copy: Any, own: Any, of_copy: Any) -> Any:
            return own if isinstance(copy, optax.MaskedNode) else of_copy

        wide = _map(lambda copy, leaf: either(copy, leaf, copy), state.master, params)
        updates, kept = inner.update(jax.tree.map(widened, updates), state.inner, wide, **others)
        after = optax.apply_updates(wide, updates)

        def rounded(copy: Any, update: Any, new: Any, leaf: Any) -> Any:
            return either(copy, update, new - widened(leaf))  # added to the parameter: the new copy, then rounded

        updates = _map(rounded, state.master, updates, after, params)
        return updates, MasterState(kept, _map(lambda copy, new: either(copy, copy, new), state.master, after))

    return optax.GradientTransformationExtraArgs(init, update)


def _map(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """`function` of every leaf of `tree`, of which `optax.MaskedNode` is one, and those of the other trees."""
    return jax.tree.map(function, tree, *others, is_leaf=lambda node: isinstance(node, optax.MaskedNode))


def has_narrow(params: Any) -> bool:
    """Whether a parameter has a narrower dtype than f32."""
    return any(jnp.promote_types(leaf.dtype, jnp.float32) != leaf.dtype for leaf in jax.tree.leaves(params))


class AverageState(NamedTuple):
    """An average of parameters, and how many updates it has seen."""

    average: Any
    count: jax.Array


def average_parameters(decay: float) -> optax.GradientTransformation:
    """Leaves updates as they are and keeps an exponential moving average of the parameters they lead to (Polyak &
    Juditsky 1992). Early on the decay is (1 + n) / (10 + n), so that the start is forgotten. The average is kept in
    f32 at least: in bf16 it would not move, since 1 - decay is less than its rounding. `rate_scale` is what the updates
    are multiplied by later.
    """

    def init(params: Any) -> AverageState:
        wide = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.promote_types(leaf.dtype, jnp.float32)), params)
        return AverageState(wide, jnp.zeros((), jnp.int32))

    def update(
        updates: Any, state: Any, params: Any = None, *, rate_scale: Any = None, **_: Any
    ) -> tuple[Any, AverageState]:
        weight = jnp.minimum(decay, (1 + state.count) / (10 + state.count))
        scaled = updates if rate_scale is None else jax.tree.map(lambda update: update * rate_scale, updates)
        following = optax.apply_updates(params, scaled)
        average = jax.tree.map(lambda old, new: weight * old + (1 - weight) * new, state.average, following)
        return updates, AverageState(average, state.count + 1)

    return optax.GradientTransformationExtraArgs(init, update)


def averaged(params: Any, opt_state: Any) -> Any:
    """The parameters, in place of each its average if the optimizer keeps one."""

    def chosen(average: Any, leaf: Any) -> Any:
        return leaf if isinstance(average, optax.MaskedNode) else average

    for state in jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, AverageState)):
        if isinstance(state, AverageState):  # of all parameters, or of those of a group
            params = _map(chosen, state.average, params)
    return params


class GuardState(NamedTuple):
    """The state of an optimizer with a guard around it (`guarded`)."""

    inner: Any
    account: Any
    """What the guard's policy remembers, by name: scalars."""
    skipped: jax.Array
    """Whether the last update was skipped, bool[]."""
    arguments: Any
    """What the policy gave the optimizer in the last step, by name: `rate_scale` or nothing."""


def guard_of(opt_state: Any) -> GuardState | None:
    """The guard's state in an optimizer state; None without a guard."""
    for state in jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, GuardState)):
        if isinstance(state, GuardState):
            return state
    return None


def map_state(
    optimizer: optax.GradientTransformation,
    function: Callable[..., Any],
    opt_state: Any,
    *of_params: Any,
    others: Callable[[Any], Any],
) -> Any:
    """`opt_state` with `function(leaf, *entries)` at every leaf that belongs to a parameter, whose entries in the trees
    `of_params` are given too, and `others(leaf)` at the rest.
    """

    def masked(leaf: Any) -> bool:  # where `optax.masked` and `optax.partition` leave a parameter to another
        return isinstance(leaf, optax.MaskedNode)

    return optax.tree.map_params(
        functools.partial(jax.eval_shape, optimizer.init),  # its own zeros need no device
        lambda leaf, *entries: leaf if masked(leaf) else function(leaf, *entries),
        opt_state,
        *of_params,
        transform_non_params=others,
        is_leaf=masked,
    )

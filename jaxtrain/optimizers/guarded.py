"""Guards: what an optimizer does in a step whose loss, gradient or update is not finite, or whose loss is a spike.

All is decided on the device, in the step itself. Not here: what stops a run without a guard (`runs/journal.py`), and
the files of a run that goes back (`runs/skipped.py`).
"""

from abc import ABC
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxtrain.base.config import NOT_IN_FINGERPRINT
from jaxtrain.base.errors import ConfigError
from jaxtrain.base.ranges import Checked, FractionBelow1, InnerFraction, NonNegativeInt, Positive, PositiveInt
from jaxtrain.optimizers.standard import Optimizer
from jaxtrain.optimizers.state import GuardState, has_narrow, master_weights

Account = Mapping[str, jax.Array]
"""What a policy remembers from step to step: scalars, in the optimizer state."""


@dataclass(frozen=True, kw_only=True)
class Policy(Checked, ABC):
    """Which updates are skipped beside those that are not finite, and what follows. One of your own overrides some of
    its methods, which are traced: they compute with `jax.numpy`.
    """

    def begin(self) -> Account:
        """The account before the first step."""
        return {}

    def spike(self, account: Account, loss: jax.Array) -> jax.Array:
        """Whether a finite loss is out of line, bool[]."""
        return jnp.zeros((), bool)

    def arguments(self, account: Account) -> dict[str, jax.Array]:
        """Arguments for the inner optimizer: `rate_scale` multiplies its updates."""
        return {}

    def counted(self, account: Account, loss: jax.Array, skipped: jax.Array) -> Account:
        """The account after a step of this loss, whose update was skipped or not."""
        return account


@dataclass(frozen=True, kw_only=True)
class Skip(Policy):
    """Skips an update where loss, gradient or update are not finite: parameters, optimizer state, averages and the
    model's state stay as they are, as without the batch.
    """

    at_most: PositiveInt = field(default=10, metadata=NOT_IN_FINGERPRINT)
    """Updates skipped in a row before the run has diverged."""


@dataclass(frozen=True, kw_only=True)
class SkipAndShrink(Skip):
    """Skips as `Skip` does, and multiplies the learning rate by `factor` each time; after `recover_after` updates in a
    row one factor is taken back. Dynamic loss scaling goes by the same rule (Micikevicius et al. 2018,
    arXiv:1710.03740).
    """

    factor: InnerFraction = 0.5
    recover_after: PositiveInt = 100

    def begin(self) -> Account:
        """How many factors the rate has, and the updates since that number changed."""
        return {"factors": jnp.zeros((), jnp.int32), "updates": jnp.zeros((), jnp.int32)}

    def arguments(self, account: Account) -> dict[str, jax.Array]:
        """`rate_scale`, exactly 1 without a factor."""
        return {"rate_scale": jnp.float32(self.factor) ** account["factors"]}

    def counted(self, account: Account, loss: jax.Array, skipped: jax.Array) -> Account:
        """One factor more after a skipped update, one less after `recover_after` others."""
        updates = jnp.where(skipped, 0, account["updates"] + 1)
        recovered = updates >= self.recover_after
        factors = jnp.where(skipped, account["factors"] + 1, account["factors"] - recovered)
        return {"factors": jnp.maximum(factors, 0), "updates": jnp.where(recovered, 0, updates)}


@dataclass(frozen=True, kw_only=True)
class SkipSpikes(Skip):
    """Skips also where the loss is above mean + `threshold` × standard deviation of the losses before it. PaLM left out
    the batches of its loss spikes (Chowdhery et al. 2022, arXiv:2204.02311, section 5.1), by hand; the z-score over a
    running mean and variance is that of ZClip (Kumar et al. 2025, arXiv:2504.02507), there of gradient norms.

    With δ = loss - mean and w = max(1 - `decay`, 1 / number of losses): mean + w δ and (1 - w) (variance + w δ²) follow
    (Finch 2009, "Incremental calculation of weighted mean and variance"), so that the first 1 / (1 - `decay`) losses
    weigh alike. The loss of a skipped update is not counted.
    """

    threshold: Positive = 6.0
    """Standard deviations above the mean."""
    decay: FractionBelow1 = 0.99
    """How much older losses still count after each step."""
    warmup: NonNegativeInt = 100
    """Losses to count before one can be a spike."""

    def begin(self) -> Account:
        """Mean and variance of no losses, and their number."""
        zero = jnp.zeros((), jnp.float32)
        return {"mean": zero, "variance": zero, "losses": jnp.zeros((), jnp.int32)}

    def spike(self, account: Account, loss: jax.Array) -> jax.Array:
        """Whether the loss is above the bound, once there are enough losses to know it."""
        bound = account["mean"] + self.threshold * jnp.sqrt(account["variance"])
        return (loss > bound) & (account["losses"] >= max(self.warmup, 1))

    def counted(self, account: Account, loss: jax.Array, skipped: jax.Array) -> Account:
        """The statistic with this loss, unless its update was skipped."""
        losses = account["losses"] + 1
        weight, delta = jnp.maximum(1 - self.decay, 1 / losses), loss - account["mean"]
        mean = account["mean"] + weight * delta
        variance = (1 - weight) * (account["variance"] + weight * delta**2)
        after = {"mean": mean, "variance": variance, "losses": losses}
        return {name: jnp.where(skipped, account[name], x) for name, x in after.items()}


@dataclass(frozen=True, kw_only=True)
class Rewind(Policy):
    """Where `when` would skip an update the run ends with exit code 75. The same command then goes on from the last
    checkpoint without the batch of that step, as PaLM did (arXiv:2204.02311, section 5.1), there without 200 to 500.
    """

    when: Policy = Skip()
    batches: PositiveInt = 1
    """How many batches are left out, from that of the step on."""
    at_most: PositiveInt = field(default=3, metadata=NOT_IN_FINGERPRINT)
    """How often a run goes back to the same checkpoint before it has diverged."""

    def __post_init__(self) -> None:
        """Raises ConfigError for a policy that changes more than what it skips."""
        if isinstance(self.when, Rewind | SkipAndShrink):
            raise ConfigError(f"Rewind(when={type(self.when).__name__}(…)): give Skip() or SkipSpikes(…)")

    def begin(self) -> Account:
        """That of `when`."""
        return self.when.begin()

    def spike(self, account: Account, loss: jax.Array) -> jax.Array:
        """That of `when`."""
        return self.when.spike(account, loss)

    def counted(self, account: Account, loss: jax.Array, skipped: jax.Array) -> Account:
        """That of `when`."""
        return self.when.counted(account, loss, skipped)


@dataclass(frozen=True)
class Guarded(Optimizer):
    """Another optimizer that skips updates by a policy: `Guarded(AdamW(…), Skip())`. Without a guard a run stops at the
    first step that is not finite.

    A guard judges the whole step, so it stands around `Groups`, not inside. Its skipped updates are the metric
    `skipped`, and an event names them; their losses count in no mean.
    """

    inner: Optimizer
    policy: Policy = Skip()

    def __post_init__(self) -> None:
        """Raises ConfigError for what is no `Optimizer`, a guard in a guard, and what is no policy."""
        if not isinstance(self.inner, Optimizer):
            raise ConfigError(f"Guarded: {self.inner!r} is no Optimizer: give for example Guarded(AdamW(), Skip())")
        if isinstance(self.inner, Guarded):
            raise ConfigError("Guarded: the optimizer inside is Guarded itself: choose one policy")
        if not isinstance(self.policy, Policy):
            raise ConfigError(f"Guarded: {self.policy!r} is no policy: give for example Skip() or SkipSpikes()")

    def build(self, steps: int) -> optax.GradientTransformation:
        """The inner transformation, guarded."""
        return guarded(_scaled(self.inner.build(steps)), self.policy)

    def transformation(self, steps: int, params: Any) -> optax.GradientTransformation:
        """The guard around all, the f32 copies of narrower parameters too."""
        _ = self.inner.transformation(steps, params)  # raises ConfigError where that is no transformation
        built = _scaled(self.inner.build(steps))
        return guarded(master_weights(built) if has_narrow(params) else built, self.policy)

    def rates(self, steps: int) -> Mapping[str, optax.Schedule]:
        """Those of the inner one, before `rate_scale`."""
        return self.inner.rates(steps)

    def frozen(self, paths: Collection[str]) -> list[str]:
        """Those of the inner one."""
        return self.inner.frozen(paths)


def guarded(inner: optax.GradientTransformation, policy: Policy) -> optax.GradientTransformationExtraArgs:
    """`inner` whose update, and all of its state, is skipped where the policy says so, or where the loss `value`, the
    norm of the gradient or that of the update is not finite.
    """
    inner = optax.with_extra_args_support(inner)

    def init(params: Any) -> GuardState:
        account = policy.begin()
        return GuardState(inner.init(params), account, jnp.zeros((), bool), policy.arguments(account))

    def update(
        updates: Any, state: Any, params: Any = None, *, value: Any = None, **others: Any
    ) -> tuple[Any, GuardState]:
        norm, arguments = optax.tree.norm(updates), policy.arguments(state.account)
        updates, after = inner.update(updates, state.inner, params, value=value, **arguments, **others)
        finite = jnp.isfinite(value) & jnp.isfinite(norm) & jnp.isfinite(optax.tree.norm(updates))
        skipped = ~finite | policy.spike(state.account, value)
        # -0.0 changes no number, where 0.0 would make 0.0 of a -0.0.
        updates = jax.tree.map(lambda update: jnp.where(skipped, jnp.full_like(update, -0.0), update), updates)
        after = jax.tree.map(lambda new, old: jnp.where(skipped, old, new), after, state.inner)
        return updates, GuardState(after, policy.counted(state.account, value, skipped), skipped, arguments)

    return optax.GradientTransformationExtraArgs(init, update)


def _scaled(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """`inner` with its updates multiplied by `rate_scale`, where that is given."""
    inner = optax.with_extra_args_support(inner)

    def update(updates: Any, state: Any, params: Any = None, **others: Any) -> tuple[Any, Any]:
        updates, state = inner.update(updates, state, params, **others)
        scale = others.get("rate_scale")
        if scale is not None:
            updates = jax.tree.map(lambda update: (update * scale).astype(update.dtype), updates)
        return updates, state

    return optax.GradientTransformationExtraArgs(inner.init, update)

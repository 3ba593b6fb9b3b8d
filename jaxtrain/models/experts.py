"""A feed-forward layer of many experts, of which each position asks a few: more parameters for the same work.

After Shazeer et al. 2017 (arXiv:1701.06538) and GShard (Lepikhin et al. 2021, arXiv:2006.16668), with shared experts as
in DeepSeekMoE (Dai et al. 2024, arXiv:2401.06066). Where a mesh axis splits `expert`, each device has some of the
experts, and positions travel to those that they ask and back by all-to-all. Not here: where in a block it stands.

Shapes: B batch, L length, D width, M inner width, E experts, X of them on this device, N devices of the expert axis,
K asked by a position, T = B·L positions here, S = T·K questions, P places to one device.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from jaxtrain.base.errors import ConfigError
from jaxtrain.models.layers import Linear, Precision
from jaxtrain.sharding.constraints import shard_map_by_name, split, target_platform


@dataclass(frozen=True, kw_only=True)
class Experts:
    """How many experts, and how they are chosen."""

    count: int = 0
    """0 is one feed-forward layer for all positions."""
    chosen: int = 2
    """Experts that a position asks; their answers are weighed by the router's probabilities among these."""
    shared: int = 0
    """Further experts, which every position asks."""
    width: int | None = None
    """The inner width of an expert; None is that of a feed-forward layer."""
    capacity: float | None = None
    """The positions of a row that an expert takes, over L·chosen/count; later ones go without its answer. None takes
    all: nothing is ever dropped, and a device has room for all positions of every device of the expert axis.
    """
    balance: float = 0.01
    """What unequal use of the experts within a row costs (DeepSeek-V3, arXiv:2412.19437, section 2.1.2)."""
    z: float = 0.001
    """What large scores of the router cost: the mean square of their logsumexp (Zoph et al. 2022, arXiv:2202.08906)."""

    def __post_init__(self) -> None:
        """Raises ConfigError for numbers that do not fit each other."""
        if self.count and not 1 <= self.chosen <= self.count:
            raise ConfigError(f"experts.chosen: {self.chosen} must be from 1 to the count of experts, {self.count}")
        if self.capacity is not None and self.capacity <= 0:
            raise ConfigError(f"experts.capacity: {self.capacity} must be above 0, or None to drop nothing")


class _Kernels(nnx.Module):
    """One matrix an expert."""

    def __init__(
        self, rngs: nnx.Rngs, shape: tuple[int, int, int], axes: tuple[str, ...], precision: Precision, scale: float
    ):
        init = jax.nn.initializers.variance_scaling(scale**2, "fan_in", "truncated_normal", batch_axis=0)
        self.kernel = nnx.Param(init(rngs.params(), shape).astype(precision.params), axes=("expert", *axes))


class ExpertsModule(nnx.Module):
    """A router, experts, and what is shared."""

    def __init__(self, config: Experts, rngs: nnx.Rngs, width: int, hidden: int, precision: Precision, scale: float):
        D, M, E = width, config.width or hidden, config.count
        self.router = Linear(rngs, (D, E), ("embed", None), Precision(precision.params))
        self.gate = _Kernels(rngs, (E, D, M), ("embed", "mlp"), precision, 1.0)
        self.up = _Kernels(rngs, (E, D, M), ("embed", "mlp"), precision, 1.0)
        self.down = _Kernels(rngs, (E, M, D), ("mlp", "embed"), precision, scale)
        if config.shared:
            self.shared_gate = Linear(rngs, (D, config.shared * M), ("embed", "mlp"), precision)
            self.shared_up = Linear(rngs, (D, config.shared * M), ("embed", "mlp"), precision)
            self.shared_down = Linear(rngs, (config.shared * M, D), ("mlp", "embed"), precision, scale)
        self.config, self.precision = config, precision

    def __call__(self, x_BLD: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """f[B, L, D], and the two penalties f32[B].

        Raises ConfigError for a capacity where the sequence is split: who comes first in a row could not be told.
        """
        config = self.config
        if config.capacity is not None and split("length"):
            raise ConfigError(
                f"experts.capacity: {config.capacity} is of whole rows, which {' × '.join(split('length'))} splits: "
                "set it to None"
            )
        logits_BLE = self.router(x_BLD.astype(jnp.float32))
        answers_BLD, used_BE = self._ask(x_BLD, logits_BLE)
        if config.shared:
            answers_BLD += self.shared_down(jax.nn.silu(self.shared_gate(x_BLD)) * self.shared_up(x_BLD))
        probability_BE = jax.nn.softmax(logits_BLE, axis=-1).mean(1)
        penalties = {
            "balance": config.balance * config.count * (used_BE * probability_BE).sum(-1),
            "router_z": config.z * jnp.square(jax.nn.logsumexp(logits_BLE, axis=-1)).mean(1),
        }
        return answers_BLD, penalties

    def _ask(self, x_BLD: jax.Array, logits_BLE: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The answers, and the share of a row's questions that each expert was asked, f32[B, E]."""
        dtype = jnp.float32 if target_platform() == "cpu" else jnp.dtype(self.precision.compute)
        rows, kernel = ("batch", "length", None), ("expert", None, "mlp")
        kernels = [kernels.kernel[...].astype(dtype) for kernels in (self.gate, self.up, self.down)]
        along, over, inner = (tuple(split(name)) for name in ("length", "expert", "mlp"))
        devices, count = math.prod(split("expert").values()), x_BLD.shape[1] * self.config.chosen

        def local(
            x_BLD: jax.Array, logits_BLE: jax.Array, gate: jax.Array, up: jax.Array, down: jax.Array
        ) -> tuple[jax.Array, jax.Array]:
            B, L, D = x_BLD.shape
            top_BLK, expert_BLK = jax.lax.top_k(logits_BLE, self.config.chosen)
            asked_BE = jax.nn.one_hot(expert_BLK, self.config.count).sum((1, 2)) / count
            expert_S, room = self._kept(expert_BLK)  # room for a row's questions to one expert
            here = self.config.count // devices
            places = B * min(here * room, L * min(self.config.chosen, here))
            sent_NPD, place_S, asked_NX = _sent(
                x_BLD.reshape(-1, D).astype(dtype), expert_S, self.config.count, devices, places
            )
            answers_NPD = _answered(sent_NPD, asked_NX, gate, up, down, over)
            weight_SK = jax.nn.softmax(top_BLK, axis=-1).reshape(B * L, -1, 1)
            answers_SD = answers_NPD.reshape(-1, D).at[place_S].get(mode="fill", fill_value=0)
            answers_BLD = (answers_SD.reshape(B * L, -1, D) * weight_SK).sum(1).reshape(B, L, D).astype(x_BLD.dtype)
            answers_BLD = jax.lax.psum(answers_BLD, inner) if inner else answers_BLD
            return answers_BLD, jax.lax.psum(asked_BE, along) if along else asked_BE

        given = [rows, rows, kernel, kernel, ("expert", "mlp", None)]
        return shard_map_by_name(local, given, [rows, ("batch", None)], x_BLD, logits_BLE, *kernels)

    def _kept(self, expert_BLK: jax.Array) -> tuple[jax.Array, int]:
        """The expert of each question i[S], `count` if it finds no room, and how often a row may ask an expert."""
        B, L, K = expert_BLK.shape
        count, capacity = self.config.count, self.config.capacity
        if capacity is None:
            return expert_BLK.reshape(-1), L
        room = math.ceil(capacity * L * K / count)
        asked = jax.nn.one_hot(expert_BLK.reshape(B, -1), count, dtype=jnp.int32)
        before_BS = ((jnp.cumsum(asked, axis=1) - asked) * asked).sum(-1)
        return jnp.where(before_BS < room, expert_BLK.reshape(B, -1), count).reshape(-1), room


def _sent(
    x_TD: jax.Array, expert_S: jax.Array, count: int, devices: int, places: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Questions by the device of their expert f[N, P, D], in the order of experts; where each question's answer will
    stand in [N · P], i[S]; and how many each expert is asked, i[N, X].
    """
    S = len(expert_S)
    asked_NX = jnp.bincount(expert_S, length=count + 1)[:count].reshape(devices, -1)
    begin_N = jnp.cumsum(asked_NX.sum(1)) - asked_NX.sum(1)
    order_S = jnp.argsort(expert_S)
    from_NP = begin_N[:, None] + jnp.arange(places)
    filled_NP = jnp.arange(places) < asked_NX.sum(1, keepdims=True)
    question_NP = order_S[jnp.minimum(from_NP, S - 1)]
    sent_NPD = jnp.where(filled_NP[..., None], x_TD[question_NP // (S // len(x_TD))], 0)
    rank_S = jnp.argsort(order_S)
    device_S = expert_S // (count // devices)  # `devices` for a question without room, whose place is then outside
    place_S = device_S * places + rank_S - jnp.append(begin_N, 0)[device_S]
    return sent_NPD, jnp.where(device_S < devices, place_S, devices * places), asked_NX


def _answered(
    sent_NPD: jax.Array, asked_NX: jax.Array, gate: jax.Array, up: jax.Array, down: jax.Array, over: tuple[str, ...]
) -> jax.Array:
    """What the experts answer, in the places of the questions. Kernels are [X, D, M] and [X, M, D], a part of M."""
    N, P, D = sent_NPD.shape
    if over:
        sent_NPD, asked_NX = (jax.lax.all_to_all(x, over, 0, 0, tiled=True) for x in (sent_NPD, asked_NX))
    ends_NX = jnp.cumsum(asked_NX, axis=1)
    expert_NP = jax.vmap(lambda ends: jnp.searchsorted(ends, jnp.arange(P), side="right"))(ends_NX)
    order = jnp.argsort(expert_NP.reshape(-1))
    x = sent_NPD.reshape(-1, D)[order]
    sizes = asked_NX.sum(0)
    hidden = jax.nn.silu(jax.lax.ragged_dot(x, gate, sizes)) * jax.lax.ragged_dot(x, up, sizes)
    answers = jnp.where(jnp.arange(N * P)[:, None] < sizes.sum(), jax.lax.ragged_dot(hidden, down, sizes), 0)
    answers_NPD = answers[jnp.argsort(order)].reshape(N, P, D)
    return jax.lax.all_to_all(answers_NPD, over, 0, 0, tiled=True) if over else answers_NPD

"""Mixture-of-experts feed-forward layer: top-k routing, all-to-all dispatch.

After Shazeer et al. 2017 (arXiv:1701.06538) and GShard (Lepikhin et al. 2021, arXiv:2006.16668), with shared experts as
in DeepSeekMoE (Dai et al. 2024, arXiv:2401.06066). Where a mesh axis splits `expert`, each device holds some of the
experts; tokens are sent to their experts' devices and the outputs back. Not here: the block around the layer.

Shapes: B batch, L length, D width, M inner width, E experts, X experts of one device, N devices along the expert axis,
K experts a token (top-k), T = B·L tokens of this device, S = T·K pairs of a token and one of its experts, P slots for
such pairs in the buffer to one device.
"""

import math
from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp
from flax import nnx

from jaxtrain.base.errors import ConfigError
from jaxtrain.base.ranges import Checked, NonNegative, NonNegativeInt, PositiveInt, Range
from jaxtrain.models.layers import Linear, Precision
from jaxtrain.sharding.constraints import shard_map_by_name, split, target_platform


@dataclass(frozen=True, kw_only=True)
class Experts(Checked):
    """The hyperparameters of a mixture-of-experts layer."""

    count: NonNegativeInt = 0
    """Experts; 0 is an ordinary feed-forward layer."""
    top_k: PositiveInt = 2
    """Experts a token is routed to. Their outputs are weighted by the softmax over these experts' router logits."""
    shared: NonNegativeInt = 0
    """Further experts that every token passes through."""
    width: PositiveInt | None = None
    """The inner width of an expert; None is that of the feed-forward layer it replaces."""
    capacity: Annotated[float, Range(above=0, hint="None drops no token")] | None = None
    """Capacity factor: an expert takes `capacity` · L · top_k / count tokens of a row and drops the later ones. None
    drops none, and the buffers then have room for all tokens of every device along the expert axis.
    """
    balance: NonNegative = 0.01
    """Weight of the load-balancing loss, computed within each row (DeepSeek-V3, arXiv:2412.19437, section 2.1.2)."""
    z: NonNegative = 0.001
    """Weight of the router z-loss, the mean square of the logits' logsumexp (Zoph et al. 2022, arXiv:2202.08906)."""

    def __post_init__(self) -> None:
        """Raises ConfigError for a top_k of more than the experts."""
        if self.count and self.top_k > self.count:
            raise ConfigError(f"experts.top_k: {self.top_k} must be from 1 to the count of experts, {self.count}")

    def slots(self, length: int) -> int:
        """The tokens of a row of this length that one expert takes."""
        return length if self.capacity is None else math.ceil(self.capacity * length * self.top_k / self.count)


class _Kernels(nnx.Module):
    """One matrix an expert."""

    def __init__(
        self, rngs: nnx.Rngs, shape: tuple[int, int, int], axes: tuple[str, ...], precision: Precision, scale: float
    ):
        init = jax.nn.initializers.variance_scaling(scale**2, "fan_in", "truncated_normal", batch_axis=0)
        self.kernel = nnx.Param(init(rngs.params(), shape).astype(precision.params), axes=("expert", *axes))


class ExpertsModule(nnx.Module):
    """Router, experts (SwiGLU each) and shared experts."""

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
        """The outputs f[B, L, D], and the auxiliary losses `balance` and `router_z`, f32[B].

        Raises ConfigError for a capacity where `length` is split: a device does not know how many earlier tokens of a
        row the others route to an expert.
        """
        config = self.config
        if config.capacity is not None and split("length"):
            raise ConfigError(
                f"experts.capacity: {config.capacity} limits the tokens of a whole row, but the mesh axes "
                f"{' × '.join(split('length'))} split rows: set it to None"
            )
        logits_BLE = self.router(x_BLD.astype(jnp.float32))
        outputs_BLD, routed_BE = self._route(x_BLD, logits_BLE)
        if config.shared:
            outputs_BLD += self.shared_down(jax.nn.silu(self.shared_gate(x_BLD)) * self.shared_up(x_BLD))
        probability_BE = jax.nn.softmax(logits_BLE, axis=-1).mean(1)
        aux_losses = {
            "balance": config.balance * config.count * (routed_BE * probability_BE).sum(-1),
            "router_z": config.z * jnp.square(jax.nn.logsumexp(logits_BLE, axis=-1)).mean(1),
        }
        return outputs_BLD, aux_losses

    def _route(self, x_BLD: jax.Array, logits_BLE: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The weighted sums of expert outputs f[B, L, D], and the fraction of a row routed to each expert f32[B, E]."""
        dtype = jnp.float32 if target_platform() == "cpu" else jnp.dtype(self.precision.compute)
        rows, kernel = ("batch", "length", None), ("expert", None, "mlp")
        kernels = [kernels.kernel[...].astype(dtype) for kernels in (self.gate, self.up, self.down)]
        along, over, inner = (tuple(split(name)) for name in ("length", "expert", "mlp"))
        devices, count = math.prod(split("expert").values()), x_BLD.shape[1] * self.config.top_k

        def local(
            x_BLD: jax.Array, logits_BLE: jax.Array, gate: jax.Array, up: jax.Array, down: jax.Array
        ) -> tuple[jax.Array, jax.Array]:
            B, L, D = x_BLD.shape
            top_BLK, expert_BLK = jax.lax.top_k(logits_BLE, self.config.top_k)
            routed_BE = jax.nn.one_hot(expert_BLK, self.config.count).sum((1, 2)) / count
            expert_S = self._drop(expert_BLK)
            X = self.config.count // devices
            slots = B * min(X * self.config.slots(L), L * min(self.config.top_k, X))
            sent_NPD, slot_S, routed_NX = _dispatch(
                x_BLD.reshape(-1, D).astype(dtype), expert_S, self.config.count, devices, slots
            )
            outputs_NPD = _apply(sent_NPD, routed_NX, gate, up, down, over)
            weight_SK = jax.nn.softmax(top_BLK, axis=-1).reshape(B * L, -1, 1)
            outputs_SD = outputs_NPD.reshape(-1, D).at[slot_S].get(mode="fill", fill_value=0)
            outputs_BLD = (outputs_SD.reshape(B * L, -1, D) * weight_SK).sum(1).reshape(B, L, D).astype(x_BLD.dtype)
            outputs_BLD = jax.lax.psum(outputs_BLD, inner) if inner else outputs_BLD
            return outputs_BLD, jax.lax.psum(routed_BE, along) if along else routed_BE

        given = [rows, rows, kernel, kernel, ("expert", "mlp", None)]
        return shard_map_by_name(local, given, [rows, ("batch", None)], x_BLD, logits_BLE, *kernels)

    def _drop(self, expert_BLK: jax.Array) -> jax.Array:
        """The expert of each pair, i[S]; E, which is no expert, where that expert is over its capacity."""
        B, L, _ = expert_BLK.shape
        if self.config.capacity is None:
            return expert_BLK.reshape(-1)
        E = self.config.count
        routed = jax.nn.one_hot(expert_BLK.reshape(B, -1), E, dtype=jnp.int32)
        before_BS = ((jnp.cumsum(routed, axis=1) - routed) * routed).sum(-1)
        return jnp.where(before_BS < self.config.slots(L), expert_BLK.reshape(B, -1), E).reshape(-1)


def _dispatch(
    x_TD: jax.Array, expert_S: jax.Array, count: int, devices: int, slots: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The buffers to send to each device f[N, P, D], sorted by expert; the slot of each pair in [N · P], i[S]; and the
    tokens routed to each expert, i[N, X].
    """
    S = expert_S.shape[0]
    routed_NX = jnp.bincount(expert_S, length=count + 1)[:count].reshape(devices, -1)
    begin_N = jnp.cumsum(routed_NX.sum(1)) - routed_NX.sum(1)
    order_S = jnp.argsort(expert_S)
    from_NP = begin_N[:, None] + jnp.arange(slots)
    filled_NP = jnp.arange(slots) < routed_NX.sum(1, keepdims=True)
    pair_NP = order_S[jnp.minimum(from_NP, S - 1)]
    sent_NPD = jnp.where(filled_NP[..., None], x_TD[pair_NP // (S // x_TD.shape[0])], 0)
    rank_S = jnp.argsort(order_S)
    device_S = expert_S // (count // devices)  # N for a dropped pair, whose slot is then out of range
    slot_S = device_S * slots + rank_S - jnp.append(begin_N, 0)[device_S]
    return sent_NPD, jnp.where(device_S < devices, slot_S, devices * slots), routed_NX


def _apply(
    sent_NPD: jax.Array, routed_NX: jax.Array, gate: jax.Array, up: jax.Array, down: jax.Array, over: tuple[str, ...]
) -> jax.Array:
    """The experts' outputs f[N, P, D], each in the slot of its pair; all-to-all over the mesh axes `over` before and
    after. Kernels are [X, D, M] and [X, M, D], with M split over devices.
    """
    N, P, D = sent_NPD.shape
    if over:
        sent_NPD, routed_NX = (jax.lax.all_to_all(x, over, 0, 0, tiled=True) for x in (sent_NPD, routed_NX))
    ends_NX = jnp.cumsum(routed_NX, axis=1)
    expert_NP = jax.vmap(lambda ends: jnp.searchsorted(ends, jnp.arange(P), side="right"))(ends_NX)
    order = jnp.argsort(expert_NP.reshape(-1))
    x = sent_NPD.reshape(-1, D)[order]
    sizes = routed_NX.sum(0)
    hidden = jax.nn.silu(jax.lax.ragged_dot(x, gate, sizes)) * jax.lax.ragged_dot(x, up, sizes)
    outputs = jnp.where(jnp.arange(N * P)[:, None] < sizes.sum(), jax.lax.ragged_dot(hidden, down, sizes), 0)
    outputs_NPD = outputs[jnp.argsort(order)].reshape(N, P, D)
    return jax.lax.all_to_all(outputs_NPD, over, 0, 0, tiled=True) if over else outputs_NPD

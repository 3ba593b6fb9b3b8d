"""The operations of a model and its gradient, by formulas written out by hand, and what devices can do."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import pytest
import tiny
from jax import ShapeDtypeStruct as Shape

from jaxtrain import Layout, Program
from jaxtrain.base.flops import gradient_flops
from jaxtrain.base.hardware import KNOWN, measured_cpu_flops, peak_flops
from jaxtrain.models import Transformer
from jaxtrain.models.variables import Context, Variables
from jaxtrain.runs.utilization import model_flops, utilization
from jaxtrain.tasks import LanguageModel
from jaxtrain.tasks.base import Batch, Loss

X, W = Shape((8, 4), jnp.float32), Shape((4, 4), jnp.float32)
ONE = 2 * 8 * 4 * 4
"""Of one matmul of X and W."""


def test_a_matmul_by_parameters_has_its_operations_twice_and_thrice_where_both_operands_depend_on_them() -> None:
    assert gradient_flops(lambda w, x: (x @ w).sum(), W, X) == 2 * ONE
    assert gradient_flops(lambda w, x: (x @ w @ w).sum(), W, X) == 2 * ONE + 3 * ONE
    assert gradient_flops(lambda w, x: (x @ x.T).sum(), W, X) == 2 * 8 * 8 * 4


def test_what_is_stopped_or_frozen_has_no_gradient() -> None:
    assert gradient_flops(lambda w, x: (jax.lax.stop_gradient(x @ w) @ w).sum(), W, X) == 2 * ONE + 2 * ONE
    assert gradient_flops(lambda w, x, frozen: (x @ frozen @ w).sum(), W, X, W) == ONE + 2 * ONE
    # Where a class is chosen no gradient flows, though a choice among classes is a function of the parameters.
    chosen = gradient_flops(lambda w, x: (jax.nn.one_hot((x @ w).argmax(-1), 4) @ w).sum(), W, X)
    assert chosen == 2 * ONE + 2 * ONE


def looped(w: jax.Array, x: jax.Array, remat: bool) -> jax.Array:
    def layer(x: jax.Array) -> jax.Array:
        return jnp.tanh(x @ w)

    one = jax.checkpoint(layer) if remat else layer
    return jax.lax.scan(lambda x, _: (one(x), None), x, None, length=5)[0].sum()


@pytest.mark.parametrize("remat", [False, True])
def test_a_loop_has_the_operations_of_all_its_passes_and_remat_adds_none(remat: bool) -> None:
    # From the second pass on what is carried depends on the parameters: all passes are counted so.
    assert gradient_flops(lambda w, x: looped(w, x, remat), W, X) == 5 * 3 * ONE


def test_a_branch_is_the_largest_and_a_while_loop_one_pass() -> None:
    def branched(w: jax.Array, x: jax.Array) -> jax.Array:
        return jax.lax.cond(x[0, 0] > 0, lambda x: (x @ w @ w).sum(), lambda x: (x @ w).sum(), x)

    def repeated(w: jax.Array, x: jax.Array) -> jax.Array:
        return jax.lax.while_loop(lambda x: x[0, 0] > 0, lambda x: x @ w, x).sum()

    assert gradient_flops(branched, W, X) == 2 * ONE + 3 * ONE
    assert gradient_flops(repeated, W, X) == 2 * ONE


def test_convolutions_and_ragged_matmuls_count() -> None:
    kernel, images = Shape((6, 2, 3, 3), jnp.float32), Shape((2, 4, 5, 5), jnp.float32)

    def convolved(kernel: jax.Array, images: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME", feature_group_count=2).sum()

    # 2 × 6 × 5 × 5 outputs, each of 2 channels of 3 × 3: a group has half of the 4 channels.
    assert gradient_flops(convolved, kernel, images) == 2 * (2 * (2 * 6 * 5 * 5) * (2 * 3 * 3))

    def ragged(experts: jax.Array, x: jax.Array) -> jax.Array:
        return jax.lax.ragged_dot(x, experts, jnp.array([3, 5])).sum()

    assert gradient_flops(ragged, Shape((2, 4, 7), jnp.float32), X) == 2 * (2 * 8 * 4 * 7)


@pytest.mark.parametrize("remat", ["none", "full"])
@pytest.mark.parametrize("mesh", [{}, {"data": 2, "tensor": 2}])
def test_a_transformer_has_six_operations_a_parameter_and_token_and_attention_over_all_pairs(
    remat: Literal["none", "full"], mesh: dict[str, int]
) -> None:
    model = tiny.main().task.model
    assert isinstance(model, Transformer)
    task = replace(tiny.main().task, model=replace(model, blocks=replace(model.blocks, remat=remat)))
    program = Program(replace(tiny.main(), task=task, layout=Layout(mesh)), jax.devices()[: 4 if mesh else 1])
    query, key, value, out, gate, up, down = 32 * 32, 32 * 16, 32 * 16, 32 * 32, 32 * 64, 32 * 64, 64 * 32
    parameters, tokens = 2 * (query + key + value + out + gate + up + down) + 64 * 32, 16 * 16
    # Chowdhery et al. 2022, appendix B: 6 N + 12 · layers · heads · head dim · length operations a token.
    assert model_flops(program) == tokens * (6 * parameters + 12 * 2 * 32 * 16)


@dataclass(frozen=True)
class Device:
    """What the table is read by."""

    device_kind: str
    platform: str
    process_index: int = 0


def devices(*kinds: str) -> Any:
    return [Device(kind, "tpu" if kind.startswith("TPU") else "gpu") for kind in kinds]


def test_peaks_are_those_of_the_data_sheets_and_of_all_devices_together() -> None:
    assert peak_flops(devices("NVIDIA H100 80GB HBM3")) == 989e12
    assert peak_flops(devices("TPU v5 lite", "TPU v5 lite")) == 394e12
    assert peak_flops(devices("TPU v6 lite", "NVIDIA T1000")) is None
    assert all(each.source.startswith("https://") for each in KNOWN.values())
    # Roofs of today's accelerators: a wrong unit in the table would be far off.
    assert all(100 < each.flops / each.bandwidth < 600 for each in KNOWN.values())


def test_simulated_devices_share_one_cpu_whose_peak_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    measured_cpu_flops.cache_clear()
    times = iter([0.0, 4.0, 10.0, 12.0, 20.0, 23.0])
    monkeypatch.setattr("jaxtrain.base.hardware.time.perf_counter", lambda: next(times))
    assert measured_cpu_flops(10) == 2 * 10**3 / 2
    monkeypatch.undo()
    monkeypatch.setattr("jaxtrain.base.hardware.measured_cpu_flops", lambda: 5e10)
    assert peak_flops(jax.devices()) == 5e10
    two: Any = [Device("cpu", "cpu", process) for process in (0, 0, 1, 1)]
    assert peak_flops(two) == 10e10


def test_what_is_not_known_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    program = Program(tiny.main(), jax.devices()[:1])
    monkeypatch.setattr("jaxtrain.runs.utilization.peak_flops", lambda devices: None)
    assert utilization(program) == {
        "flops": 34603008,
        "no_mfu": "the peak FLOP/s of cpu are not in base/hardware.py",
    }


@dataclass(frozen=True, kw_only=True)
class OnItsMesh(LanguageModel):
    """Places its batch by the name of a mesh axis, so it cannot be traced without that mesh."""

    def loss(self, variables: Variables, batch: Batch, context: Context) -> Loss:
        tokens = jax.lax.with_sharding_constraint(batch["tokens"], jax.sharding.PartitionSpec("fsdp"))
        return super().loss(variables, {**batch, "tokens": tokens}, context)


def test_a_model_that_needs_its_mesh_trains_without_a_count() -> None:
    task = OnItsMesh(model=tiny.main().task.model)
    program = Program(replace(tiny.main(), task=task, layout=Layout({"fsdp": 2})), jax.devices()[:2])
    program.lower()
    found = utilization(program)
    assert found.keys() == {"no_mfu"}
    assert found["no_mfu"].startswith("the operations of the model cannot be counted: ")

"""Model FLOPs utilization: the model's FLOPs per second as a fraction of the devices' peak (Chowdhery et al. 2022,
arXiv:2204.02311, appendix B).
"""

from typing import Any

import jax

from jaxtrain.base.flops import gradient_flops
from jaxtrain.base.hardware import peak_flops
from jaxtrain.models.variables import Context, Variables
from jaxtrain.program import Program
from jaxtrain.sharding.constraints import scope
from jaxtrain.sharding.layout import Layout
from jaxtrain.step import with_params
from jaxtrain.tasks.checks import loss_of


def utilization(program: Program) -> dict[str, Any]:
    """`flops` of a step and `peak_flops` per second of the program's devices, for the log.

    Where one is not known, `no_mfu` says why.
    """
    devices = list(program.mesh.devices.flat)
    try:
        flops = model_flops(program)
    except Exception as error:  # such as a model that needs its mesh or platform; that must not end the run
        return {"no_mfu": f"the operations of the model cannot be counted: {type(error).__name__}: {error}"}
    if (peak := peak_flops(devices)) is None:
        return {"flops": flops, "no_mfu": f"the peak FLOP/s of {devices[0].device_kind} are not in base/hardware.py"}
    return {"flops": flops, "peak_flops": round(peak)}


def model_flops(program: Program) -> int:
    """The FLOPs of a step by `gradient_flops`, without the optimizer.

    Counted as for one device and dense attention, so that the number depends only on the model and the batch: attention
    counts all pairs of positions, including those that a causal mask hides.
    """
    task, state = program.experiment.task, _shapes(program.state)
    batch = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in program.experiment.data.example().items()}
    keys_B = jax.eval_shape(lambda key: jax.random.split(key, batch["mask"].shape[0]), state.key)

    def loss(params: Any, fixed: Variables, batch: Any, step: Any, keys_B: Any) -> jax.Array:
        context = Context(step, keys_B, batch["mask"])
        return loss_of(task, with_params(params, fixed), batch, context).mean.total

    with scope(Layout(), Layout().abstract_mesh(1), platform="tpu"):
        return gradient_flops(loss, state.params, state.fixed, batch, state.step, keys_B)


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)

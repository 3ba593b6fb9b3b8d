"""The collectives that a train step needs, with mesh axes and bytes: a textbook formula for each kind of parallelism.

Not here: what a compiled step sends, which is `analysis/hlo.py`.
"""

from collections import Counter
from collections.abc import Callable, Sequence

from jax.sharding import AbstractMesh, Mesh

from jaxtrain.analysis.describe import Step, describe
from jaxtrain.analysis.hlo import Key, key_of
from jaxtrain.experiment.experiment import Experiment


def textbook(experiment: Experiment, mesh: Mesh | AbstractMesh, accelerator: bool = False) -> Counter[Key]:
    """How often each collective should run in a step: the sum of `FORMULAS`.

    accelerator: as compiled for TPUs and GPUs. For CPUs, XLA replaces a reduce-scatter by an all-reduce and a slice,
        reduces the gradients of several matmuls with one input separately instead of their sum, and sums over rows and
        over positions in two steps instead of one.
    """
    step = describe(experiment, mesh, accelerator)
    return sum((formula(step) for formula in FORMULAS), Counter())


def _summed(step: Step, axes: Sequence[str]) -> list[tuple[str, ...]]:
    """The groups of axes that a gradient is summed over, one all-reduce each."""
    along = tuple(axis for axis in axes if axis in step.along and not step.accelerator)
    return [group for group in (tuple(axis for axis in axes if axis not in along), along) if group]


def _data_parallel(step: Step) -> Counter[Key]:
    """data: the gradient of every parameter is all-reduced once, that of tied embeddings twice; where `fsdp` splits a
    kernel, only the shard of a device. Outside the blocks one all-reduce covers all axes.

    With `ZERO1` it is a reduce-scatter, and the parameters are all-gathered after the update.
    """
    found: Counter[Key] = Counter()
    for one in step.parameters:
        shards, kind = step.over(one.gathered), step.scattered if one.kept else "all-reduce"
        if one.kept:
            found[key_of("all-gather", one.kept, one.size * one.stacked // shards)] += 1
        outside = [axis for axis in one.reduced if step.stages and axis in step.replicas]
        inside = tuple(axis for axis in one.reduced if axis not in outside)
        if one.turns:
            for axes in _summed(step, inside):
                found[key_of(kind, axes, one.sent // shards)] += one.turns
            if outside:  # in a pipeline the sum over all ticks, in the parameter's dtype, once
                found[key_of(kind, outside, one.size * one.stacked // shards)] += 1
        elif one.reduced:
            axes = tuple(axis for axis in step.mesh if axis in one.gathered + one.reduced)
            for group in _summed(step, axes):
                found[key_of(kind, group, one.size)] += 1
                found[key_of(kind, group, one.sent)] += one.uses - 1
    return found


def _fully_sharded(step: Step) -> Counter[Key]:
    """fsdp: every kernel of a block is all-gathered in the forward and again in the backward pass, and its gradient is
    reduce-scattered. Outside the blocks a parameter is gathered once, and its gradient reduced as over data.
    """
    found: Counter[Key] = Counter()
    for one in step.parameters:
        if one.gathered and one.turns:
            found[key_of("all-gather", one.gathered, one.sent)] += 2 * one.turns
            found[key_of(step.scattered, one.gathered, one.sent)] += one.turns
        elif one.gathered:
            found[key_of("all-gather", one.gathered, one.size)] += 1
            if not one.reduced:
                found[key_of(step.scattered, one.gathered, one.size)] += 1
                found[key_of(step.scattered, one.gathered, one.sent)] += one.uses - 1
    return found


def _tensor_parallel(step: Step) -> Counter[Key]:
    """tensor: activations f[B, L, D] are all-reduced twice a block in the forward pass (after attention and after the
    mlp) and twice in the backward pass (before them; on CPUs five times: queries, keys, values, gate, up), once after
    the embedding, and once before the logits. The accuracy gathers the largest logit of every shard of the vocabulary
    and its index.

    Megatron's sequence parallelism: the axis that splits the residual stream gathers it before each pair of matmuls and
    reduce-scatters it after them, and the reverse in the backward pass; the bytes are those of the all-reduces above. A
    mesh axis that splits heads only then all-reduces the scattered shards.
    """
    found: Counter[Key] = Counter()
    if not step.heads or step.activations is None:
        return found
    width, scores = step.activations.width * step.itemsize, step.activations.scores
    outside, inside = step.positions * width, step.inside * step.length * width
    reduce = step.scattered if step.residual else "all-reduce"
    rest = tuple(axis for axis in step.heads if axis not in step.residual)
    if step.residual:
        found[key_of(reduce, step.residual, inside)] += 2 * step.turns
        found[key_of("all-gather", step.residual, inside)] += 4 * step.turns
        found[key_of("all-gather", step.residual, outside)] += 2
    if rest:
        found[key_of("all-reduce", rest, inside // step.over(step.residual))] += 2 * step.turns
    found[key_of(reduce, step.heads, inside)] += (2 if step.accelerator else 5) * step.turns
    found[key_of(reduce, step.heads, outside)] += step.lookups + scores
    found[key_of("all-gather", step.heads, step.positions * 4 * step.over(step.heads))] += 2 * scores
    return found


def _context_parallel(step: Step) -> Counter[Key]:
    """context: in ring attention, keys and values f[B, L, G, K] pass through all other devices in the forward pass and
    again in the backward pass, where their gradients travel the whole ring. Before the logits each device sends its two
    chunks of activations to their place in the sequence, and their gradients back.

    Without a causal mask keys and values are all-gathered in both passes, and their gradients reduce-scattered.

    In a recurrent layer every device all-gathers the last state f32[B, M] of each other one and how much of an earlier
    state is left in it; their gradients are reduce-scattered.
    """
    found: Counter[Key] = Counter()
    if not step.along or step.activations is None:
        return found
    sizes, devices = step.activations, step.over(step.along)
    entries = step.inside * step.length * sizes.width // sizes.heads * sizes.kv_heads
    entries //= step.over(step.heads)
    states = 2 * step.inside * sizes.state // step.over(step.heads) * devices * 4
    if sizes.state:
        found[key_of("all-gather", step.along, states)] += step.turns
        found[key_of("reduce-scatter", step.along, states)] += step.turns
    elif sizes.ring:
        found[key_of("collective-permute", step.along, entries * step.itemsize)] += 4 * (devices - 1) * step.turns
        found[key_of("collective-permute", step.along, entries * 4)] += 2 * devices * step.turns
        chunk = step.positions * sizes.width * step.itemsize // 2
        found[key_of("collective-permute", step.along, chunk)] += 4 if devices > 2 else 2  # of two, one stays
    else:
        found[key_of("all-gather", step.along, entries * devices * step.itemsize)] += 4 * step.turns
        found[key_of(step.scattered, step.along, entries * devices * step.itemsize)] += 2 * step.turns
    return found


def _expert_parallel(step: Step) -> Counter[Key]:
    """expert: an all-to-all sends the tokens to their experts and another one the outputs back, in both passes; the
    buffers have room for all tokens that may be routed to a device.
    """
    found: Counter[Key] = Counter()
    if not step.experts or step.activations is None:
        return found
    sizes, devices = step.activations, step.over(step.experts)
    here = sizes.experts // devices
    slots = step.inside * min(
        here * (sizes.expert_slots // step.over(step.along)), step.length * min(sizes.top_k, here)
    )
    found[key_of("all-to-all", step.experts, devices * slots * sizes.width * step.itemsize)] += 4 * step.turns
    return found


def _routers(step: Step) -> Counter[Key]:
    """Where the inner width of experts is split, the gradients of the router's logits f[B, L, E] are all-reduced."""
    experts = step.activations.experts if step.activations else 0
    size = step.inside * step.length * experts * 4
    return Counter({key_of("all-reduce", step.heads, size): step.turns} if step.heads and experts else {})


def _pipeline_parallel(step: Step) -> Counter[Key]:
    """stage: each tick passes the activations of one microbatch on, in both passes. All stages gather the input of the
    first one, and its output is reduce-scattered to the devices of its rows; the gradients likewise.
    """
    found: Counter[Key] = Counter()
    if not step.stages or step.activations is None:
        return found
    width = step.activations.width * step.itemsize
    microbatch = step.inside * step.length // step.over(step.residual) * width
    whole = step.positions // step.over(step.residual) * step.over(step.stages) * width
    found[key_of("collective-permute", step.stages, microbatch)] += 2 * step.ticks
    found[key_of("all-gather", step.stages, whole)] += 2
    found[key_of("reduce-scatter", step.stages, whole)] += 2
    return found


FORMULAS: tuple[Callable[[Step], Counter[Key]], ...] = (
    _data_parallel,
    _fully_sharded,
    _tensor_parallel,
    _context_parallel,
    _expert_parallel,
    _routers,
    _pipeline_parallel,
)
"""One function for each kind of parallelism."""

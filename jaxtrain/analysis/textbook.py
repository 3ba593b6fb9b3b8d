"""What a textbook asks a train step to send between devices, from shapes alone."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import jax
from jax.sharding import AbstractMesh, Mesh

from jaxtrain.analysis.hlo import Key, key_of
from jaxtrain.experiment.experiment import Experiment
from jaxtrain.models import Blocks, Transformer, ViT
from jaxtrain.sharding.layout import AxisNamed, Layout, Rule, mesh_axes, named_leaves, path_name


@dataclass(frozen=True)
class Parameter:
    """A parameter as one device holds it while it is used."""

    path: str
    turns: int
    """How often a pass comes to it in the loop over blocks; 0 for one outside the blocks."""
    stacked: int
    """How many blocks of it a device has."""
    uses: int
    """How often a pass uses it where it is outside the blocks."""
    size: int
    """Bytes on a device that has gathered it, of one block."""
    sent: int
    """The same in the dtype that it is multiplied in."""
    gathered: tuple[str, ...]
    """Mesh axes that split both it and the rows of the batch: it is gathered over these before it is used."""
    reduced: tuple[str, ...]
    """Mesh axes that split rows or positions and not it: its gradient is summed over these."""
    kept: tuple[str, ...]
    """Mesh axes that split what the optimizer keeps for it and not it."""


@dataclass(frozen=True)
class Step:
    """What the formulas know of one train step."""

    mesh: Mapping[str, int]
    rows: tuple[str, ...]
    """Mesh axes that split the rows of a batch."""
    replicas: tuple[str, ...]
    """Those of them that split no parameter."""
    heads: tuple[str, ...]
    """Mesh axes that split heads, mlp and vocabulary."""
    along: tuple[str, ...]
    """Mesh axes that split the sequence everywhere."""
    residual: tuple[str, ...]
    """Mesh axes that split it between blocks only."""
    stages: tuple[str, ...]
    """Mesh axes that split the layers."""
    experts: tuple[str, ...]
    """Mesh axes that split experts."""
    blocks: Blocks | None
    """None for a model that is not made of these: nothing is known of its activations."""
    causal: bool
    length: int
    """Positions of a row."""
    batch: int
    """Rows that a device holds."""
    microbatches: int
    lookups: int
    """Tables split by vocabulary that are indexed."""
    scores: int
    """Products with the vocabulary that give logits of every position."""
    accelerator: bool
    parameters: tuple[Parameter, ...] = ()

    def over(self, axes: Iterable[str]) -> int:
        """How many devices there are along these axes."""
        return math.prod(self.mesh[axis] for axis in axes)

    @property
    def itemsize(self) -> int:
        """Bytes of a number that goes into a matmul: a CPU's compiler sends f32 in any case."""
        return 2 if self.accelerator and self.blocks and self.blocks.precision.compute == "bfloat16" else 4

    @property
    def scattered(self) -> str:
        """What sums arrays of which each device keeps a part. CPUs sum all of it and cut."""
        return "reduce-scatter" if self.accelerator else "all-reduce"

    @property
    def positions(self) -> int:
        """Positions of all the rows that a device holds."""
        return self.batch * self.length // self.over(self.along)

    @property
    def ticks(self) -> int:
        """How often each stage of a pipeline works in a pass, in some of them on nothing; 1 without a pipeline."""
        stages, rounds = self.over(self.stages), self.blocks.rounds if self.blocks else 1
        return self.microbatches * rounds + stages - 1 if self.stages else 1

    @property
    def turns(self) -> int:
        """How many blocks a device goes through in a pass."""
        layers, rounds = (self.blocks.layers, self.blocks.rounds) if self.blocks else (0, 1)
        return self.ticks * layers // (self.over(self.stages) * rounds) if self.stages else layers

    @property
    def inside(self) -> int:
        """The rows that go through a block at once."""
        return self.batch * self.over(self.stages) // self.microbatches if self.stages else self.batch


def textbook(experiment: Experiment, mesh: Mesh | AbstractMesh, accelerator: bool = False) -> Counter[Key]:
    """How often one step should send which arrays over which mesh axes: the sum of `FORMULAS`.

    `accelerator`: as on TPUs and GPUs. Where these use reduce-scatter, CPUs all-reduce and slice; while these add up
    the gradients of several matmuls of one input and reduce the sum, on CPUs each is reduced for itself; and what these
    sum over rows and positions at once, CPUs sum over one after the other.
    """
    step = describe(experiment, mesh, accelerator)
    return sum((formula(step) for formula in FORMULAS), Counter())


def describe(experiment: Experiment, mesh: Mesh | AbstractMesh, accelerator: bool = False) -> Step:
    """What the formulas go by, read off the abstract state and the names of its axes."""
    model, layout = experiment.task.model, experiment.layout
    sizes = {axis: size for axis, size in mesh.shape.items() if size > 1}

    def split(*names: str) -> tuple[str, ...]:
        return tuple(axis for axis in sizes if any(axis in mesh_axes(layout.rules.get(name)) for name in names))

    batch = experiment.data.example()
    inputs = experiment.task.read(batch)
    named = jax.eval_shape(lambda: experiment.task.init(jax.random.key(0), batch))
    leaves = {path_name(path): leaf for path, leaf in named_leaves(named)}
    pooled = getattr(model, "pooled", not isinstance(model, Transformer))
    tied = getattr(model, "tied", False)
    blocks = getattr(model, "blocks", None)
    step = Step(
        mesh=sizes,
        rows=split("batch"),
        replicas=tuple(axis for axis in sizes if axis in layout.row_axes(sizes)),
        heads=split("heads", "mlp", "vocab"),
        along=split("length"),
        residual=tuple(axis for axis in split("residual_length") if axis not in split("length")),
        stages=split("layers") if any("layers" in leaf.axes for leaf in leaves.values()) else (),
        experts=split("expert") if any("expert" in leaf.axes for leaf in leaves.values()) else (),
        blocks=blocks if isinstance(blocks, Blocks) else None,
        causal=getattr(model, "causal", False),
        length=math.prod(inputs.shape[1:-1]) // model.patch**2 if isinstance(model, ViT) else inputs.shape[-1],
        batch=experiment.data.batch_size // math.prod(sizes[axis] for axis in split("batch")),
        microbatches=experiment.microbatches,
        lookups=sum(leaf.axes[:1] == ("vocab",) for leaf in leaves.values()),
        scores=0 if pooled else tied + sum(leaf.axes[-1:] == ("vocab",) for leaf in leaves.values()),
        accelerator=accelerator,
    )
    return replace(step, parameters=tuple(_parameter(path, leaf, step, layout, tied) for path, leaf in leaves.items()))


def _parameter(path: str, leaf: AxisNamed, step: Step, layout: Layout, tied: bool) -> Parameter:
    def held(rules: Mapping[str, Rule]) -> dict[str, str]:
        return {axis: name for name in leaf.axes if name for axis in mesh_axes(rules[name]) if axis in step.mesh}

    own, kept = held(layout.rules), held({**layout.rules, **layout.optimizer_rules})
    # Stages and experts are where they are: what comes to them are activations.
    gathered = tuple(axis for axis in step.rows if own.get(axis, "layers") not in ("layers", "expert"))
    stacked = [n for name, n in zip(leaf.axes, leaf.value.shape, strict=True) if name in ("layers", "rounds")]
    entries = math.prod(leaf.value.shape) // math.prod(stacked)
    entries //= step.over(axis for axis, name in own.items() if axis not in gathered and name != "layers")
    # What scales every position, as norms do, is summed over the parts of the residual stream too.
    summed = step.rows + step.along + (step.residual if "norm" in leaf.axes else ())
    return Parameter(
        path,
        turns=(step.turns if step.blocks else math.prod(stacked)) if stacked else 0,
        stacked=math.prod(stacked) // step.over(step.stages if stacked else ()),
        uses=1 + (tied and leaf.axes[:1] == ("vocab",)),
        size=entries * leaf.value.dtype.itemsize,
        sent=entries * (step.itemsize if path.endswith("kernel") or tied else leaf.value.dtype.itemsize),
        gathered=gathered,
        reduced=tuple(axis for axis in step.mesh if axis in summed and axis not in own),
        kept=tuple(axis for axis in kept if axis not in own),
    )


def _summed(step: Step, axes: Sequence[str]) -> list[tuple[str, ...]]:
    """The groups of axes that a gradient is summed over, one after another."""
    along = tuple(axis for axis in axes if axis in step.along and not step.accelerator)
    return [group for group in (tuple(axis for axis in axes if axis not in along), along) if group]


def _over_data(step: Step) -> Counter[Key]:
    """data: every gradient is all-reduced once (that of a table used at both ends twice), of a kernel that `fsdp`
    splits only a device's part. Outside the blocks all axes are summed over at once.

    With `ZERO1` the devices keep a part of the sum, and gather the parameters after the update.
    """
    found: Counter[Key] = Counter()
    for one in step.parameters:
        parts, kind = step.over(one.gathered), step.scattered if one.kept else "all-reduce"
        if one.kept:
            found[key_of("all-gather", one.kept, one.size * one.stacked // parts)] += 1
        outside = [axis for axis in one.reduced if step.stages and axis in step.replicas]
        inside = tuple(axis for axis in one.reduced if axis not in outside)
        if one.turns:
            for axes in _summed(step, inside):
                found[key_of(kind, axes, one.sent // parts)] += one.turns
            if outside:  # in a pipeline the sum of all ticks, in the parameter's dtype, once
                found[key_of(kind, outside, one.size * one.stacked // parts)] += 1
        elif one.reduced:
            axes = tuple(axis for axis in step.mesh if axis in one.gathered + one.reduced)
            for group in _summed(step, axes):
                found[key_of(kind, group, one.size)] += 1
                found[key_of(kind, group, one.sent)] += one.uses - 1
    return found


def _over_fsdp(step: Step) -> Counter[Key]:
    """fsdp: every kernel of a block is gathered in the forward pass and again in the backward pass, and its gradient
    reduced (and scattered); outside the blocks all are gathered once, and gradients reduced as over data.
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


def _over_heads(step: Step) -> Counter[Key]:
    """tensor: activations f[B, L, D] are all-reduced twice a block in the forward pass (after attention and after the
    mlp) and twice in the backward pass (before them; on CPUs five times: queries, keys, values, gate, up), once after
    the embedding and once before the scores. Accuracy gathers the largest logit of every part of the vocabulary and
    its index.

    Megatron's sequence parallelism: the same, but what splits the residual stream gathers before every such pair of
    matmuls and reduce-scatters after it, the other way round in the backward pass; the bytes sent are those of the
    all-reduces above. A mesh axis that splits the heads only then all-reduces what is scattered.
    """
    found: Counter[Key] = Counter()
    if not step.heads or step.blocks is None:
        return found
    width = step.blocks.width * step.itemsize
    outside, inside = step.positions * width, step.inside * step.length // step.over(step.along) * width
    reduce = step.scattered if step.residual else "all-reduce"
    rest = tuple(axis for axis in step.heads if axis not in step.residual)
    if step.residual:
        found[key_of(reduce, step.residual, inside)] += 2 * step.turns
        found[key_of("all-gather", step.residual, inside)] += 4 * step.turns
        found[key_of("all-gather", step.residual, outside)] += 2
    if rest:
        found[key_of("all-reduce", rest, inside // step.over(step.residual))] += 2 * step.turns
    found[key_of(reduce, step.heads, inside)] += (2 if step.accelerator else 5) * step.turns
    found[key_of(reduce, step.heads, outside)] += step.lookups + step.scores
    everyone = step.over(step.heads)
    found[key_of("all-gather", step.heads, step.positions * 4 * everyone)] += 2 * step.scores
    return found


def _over_context(step: Step) -> Counter[Key]:
    """context: keys and values f[B, L, G, K] go round all other devices in the forward pass and again in the backward
    pass, and their gradients all the way round. Before the scores each device sends its two chunks of activations where
    they belong, and back in the backward pass.

    Without a causal mask keys and values are gathered in both passes, and their gradients reduced.
    """
    found: Counter[Key] = Counter()
    if not step.along or step.blocks is None:
        return found
    blocks, devices = step.blocks, step.over(step.along)
    entries = step.inside * step.length // devices * blocks.width // blocks.heads * blocks.groups
    entries //= step.over(step.heads)
    if step.causal and blocks.attention in ("auto", "ring"):
        found[key_of("collective-permute", step.along, entries * step.itemsize)] += 4 * (devices - 1) * step.turns
        found[key_of("collective-permute", step.along, entries * 4)] += 2 * devices * step.turns
        chunk = step.positions * blocks.width * step.itemsize // 2
        found[key_of("collective-permute", step.along, chunk)] += 4 if devices > 2 else 2  # of two, one stays
    else:
        found[key_of("all-gather", step.along, entries * devices * step.itemsize)] += 4 * step.turns
        found[key_of(step.scattered, step.along, entries * devices * step.itemsize)] += 2 * step.turns
    return found


def _over_experts(step: Step) -> Counter[Key]:
    """expert: the positions travel to their experts and the answers back, and both again in the backward pass, by
    all-to-all: room for all that might be asked.
    """
    found: Counter[Key] = Counter()
    if not step.experts or step.blocks is None:
        return found
    experts, devices, length = step.blocks.experts, step.over(step.experts), step.length // step.over(step.along)
    here = experts.count // devices
    room = length if experts.capacity is None else math.ceil(experts.capacity * length * experts.chosen / experts.count)
    places = step.inside * min(here * room, length * min(experts.chosen, here))
    size = devices * places * step.blocks.width * step.itemsize
    found[key_of("all-to-all", step.experts, size)] += 4 * step.turns
    return found


def _over_routers(step: Step) -> Counter[Key]:
    """Where an expert's inner width is split, the gradients of the router's scores f[B, L, E] are all-reduced."""
    experts = step.blocks.experts.count if step.blocks else 0
    size = step.inside * step.length // step.over(step.along) * experts * 4
    return Counter({key_of("all-reduce", step.heads, size): step.turns} if step.heads and experts else {})


def _over_stages(step: Step) -> Counter[Key]:
    """stage: each tick passes the activations of one part of the batch on, in both passes. All devices get the rows of
    the first stage's parts from those that hold them, and the answers go back there; so do the gradients.
    """
    found: Counter[Key] = Counter()
    if not step.stages or step.blocks is None:
        return found
    width = step.blocks.width * step.itemsize
    part = step.inside * step.length // step.over(step.along + step.residual) * width
    whole = step.positions // step.over(step.residual) * step.over(step.stages) * width
    found[key_of("collective-permute", step.stages, part)] += 2 * step.ticks
    found[key_of("all-gather", step.stages, whole)] += 2
    found[key_of("reduce-scatter", step.stages, whole)] += 2
    return found


FORMULAS: tuple[Callable[[Step], Counter[Key]], ...] = (
    _over_data,
    _over_fsdp,
    _over_heads,
    _over_context,
    _over_experts,
    _over_routers,
    _over_stages,
)
"""One function for each kind of parallelism; a new one is added here."""

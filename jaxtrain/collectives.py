"""The collectives of a compiled train step, read off its HLO, and what a textbook asks for, from shapes alone.

Every array counts by itself, also where XLA sends several at once. Its bytes are those of the whole array on one
device: before a reduction, after a gathering. Not here: which meshes to try, and any running.
"""

import functools
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh

from jaxtrain.experiment import Experiment
from jaxtrain.layout import Layout, Named, Rule, mesh_axes, named_leaves, path_name
from jaxtrain.models import Blocks, Transformer, ViT

Key = tuple[str, str, int]
"""Kind, mesh axes joined by `×`, bytes of one array."""

IGNORED = 2048
"""Arrays of fewer bytes count as nothing: scales of norms, a softmax's maximum and sum, metrics."""


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
        along=split("sequence"),
        residual=tuple(axis for axis in split("residual") if axis not in split("sequence")),
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


def _parameter(path: str, leaf: Named, step: Step, layout: Layout, tied: bool) -> Parameter:
    def held(rules: Mapping[str, Rule]) -> dict[str, str]:
        return {axis: name for name in leaf.axes if name for axis in mesh_axes(rules[name]) if axis in step.mesh}

    own, kept = held(layout.rules), held({**layout.rules, **layout.kept})
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
            found[_key("all-gather", one.kept, one.size * one.stacked // parts)] += 1
        outside = [axis for axis in one.reduced if step.stages and axis in step.replicas]
        inside = tuple(axis for axis in one.reduced if axis not in outside)
        if one.turns:
            for axes in _summed(step, inside):
                found[_key(kind, axes, one.sent // parts)] += one.turns
            if outside:  # in a pipeline the sum of all ticks, in the parameter's dtype, once
                found[_key(kind, outside, one.size * one.stacked // parts)] += 1
        elif one.reduced:
            axes = tuple(axis for axis in step.mesh if axis in one.gathered + one.reduced)
            for group in _summed(step, axes):
                found[_key(kind, group, one.size)] += 1
                found[_key(kind, group, one.sent)] += one.uses - 1
    return found


def _over_fsdp(step: Step) -> Counter[Key]:
    """fsdp: every kernel of a block is gathered in the forward pass and again in the backward pass, and its gradient
    reduced (and scattered); outside the blocks all are gathered once, and gradients reduced as over data.
    """
    found: Counter[Key] = Counter()
    for one in step.parameters:
        if one.gathered and one.turns:
            found[_key("all-gather", one.gathered, one.sent)] += 2 * one.turns
            found[_key(step.scattered, one.gathered, one.sent)] += one.turns
        elif one.gathered:
            found[_key("all-gather", one.gathered, one.size)] += 1
            if not one.reduced:
                found[_key(step.scattered, one.gathered, one.size)] += 1
                found[_key(step.scattered, one.gathered, one.sent)] += one.uses - 1
    return found


def _over_heads(step: Step) -> Counter[Key]:
    """tensor: activations f[B, L, D] are all-reduced twice a block in the forward pass (after attention and after the
    mlp) and twice in the backward pass (before them; on CPUs five times: queries, keys, values, gate, up), once after
    the embedding and once before the scores. Accuracy gathers the largest logit of every part of the vocabulary and
    its index.

    sequence (Megatron): the same, but what splits the residual stream gathers before every such pair of matmuls and
    reduce-scatters after it, the other way round in the backward pass; the bytes sent are those of the all-reduces
    above. A mesh axis that splits the heads and not the residual stream then all-reduces just the scattered part.
    """
    found: Counter[Key] = Counter()
    if not step.heads or step.blocks is None:
        return found
    width = step.blocks.width * step.itemsize
    outside, inside = step.positions * width, step.inside * step.length // step.over(step.along) * width
    reduce = step.scattered if step.residual else "all-reduce"
    rest = tuple(axis for axis in step.heads if axis not in step.residual)
    if step.residual:
        found[_key(reduce, step.residual, inside)] += 2 * step.turns
        found[_key("all-gather", step.residual, inside)] += 4 * step.turns
        found[_key("all-gather", step.residual, outside)] += 2
    if rest:
        found[_key("all-reduce", rest, inside // step.over(step.residual))] += 2 * step.turns
    found[_key(reduce, step.heads, inside)] += (2 if step.accelerator else 5) * step.turns
    found[_key(reduce, step.heads, outside)] += step.lookups + step.scores
    everyone = step.over(step.heads)
    found[_key("all-gather", step.heads, step.positions * 4 * everyone)] += 2 * step.scores
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
        found[_key("collective-permute", step.along, entries * step.itemsize)] += 4 * (devices - 1) * step.turns
        found[_key("collective-permute", step.along, entries * 4)] += 2 * devices * step.turns
        chunk = step.positions * blocks.width * step.itemsize // 2
        found[_key("collective-permute", step.along, chunk)] += 4 if devices > 2 else 2  # of two, one stays
    else:
        found[_key("all-gather", step.along, entries * devices * step.itemsize)] += 4 * step.turns
        found[_key(step.scattered, step.along, entries * devices * step.itemsize)] += 2 * step.turns
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
    found[_key("all-to-all", step.experts, size)] += 4 * step.turns
    return found


def _over_routers(step: Step) -> Counter[Key]:
    """Where an expert's inner width is split, the gradients of the router's scores f[B, L, E] are all-reduced."""
    experts = step.blocks.experts.count if step.blocks else 0
    size = step.inside * step.length // step.over(step.along) * experts * 4
    return Counter({_key("all-reduce", step.heads, size): step.turns} if step.heads and experts else {})


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
    found[_key("collective-permute", step.stages, part)] += 2 * step.ticks
    found[_key("all-gather", step.stages, whole)] += 2
    found[_key("reduce-scatter", step.stages, whole)] += 2
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


def moved(key: Key, mesh: Mapping[str, int]) -> float:
    """Bytes that each device sends for one such array, around a ring."""
    kind, axes, size = key
    devices = math.prod(mesh[axis] for axis in axes.split("×"))
    if kind in ("collective-permute", "collective-broadcast"):
        return size
    return (2 if kind == "all-reduce" else 1) * size * (devices - 1) / devices


def _key(kind: str, axes: Sequence[str], bytes: int) -> Key:
    return kind, "×".join(axes), bytes


KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^(?:ROOT )?%?[\w.\-]+ = (.*?) ([a-z][\w\-]*)\((.*)$")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|called_computations|branch_computations)=\{?(%?[\w.\-]+(?:, %[\w.\-]+)*)"
)
_ARRAY = re.compile(r"\b(pred|bf16|[a-z]\d+)\[([\d,]*)\]")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^ ]*)\))? \{([^}]*)\}")


@dataclass(frozen=True)
class Collective:
    """One array that the devices of a program exchange."""

    kind: str
    axes: tuple[str, ...]
    """The mesh axes along which the devices of a group lie."""
    bytes: int
    times: int
    """How often a step sends it: more than once in the body of a loop."""
    where: str
    """The operation of the model that it comes from."""
    frame: int = 0
    """Where that is, for `source_lines`; 0 is unknown."""

    @property
    def key(self) -> Key:
        """What it is counted by."""
        return _key(self.kind, self.axes, self.bytes)


def collectives(text: str, mesh: Mapping[str, int], ignored: int = IGNORED) -> list[Collective]:
    """Every array of `ignored` bytes or more that the HLO `text` of a program for this mesh exchanges."""
    entry, bodies, name = "", {}, ""
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            name = match[2]
            bodies[name] = []
            entry = name if match[1] else entry
        elif line == "}":
            name = ""
        elif name:
            bodies[name].append(line.strip())
    if not entry:
        raise ValueError("no ENTRY computation in this text: it is not that of a compiled program")
    # Without an axis a device sends to itself.
    return [found for found in _walk(bodies, entry, 1, mesh, set()) if found.bytes >= ignored and found.axes]


def counted(found: Iterable[Collective]) -> Counter[Key]:
    """How often a step sends which arrays: what `textbook` says they should be."""
    total: Counter[Key] = Counter()
    for collective in found:
        total[collective.key] += collective.times
    return total


@dataclass(frozen=True)
class Line:
    """A line of somebody's source."""

    file: str
    line: int
    function: str


def source_lines(text: str, frame: int) -> list[Line]:
    """The calls that led to an operation of a program, innermost first; none where the compiler did not keep them."""
    files, functions, places, frames = (
        _table(text, name) for name in ("FileNames", "FunctionNames", "FileLocations", "StackFrames")
    )
    found = []
    while row := frames.get(frame):
        place, parent = (int(number) for number in re.findall(r"=(\d+)", row))
        file, function, line, *_ = (int(number) for number in re.findall(r"=(\d+)", places[place]))
        found.append(Line(files[file].strip('"'), line, functions[function].strip('"')))
        frame = parent - 1  # written one too high: 1 is none
    return found


def _table(text: str, name: str) -> dict[int, str]:
    section = re.search(rf"^{name}\n((?:\d+ .*\n)*)", text, re.MULTILINE)
    return {int(number): row for number, row in re.findall(r"(\d+) (.*)\n", section[1])} if section else {}


def _walk(
    bodies: Mapping[str, list[str]], name: str, times: int, mesh: Mapping[str, int], seen: set[str]
) -> Iterator[Collective]:
    for line in bodies[name]:
        match = _INSTRUCTION.match(line)
        if not match:
            continue
        shape, kind, rest = match.groups()
        base = kind.removesuffix("-start")
        if base in KINDS:
            # A TPU's asynchronous collective is written out several times, in the pieces that it is run in.
            channel = re.search(r"channel_id=\d+", rest)
            if channel and "chain_id" in rest and channel[0] in seen:
                continue
            seen.add(channel[0] if channel else "")
            yield from _read(name, base, kind.endswith("-start"), shape, rest, times, mesh)
        elif ring := re.search(r"body=%?(\S*windowed_dot_general_body_(ag|rs)[^ ,]*)", rest):
            yield _ring(bodies[ring[1]], ring[2], times, mesh)
        elif not kind.endswith("-done"):
            trips = functools.partial(_trips, bodies, rest) if kind == "while" else lambda: 1
            for called in _CALLED.findall(rest):
                for other in called.replace("%", "").split(", "):
                    yield from (
                        replace(found, times=found.times * trips()) for found in _walk(bodies, other, times, mesh, seen)
                    )


def _read(
    name: str, kind: str, start: bool, shape: str, rest: str, times: int, mesh: Mapping[str, int]
) -> Iterator[Collective]:
    sizes = [_size(dtype, dims) for dtype, dims in _ARRAY.findall(shape)]
    if start and kind == "all-gather":
        sizes = sizes[len(sizes) // 2 :]  # after the operands come the results
    elif start and kind == "collective-permute":
        sizes = sizes[:1]
    elif kind == "all-to-all":
        sizes = [sum(sizes)]
    axes = _axes(rest, mesh)
    if kind == "reduce-scatter":
        sizes = [size * math.prod(mesh[axis] for axis in axes) for size in sizes]
    if name.startswith("all-reduce-scatter"):  # what TPUs call the computation of a reduce-scatter
        kind = "reduce-scatter"
    where, frame = re.search(r'op_name="([^"]*)"', rest), re.search(r"stack_frame_id=(\d+)", rest)
    for size in sizes:
        yield Collective(kind, axes, size, times, where[1] if where else "", int(frame[1]) if frame else 0)


def _ring(body: list[str], kind: str, times: int, mesh: Mapping[str, int]) -> Collective:
    """The gathering or scattering that a TPU's loop over a ring of devices stands for: it sends a part in each turn,
    while the parts that came before are multiplied (Wang et al. 2023, doi:10.1145/3567955.3567959).
    """
    matches = (_INSTRUCTION.match(line) for line in body)
    first = next(match for match in matches if match and match[2].startswith("collective-permute"))
    [part, *_] = _read("", "collective-permute", True, first[1], first[3], times, mesh)
    whole = part.bytes * math.prod(mesh[axis] for axis in part.axes)
    return Collective("all-gather" if kind == "ag" else "reduce-scatter", part.axes, whole, times, part.where)


def _size(dtype: str, dims: str) -> int:
    bits = 8 if dtype == "pred" else int(dtype.lstrip("abcdefghijklmnopqrstuvwxyz"))
    return bits * math.prod(int(dim) for dim in dims.split(",") if dim) // 8


def _trips(bodies: Mapping[str, list[str]], rest: str) -> int:
    """How often a loop runs: said by the CPU's and GPU's compilers, on TPUs the one constant of its condition."""
    if known := re.search(r'"known_trip_count":(\{[^}]*\})', rest):
        return int(json.loads(known[1])["n"])
    condition = re.search(r"condition=%?([\w.\-]+)", rest)
    bounds = re.findall(r"= s32\[\]\S* constant\((\d+)\)", "\n".join(bodies[condition[1]])) if condition else []
    if len(bounds) != 1:
        raise ValueError(f"cannot tell how often this loop runs: {rest[:300]}")
    return int(bounds[0])


def _axes(rest: str, mesh: Mapping[str, int]) -> tuple[str, ...]:
    """The mesh axes along which the devices of any one group differ."""
    places = np.stack(np.unravel_index(_groups(rest, math.prod(mesh.values())), tuple(mesh.values())))
    moved = (places != places[:, :, :1]).any((1, 2))
    return tuple(axis for axis, moves in zip(mesh, moved, strict=True) if moves)


def _groups(rest: str, devices: int) -> np.ndarray:
    """Device numbers i[groups, devices a group], in all the ways that XLA writes them; the pairs of a permutation."""
    if named := _MESH.search(rest):
        sizes = {axis: int(size) for axis, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
        if ":" in named[3]:
            raise ValueError(f"groups along a part of a mesh axis cannot be read: {named[0]}")
        inner = re.findall(r"'(\w+)'", named[3])
        ids = (_iota(named[2]) if named[2] else np.arange(devices)).reshape(tuple(sizes.values()))
        ids = np.moveaxis(ids, [list(sizes).index(axis) for axis in inner], range(-len(inner), 0))
        return ids.reshape(-1, math.prod(sizes[axis] for axis in inner))
    if listed := re.search(r"(?:replica_groups|source_target_pairs)=\{\{([\d,{}]*)\}\}", rest):
        return np.array([[int(number) for number in group.split(",")] for group in listed[1].split("},{")])
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", rest):
        return _iota(iota[3]).reshape(int(iota[1]), int(iota[2]))
    return np.arange(devices)[None]


def _iota(text: str) -> np.ndarray:
    """Device numbers written as `[4,2]T(1,0)`: 0, 1, … in that shape, transposed."""
    dims, _, order = text.partition("T")
    shape = [int(number) for number in dims.strip("[]").split(",")]
    numbers = np.arange(math.prod(shape)).reshape(shape)
    return (numbers.transpose([int(number) for number in order.strip("()").split(",")]) if order else numbers).ravel()

"""The collectives of a compiled train step, read off its HLO, and what a textbook asks for, from shapes alone.

Every array counts by itself, also where XLA sends several at once. Its bytes are those of the whole array on one
device: before a reduction, after a gathering. Not here: which meshes to try, and any running.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from jaxtrain.experiment import Experiment
from jaxtrain.models import Transformer

Key = tuple[str, str, int]
"""Kind, mesh axes joined by `×`, bytes of one array."""

IGNORED = 2048
"""Arrays of fewer bytes count as nothing: scales of norms, a softmax's maximum and sum, metrics."""


def textbook(experiment: Experiment, accelerator: bool = False) -> Counter[Key]:
    """How often one step should send which arrays over which mesh axes; see the four functions below.

    `accelerator`: as on TPUs and GPUs. Where these use reduce-scatter, CPUs all-reduce and slice; and while these add
    up the gradients of several matmuls of one input and reduce the sum, on CPUs each is reduced for itself.
    """
    return (
        _over_data(experiment, accelerator) + _over_fsdp(experiment, accelerator) + _over_heads(experiment, accelerator)
    )


def _kernels(experiment: Experiment, accelerator: bool) -> list[int]:
    """The bytes of the kernels of one block, or of their gradients, on a device that has gathered them."""
    model, (parts, _) = _model(experiment), _head_axes(experiment)
    itemsize = _itemsize(experiment, accelerator)
    D, M, G = model.blocks.width, model.blocks.hidden, model.blocks.width // model.blocks.heads * model.blocks.groups
    return [
        itemsize * size // _devices(experiment, parts) for size in (D * D, D * G, D * G, D * D, D * M, D * M, M * D)
    ]


def _table(experiment: Experiment) -> int:
    """The bytes of a device's part of the vocabulary."""
    model, (parts, _) = _model(experiment), _head_axes(experiment)
    return 4 * model.vocab * model.blocks.width // _devices(experiment, parts)


def _of_table(experiment: Experiment, kind: str, axes: list[str], accelerator: bool) -> Counter[Key]:
    """The gradient of the table, of looking up and of scoring."""
    size = _table(experiment)
    scores = size * _itemsize(experiment, accelerator) // 4
    return Counter([_key(kind, axes, size), _key(kind, axes, scores)])


def _over_data(experiment: Experiment, accelerator: bool) -> Counter[Key]:
    """data: every gradient is all-reduced once (the table's, used at both ends, twice), of a kernel that `fsdp` splits
    only a device's part.
    """
    found: Counter[Key] = Counter()
    mesh, layers = experiment.layout.mesh, _model(experiment).blocks.layers
    if "data" in mesh:
        for size in _kernels(experiment, accelerator):
            found[_key("all-reduce", ["data"], size // mesh.get("fsdp", 1))] += layers
        found += _of_table(experiment, "all-reduce", [axis for axis in mesh if axis in ("data", "fsdp")], accelerator)
    return found


def _over_fsdp(experiment: Experiment, accelerator: bool) -> Counter[Key]:
    """fsdp: every kernel of a block is gathered in the forward pass and again in the backward pass, and its gradient
    reduced (and scattered); the table is gathered once, and its gradient reduced as over data.
    """
    found: Counter[Key] = Counter()
    mesh, layers = experiment.layout.mesh, _model(experiment).blocks.layers
    reduce = "reduce-scatter" if accelerator else "all-reduce"
    if "fsdp" in mesh:
        for size in _kernels(experiment, accelerator):
            found[_key("all-gather", ["fsdp"], size)] += 2 * layers
            found[_key(reduce, ["fsdp"], size)] += layers
        found[_key("all-gather", ["fsdp"], _table(experiment))] += 1
        if "data" not in mesh:
            found += _of_table(experiment, reduce, ["fsdp"], accelerator)
    return found


def _over_heads(experiment: Experiment, accelerator: bool) -> Counter[Key]:
    """tensor: activations f[B, L, D] are all-reduced twice a block in the forward pass (after attention and after the
    mlp) and twice in the backward pass (before them; on CPUs five times: queries, keys, values, gate, up), once after
    the embedding and once before the scores. Accuracy gathers the largest logit of every part of the vocabulary and
    its index.

    sequence (Megatron): the same, but what splits the residual stream gathers before every such pair of matmuls and
    reduce-scatters after it, the other way round in the backward pass; the bytes sent are those of the all-reduces
    above. A mesh axis that splits the heads and not the residual stream then all-reduces just the scattered part.
    """
    found: Counter[Key] = Counter()
    model, (heads, residual) = _model(experiment), _head_axes(experiment)
    if not heads:
        return found
    batch = experiment.data.batch_size // _devices(experiment, ["data", "fsdp"])
    positions = batch * (experiment.data.example()["tokens"].shape[1] - 1)
    size, layers = positions * model.blocks.width * _itemsize(experiment, accelerator), model.blocks.layers
    reduce = "reduce-scatter" if accelerator and residual else "all-reduce"
    rest = [axis for axis in heads if axis not in residual]
    for axes, bytes in ((residual, size), (rest, size // _devices(experiment, residual))):
        if axes:
            found[_key(reduce if axes is residual else "all-reduce", axes, bytes)] += 2 * layers
    found[_key(reduce, heads, size)] += (2 if accelerator else 5) * layers
    found[_key(reduce, heads, size)] += 2
    if residual:
        found[_key("all-gather", residual, size)] += 4 * layers + 2
    found[_key("all-gather", heads, positions * 4 * _devices(experiment, heads))] += 2
    return found


def _model(experiment: Experiment) -> Transformer:
    if not isinstance(experiment.task.model, Transformer):
        raise TypeError(f"no formula for a {type(experiment.task.model).__name__}")
    return experiment.task.model


def _head_axes(experiment: Experiment) -> tuple[list[str], list[str]]:
    """The mesh axes that split heads, mlp and vocabulary, and those that split the residual stream."""
    layout = experiment.layout
    residual = layout.rules["residual"] or ()
    split = (residual,) if isinstance(residual, str) else residual
    return [axis for axis in layout.mesh if axis in ("tensor", "sequence")], [
        axis for axis in layout.mesh if axis in split
    ]


def _devices(experiment: Experiment, axes: list[str]) -> int:
    return math.prod(experiment.layout.mesh.get(axis, 1) for axis in axes)


def _itemsize(experiment: Experiment, accelerator: bool) -> int:
    """Bytes of a number that goes into a matmul: a CPU's compiler sends f32 in any case."""
    return 2 if accelerator and _model(experiment).blocks.precision.compute == "bfloat16" else 4


def _key(kind: str, axes: list[str], bytes: int) -> Key:
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

    @property
    def key(self) -> Key:
        """What it is counted by."""
        return _key(self.kind, list(self.axes), self.bytes)


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
    return [found for found in _walk(bodies, entry, 1, mesh, set()) if found.bytes >= ignored]


def counted(found: list[Collective]) -> Counter[Key]:
    """How often a step sends which arrays: what `textbook` says they should be."""
    total: Counter[Key] = Counter()
    for collective in found:
        total[collective.key] += collective.times
    return total


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
            inner = times * (_trips(bodies, rest) if kind == "while" else 1)
            for called in _CALLED.findall(rest):
                for other in called.replace("%", "").split(", "):
                    yield from _walk(bodies, other, inner, mesh, seen)


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
    where = re.search(r'op_name="([^"]*)"', rest)
    for size in sizes:
        yield Collective(kind, axes, size, times, where[1] if where else "")


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

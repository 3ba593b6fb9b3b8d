"""The collectives of a compiled program, read off its HLO text."""

import functools
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

Key = tuple[str, str, int]
"""Kind, mesh axes joined by `×`, bytes of one array."""


def moved(key: Key, mesh: Mapping[str, int]) -> float:
    """Bytes that each device sends for one such array, around a ring."""
    kind, axes, size = key
    devices = math.prod(mesh[axis] for axis in axes.split("×"))
    if kind in ("collective-permute", "collective-broadcast"):
        return size
    return (2 if kind == "all-reduce" else 1) * size * (devices - 1) / devices


def key_of(kind: str, axes: Sequence[str], bytes: int) -> Key:
    """What equal collectives are counted by."""
    return kind, "×".join(axes), bytes


IGNORED = 2048
"""Arrays of fewer bytes count as nothing: scales of norms, a softmax's maximum and sum, metrics."""

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
        return key_of(self.kind, self.axes, self.bytes)


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

"""Parser of compiled HLO text: the collectives of a program, and the source lines they come from.

Not here: which collectives there should be, which is `analysis/textbook.py`.
"""

import functools
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

Key = tuple[str, str, int]
"""What identifies a collective for counting: its kind, its mesh axes joined by `×`, and the bytes of its array."""


def moved(key: Key, mesh: Mapping[str, int]) -> float:
    """Bytes that each device sends in one collective with this key, by the ring algorithm."""
    kind, axes, size = key
    devices = math.prod(mesh[axis] for axis in axes.split("×"))
    if kind in ("collective-permute", "collective-broadcast"):
        return size
    return (2 if kind == "all-reduce" else 1) * size * (devices - 1) / devices


def key_of(kind: str, axes: Sequence[str], bytes: int) -> Key:
    """The `Key` of a collective."""
    return kind, "×".join(axes), bytes


IGNORED = 2048
"""Arrays of fewer bytes are not counted: scales of norms, the maximum and sum of a softmax, metrics."""

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")

_NO_ARRAYS = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all")
"""Instructions that allocate no array."""

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^(?:ROOT )?%?[\w.\-]+ = (.*?) ([a-z][\w\-]*)\((.*)$")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|called_computations|branch_computations)=\{?(%?[\w.\-]+(?:, %[\w.\-]+)*)"
)
_ARRAY = re.compile(r"\b(pred|bf16|[a-z]\d+)\[([\d,]*)\]")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^ ]*)\))? \{([^}]*)\}")


@dataclass(frozen=True)
class Collective:
    """A collective of a compiled program, on one array."""

    kind: str
    axes: tuple[str, ...]
    """The mesh axes over which it communicates."""
    bytes: int
    times: int
    """How often it runs in a step; in the body of a loop, once per iteration."""
    where: str
    """The `op_name` of its metadata: the JAX operation that it comes from."""
    frame: int = 0
    """Its stack frame, for `source_lines`; 0 is unknown."""

    @property
    def key(self) -> Key:
        """Its `Key`."""
        return key_of(self.kind, self.axes, self.bytes)


def collectives(text: str, mesh: Mapping[str, int], ignored: int = IGNORED) -> list[Collective]:
    """The collectives in the HLO `text` of a program for this mesh, on arrays of `ignored` bytes or more.

    Raises ValueError for text that is not of a compiled program, and for loops and groups that cannot be parsed.
    """
    entry, bodies = _computations(text)
    # A collective over no axis stays within one device.
    return [found for found in _walk(bodies, entry, 1, mesh, set()) if found.bytes >= ignored and found.axes]


def _computations(text: str) -> tuple[str, dict[str, list[str]]]:
    """The name of the entry computation, and the lines of every computation by name."""
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
    return entry, bodies


def counted(found: Iterable[Collective]) -> Counter[Key]:
    """How often each `Key` runs in a step, for comparison with `textbook`."""
    total: Counter[Key] = Counter()
    for collective in found:
        total[collective.key] += collective.times
    return total


@dataclass(frozen=True)
class Line:
    """A line of Python source."""

    file: str
    line: int
    function: str


@dataclass(frozen=True)
class Temporary:
    """An array that a program allocates and does not return."""

    bytes: int
    type: str
    where: str
    """The `op_name` of its metadata."""
    frame: int
    """Its stack frame, for `source_lines`; 0 is unknown."""


def temporaries(text: str) -> list[Temporary]:
    """The arrays that a program, given as HLO `text`, allocates outside of fusions and does not return, largest first.
    Those of the same type and operation are listed once.
    """
    entry, bodies = _computations(text)
    found, left, seen = dict[tuple[str, str], Temporary](), [entry], set[str]()
    returned = {name for line in bodies[entry] if line.startswith("ROOT") for name in re.findall(r"%[\w.\-]+", line)}
    while left:
        if (computation := left.pop()) in seen:
            continue
        seen.add(computation)
        for line in bodies[computation]:
            if not (match := _INSTRUCTION.match(line)):
                continue
            shape, kind, rest = match.groups()
            if kind in ("while", "conditional", "call"):
                left += [name for names in _CALLED.findall(rest) for name in names.replace("%", "").split(", ")]
            elif kind not in _NO_ARRAYS and line.partition(" = ")[0].removeprefix("ROOT ") not in returned:
                where, frame = re.search(r'op_name="([^"]*)"', rest), re.search(r"stack_frame_id=(\d+)", rest)
                name = where[1] if where else ""
                for dtype, dims in _ARRAY.findall(shape):
                    one = Temporary(_size(dtype, dims), f"{dtype}[{dims}]", name, int(frame[1]) if frame else 0)
                    found.setdefault((one.type, name), one)
    return sorted(found.values(), key=lambda one: -one.bytes)


def source_lines(text: str, frame: int) -> list[Line]:
    """The Python call stack of an operation, innermost first; empty if the compiler did not keep it."""
    files, functions, places, frames = (
        _table(text, name) for name in ("FileNames", "FunctionNames", "FileLocations", "StackFrames")
    )
    found = []
    while row := frames.get(frame):
        place, parent = (int(number) for number in re.findall(r"=(\d+)", row))
        file, function, line, *_ = (int(number) for number in re.findall(r"=(\d+)", places[place]))
        found.append(Line(files[file].strip('"'), line, functions[function].strip('"')))
        frame = parent - 1  # XLA writes parents plus one
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
            # On TPUs an asynchronous collective appears several times, once for each of its steps.
            channel = re.search(r"channel_id=\d+", rest)
            if channel and "chain_id" in rest and channel[0] in seen:
                continue
            seen.add(channel[0] if channel else "")
            yield from _parse_collective(name, base, kind.endswith("-start"), shape, rest, times, mesh)
        elif ring := re.search(r"body=%?(\S*windowed_dot_general_body_(ag|rs)[^ ,]*)", rest):
            yield _ring_of(bodies[ring[1]], ring[2], times, mesh)
        elif not kind.endswith("-done"):
            trips = functools.partial(_trips, bodies, rest) if kind == "while" else lambda: 1
            called = [other for names in _CALLED.findall(rest) for other in names.replace("%", "").split(", ")]
            parts = [list(_walk(bodies, other, times, mesh, seen)) for other in called]
            if kind == "conditional":  # one branch runs; count the one that sends most
                parts = [max(parts, key=lambda part: sum(found.bytes * found.times for found in part))]
            yield from (replace(found, times=found.times * trips()) for found in itertools.chain(*parts))


def _parse_collective(
    name: str, kind: str, start: bool, shape: str, rest: str, times: int, mesh: Mapping[str, int]
) -> Iterator[Collective]:
    sizes = [_size(dtype, dims) for dtype, dims in _ARRAY.findall(shape)]
    if start and kind == "all-gather":
        sizes = sizes[len(sizes) // 2 :]  # the operands come first, then the results
    elif start and kind == "collective-permute":
        sizes = sizes[:1]
    elif kind == "all-to-all":
        sizes = [sum(sizes)]
    axes = _axes(rest, mesh)
    if kind == "reduce-scatter":
        sizes = [size * math.prod(mesh[axis] for axis in axes) for size in sizes]
    if name.startswith("all-reduce-scatter"):  # the computation of a reduce-scatter on TPUs
        kind = "reduce-scatter"
    where, frame = re.search(r'op_name="([^"]*)"', rest), re.search(r"stack_frame_id=(\d+)", rest)
    for size in sizes:
        yield Collective(kind, axes, size, times, where[1] if where else "", int(frame[1]) if frame else 0)


def _ring_of(body: list[str], kind: str, times: int, mesh: Mapping[str, int]) -> Collective:
    """The all-gather or reduce-scatter that a TPU overlaps with a matmul, in a loop that sends one shard per iteration
    while it multiplies the previous one (Wang et al. 2023, doi:10.1145/3567955.3567959).
    """
    matches = (_INSTRUCTION.match(line) for line in body)
    first = next(match for match in matches if match and match[2].startswith("collective-permute"))
    [shard, *_] = _parse_collective("", "collective-permute", True, first[1], first[3], times, mesh)
    whole = shard.bytes * math.prod(mesh[axis] for axis in shard.axes)
    return Collective("all-gather" if kind == "ag" else "reduce-scatter", shard.axes, whole, times, shard.where)


def _size(dtype: str, dims: str) -> int:
    bits = 8 if dtype == "pred" else int(dtype.lstrip("abcdefghijklmnopqrstuvwxyz"))
    return bits * math.prod(int(dim) for dim in dims.split(",") if dim) // 8


def _trips(bodies: Mapping[str, list[str]], rest: str) -> int:
    """The number of iterations of a loop: given in the text on CPUs and GPUs, the condition's only constant on TPUs."""
    if known := re.search(r'"known_trip_count":(\{[^}]*\})', rest):
        return int(json.loads(known[1])["n"])
    condition = re.search(r"condition=%?([\w.\-]+)", rest)
    bounds = re.findall(r"= s32\[\]\S* constant\((\d+)\)", "\n".join(bodies[condition[1]])) if condition else []
    if len(bounds) != 1:
        raise ValueError(f"cannot tell how often this loop runs: {rest[:300]}")
    return int(bounds[0])


def _axes(rest: str, mesh: Mapping[str, int]) -> tuple[str, ...]:
    """The mesh axes along which the devices of a group differ."""
    places = np.stack(np.unravel_index(_groups(rest, math.prod(mesh.values())), tuple(mesh.values())))
    moved = (places != places[:, :, :1]).any((1, 2))
    return tuple(axis for axis, moves in zip(mesh, moved, strict=True) if moves)


def _groups(rest: str, devices: int) -> np.ndarray:
    """Device numbers i[groups, devices in a group], from any of XLA's notations; for a permutation, its pairs."""
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
    """Device numbers from the notation `[4,2]T(1,0)`: 0, 1, … in this shape, then transposed."""
    dims, _, order = text.partition("T")
    shape = [int(number) for number in dims.strip("[]").split(",")]
    numbers = np.arange(math.prod(shape)).reshape(shape)
    return (numbers.transpose([int(number) for number in order.strip("()").split(",")]) if order else numbers).ravel()

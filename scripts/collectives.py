"""The collectives of a compiled train step, read off its HLO, and what a textbook asks for, from shapes alone.

Run it for a table of both on eight simulated devices: `python scripts/collectives.py`. `tests/test_collectives.py`
holds them together; `scripts/collectives_tpu.py` does the same for a TPU that need not be there.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
BYTES = {"pred": 1, "s4": 1, "u4": 1, "bf16": 2, "f16": 2}

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_CALLED = re.compile(r"\b(?:calls|to_apply|called_computations?|body|branch_computations)=\{?((?:%?[\w.\-]+(?:, )?)+)\}?")
_ARRAY = re.compile(r"\b([a-z]+\d*(?:e\dm\d\w*)?)\[([\d,]*)\]")


@dataclass(frozen=True)
class Collective:
    """One collective of a program."""

    kind: str
    axes: tuple[str, ...]
    """The mesh axes along which its devices lie."""
    bytes: int
    """A device's bytes of the whole array: before a reduction, after a gathering."""
    times: int
    """How often a step runs it."""
    where: str
    """The operation of the model that it comes from."""


def collectives(text: str, mesh: Mapping[str, int]) -> list[Collective]:
    """Every collective of the program, once a line of the HLO `text`."""
    entry, bodies = _computations(text)
    return list(_walk(bodies, entry, 1, mesh))


def _computations(text: str) -> tuple[str, dict[str, list[str]]]:
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
    return entry, bodies


def _walk(bodies: Mapping[str, list[str]], name: str, times: int, mesh: Mapping[str, int]) -> Iterator[Collective]:
    for line in bodies.get(name, ()):
        match = _INSTRUCTION.match(line)
        if not match:
            continue
        _, shape, kind, rest = match.groups()
        base = kind.removesuffix("-start")
        if base in KINDS:
            sizes = [_size(*array) for array in _ARRAY.findall(shape)]
            whole = max(sizes) if kind.endswith("-start") else sum(sizes)
            axes = _axes(rest, mesh)
            if base == "reduce-scatter":
                whole *= math.prod(mesh[axis] for axis in axes)
            where = re.search(r'op_name="([^"]*)"', rest)
            yield Collective(base, axes, whole, times, where[1] if where else "")
        elif not base.endswith("-done"):
            inner = times * (_trips(bodies, rest) if kind == "while" else 1)
            for called in _CALLED.findall(rest):
                for other in called.replace("%", "").split(", "):
                    yield from _walk(bodies, other, inner, mesh)


def _size(dtype: str, dims: str) -> int:
    bits = re.search(r"\d+", dtype)
    size = BYTES.get(dtype) or (int(bits[0]) // 8 if bits else 4)
    return size * math.prod(int(dim) for dim in dims.split(",") if dim)


def _trips(bodies: Mapping[str, list[str]], rest: str) -> int:
    if known := re.search(r'"known_trip_count":(\{[^}]*\})', rest):
        return int(json.loads(known[1])["n"])
    condition = re.search(r"condition=%?([\w.\-]+)", rest)
    bounds = re.findall(r"s32\[\][^ ]* constant\((\d+)\)", "\n".join(bodies[condition[1]])) if condition else []
    if len(bounds) != 1:
        raise ValueError(f"cannot tell how often this loop runs: {rest[:200]}")
    return int(bounds[0])


def _axes(rest: str, mesh: Mapping[str, int]) -> tuple[str, ...]:
    """The mesh axes along which the devices of one group differ."""
    places = np.stack(np.unravel_index(_groups(rest, math.prod(mesh.values())), tuple(mesh.values())))
    moved = (places != places[:, :, :1]).any((1, 2))
    return tuple(axis for axis, moves in zip(mesh, moves, strict=True) if moves) if False else tuple(
        axis for axis, moves in zip(mesh, moved, strict=True) if moves
    )


def _groups(rest: str, devices: int) -> np.ndarray:
    """i[groups, devices a group], in each of the three ways that XLA writes them; of a permutation, the pairs."""
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?\]?(?:T\([\d,]+\))?)\))? \{([^}]*)\}", rest):
        sizes = {axis: int(size) for axis, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
        ids = _iota(named[2]) if named[2] else np.arange(devices)
        inner = re.findall(r"'(\w+)'", named[3])
        if ":" in named[3]:
            raise ValueError(f"a part of a mesh axis, which this does not read: {named[0]}")
        ids = np.moveaxis(ids.reshape(tuple(sizes.values())), [list(sizes).index(axis) for axis in inner], range(-len(inner), 0))
        return ids.reshape(-1, math.prod(sizes[axis] for axis in inner))
    if listed := re.search(r"(?:replica_groups|source_target_pairs)=\{\{([\d,{}]*)\}\}", rest):
        return np.array([[int(i) for i in group.split(",")] for group in listed[1].split("},{")])
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]<=(\S+?)(?:,? |,?$)", rest):
        return _iota(iota[3]).reshape(int(iota[1]), int(iota[2]))
    return np.arange(devices)[None]


def _iota(text: str) -> np.ndarray:
    """Device numbers written `[4,2]T(1,0)`: 0, 1, … in that shape, transposed."""
    dims, _, order = text.rstrip(",").partition("T")
    shape = [int(n) for n in dims.strip("[]").split(",")]
    numbers = np.arange(math.prod(shape)).reshape(shape)
    return (numbers.transpose([int(n) for n in order.strip("()").split(",")]) if order else numbers).ravel()

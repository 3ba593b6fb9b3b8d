"""The checksum of a batch: held against Python's integers, and the same however its rows are split."""

import zlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from itertools import islice

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jaxtrain.program import Program
from jaxtrain.sharding.checksum import as_number, checksum, checksum_on_host
from jaxtrain.sharding.layout import Layout

MASK = np.ones(3, bool)


def mixed(x: int) -> int:
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = ((x ^ (x >> shift)) * factor) % 2**32
    return x ^ (x >> 16)


def by_hand(words: dict[str, list[list[int]]]) -> int:
    high = low = 0
    for name, rows in words.items():
        for row, numbers in enumerate(rows):
            key = mixed((row + zlib.crc32(name.encode()) + 0x9E3779B9) % 2**32)
            for place, word in enumerate(numbers):
                one = mixed(((word ^ key) + place * 0x85EBCA6B) % 2**32)
                high += one
                low += (one ^ (one >> 15)) * 0x2C1B3C6D
    return high % 2**32 * 2**32 + low % 2**32


CASES = {
    "int32": (np.array([[1, -1], [0, 2**31 - 1], [5, 6]], np.int32), [[1, 2**32 - 1], [0, 2**31 - 1], [5, 6]]),
    "int8": (np.array([[-1], [2], [3]], np.int8), [[2**32 - 1], [2], [3]]),
    "uint8": (np.array([[255], [2], [3]], np.uint8), [[255], [2], [3]]),
    "uint8, four a word": (
        np.array([[1, 2, 3, 255, 0, 0, 0, 0], [0, 0, 0, 1, 1, 0, 0, 0], [255] * 8], np.uint8),
        [[0xFF030201, 0], [0x01000000, 1], [2**32 - 1] * 2],
    ),
    "int8, four a word": (np.array([[-1, 0, 0, -128], [0] * 4, [1] * 4], np.int8), [[0x800000FF], [0], [0x01010101]]),
    "bool, four a word": (np.array([[1, 0, 0, 1], [0] * 4, [1] * 4], bool), [[0x01000001], [0], [0x01010101]]),
    "float32": (np.array([1.0, -2.0, np.inf], np.float32), [[0x3F800000], [0xC0000000], [0x7F800000]]),
    "float64": (np.array([1.0, -2.0, np.inf]), [[0x3F800000], [0xC0000000], [0x7F800000]]),
    "bfloat16": (np.array([1.0, -2.0, 0.0]).astype(jnp.bfloat16), [[0x3F80], [0xC000], [0]]),
    "complex64": (np.array([1 + 2j, 0, -2], np.complex64), [[0x3F800000, 0x40000000], [0, 0], [0xC0000000, 0]]),
}


@pytest.mark.parametrize("kind", CASES)
def test_it_is_the_number_computed_by_hand_on_host_and_device(kind: str) -> None:
    x, words = CASES[kind]
    expected = by_hand({"x": words, "mask": [[1], [1], [1]]})
    assert checksum_on_host({"x": x, "mask": MASK}) == expected
    assert as_number(jax.jit(checksum)({"x": jnp.asarray(x), "mask": MASK})) == expected


def test_it_differs_where_rows_fields_or_places_are_swapped_and_for_every_bit() -> None:
    x, y = np.array([[1, 2], [3, 4], [5, 6]], np.int32), np.array([[7, 8], [9, 10], [11, 12]], np.int32)
    flipped = [np.where(np.arange(6).reshape(3, 2) == 2, x ^ np.int32(1 << bit), x) for bit in range(31)]
    batches = [
        {"x": x, "y": y},
        {"x": y, "y": x},
        {"x": x[[1, 0, 2]], "y": y[[1, 0, 2]]},
        {"x": x[[1, 0, 2]], "y": y},
        {"x": x[:, ::-1], "y": y},
        {"x": x, "z": y},
        *({"x": one, "y": y} for one in flipped),
    ]
    assert len({checksum_on_host({**batch, "mask": MASK}) for batch in batches}) == len(batches)


def host() -> Iterator[dict[str, np.ndarray]]:
    with closing(tiny.main().data.batches()) as batches:
        yield from islice(batches, 2)


@pytest.mark.parametrize(
    "mesh", [{}, {"data": 4}, {"fsdp": 8}, {"tensor": 2}, {"context": 4}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=str
)
def test_every_mesh_gives_the_number_of_the_host(mesh: dict[str, int]) -> None:
    experiment = replace(tiny.main(), layout=Layout(mesh), evals={})
    program = Program(experiment, jax.devices()[: int(np.prod(list(mesh.values()) or [1]))])
    with closing(program.batches(experiment.data)) as batches:
        state = program.init()
        found = [as_number(program.record(state, batch)["batch"]) for batch in islice(batches, 2)]
    assert found == [checksum_on_host(batch) for batch in host()]

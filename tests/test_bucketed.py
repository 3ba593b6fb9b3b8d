"""Batches of rows of like length."""

import pickle
from dataclasses import replace

import numpy as np
import pytest

from jaxtrain import ConfigError
from jaxtrain.data import Arrays, Bucketed, Pipeline, Take, Utf8

SIZE, ROWS, WIDTHS = 103, 8, (4, 9)
LENGTHS = np.random.default_rng(5).integers(1, 17, SIZE)
SOURCE = Arrays({"text": ["a" * n for n in LENGTHS], "number": np.arange(SIZE, dtype=np.int32)})


def bucketed(**changes: object) -> Bucketed:
    made = Bucketed(SOURCE, (Utf8(16),), batch_size=ROWS, seed=3, by="text", widths=WIDTHS, threads=0)
    return replace(made, **changes)


def numbers(pipeline: Pipeline, count: int, start: int = 0, rows: list[int] | None = None) -> np.ndarray:
    """Which examples the first batches hold, [batches, rows]."""
    steps = pipeline.steps(rows, start)
    return np.stack([steps[step]["number"] for step in range(count)])


def test_every_epoch_visits_each_example_once_in_another_order() -> None:
    stream = numbers(bucketed(), SIZE).ravel()  # 8 epochs, of which 7 begin within a batch
    epochs = stream.reshape(ROWS, SIZE)
    for epoch in epochs:
        assert sorted(epoch) == list(range(SIZE))
    assert len({tuple(epoch) for epoch in epochs}) == ROWS


def test_a_batch_holds_one_bucket_but_where_buckets_and_epochs_meet() -> None:
    lengths = LENGTHS[numbers(bucketed(), SIZE)]
    bucket = (lengths > 4).astype(int) + (lengths > 9)
    mixed = bucket.min(1) != bucket.max(1)
    # Each of 8 epochs has two places where buckets meet, and there are seven where epochs do.
    assert mixed.sum() <= 8 * 2 + 7
    assert {0, 1, 2} == set(bucket[~mixed].ravel())
    # Shuffled by row alone, no batch of eight would hold one bucket but by chance.
    rows = LENGTHS[numbers(Pipeline(SOURCE, (Utf8(16),), batch_size=ROWS, seed=3, threads=0), SIZE)]
    apart = (rows > 4).astype(int) + (rows > 9)
    assert (apart.min(1) == apart.max(1)).mean() < 0.05


def test_buckets_follow_each_other_at_random_and_rows_meet_others_in_every_epoch() -> None:
    aligned = bucketed(source=Take(SOURCE, 96))  # an epoch is twelve whole batches
    first, second = numbers(aligned, 12), numbers(aligned, 12, start=12)
    wide = (LENGTHS[first] > 9).all(1)
    assert np.abs(np.diff(wide.astype(int))).sum() > 2  # sorted batches would change at most once
    assert not {frozenset(batch) for batch in first.tolist()} & {frozenset(batch) for batch in second.tolist()}


def test_the_batch_at_a_step_depends_on_the_pipeline_and_the_step_alone() -> None:
    whole = numbers(bucketed(), 30)
    np.testing.assert_array_equal(numbers(bucketed(), 4, start=26), whole[26:])
    np.testing.assert_array_equal(numbers(bucketed(), 30, rows=[5, 2]), whole[:, [5, 2]])
    np.testing.assert_array_equal(numbers(pickle.loads(pickle.dumps(bucketed())), 30), whole)
    assert (numbers(bucketed(seed=4), 30) != whole).any()
    read = bucketed(threads=2, prefetch=4).batches()
    np.testing.assert_array_equal([next(read)["number"] for _ in range(5)], whole[:5])
    read.close()


def test_a_row_is_named_by_its_place_in_the_source() -> None:
    batches = numbers(bucketed(), 20)
    assert [bucketed().record(17, row, training=True) for row in range(ROWS)] == batches[17].tolist()


def test_a_length_that_is_a_width_is_in_its_bucket_and_longer_ones_are_a_bucket_too() -> None:
    source = Arrays({"text": ["aaaa", "aaaaa", "a" * 9, "a" * 10, "", "a" * 16]})
    assert list(bucketed(source=source)._buckets) == [0, 1, 1, 2, 0, 2]
    assert list(bucketed(source=source, widths=(9, 4))._buckets) == [0, 1, 1, 2, 0, 2]


@pytest.mark.parametrize("size", [1, 5, 8, 16])
def test_sources_of_few_rows_are_read_whole_in_every_epoch(size: int) -> None:
    source = Arrays({"text": ["a" * (n % 16) for n in range(size)], "number": np.arange(size, dtype=np.int32)})
    stream = numbers(bucketed(source=source), size).ravel()
    assert [sorted(epoch) for epoch in stream.reshape(-1, size)] == [list(range(size))] * ROWS


def test_evaluation_and_an_order_that_is_not_shuffled_are_those_of_the_source() -> None:
    epoch = list(bucketed().epoch())
    seen = np.concatenate([batch["number"][batch["mask"]] for batch in epoch])
    np.testing.assert_array_equal(seen, np.arange(SIZE))
    np.testing.assert_array_equal(numbers(bucketed(shuffle=False), 3).ravel(), np.arange(24))


def test_a_field_that_is_not_there_is_named_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"Bucketed\.by: no field 'txet' in the example.*text"):
        bucketed(by="txet").steps()

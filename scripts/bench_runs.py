"""Times `jaxtrain runs` over many folders of real runs, in all: from the start of the process to its end.

python scripts/bench_runs.py RUN [COUNT]

RUN, the folder of a run, is copied COUNT times (1,000) into a temporary folder without its checkpoints, with every
twentieth copy damaged in some way. Each figure is the best of three; the first pass over new files is shown apart.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def copies(run: Path, place: Path, count: int) -> None:
    """Fill a folder."""
    for number in range(count):
        folder = place / f"experiment-{number % 20}" / f"{number:05d}"
        shutil.copytree(run, folder, ignore=shutil.ignore_patterns("checkpoints", "tensorboard", "*.npz"))
        if number % 20 == 7:
            (folder / "experiment.json").write_text('{"experiment"')
        if number % 20 == 13:
            (folder / "events.jsonl").unlink()
            os.mkfifo(folder / "events.jsonl")


def seconds(place: Path) -> tuple[float, str]:
    """The time that the command takes, and what it prints."""
    since = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "jaxtrain", "runs", str(place)], capture_output=True, text=True, check=True
    )
    return time.perf_counter() - since, done.stdout


def main() -> None:
    run, count = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1000
    with tempfile.TemporaryDirectory() as made:
        copies(run, Path(made), count)
        times = [seconds(Path(made)) for _ in range(4)]
        print(f"{len(times[0][1].splitlines()) - 2} runs: first {times[0][0]:.2f} s, then {min(times[1:])[0]:.2f} s")


if __name__ == "__main__":
    main()

"""How long a report takes, and how large its page is, by the number of logged steps.

    python scripts/bench_report.py [STEPS …]

The run is synthesised: every step has a line with the metrics of a classifier in metrics.jsonl, and a record in
steps.bin. Times are of the CPU in this process, without starting Python, the best of three: other work on the machine counts little.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from jaxtrain.base.text import size, table
from jaxtrain.reports.report import report
from jaxtrain.runs.metrics_log import MetricsLog
from jaxtrain.runs.steps_log import StepsLog

METRICS = ("accuracy", "auc", "f1_macro", "precision_macro", "recall_macro")
PHASES = ("compile", "restore", "data", "step", "eval", "save", "other")


def synthesise(folder: Path, steps: int) -> Path:
    """A run's folder with so many logged steps, an evaluation every hundredth, and a few events."""
    folder.mkdir()
    rng, at = np.random.default_rng(0), np.arange(1, steps + 1)
    loss, norm = 2 * np.exp(-at / steps * 4) + 0.2 * rng.random(steps), np.exp(rng.normal(size=steps))
    log = MetricsLog(folder)
    log.event("begun", step=0, of=steps, mesh={"data": 8})
    with (folder / "metrics.jsonl").open("w") as file:
        for step, value in zip(at.tolist(), loss.tolist(), strict=True):
            line = {
                "step": step,
                "split": "train",
                "loss": value,
                "gradient_norm": 1.0,
                **dict.fromkeys(METRICS, value),
            }
            line |= {"examples_per_second": 4e3 + value, "tokens_per_second": 4e5 + value, "learning_rate": 1e-3 / step}
            line |= {f"seconds_{phase}": step * 0.01 for phase in PHASES} | {"seconds_total": step * 0.07}
            file.write(json.dumps(line) + "\n")
            if step % 100 == 0:
                line = {"step": step, "split": "validation", "loss": value, **dict.fromkeys(METRICS, value)}
                file.write(json.dumps(line) + "\n")
    zeros = np.zeros(steps, np.int64)
    StepsLog(folder).append({"step": at, "loss": loss, "gradient_norm": norm, "batch": zeros, "skipped": zeros})
    log.event("begun", step=steps // 2, of=steps, mesh={"data": 8})
    return folder


def main() -> None:
    counts = [int(word.replace(",", "")) for word in sys.argv[1:]] or [1_000, 10_000, 100_000]
    rows = [("steps", "metrics.jsonl", "report", "page")]
    with tempfile.TemporaryDirectory() as home:
        for steps in counts:
            folder, best, page = synthesise(Path(home) / str(steps), steps), float("inf"), Path()
            for _ in range(3):
                began = time.process_time()
                page = report(folder)
                best = min(best, time.process_time() - began)
            log = (folder / "metrics.jsonl").stat().st_size
            rows.append((f"{steps:,}", size(log), f"{best:.2f} s", size(page.stat().st_size)))
    print(table(rows))


if __name__ == "__main__":
    main()

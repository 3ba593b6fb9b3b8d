"""A run's metrics as a pandas frame. Not here: the lines as dicts, which are `read_metrics`."""

from pathlib import Path
from typing import Any

from jaxtrain.base.packages import needs
from jaxtrain.runs.metrics_log import read_metrics


def metrics_frame(folder: Path) -> Any:
    """The lines of a run's metrics.jsonl as a `pandas.DataFrame`, in their order: `step` (int64), `split` (str), then a
    float64 column for each metric that any line has, in the order in which they first occur.

    NaN stands for a value that was NaN, and for a metric that a line does not have. A run without lines has no rows.
    Damaged lines are left out, with a warning. Raises ConfigError where pandas is missing.
    """
    with needs("a frame of metrics", "pandas", "notebook"):
        import pandas
    lines = read_metrics(folder)
    names = dict.fromkeys(name for line in lines for name in line if name not in ("step", "split"))
    columns: dict[str, Any] = {
        "step": pandas.Series([line["step"] for line in lines], dtype="int64"),
        "split": pandas.Series([line["split"] for line in lines], dtype="object"),
    }
    for name in names:
        columns[name] = pandas.Series([line.get(name, float("nan")) for line in lines], dtype="float64")
    return pandas.DataFrame(columns)

"""A run's metrics as a frame: its columns and their types, and what is missing or damaged."""

import math
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from jaxtrain import ConfigError
from jaxtrain.runs.frame import metrics_frame
from jaxtrain.runs.metrics_log import MetricsLog


def test_lines_become_rows_and_metrics_columns_of_floats_with_nan_where_there_is_none(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    log.metrics(2, "train", {"loss": 1.5, "gradient_norm": math.nan})
    log.metrics(2, "test", {"loss": math.inf, "accuracy": 1})
    log.metrics(4, "train", {"loss": 0.5, "gradient_norm": 3})
    frame = metrics_frame(tmp_path)
    expected = pd.DataFrame(
        {
            "step": np.array([2, 2, 4], np.int64),
            "split": ["train", "test", "train"],
            "loss": [1.5, math.inf, 0.5],
            "gradient_norm": [math.nan, math.nan, 3.0],
            "accuracy": [math.nan, 1.0, math.nan],
        }
    )
    pd.testing.assert_frame_equal(frame, expected.astype({"split": object}))


@pytest.mark.parametrize("written", [None, "", '{"step": 1, "split": "tr'], ids=["no file", "empty", "cut off"])
def test_a_run_without_a_line_has_the_columns_of_every_run_and_no_row(written: str | None, tmp_path: Path) -> None:
    if written is not None:
        (tmp_path / "metrics.jsonl").write_text(written)
    frame = metrics_frame(tmp_path)
    assert (list(frame.columns), len(frame)) == (["step", "split"], 0)
    assert [str(frame[name].dtype) for name in frame.columns] == ["int64", "object"]


@pytest.mark.parametrize(
    "line",
    [
        f'{{"step": {2**63}, "split": "train", "loss": 1.0}}',
        f'{{"step": 1, "split": "train", "loss": {10**400}}}',
        '{"step": 1, "split": "train", "loss": true}',
        "[1]",
    ],
    ids=["step beyond i64", "value beyond f64", "truth value", "no object"],
)
def test_a_line_that_no_run_writes_is_left_out_with_a_warning(
    line: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "metrics.jsonl").write_text(f'{line}\n{{"step": 3, "split": "train", "loss": 2}}\n')
    frame = metrics_frame(tmp_path)
    assert frame.to_dict("records") == [{"step": 3, "split": "train", "loss": 2.0}]
    assert "line 1 is left out" in caplog.text


def test_without_pandas_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ConfigError, match=r"a frame of metrics needs pandas: pip install 'jaxtrain\[notebook\]'"):
        metrics_frame(tmp_path)

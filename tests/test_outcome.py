"""What two runs came to: every leaf, PRNG keys too, and every value of metrics, NaN too."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtrain.analysis.outcome import Ended, ended, ulps, unlike
from jaxtrain.runs.checkpoints import Checkpoints


def written(folder: Path, seed: int, loss: float | str) -> Ended:
    """What a run came to whose last state holds this PRNG key, and whose one line of metrics this loss."""
    state = {"key": jax.random.key(seed), "weight": jnp.arange(3, dtype=jnp.bfloat16), "none": jnp.zeros((0, 2))}
    with Checkpoints(folder / "checkpoints") as checkpoints:
        checkpoints.save(4, state, {})
        checkpoints.wait()
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 4, "split": "train", "loss": loss, "mfu": seed}) + "\n")
    return ended(folder, 4)


def test_prng_keys_arrays_without_elements_and_bfloat16_are_read_and_compared(tmp_path: Path) -> None:
    first = written(tmp_path / "first", 1, 0.5)
    assert first[0]["key"].tolist() == [0, 1]  # threefry of a small seed
    assert first[0]["weight"].astype(np.float32).tolist() == [0, 1, 2]
    assert first[0]["none"].shape == (0, 2)
    assert unlike(first, written(tmp_path / "same", 1, 0.5)) == []
    assert unlike(first, written(tmp_path / "other", 2, 0.5)) == ["1 leaves, first key"]


def test_nan_is_like_nan_alone(tmp_path: Path) -> None:
    nan, number = written(tmp_path / "nan", 1, "nan"), written(tmp_path / "number", 1, 0.5)
    assert unlike(nan, written(tmp_path / "again", 1, "nan")) == []
    assert unlike(nan, number) == unlike(number, nan) == ["metrics of step 4 (train): loss"]


@pytest.mark.parametrize("lines", [[{"step": 1, "split": "train", "loss": 1.0, "extra": 2.0}], []])
def test_a_value_and_a_line_that_only_one_run_has_are_differences(lines: list[dict[str, object]]) -> None:
    whole: Ended = ({"x": np.zeros(2)}, [{"step": 1, "split": "train", "loss": 1.0}])
    expected = ["metrics of step 1 (train): extra"] if lines else ["0 lines of metrics, not 1"]
    assert unlike(whole, ({"x": np.zeros(2)}, lines)) == expected


def test_minus_zero_another_dtype_and_a_leaf_that_only_one_run_has_are_differences() -> None:
    whole: Ended = ({"x": np.zeros(2), "y": np.ones(1)}, [])
    for other in ({"x": -np.zeros(2)}, {"x": np.zeros(2, np.int64)}, {}, {"x": np.zeros((2, 1))}):
        assert unlike(whole, ({"y": np.ones(1), **other}, [])) == ["1 leaves, first x"]
        assert unlike(({"y": np.ones(1), **other}, []), whole) == ["1 leaves, first x"]


def test_ulps_are_of_the_largest_element() -> None:
    one = np.array([1.0, 1e-6], np.float32)
    assert ulps(one, one) == 0
    assert ulps(one, np.array([1 + 3 * 2.0**-23, 1e-6], np.float32)) == 3
    assert ulps(one, np.array([1.0, 1e-6 + 2.0**-22], np.float32)) == 2

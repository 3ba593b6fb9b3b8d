"""Top-k, top-p and min-p against numpy, written from the papers' definitions, on logits made by hand."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtrain import ConfigError
from jaxtrain.generation.sampling import NOT_FINITE, Sampling, limited, sample

CHANCES = np.array([0.05, 0.4, 0.1, 0.2, 0.05, 0.2])
LOGITS = np.log(CHANCES).astype(np.float32) + 3


def kept_by_numpy(
    logits: np.ndarray, temperature: float = 1, top_k: int | None = None, top_p: float = 1, min_p: float = 0
) -> np.ndarray:
    """The tokens that may be drawn, bool[V]; in float64, one after another as `Sampling` says."""
    chance = np.exp((logits.astype(np.float64) - logits.max()) / temperature)
    chance /= chance.sum()
    if top_k is not None:
        chance[chance < np.sort(chance)[::-1][min(top_k, len(chance)) - 1]] = 0
        chance /= chance.sum()
    if top_p < 1:
        ordered = np.sort(chance)[::-1]
        fewest = int(np.argmax(np.cumsum(ordered) >= top_p)) + 1
        chance[chance < ordered[fewest - 1]] = 0
        chance /= chance.sum()
    return (chance >= min_p * chance.max()) & (chance > 0)


def kept(logits: np.ndarray, **fields: Any) -> list[int]:
    found = limited(jnp.asarray(logits)[None], Sampling(**fields).limits())[0]
    return np.flatnonzero(np.isfinite(found)).tolist()


def drawn(logits: np.ndarray, sampling: Sampling, draws: int = 4000) -> np.ndarray:
    keys = jax.random.split(jax.random.key(0), draws)
    rows = jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (draws, len(logits)))
    return np.asarray(sample(rows, keys, sampling.limits()))


def test_top_k_keeps_the_likeliest_and_those_as_likely_as_the_last():
    assert kept(LOGITS, top_k=1) == [1]
    assert kept(LOGITS, top_k=2) == [1, 3, 5]  # 3 and 5 are equally likely
    assert kept(LOGITS, top_k=4) == [1, 2, 3, 5]
    assert kept(LOGITS, top_k=100) == [0, 1, 2, 3, 4, 5]


def test_top_p_keeps_the_fewest_that_reach_p():
    assert kept(LOGITS, top_p=1e-9) == [1]
    assert kept(LOGITS, top_p=0.39) == [1]
    assert kept(LOGITS, top_p=0.41) == [1, 3, 5]
    assert kept(LOGITS, top_p=0.85) == [1, 2, 3, 5]
    assert kept(LOGITS, top_p=1.0) == [0, 1, 2, 3, 4, 5]
    assert kept(np.zeros(5, np.float32), top_p=0.1) == [0, 1, 2, 3, 4]  # all are as likely as the last that is kept


def test_min_p_keeps_those_at_least_p_times_as_likely_as_the_likeliest():
    assert kept(LOGITS, min_p=0.6) == [1]
    assert kept(LOGITS, min_p=0.4) == [1, 3, 5]
    assert kept(LOGITS, min_p=0.2) == [1, 2, 3, 5]
    assert kept(LOGITS, min_p=0.0) == [0, 1, 2, 3, 4, 5]
    assert kept(np.zeros(3, np.float32), min_p=1.0) == [0, 1, 2]


def test_temperature_comes_before_the_limits():
    assert kept(LOGITS, top_p=0.65) == [1, 3, 5]
    assert kept(LOGITS, temperature=0.25, top_p=0.65) == [1]  # 256 of 289
    assert kept(LOGITS, temperature=2.0, min_p=0.6) == [1, 3, 5]


def test_the_second_limit_sees_what_the_first_one_kept():
    assert kept(LOGITS, top_p=0.45) == [1, 3, 5]
    assert kept(LOGITS, top_k=3, top_p=0.45) == [1]  # 0.4 of 0.8 is half


@pytest.mark.parametrize("number", range(2))
def test_random_logits_are_limited_as_numpy_limits_them(number: int):
    rng = np.random.default_rng(number)
    fields: list[dict[str, Any]] = [
        {"top_k": 7},
        {"top_p": 0.83},
        {"min_p": 0.07},
        {"top_k": 20, "top_p": 0.7, "min_p": 0.1},
    ]
    for logits in rng.normal(0, 3, (8, 50)).astype(np.float32):
        for one in fields:
            for temperature in (0.3, 1.0, 1.7):
                expected = np.flatnonzero(kept_by_numpy(logits, temperature=temperature, **one)).tolist()
                assert kept(logits, temperature=temperature, **one) == expected


def test_tokens_are_drawn_as_often_as_they_are_likely():
    counts = np.bincount(drawn(LOGITS, Sampling()), minlength=6)
    assert ((counts - 4000 * CHANCES) ** 2 / (4000 * CHANCES)).sum() < 20.5  # chi², 5 degrees of freedom: p = 0.001
    counts = np.bincount(drawn(LOGITS, Sampling(top_k=2)), minlength=6)
    expected = 4000 * np.array([0.5, 0.25, 0.25])
    assert counts[[0, 2, 4]].tolist() == [0, 0, 0]
    assert ((counts[[1, 3, 5]] - expected) ** 2 / expected).sum() < 13.8  # 2 degrees of freedom


def test_temperature_0_is_the_likeliest_and_a_tiny_one_too():
    for temperature in (0.0, 1e-60, 1e-30, 1e-4):
        assert set(drawn(LOGITS, Sampling(temperature=temperature), 50).tolist()) == {1}
    ties = np.array([0.0, 2.0, 2.0, 1.0])
    assert set(drawn(ties, Sampling(temperature=0), 50).tolist()) == {1}
    assert set(drawn(ties, Sampling(temperature=1e-4), 50).tolist()) == {1, 2}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("wrong", [[np.nan, 1.0], [np.inf, 1.0], [-np.inf, -np.inf]])
def test_logits_that_are_not_finite_give_no_token(wrong: list[float], temperature: float):
    rows = jnp.asarray([wrong, [-np.inf, 1.0]])
    keys = jax.random.split(jax.random.key(0), 2)
    assert sample(rows, keys, Sampling(temperature=temperature).limits()).tolist() == [NOT_FINITE, 1]


@pytest.mark.parametrize(
    "fields",
    [{"temperature": -1.0}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.1}, {"min_p": -0.1}, {"temperature": np.nan}],
    ids=str,
)
def test_numbers_out_of_their_range_are_refused(fields: dict[str, Any]):
    with pytest.raises(ConfigError, match=next(iter(fields))):
        Sampling(**fields)

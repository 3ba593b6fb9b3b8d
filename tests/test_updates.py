"""Updates and learning rates by literal formulas in numpy, and the rates that a real run logs and uses."""

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
import tiny

from jaxtrain import Program
from jaxtrain.data import Arrays, Pipeline
from jaxtrain.models import NGrams
from jaxtrain.optimizers import SGD, WSD, AdamW, ConstantRate, CosineDecay, LinearDecay, Lion, Muon, Standard, averaged
from jaxtrain.runs.metrics_log import read_metrics
from jaxtrain.tasks import Regression
from jaxtrain.train import train

RNG = np.random.default_rng(0)
SHAPES = {"block": {"kernel": (2, 4, 6), "scale": (2, 6)}, "head": {"kernel": (6, 4)}, "table": (5, 4)}
PARAMS, *GRADS = (reference.mapped(lambda shape: RNG.normal(size=shape), SHAPES) for _ in range(4))
GRADS[1] = reference.mapped(lambda leaf: leaf * 1e-3, GRADS[1])  # too small to be clipped
CLIP, DECAY, PEAK = 0.5, 0.1, 0.01

State = dict[str, np.ndarray]
Direction = Callable[[str, np.ndarray, State, int], np.ndarray]
"""From a parameter's name, its gradient, what is kept of it, and the number of the update to the direction of descent."""


def adamw(name: str, g: np.ndarray, kept: State, t: int, b2: float = 0.999) -> np.ndarray:
    """Algorithm 2 of Loshchilov & Hutter 2019, with the defaults of Kingma & Ba 2015."""
    kept["m"] = 0.9 * kept.get("m", 0) + 0.1 * g
    kept["v"] = b2 * kept.get("v", 0) + (1 - b2) * g**2
    return kept["m"] / (1 - 0.9**t) / (np.sqrt(kept["v"] / (1 - b2**t)) + 1e-8)


def momentum(name: str, g: np.ndarray, kept: State, t: int, beta: float = 0.9) -> np.ndarray:
    """Heavy ball, with no damping of the gradient."""
    kept["m"] = beta * kept.get("m", 0) + g
    return kept["m"]


def nesterov(name: str, g: np.ndarray, kept: State, t: int, beta: float = 0.9) -> np.ndarray:
    """Sutskever et al. 2013 as most libraries write it: one more step of momentum on what momentum gives."""
    return g + beta * momentum(name, g, kept, t, beta)


def lion(name: str, g: np.ndarray, kept: State, t: int, b2: float = 0.99) -> np.ndarray:
    """Program 1 of Chen et al. 2023, with its defaults."""
    m = kept.get("m", np.zeros_like(g))
    kept["m"] = b2 * m + (1 - b2) * g
    return np.sign(0.9 * m + 0.1 * g)


def muon(name: str, g: np.ndarray, kept: State, t: int) -> np.ndarray:
    """Newton–Schulz of Jordan et al. 2024, scaled as in Liu et al. 2025; Nesterov momentum with the bias corrections of
    Dozat 2016, which optax has and Jordan has not. What is no kernel is left to Adam.
    """
    if name != "kernel":
        return adamw(name, g, kept, t)
    kept["m"] = 0.95 * kept.get("m", 0) + 0.05 * g
    looked = 0.95 * kept["m"] / (1 - 0.95 ** (t + 1)) + 0.05 * g / (1 - 0.95**t)
    matrices = [newton_schulz(matrix) for matrix in looked.reshape(-1, *g.shape[-2:])]
    return np.reshape(matrices, g.shape) * 0.2 * math.sqrt(max(g.shape[-2:]))


def newton_schulz(x: np.ndarray) -> np.ndarray:
    """Five steps of X ← aX + (bA + cA²)X with A = XXᵀ, from a Frobenius norm of 1."""
    if x.shape[0] > x.shape[1]:
        return newton_schulz(x.T).T
    x = x / np.linalg.norm(x)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x


WARM = ConstantRate(peak=PEAK, warmup=2)
COMMON: dict[str, Any] = {"clip": CLIP, "weight_decay": DECAY}
OPTIMIZERS: dict[str, tuple[Standard, Direction]] = {
    "adamw": (AdamW(schedule=ConstantRate(peak=PEAK), **COMMON), adamw),
    "adamw, warm-up": (AdamW(schedule=WARM, b2=0.95, **COMMON), functools.partial(adamw, b2=0.95)),
    "momentum": (SGD(schedule=WARM, **COMMON), momentum),
    "nesterov": (SGD(schedule=WARM, momentum=0.8, nesterov=True, **COMMON), functools.partial(nesterov, beta=0.8)),
    "lion": (Lion(schedule=WARM, **COMMON), lion),
    "lion, slower": (Lion(schedule=WARM, b2=0.9, **COMMON), functools.partial(lion, b2=0.9)),
    "muon": (Muon(schedule=WARM, **COMMON), muon),
}


def updates_by_hand(optimizer: Standard, direction: Direction, params: Iterator[Any]) -> Iterator[Any]:
    """-rate · (direction of the clipped gradient + decay · parameter, if it is a kernel), three times."""
    kept = reference.mapped(lambda _: {}, SHAPES)
    rates = [PEAK * min(1, t / 2) if optimizer.schedule.warmup else PEAK for t in range(3)]
    for t, (grads, rate, now) in enumerate(zip(GRADS, rates, params, strict=True), start=1):
        norm = math.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(grads)))
        clipped = reference.mapped(lambda leaf, norm=norm: leaf * min(1, CLIP / norm), grads)

        def one(name: str, g: Any, p: Any, own: Any, t: int = t, rate: float = rate) -> Any:
            if isinstance(g, dict):
                return {key: one(key, g[key], p[key], own[key]) for key in g}
            return -rate * (direction(name, g, own, t) + (DECAY * p if name == "kernel" else 0))

        yield one("", clipped, now, kept)


def updates_of_ours(optimizer: Standard, dtype: str) -> Iterator[tuple[Any, Any]]:
    """The parameters before, and each of three updates; of a run of three steps."""
    built = optimizer.build(3)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), PARAMS)
    state, update = jax.jit(built.init)(params), jax.jit(built.update)
    for grads in GRADS:
        updates, state = update(jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), grads), state, params)
        yield params, updates
        params = optax.apply_updates(params, updates)


def wide(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_first_updates_are_those_of_the_formulas(name):
    optimizer, direction = OPTIMIZERS[name]
    ours = list(updates_of_ours(optimizer, "float32"))
    assert len(ours) == 3
    by_hand = updates_by_hand(optimizer, direction, (wide(before) for before, _ in ours))
    for (_, update), expected in zip(ours, by_hand, strict=True):
        reference.mapped(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-7), wide(update), expected)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_first_updates_of_parameters_in_bf16_are_nearly_those_of_the_formulas(name):
    optimizer, direction = OPTIMIZERS[name]
    ours = list(updates_of_ours(optimizer, "bfloat16"))
    by_hand = updates_by_hand(optimizer, direction, (wide(before) for before, _ in ours))
    for (_, update), expected in zip(ours, by_hand, strict=True):
        assert {leaf.dtype.name for leaf in jax.tree.leaves(update)} == {"bfloat16"}
        for a, b in zip(jax.tree.leaves(wide(update)), jax.tree.leaves(expected), strict=True):
            # Newton–Schulz in bf16 is as rough as that: each of its five steps multiplies errors.
            assert np.linalg.norm(a - b) <= (0.07 if name == "muon" else 0.01) * np.linalg.norm(b)


@pytest.mark.parametrize("kind", [AdamW, Muon])
def test_a_gradient_as_small_as_adams_epsilon_moves_half_as_far(kind):
    optimizer = kind(schedule=ConstantRate(peak=1.0), clip=None)
    params = {"scale": jnp.zeros(2)}
    built = optimizer.build(1)
    updates, _ = jax.jit(built.update)({"scale": jnp.asarray([1e-8, -3e-8])}, built.init(params), params)
    np.testing.assert_allclose(updates["scale"], [-1 / 2, 3 / 4], rtol=1e-4)


def test_the_average_of_parameters_is_that_of_the_formula_while_its_decay_grows():
    optimizer = SGD(schedule=ConstantRate(peak=1.0), momentum=0.0, clip=None, ema=0.3)
    built = optimizer.build(9)
    params = {"x": jnp.asarray([10.0, -4.0])}
    state, update = jax.jit(built.init)(params), jax.jit(built.update)
    rng = np.random.default_rng(0)
    now = average = np.array([10.0, -4.0])
    for n in range(9):  # decays 1/10, 2/11, 3/12, 4/13, then 0.3
        g = rng.normal(size=2)
        updates, state = update({"x": jnp.asarray(g, jnp.float32)}, state, params)
        params = optax.apply_updates(params, updates)
        decay = min(0.3, (1 + n) / (10 + n))
        now = now - g
        average = decay * average + (1 - decay) * now
        np.testing.assert_allclose(averaged(params, state)["x"], average, rtol=1e-6)


def constant(k: int, n: int, w: int) -> float:
    return 2.0 * k / w if k < w else 2.0


def cosine(k: int, n: int, w: int) -> float:
    return 2.0 * k / w if k < w else 2.0 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (k - w) / (n - w))))


def linear(k: int, n: int, w: int) -> float:
    return 2.0 * k / w if k < w else 2.0 * (1 - 0.8 * (k - w) / (n - w))


def wsd(k: int, n: int, w: int) -> float:
    falling = round(0.4 * (n - w))  # of the steps after the warm-up
    return 2.0 * k / w if k < w else 2.0 * (1 - 0.7 * max(0, k - (n - falling)) / falling)


SCHEDULES = {
    "constant": (ConstantRate(peak=2.0), constant),
    "cosine": (CosineDecay(peak=2.0, floor=0.1), cosine),
    "linear": (LinearDecay(peak=2.0, floor=0.2), linear),
    "wsd": (WSD(peak=2.0, decay=0.4, floor=0.3), wsd),
}


@pytest.mark.parametrize("warmup", [0, 1, 5, 20])
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_rate_of_every_step_is_that_of_the_formula(name, warmup):
    schedule, formula = SCHEDULES[name]
    rates = [np.asarray(replace(schedule, warmup=warmup).build(20)(k)) for k in range(20)]
    np.testing.assert_allclose(rates, [formula(k, 20, warmup) for k in range(20)], rtol=1e-6)


@pytest.mark.parametrize("warmup", [2, pytest.param(0, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.slow
def test_the_rate_that_is_logged_is_that_of_the_formula_and_that_of_the_update(name: str, warmup: int, tmp_path: Path):
    schedule, formula = SCHEDULES[name]
    # The update is then the rate times the gradient, so the rate is the ratio of their norms.
    optimizer = SGD(schedule=replace(schedule, peak=0.2, warmup=warmup), momentum=0.0, clip=None)
    rows = {"text": RNG.integers(97, 103, (64, 12), np.uint8), "target": RNG.normal(size=64).astype(np.float32)}
    experiment = replace(
        tiny.main(),
        task=Regression(model=NGrams(outputs=1, buckets=32, words=4, width=4), inputs="text"),
        data=Pipeline(Arrays(rows), batch_size=8),
        optimizer=optimizer,
        steps=7,
        evals={},
        runtime=replace(tiny.main().runtime, save_every=1),
    )
    run, _ = train(experiment, tmp_path / "run")
    lines = {line["step"]: line for line in read_metrics(run.folder)}
    assert list(lines) == [1, 2, 3, 4, 5, 6, 7]
    program = Program(experiment)
    before = wide(program.init().params)
    with run.checkpoints(read_only=True) as checkpoints:
        for step, line in lines.items():
            after = wide(checkpoints.restore(program.state, step)[0].params)
            moved = optax.tree.norm(jax.tree.map(np.subtract, after, before))
            expected = formula(step - 1, 7, warmup) / 10  # the first update is given the rate of no update done
            assert line["learning_rate"] == pytest.approx(expected, rel=1e-6)
            assert moved / line["gradient_norm"] == pytest.approx(expected, rel=1e-4, abs=1e-9)
            before = after

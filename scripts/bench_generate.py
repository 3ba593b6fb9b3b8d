"""Measures generation: `uv run python scripts/bench_generate.py [--rounds 3]`.

Tokens per second of the compiled loop with its cache, beside a naive loop that computes the whole row anew for each
token (compiled once, for rows padded to the context) and beside the bandwidth limit: to make one token for each row, a
device has to read all weights and the cache once. The bandwidth is measured here, by a sum over an array that fits no
processor cache. Rounds of all three are interleaved and the best of each counts; CPU seconds are the process's own.
"""

import argparse
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxtrain.generation import Decoder, Sampling
from jaxtrain.models import Blocks, Model, Recurrent, Transformer
from jaxtrain.models.variables import Variables
from jaxtrain.sharding.layout import plain

GREEDY = Sampling(temperature=0)


@dataclass(frozen=True)
class Case:
    """A model, its rows, and the tokens of its prompts and after them."""

    name: str
    model: Model
    rows: int = 1
    prompt: int = 32
    tokens: int = 224

    @property
    def context(self) -> int:
        """Tokens of a row."""
        return self.prompt + self.tokens


SMALL = Transformer(vocab=256, blocks=Blocks(width=128, layers=4, heads=4), tied=False, ngrams=(2, 3, 4, 5, 6))
LARGE = Transformer(vocab=8192, blocks=Blocks(width=512, layers=8, heads=8, kv_heads=2))
CASES = (
    Case("char_lm", SMALL),
    Case("char_lm", SMALL, rows=16),
    Case("33 million parameters, grouped heads", LARGE),
    Case("33 million parameters, grouped heads", LARGE, rows=16),
    Case("recurrent", Recurrent(vocab=256, width=512, layers=6)),
)


def seconds(function: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU time of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - wall, time.process_time() - cpu


def bandwidth(megabytes: int = 512) -> Callable[[], float]:
    """Bytes per second of one reading of an array of this size."""
    array = jnp.ones(megabytes * 2**18)
    total = jax.jit(jnp.sum)
    total(array).block_until_ready()
    return lambda: array.nbytes / seconds(lambda: total(array).block_until_ready())[0]


def read_bytes(case: Case, variables: Variables) -> int:
    """Of one token for each row: all weights but tables of which rows are looked up, and the cache."""
    params = dict(variables.params)
    params.pop("ngrams", None)
    if "head" in params:
        params.pop("embedding")
    lengths = jnp.ones(case.rows, jnp.int32)
    ids = jnp.zeros((case.rows, case.prompt), jnp.int32)
    shapes = jax.eval_shape(lambda: case.model.prefill(variables, ids, lengths, case.context)[1])
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves((params, shapes)))


def naive(case: Case, variables: Variables, prompts: np.ndarray) -> Callable[[int], np.ndarray]:
    """Greedy tokens, as many as are asked for, each after a pass over the whole padded rows."""
    step = jax.jit(
        lambda variables, ids_BL, at: case.model.apply(variables, ids_BL)[0][:, at].argmax(-1).astype(jnp.int32)
    )

    def run(tokens: int) -> np.ndarray:
        ids_BL = np.zeros((case.rows, case.context), np.int32)
        ids_BL[:, : case.prompt] = prompts
        for at in range(case.prompt, case.prompt + tokens):
            ids_BL[:, at] = step(variables, ids_BL, at - 1)
        return ids_BL[:, case.prompt : case.prompt + tokens]

    return run


def measure(case: Case, rounds: int, reading: Callable[[], float]) -> str:
    """A row of the table. Raises AssertionError where both loops do not begin alike."""
    ids = jnp.zeros((1, 4), jnp.int32)
    variables = jax.jit(lambda: plain(case.model.init(jax.random.key(0), ids)))()
    prompts = np.random.default_rng(0).integers(1, 256, (case.rows, case.prompt)).astype(np.int32)
    decoder, whole, few = Decoder(case.model), naive(case, variables, prompts), min(16, case.tokens)

    def cached() -> list[np.ndarray]:
        return decoder.generate(variables, list(prompts), case.tokens, GREEDY)

    agree = np.mean(np.stack(cached())[:, :few] == whole(few))
    assert agree > 0.9, f"{case.name}: {agree:.0%} of tokens are those of the naive loop"
    ours, cpu, theirs, speed = [], [], [], []
    for _ in range(rounds):
        wall, own = seconds(cached)
        ours.append(case.rows * case.tokens / wall)
        cpu.append(1e3 * own / (case.rows * case.tokens))
        theirs.append(case.rows * few / seconds(lambda: whole(few))[0])
        speed.append(reading())
    limit = case.rows * max(speed) / read_bytes(case, variables)
    return (
        f"| {case.name} | {case.rows} | {max(ours):,.0f} | {min(cpu):.2f} ms | {max(theirs):,.0f} | "
        f"{max(ours) / max(theirs):.1f} | {limit:,.0f} | {max(ours) / limit:.0%} |"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=224, help="after a prompt of 32")
    options, reading = parser.parse_args(arguments), bandwidth()
    device = jax.devices()[0]
    print(f"{device.device_kind}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {reading() / 1e9:.1f} GB/s\n")
    print("| model | rows | tokens/s | CPU time a token | naive loop | ratio | bandwidth limit | of it |")
    print("|---|---|---|---|---|---|---|---|")
    for case in CASES:
        case = Case(case.name, case.model, case.rows, case.prompt, options.tokens)
        print(measure(case, options.rounds, reading), flush=True)


if __name__ == "__main__":
    main()

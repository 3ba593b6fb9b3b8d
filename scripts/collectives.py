"""Prints the collectives of meshes of eight simulated devices beside what the textbook asks for.

`scripts/collectives_tpu.py` does the same for a TPU that need not be there.
"""

import os
from collections import Counter

import numpy as np

from jaxtrain import MEGATRON, Experiment, Layout, Program
from jaxtrain.collectives import IGNORED, Key, collectives, counted, textbook
from jaxtrain.data import Arrays, Pipeline
from jaxtrain.models import Blocks, Transformer
from jaxtrain.optimizers import AdamW
from jaxtrain.tasks import LanguageModel

MESHES: tuple[Layout, ...] = (
    Layout({"data": 8}),
    Layout({"fsdp": 8}),
    Layout({"tensor": 8}),
    Layout({"sequence": 8}),
    Layout({"tensor": 8}, MEGATRON),
    Layout({"data": 2, "fsdp": 4}),
    Layout({"data": 2, "tensor": 4}),
    Layout({"fsdp": 2, "tensor": 4}),
    Layout({"fsdp": 4, "sequence": 2}),
    Layout({"tensor": 2, "sequence": 4}),
    Layout({"data": 2, "fsdp": 2, "tensor": 2}),
)


def experiment(layout: Layout, blocks: Blocks, vocab: int, length: int, microbatches: int = 1) -> Experiment:
    """A language model on nothing in particular; batches of 16 rows."""
    rows = Arrays({"tokens": np.zeros((16, length + 1), np.int32)})
    return Experiment(
        task=LanguageModel(model=Transformer(vocab=vocab, blocks=blocks)),
        data=Pipeline(rows, batch_size=16),
        optimizer=AdamW(),
        steps=1,
        layout=layout,
        microbatches=microbatches,
    )


def small(layout: Layout, microbatches: int = 1) -> Experiment:
    """Sizes that give every kind of array another number of bytes."""
    return experiment(
        layout, Blocks(width=64, layers=4, heads=8, mlp=192), vocab=512, length=24, microbatches=microbatches
    )


def named(layout: Layout) -> str:
    """A layout in a few words."""
    sizes = " ".join(f"{axis} {size}" for axis, size in layout.mesh.items())
    return sizes + (" MEGATRON" if layout.rules == MEGATRON else "")


def report(name: str, found: Counter[Key], expected: Counter[Key], ignored: int = IGNORED) -> None:
    """Print bytes and counts by kind and axes."""
    expected = Counter({key: times for key, times in expected.items() if key[2] >= ignored})
    for kind, axes in sorted({key[:2] for key in (*found, *expected)}):
        rows = [Counter({key: n for key, n in side.items() if key[:2] == (kind, axes)}) for side in (found, expected)]
        count, wanted = (side.total() for side in rows)
        sent, asked = (sum(key[2] * times for key, times in side.items()) for side in rows)
        ratio = f"{sent / asked:.2f}" if asked else "–"
        print(f"{name:26} {kind:18} {axes:18} {count:6} {wanted:6} {sent:12} {asked:12} {ratio:>6}", flush=True)


HEADER = f"{'mesh':26} {'kind':18} {'axes':18} {'count':>6} {'asked':>6} {'bytes':>12} {'asked':>12} {'ratio':>6}"


def main() -> None:
    print(HEADER)
    for layout in MESHES:
        program = Program(small(layout))
        found = collectives(program.lower().compile().as_text() or "", program.mesh.shape)
        report(named(layout), counted(found), textbook(program.experiment, program.mesh))


if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    main()

"""Every number of the library's dataclasses has a range, and these are the ranges that are wanted."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import tiny

from jaxtrain import Layout
from jaxtrain.base.errors import ConfigError
from jaxtrain.base.ranges import (
    Checked,
    Fraction,
    PositiveInt,
    Range,
)
from jaxtrain.base.registry import own_kinds
from jaxtrain.data import Arrays, Mixture, Normalize, Pipeline, Source, Take, Tolerant, Utf8
from jaxtrain.data.transforms.audio import LogMel
from jaxtrain.data.transforms.images import CutMix, RandomAffine, RandomCrop, Shift
from jaxtrain.datasets.filters import InRange, Length, NearDuplicates
from jaxtrain.datasets.formats import Records, TokenRows
from jaxtrain.datasets.spec import HashSplits
from jaxtrain.experiment import Retention, Runtime
from jaxtrain.launch.job import Job
from jaxtrain.launch.kubernetes import Kubernetes
from jaxtrain.launch.local import Local
from jaxtrain.launch.slurm import Slurm
from jaxtrain.launch.tpu import TpuVm
from jaxtrain.models import Blocks, Experts, NGrams, Transformer, ViT
from jaxtrain.optimizers import SGD, WSD, AdamW, ConstantRate, CosineDecay, LinearDecay, Lion, Muon, Schedule

ROWS = Arrays({"x": np.zeros(3)})
HOST: dict[str, Any] = {"experiment": "e.py"}
REFUSED: list[tuple[Callable[..., Any], dict[str, Any], str]] = [
    (AdamW, {"clip": -1.0}, "AdamW.clip: -1.0 is not above 0 (None: no clipping)"),
    (AdamW, {"clip": 0.0}, "AdamW.clip: 0.0 is not above 0 (None: no clipping)"),
    (AdamW, {"b1": 1}, "AdamW.b1: 1 is not at least 0 and below 1"),
    (AdamW, {"b2": 1.0}, "AdamW.b2: 1.0 is not at least 0 and below 1"),
    (AdamW, {"epsilon": 0.0}, "AdamW.epsilon: 0.0 is not above 0"),
    (AdamW, {"weight_decay": -0.1}, "AdamW.weight_decay: -0.1 is not at least 0"),
    (AdamW, {"ema": 1.5}, "AdamW.ema: 1.5 is not above 0 and below 1 (None: no average)"),
    (SGD, {"momentum": 1.0}, "SGD.momentum: 1.0 is not at least 0 and below 1"),
    (Lion, {"b2": -0.1}, "Lion.b2: -0.1 is not at least 0 and below 1"),
    (Muon, {"beta": math.nan}, "Muon.beta: nan is not a finite number at least 0 and below 1"),
    (ConstantRate, {"peak": math.nan}, "ConstantRate.peak: nan is not a finite number at least 0"),
    (ConstantRate, {"peak": "high"}, "ConstantRate.peak: 'high' is a value of type str, not float"),
    (CosineDecay, {"peak": -0.1}, "CosineDecay.peak: -0.1 is not at least 0"),
    (CosineDecay, {"floor": 2.0}, "CosineDecay.floor: 2.0 is not from 0 to 1"),
    (LinearDecay, {"warmup": -1}, "LinearDecay.warmup: -1 is not at least 0"),
    (WSD, {"decay": 1.1}, "WSD.decay: 1.1 is not from 0 to 1"),
    (Blocks, {"layers": 0}, "Blocks.layers: 0 is not at least 1"),
    (Blocks, {"heads": 0}, "Blocks.heads: 0 is not at least 1"),
    (Blocks, {"kv_heads": 0}, "Blocks.kv_heads: 0 is not at least 1"),
    (Blocks, {"width": -8}, "Blocks.width: -8 is not at least 1"),
    (Blocks, {"rounds": 0}, "Blocks.rounds: 0 is not at least 1"),
    (Blocks, {"dropout": 1.0}, "Blocks.dropout: 1.0 is not at least 0 and below 1"),
    (Blocks, {"dropout": -0.5}, "Blocks.dropout: -0.5 is not at least 0 and below 1"),
    (NGrams, {"dropout": 1.5}, "NGrams.dropout: 1.5 is not at least 0 and below 1"),
    (NGrams, {"buckets": 2**32}, "NGrams.buckets: 4294967296 is not from 1 to 4,294,967,295 (hashes are u32)"),
    (Transformer, {"vocab": 0}, "Transformer.vocab: 0 is not at least 1"),
    (Transformer, {"ngrams": (2, 0)}, "Transformer.ngrams.1: 0 is not at least 1"),
    (Transformer, {"buckets": 0}, "Transformer.buckets: 0 is not at least 1"),
    (ViT, {"patch": 0}, "ViT.patch: 0 is not at least 1"),
    (Experts, {"count": -1}, "Experts.count: -1 is not at least 0"),
    (Experts, {"top_k": 0}, "Experts.top_k: 0 is not at least 1"),
    (Experts, {"capacity": 0.0}, "Experts.capacity: 0.0 is not above 0 (None drops no token)"),
    (Layout, {"mesh": {"data": 0}}, "Layout.mesh.data: 0 is not at least 1 (-1: the devices that are left)"),
    (Pipeline, {"source": ROWS, "batch_size": 0}, "Pipeline.batch_size: 0 is not at least 1"),
    (Pipeline, {"source": ROWS, "seed": 2**32}, "Pipeline.seed: 4294967296 is not from 0 to 4,294,967,295"),
    (Pipeline, {"source": ROWS, "prefetch": 0}, "Pipeline.prefetch: 0 is not at least 1"),
    (Take, {"source": ROWS, "count": 0}, "Take.count: 0 is not at least 1"),
    (Tolerant, {"source": ROWS, "limit": -1}, "Tolerant.limit: -1 is not at least 0"),
    (Mixture, {"sources": (ROWS,), "weights": (-1.0,)}, "Mixture.weights.0: -1.0 is not above 0"),
    (Utf8, {"length": 0}, "Utf8.length: 0 is not at least 1"),
    (Normalize, {"mean": 0.0, "std": (1.0, 0.0)}, "Normalize.std.1: 0.0 is not above 0"),
    (Normalize, {"mean": math.inf, "std": 1.0}, "Normalize.mean: inf is not a finite number"),
    (RandomAffine, {"scale": 1.0}, "RandomAffine.scale: 1.0 is not at least 0 and below 1"),
    (Shift, {"pixels": -1}, "Shift.pixels: -1 is not at least 0"),
    (RandomCrop, {"size": (8, 0)}, "RandomCrop.size.1: 0 is not at least 1"),
    (CutMix, {"share": 1.0}, "CutMix.share: 1.0 is not above 0 and below 1"),
    (LogMel, {"rate": 16000, "hop": 0}, "LogMel.hop: 0 is not at least 1"),
    (Length, {"field": "x", "least": -1, "most": 2}, "Length.least: -1 is not at least 0"),
    (InRange, {"field": "x", "low": -math.inf, "high": 1.0}, "InRange.low: -inf is not a finite number (None: no"),
    (NearDuplicates, {"field": "x", "threshold": 1.0}, "NearDuplicates.threshold: 1.0 is not above 0 and below 1"),
    (Records, {"per_file": 0}, "Records.per_file: 0 is not at least 1"),
    (TokenRows, {"length": 8, "bpe": 256}, "TokenRows.bpe: 256 is not at least 257 (the 256 bytes and a separator)"),
    (HashSplits, {"parts": {"a": 1.5, "b": -0.5}, "by": ("x",)}, "HashSplits.parts.b: -0.5 is not above 0"),
    (Runtime, {"log_every": 0}, "Runtime.log_every: 0 is not at least 1"),
    (Runtime, {"deadline": -1}, "Runtime.deadline: -1 is not at least 0"),
    (Retention, {"last": 0}, "Retention.last: 0 is not at least 1 (the newest checkpoint has to stay)"),
    (Retention, {"every": 0}, "Retention.every: 0 is not at least 1 (None: none stays for ever)"),
    (Local, {**HOST, "processes": 0}, "Local.processes: 0 is not at least 1"),
    (Local, {**HOST, "restarts": -1}, "Local.restarts: -1 is not at least 0"),
    (Slurm, {**HOST, "nodes": 0}, "Slurm.nodes: 0 is not at least 1"),
    (Slurm, {**HOST, "notice": 65536}, "Slurm.notice: 65536 is not from 0 to 65,535 (as sbatch wants)"),
    (Kubernetes, {**HOST, "image": "i", "claim": "c", "hosts": 0}, "Kubernetes.hosts: 0 is not at least 1"),
    (TpuVm, {**HOST, "vm": "v", "zone": "z", "tpu": "v5e:4x4", "restarts": -1}, "TpuVm.restarts: -1 is not at least 0"),
]


@pytest.mark.parametrize(("kind", "fields", "says"), REFUSED, ids=[says.partition(" is")[0] for *_, says in REFUSED])
def test_a_number_of_the_library_out_of_its_range_is_refused(
    kind: Callable[..., Any], fields: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        kind(**fields)
    assert str(refused.value).startswith(says)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"steps": 2**31}, "Experiment.steps: 2147483648 is not from 1 to 2,147,483,647 (an i32 counts the steps)"),
        ({"steps": 10**10}, "Experiment.steps: 10000000000 is not from 1 to 2,147,483,647 (an i32 counts the steps)"),
        ({"steps": 0}, "Experiment.steps: 0 is not from 1 to 2,147,483,647 (an i32 counts the steps)"),
        ({"seed": -1}, "Experiment.seed: -1 is not from 0 to 4,294,967,295 (seeds are u32)"),
        ({"microbatches": 0}, "Experiment.microbatches: 0 is not at least 1"),
    ],
    ids=str,
)
def test_counts_of_an_experiment_fit_what_counts_them(change: dict[str, int], says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        replace(tiny.main(), **change)
    assert str(refused.value) == says
    assert replace(tiny.main(), steps=2**31 - 1, seed=2**32 - 1).steps == 2147483647


UNCHECKED = {"Pad", "TokenFile", "RememberedPipeline", "RememberedSource", "Diff", "Record", "Finding", "Value"}
"""Made from data that were read, some for every record: nobody gives or saves them."""


def without_range(annotation: Any) -> bool:
    """Whether an annotation holds an int or a float that has no range."""
    if get_origin(annotation) is Annotated:
        ranged = any(isinstance(each, Range) for each in get_args(annotation)[1:])
        return not ranged and without_range(get_args(annotation)[0])
    return annotation in (int, float, np.integer, np.floating) or any(map(without_range, get_args(annotation)))


def jobs(kind: type) -> list[type]:
    """A class and its subclasses."""
    return [kind, *(each for below in kind.__subclasses__() for each in jobs(below))]


def test_every_number_of_the_library_has_a_range_that_is_checked() -> None:
    kinds: list[Any] = [*own_kinds().values(), *jobs(Job)]
    assert {kind.__name__ for kind in kinds} >= UNCHECKED
    for kind in kinds:
        hints = get_type_hints(kind, include_extras=True)
        named = [f.name for f in dataclasses.fields(kind) if without_range(hints[f.name])]
        numeric = [name for name, hint in get_type_hints(kind).items() if without_range(hint)]
        if kind.__name__ not in UNCHECKED:
            assert named == [], f"{kind.__name__}: annotate {named} with ranges of base/ranges.py"
            assert not numeric or issubclass(kind, Checked), f"{kind.__name__} has to be a subclass of Checked"


@pytest.mark.parametrize(
    "annotation",
    [int, float, int | None, tuple[float, ...], Mapping[str, int], str | float | bool, Annotated[int, "x"]],
)
def test_a_number_without_a_range_is_found(annotation: Any) -> None:
    assert without_range(annotation)
    assert not without_range(bool | str | None | PositiveInt | tuple[Fraction, ...])


@pytest.mark.parametrize("kind", [Schedule, Source, Layout, Blocks])
def test_what_users_make_their_own_classes_from_is_checked(kind: type) -> None:
    assert issubclass(kind, Checked)

"""Records in the user's cache on which mesh axes an experiment was verified.

Not here: how it is verified, which is `analysis/verify.py`.
"""

import contextlib
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from jaxtrain.base.cache import cache
from jaxtrain.base.config import changed, find, flatten
from jaxtrain.base.files import digest, write_json
from jaxtrain.experiment.experiment import Experiment, fingerprint
from jaxtrain.optimizers import Schedule


def remember_verified(experiment: Experiment, mesh: Mapping[str, int]) -> None:
    """Record that with this version of jax an experiment trains on a mesh with these axes as on one device."""
    with contextlib.suppress(OSError):  # then it is verified again next time
        file = _record(experiment, mesh)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {"mesh": dict(mesh), "jax": version("jax")})


def is_verified(experiment: Experiment, mesh: Mapping[str, int]) -> bool:
    """Whether, with this version of jax, it was verified on a mesh with the same axes, of any sizes."""
    return _record(experiment, mesh).is_file()


def split_axes(mesh: Mapping[str, int]) -> list[str]:
    """The axes of a mesh whose size is not 1."""
    return [axis for axis, size in mesh.items() if size != 1]


def _record(experiment: Experiment, mesh: Mapping[str, int]) -> Path:
    """The file that exists if an experiment was verified. Its name is a hash of the experiment, the layout's rules, the
    source of all classes in it, and versions.
    """
    modules = {type(part).__module__ for part in find(experiment, object)}
    files = {getattr(sys.modules.get(name), "__file__", None) for name in modules}
    sources = sorted(digest(Path(file).read_bytes()) for file in files if file)
    rules = flatten(replace(experiment.layout, mesh={}))
    versions = [version(name) for name in ("jax", "jaxlib", "jaxtrain")]
    # Without the horizons of schedules, which are set when a run begins and change nothing that is verified.
    optimizer = changed(experiment.optimizer, Schedule, lambda schedule: replace(schedule, steps=None))
    facts = [fingerprint(replace(experiment, optimizer=optimizer)), sorted(split_axes(mesh)), rules, sources, versions]
    return cache("verified") / f"{digest(json.dumps(facts, sort_keys=True), length=32)}.json"

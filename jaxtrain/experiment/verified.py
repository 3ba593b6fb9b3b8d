"""Which kinds of mesh an experiment was verified on, remembered in the user's cache.

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
    """Remember that an experiment trains as one device does on a mesh with these axes, by this version of jax."""
    with contextlib.suppress(OSError):  # it can be verified again
        file = _record(experiment, mesh)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {"mesh": dict(mesh), "jax": version("jax")})


def is_verified(experiment: Experiment, mesh: Mapping[str, int]) -> bool:
    """Whether it was verified on some mesh with the axes of this one, whatever their sizes, by this version of jax."""
    return _record(experiment, mesh).is_file()


def split_axes(mesh: Mapping[str, int]) -> list[str]:
    """The axes of a mesh that split anything: those of more than one device, or of all that are left (-1)."""
    return [axis for axis, size in mesh.items() if size != 1]


def _record(experiment: Experiment, mesh: Mapping[str, int]) -> Path:
    """The file that exists if an experiment was verified: another one for other rules, and for edited classes."""
    modules = {type(part).__module__ for part in find(experiment, object)}
    files = {getattr(sys.modules.get(name), "__file__", None) for name in modules}
    sources = sorted(digest(Path(file).read_bytes()) for file in files if file)
    rules = flatten(replace(experiment.layout, mesh={}))
    versions = [version(name) for name in ("jax", "jaxlib", "jaxtrain")]
    # Without horizons, which a run has once it has begun: whatever they are, it computes the same way.
    optimizer = changed(experiment.optimizer, Schedule, lambda schedule: replace(schedule, steps=None))
    facts = [fingerprint(replace(experiment, optimizer=optimizer)), sorted(split_axes(mesh)), rules, sources, versions]
    return cache("verified") / f"{digest(json.dumps(facts, sort_keys=True), length=32)}.json"

"""Saves and restores the state of a run, sharded and asynchronously, by orbax. Not here: when that is due."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding
from orbax.checkpoint import checkpoint_managers as policies

from jaxtrain.base.errors import ConfigError, nearest
from jaxtrain.base.text import array_type
from jaxtrain.experiment.experiment import Retention
from jaxtrain.experiment.start import SavedStep, best_step

Tree = TypeVar("Tree")

# orbax logs dozens of lines per save, and once more with traceback what is raised here anyway.
logging.getLogger("absl").addFilter(lambda line: "orbax" not in line.pathname)


class Checkpoints:
    """The checkpoints in one folder, a subfolder per step. Every process of a run calls every method.

    A save that was cut off is invisible, and the next writer that opens the folder removes it. What reads (`restore`,
    `steps`, `latest`, `best`) first waits for the save in progress, so that it only sees durable checkpoints. The error
    of a save is raised by the next call.

    folder: created if missing, shared by all processes.
    keep: which checkpoints stay; None is `Retention()`.
    read_only: for a run that another job may be writing: creates, deletes and saves nothing.
    """

    def __init__(self, folder: Path, keep: Retention | None = None, read_only: bool = False) -> None:
        self.folder = Path(folder).absolute()
        self.keep = keep = keep or Retention()
        self._read_only = read_only
        kept: list[policies.PreservationPolicy] = [policies.LatestN(keep.last)]
        if keep.every is not None:
            kept.append(policies.EveryNSteps(keep.every))
        if keep.best is not None:
            best = policies.BestN(
                get_metric_fn=self._score,
                reverse=keep.mode == "min",
                n=1,
                keep_checkpoints_without_metrics=False,
            )
            kept.append(best)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(kept),
            best_fn=None if keep.best is None else self._score,
            best_mode=keep.mode,
            # Safe with many processes: the first one cleans, before the barrier at which saving begins.
            cleanup_tmp_directories=True,
            # orbax then neither cleans nor creates, but a forced save would still be written.
            read_only=read_only,
            # Otherwise a folder that cannot be created leaves threads that keep the process for five minutes.
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def save(
        self,
        step: int,
        state: object,
        record: Mapping[str, object],
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Start to save, once the save before is durable; returns as soon as `state` may be donated.

        step: later than every saved one.
        state: a tree of `jax.Array` of any dtype, typed PRNG keys too; each process writes its own shards.
        record: what to know beside the arrays; JSON.
        metrics: scores for `Retention.best`, by name; None or {} when there are none for this step.

        Raises ConfigError for metrics that lack `Retention.best`, ValueError for an earlier step and when read only.
        """
        if self._read_only:
            raise ValueError(f"the checkpoints in {self.folder} were opened for reading only")
        latest = self._manager.latest_step()
        if latest is not None and step <= latest:
            raise ValueError(f"step {step} is not later than step {latest}, which is saved in {self.folder} already")
        arrays = _by_path(state)
        types = {name: array_type(leaf) for name, leaf in arrays.items()}
        items = ocp.args.Composite(
            # A flat dictionary, so that what is on disk does not depend on the containers of the arrays.
            # orbax refuses arrays without elements; the list of leaves is enough to restore those.
            state=ocp.args.StandardSave({name: leaf for name, leaf in arrays.items() if leaf.size}),
            record=ocp.args.JsonSave({"record": dict(record), "leaves": types}),
        )
        self._manager.save(step, args=items, metrics=self._scored(metrics), force=True)

    def restore(self, abstract: Tree, step: SavedStep | None = None) -> tuple[Tree, dict[str, Any]]:
        """The state and the record of `step` (None: the latest), the state with the shardings of `abstract`.

        abstract: a tree of `jax.ShapeDtypeStruct`; the result has its structure. Its mesh may be another than the one
            that saved; a leaf without sharding goes to the first device.

        Raises ConfigError where there is no such step, and where a leaf is missing, extra or of another shape or
        dtype, naming each.
        """
        step = self._existing(step)
        saved = self._manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore()))["record"]
        wanted = _by_path(abstract)
        self._check_leaves(step, saved["leaves"], {name: array_type(leaf) for name, leaf in wanted.items()})
        placed = {name: _placed(leaf) for name, leaf in wanted.items()}
        full = {name: leaf for name, leaf in placed.items() if leaf.size}
        empty = {
            name: jax.device_put(jnp.zeros(leaf.shape, leaf.dtype), leaf.sharding)
            for name, leaf in placed.items()
            if not leaf.size
        }
        items = ocp.args.Composite(state=ocp.args.StandardRestore(full))
        arrays = self._manager.restore(step, args=items)["state"] | empty
        leaves = [arrays[name] for name in wanted]
        return jax.tree.unflatten(jax.tree.structure(abstract), leaves), saved["record"]

    def leaves(self, step: int) -> dict[str, str]:
        """Dtype and shape of each array of a step, by its path."""
        return self._manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore()))["record"]["leaves"]

    def arrays(self, step: int, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
        """Some arrays of a step by path, with the shapes and shardings of `wanted` and the dtypes that are saved."""
        saved = self.leaves(step)
        kept = {name: leaf.update(dtype=saved[name].partition("[")[0]) for name, leaf in wanted.items()}
        how = ocp.checkpoint_utils.construct_restore_args(kept)
        items = ocp.args.PyTreeRestore(kept, restore_args=how, partial_restore=True)
        return self._manager.restore(step, args=ocp.args.Composite(state=items))["state"]

    def steps(self) -> list[int]:
        """The steps of the durable checkpoints, ascending."""
        self.wait()
        if self._read_only:
            self._manager.reload()
        return sorted(self._manager.all_steps())

    def latest(self) -> int | None:
        """The step of the last durable checkpoint; None without any."""
        return max(self.steps(), default=None)

    def best(self) -> int | None:
        """The step with the best value of the metric `Retention.best`, the later of equals; None without any."""
        self.wait()
        return best_step(self.folder, self.keep.best, self.keep.mode)

    def wait(self) -> None:
        """Block until every save is durable. Raises the error of a save that failed."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """`wait`, and stop the threads."""
        self._manager.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _score(self, metrics: Mapping[str, float]) -> float:
        return metrics.get(str(self.keep.best), math.inf if self.keep.mode == "min" else -math.inf)

    def _scored(self, metrics: Mapping[str, float] | None) -> dict[str, float] | None:
        best = self.keep.best
        if best is None or not metrics:
            return None
        if best not in metrics:
            raise ConfigError(f"Retention(best={best!r}) names none of the metrics{nearest(best, metrics)}")
        # NaN compares with nothing, so it would be kept as the best by accident.
        return {best: float(metrics[best])} if math.isfinite(metrics[best]) else None

    def _existing(self, step: SavedStep | None) -> int:
        steps = self.steps()
        if not steps:
            raise ConfigError(f"there are no checkpoints in {self.folder}")
        if step is None or step == "latest":
            return steps[-1]
        if step == "best":
            best = self.best()
            if best is None:
                raise ConfigError(f"no checkpoint in {self.folder} is the best: train with --keep.best SPLIT/METRIC")
            return best
        if step not in steps:
            raise ConfigError(f"no checkpoint of step {step} in {self.folder}; there are {steps}")
        return step

    def _check_leaves(self, step: int, saved: Mapping[str, str], wanted: Mapping[str, str]) -> None:
        lines = []
        for name in sorted(saved.keys() | wanted.keys()):
            if name not in saved:
                close = nearest(name, saved.keys() - wanted.keys())
                lines.append(f"  {name}: wanted {wanted[name]}, not saved{close}")
            elif name not in wanted:
                lines.append(f"  {name}: saved {saved[name]}, not wanted")
            elif saved[name] != wanted[name]:
                lines.append(f"  {name}: saved {saved[name]}, wanted {wanted[name]}")
        if lines:
            more = [f"  and {len(lines) - 20} more"] if len(lines) > 20 else []
            head = f"the checkpoint of step {step} in {self.folder} does not match the state:"
            raise ConfigError("\n".join([head, *lines[:20], *more]))


def _by_path(tree: object) -> dict[str, Any]:
    """The leaves by their path, such as `params/blocks/mlp/up/kernel`."""
    leaves = jax.tree.leaves_with_path(tree)
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    if len(named) != len(leaves):
        raise ConfigError("two leaves of the state have the same path: a key holds a '/'")
    return named


def _placed(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    sharding = leaf.sharding or SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

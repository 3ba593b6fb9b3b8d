"""The verb `replay`. Not here: its implementation."""

import contextlib
import os
from pathlib import Path
from typing import Annotated, Literal

import jax
import tyro

from jaxtrain.base.errors import ConfigError, ExitCode
from jaxtrain.base.files import json_text
from jaxtrain.base.provenance import read_environment
from jaxtrain.cli.verbs import Code, RunFolder

MOST_SIMULATED = 4096
"""Devices, beyond which what a run's folder says is not simulated."""


def replay(
    run: RunFolder,
    step: int,
    code: Code = None,
    layout: Literal["run", "one-device"] = "run",
    top: int = 3,
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    notebook: Path | None = None,
) -> int:
    """Run a step of a run again, bit for bit, and explain its result.

    It is run from the nearest checkpoint before it, by the run's own program; then again one equation at a time, to
    find the first line of the model whose result is not finite, norms that are outliers, and the examples with the
    largest share of loss and gradient. Exit code 1 if the steps differ from those of the run.

    Args:
        run: The run's folder. Nothing is written into it.
        step: The step, from 1 on.
        code: The experiment's file, or one that imports it: needed for classes and data in memory of your own.
        layout: "one-device" instead of the run's mesh: equal within rounding, not bitwise.
        top: How many examples to show.
        json: Print JSON instead of a page of text.
        notebook: A file .ipynb to write: a notebook with the state, the batch and the program of the step.
    """
    from jaxtrain.analysis.replay.explain import explain_step
    from jaxtrain.analysis.replay.notebook import write_notebook
    from jaxtrain.analysis.replay.report import as_json, page
    from jaxtrain.analysis.replay.rerun import ONE_DEVICE, rerun
    from jaxtrain.runs.folder import Run

    if top < 0:
        raise ConfigError(f"--top {top}: give a number of examples, 0 or more")
    if notebook is not None and not notebook.absolute().parent.is_dir():
        raise ConfigError(f"--notebook {notebook}: there is no folder {notebook.absolute().parent}")
    simulate_devices(run)
    found = explain_step(rerun(Run(run, code), step, ONE_DEVICE if layout == "one-device" else None), top)
    print(json_text(as_json(found)) if json else page(found))
    if notebook is not None:
        write_notebook(notebook, found, code, layout)
    return ExitCode.FAILED if found.reproduced.difference else ExitCode.FINISHED


def simulate_devices(run: Path) -> None:
    """For a run on simulated CPU devices: as many as it had, unless XLA_FLAGS says how many, or jax has its already."""
    if "host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    with contextlib.suppress(RuntimeError, ConfigError):  # a file that cannot be read is said by what compares with it
        hardware = read_environment(run).get("hardware", {})
        count = hardware.get("devices")
        if hardware.get("platform") == "cpu" and isinstance(count, int) and 1 < count <= MOST_SIMULATED:
            jax.config.update("jax_num_cpu_devices", count)

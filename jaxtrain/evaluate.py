"""The verbs that use a trained model: evaluate it on a split, predict from raw inputs. Not here: changing it."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxtrain.data.pipeline import Pipeline
from jaxtrain.errors import ConfigError, nearest
from jaxtrain.layout import Layout
from jaxtrain.metrics import merge
from jaxtrain.runs.run import Run
from jaxtrain.step import Program, TrainState


def evaluate(program: Program, state: TrainState, pipeline: Pipeline) -> dict[str, float]:
    """The metrics over one pass of a pipeline; exact whatever the mesh and the batch size."""
    parts = [program.evaluate(state, batch) for batch in program.placed(pipeline, pipeline.epoch)]
    return {name: float(mean) for name, mean in merge(jax.device_get(parts)).items()}


def evaluate_all(program: Program, state: TrainState) -> dict[str, float]:
    """The metrics of every split of the program's experiment, named split/metric."""
    splits = program.experiment.evals.items()
    scores = {split: evaluate(program, state, pipeline) for split, pipeline in splits}
    return {f"{split}/{name}": value for split, values in scores.items() for name, value in values.items()}


def evaluate_run(run: Run, step: int | None = None, split: str | None = None) -> dict[str, dict[str, float]]:
    """The metrics of a saved step by split: of all splits, or of one."""
    evals = run.experiment.evals
    if split is not None and split not in evals:
        raise ConfigError(f"this experiment has no split {split!r}{nearest(split, evals)}")
    restored = run.restore(step, _layout_here(run))
    chosen = evals if split is None else {split: evals[split]}
    return {name: evaluate(restored.program, restored.state, pipeline) for name, pipeline in chosen.items()}


def _layout_here(run: Run) -> Layout:
    """The run's own layout, or one device where other devices are here than it was trained on."""
    try:
        run.experiment.layout.sizes(jax.device_count())
    except ConfigError as error:
        print(f"on one device, since the run's layout does not fit here ({error})", file=sys.stderr)
        return Layout()
    return run.experiment.layout


def predict_run(run: Run, arguments: Sequence[str], step: int | None = None) -> list[str]:
    """One line for each text or file, from a saved step on one device."""
    experiment = run.experiment
    like = experiment.data.source[0]
    batch = experiment.data.prepare([raw_example(argument, like) for argument in arguments])
    restored = run.restore(step, Layout(), jax.devices()[:1])
    predictions = jax.device_get(restored.program.predict(restored.state, batch))
    rows = [{name: values[row] for name, values in predictions.items()} for row in range(len(arguments))]
    return [experiment.task.describe(row) for row in rows]


def raw_example(argument: str, like: Mapping[str, Any]) -> dict[str, Any]:
    """What the command line gives, as an example like those trained on: a text, or an image or array file.

    Images become f32[Y, X, C] in 0…1 of the shape trained on. Raises ConfigError for files that are not there.
    """
    texts = [name for name, value in like.items() if isinstance(value, str | bytes)]
    if texts:
        return {texts[0]: argument}
    name, value = max(like.items(), key=lambda item: np.size(item[1]))
    path = Path(argument)
    if not path.is_file():
        raise ConfigError(f"this model reads files of {name}s, and there is no file {argument}")
    try:
        if path.suffix == ".npy":
            return {name: np.load(path, allow_pickle=False).astype(value.dtype).reshape(value.shape)}
        return {name: _pixels(path, value.shape)}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as a {name} of shape {list(value.shape)}: {error}") from error


def _pixels(path: Path, shape: tuple[int, int, int]) -> np.ndarray:
    try:
        from PIL import Image
    except ImportError as error:
        raise ConfigError("reading images needs Pillow: pip install 'jaxtrain[images]' (or give .npy files)") from error
    Y, X, C = shape
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L" if C == 1 else "RGB").resize((X, Y)), np.float32) / 255
    return pixels.reshape(shape)

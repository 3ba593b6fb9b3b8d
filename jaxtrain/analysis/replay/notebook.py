"""Writes a notebook that loads a step of a run: its state, batch and program. Plain JSON, nbformat 4."""

from pathlib import Path
from typing import Any

from jaxtrain.analysis.replay.explain import Explanation
from jaxtrain.analysis.replay.report import page
from jaxtrain.base.files import write_json


def write_notebook(file: Path, found: Explanation, code: str | None, layout: str) -> None:
    """Write a notebook for a replayed step.

    code, layout: the arguments of `jaxtrain replay`, with which the notebook runs the step again.
    """
    write_json(file, notebook(found, code, layout))


def notebook(found: Explanation, code: str | None, layout: str) -> dict[str, Any]:
    """The notebook as JSON."""
    folder, step = str(found.moment.run.folder.absolute()), found.moment.step
    given = None if code is None else str(Path(code.partition(":")[0]).absolute()) + "".join(code.partition(":")[1:])
    place = ", ONE_DEVICE" if layout == "one-device" else ""
    cells = [
        _markdown(f"# Step {step} of {found.moment.run.folder}\n\n```text\n{page(found)}\n```"),
        _code(
            "import jax\n"
            "from jaxtrain import Run\n"
            "from jaxtrain.analysis.replay.rerun import ONE_DEVICE, rerun\n\n"
            f"run = Run({folder!r}, code={given!r})\n"
            f"moment = rerun(run, {step}{place})  # runs the steps from the nearest checkpoint on\n"
            "program, state, batch = moment.program, moment.before.state, moment.before.batch"
        ),
        _markdown("The step, as the run did it. `program.step` donates the state that it is given: it gets a copy."),
        _code(
            "after, metrics = program.step(jax.tree.map(jax.numpy.copy, state), batch)\n"
            "{name: metric.value() for name, metric in metrics.items() if name in ('loss', 'gradient_norm')}"
        ),
        _markdown("The step again, evaluated one equation at a time on one device."),
        _code(
            "from jaxtrain.analysis.replay.explain import explain_step\n"
            "from jaxtrain.analysis.replay.report import page\n\n"
            "explanation = explain_step(moment)\n"
            "print(page(explanation))"
        ),
        _markdown("The row of the batch with the largest share, and its own loss and gradient."),
        _code(
            "from jaxtrain.models.variables import Context\n"
            "from jaxtrain.step import full_batch\n\n"
            "row = explanation.examples[0].share.row\n"
            "here = moment.before.on_one_device()\n"
            "one = {name: x[row : row + 1] for name, x in here.batch.items()}\n"
            "keys = jax.random.split(jax.random.fold_in(here.state.key, here.state.step), len(here.batch['mask']))\n"
            "context = Context(here.state.step, keys[row : row + 1], one['mask'])\n"
            "grads, loss = full_batch(program.experiment.task, here.state.params, here.state.fixed, one, context)\n"
            "one, loss.mean, jax.tree.map(lambda grad: float(jax.numpy.linalg.norm(grad.ravel())), grads)"
        ),
    ]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 4}


def _markdown(text: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "metadata": {}, "source": text.splitlines(keepends=True)}


def _code(text: str) -> dict[str, Any]:
    source = text.splitlines(keepends=True)
    return {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": [], "source": source}

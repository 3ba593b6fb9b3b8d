"""The verbs that use a trained model, a run or a bundle, and the one that makes a bundle of a run."""

from pathlib import Path
from typing import Annotated

import tyro

from jaxtrain.base.errors import ConfigError, ExitCode
from jaxtrain.cli.verbs import Code
from jaxtrain.deploy.bundle import Backend
from jaxtrain.experiment.start import SavedStep

RunOrBundle = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN|BUNDLE")]


def evaluate(
    model: RunOrBundle,
    step: SavedStep | None = None,
    split: str | None = None,
    code: Code = None,
    data: Code = None,
    backend: Backend = "jax",
    keep_rows: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Compute the metrics of a saved step of a run, or of a bundle.

    Args:
        model: The run's folder, or the bundle's.
        step: The saved step, "best" or "latest"; the latest by default. A bundle is of one step.
        split: One split; all by default.
        code: The experiment's file, or one that imports it: needed for classes and data in memory of your own.
        data: An experiment whose evaluations are taken instead of the run's; without it, data that are not those that
            the run recorded are refused.
        backend: Of a bundle, what computes its predictions; its loss is always computed by jax.
        keep_rows: Keep what was found for each example in rows/ of the run, as its last evaluation does.
    """
    from jaxtrain.base.text import number
    from jaxtrain.deploy.manifest import is_bundle
    from jaxtrain.evaluate import evaluate_run
    from jaxtrain.experiment.files import load
    from jaxtrain.runs.folder import Run

    other = None if data is None else load(data)[0]
    if is_bundle(model):
        from jaxtrain.deploy.bundle import Bundle
        from jaxtrain.deploy.evaluation import evaluate_bundle

        _check_step(step)
        if keep_rows:
            raise ConfigError(f"--keep-rows: {model} is a bundle, which nothing is added to: give the run")
        found = evaluate_bundle(Bundle(model, backend), split, code, other)
    else:
        check_backend(backend, model)
        found = evaluate_run(Run(model, code), step, split, other, keep_rows)
    for name, values in found.items():
        print(name, *(f"{metric} {number(value)}" for metric, value in values.items()), sep="  ")


def predict(
    model: RunOrBundle,
    inputs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="TEXT|FILE …")] = (),
    step: SavedStep | None = None,
    code: Code = None,
    backend: Backend = "jax",
    input: Path | None = None,
    output: Path | None = None,
) -> int:
    """Predict from texts or files, one line each, with a saved step of a run, or with a bundle.

    Args:
        model: The run's folder, or the bundle's.
        inputs: Texts, or files of images; for a bundle of several inputs, objects of JSON.
        step: The saved step, "best" or "latest"; the latest by default. A bundle is of one step.
        code: The experiment's file, or one that imports it: needed for classes and data in memory of your own.
        backend: Of a bundle, what computes it.
        input: For a bundle, a file with an input of JSON a line, instead of texts; the same command goes on where it
            was killed.
        output: The file that gets a line of JSON for each line of --input.
    """
    from jaxtrain.deploy.manifest import is_bundle
    from jaxtrain.evaluate import predict_run
    from jaxtrain.runs.folder import Run

    if (input is None) != (output is None) or (input is not None and inputs):
        raise ConfigError("predict: give texts or files, or --input FILE and --output FILE")
    if input is None and not inputs:
        raise ConfigError("predict: give at least one text or file after the run or bundle")
    if not is_bundle(model):
        check_backend(backend, model)
        if input is not None:
            raise ConfigError(f"--input: {model} is no bundle; make one with `jaxtrain export {model} --out DIR`")
        lines = predict_run(Run(model, code), inputs, step)
    else:
        from jaxtrain.deploy.bundle import Bundle
        from jaxtrain.deploy.command_line import raw_inputs_of

        _check_step(step)
        bundle = Bundle(model, backend)
        if input is not None and output is not None:
            from jaxtrain.deploy.batch_job import predict_file

            done = predict_file(bundle, input, output)
            return ExitCode.FAILED if done.bad else ExitCode.FINISHED
        lines = bundle.lines(raw_inputs_of(bundle.signature, inputs))
    for text, line in zip(inputs, lines, strict=True):
        print(f"{line}  {text}")
    return ExitCode.FINISHED


def export(
    run: RunOrBundle,
    out: Path | None = None,
    name: str | None = None,
    step: SavedStep | None = None,
    licence: str | None = None,
    onnx: bool = True,
    code: Code = None,
    web: Path | None = None,
) -> None:
    """Export a saved step of a run as a bundle: a folder with the model, its preprocessing and what proves both.

    It is the next version of a model in a Triton model repository, DIR/NAME/1, 2, …

    Args:
        run: The run's folder; with --web that of a bundle too.
        out: The repository.
        name: Of the model; that of the experiment's file by default.
        step: The saved step, "best" or "latest"; the latest by default.
        licence: Of the model, in words.
        onnx: Make graphs for ONNX Runtime, Triton and KServe too; the packages for it are installed once, apart.
        code: The experiment's file, or one that imports it: needed for classes and data in memory of your own.
        web: A new folder, which gets a page that runs the model in the browser.
    """
    from jaxtrain.deploy.client.web import write_web
    from jaxtrain.deploy.manifest import is_bundle, version_folder

    if web is not None and out is None and is_bundle(run):
        print(write_web(version_folder(run), web))
        return
    if out is None:
        raise ConfigError("export: give --out DIR for the bundle, or a bundle and --web DIR for its page")
    from jaxtrain.deploy.export import export_run
    from jaxtrain.deploy.onnx.int8 import Int8Gate
    from jaxtrain.runs.folder import Run

    folder = export_run(Run(run, code), out, name, step, licence, Int8Gate() if onnx else None)
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{folder}  {size / 1e6:.1f} MB")
    if web is not None:
        print(write_web(folder, web))


def check_backend(backend: Backend, run: Path) -> None:
    """Raises ConfigError for another backend than jax: a run has no other."""
    if backend != "jax":
        raise ConfigError(f"--backend {backend}: {run} is a run: export it, and give the bundle")


def _check_step(step: SavedStep | None) -> None:
    if step is not None:
        raise ConfigError("--step: a bundle is of one step; evaluate its run for others")

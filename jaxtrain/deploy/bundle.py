"""`Bundle`: a trained model in a folder that jaxtrain exported. Loading it runs no code of it, and verifies all of it.

With `backend="onnx"` it needs neither jax nor training code. Not here: writing it.
"""

import contextlib
import functools
import importlib
from collections.abc import Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from jaxtrain.base.errors import ConfigError, Damaged
from jaxtrain.base.files import parsed_json
from jaxtrain.base.lines import prediction_line
from jaxtrain.base.packages import needs
from jaxtrain.base.tensors import stored_tensors, tensors_of
from jaxtrain.base.text import cut
from jaxtrain.deploy.batch_curve import best_rows
from jaxtrain.deploy.generation import STEP_FILES
from jaxtrain.deploy.golden import TOLERANCE, GoldenExample, first_difference, golden_examples
from jaxtrain.deploy.greedy import StepPair, golden_texts, text_difference
from jaxtrain.deploy.manifest import CONFIG_FILE, INT8_FILE, MODEL_FILE, BundleManifest, config_of, version_folder
from jaxtrain.deploy.signature import OTHER_SIGNATURE, NewerFormat, Signature, check_format
from jaxtrain.deploy.triton import fits_signature
from jaxtrain.deploy.values import quoted

Backend = Literal["jax", "onnx"]

_READ: Mapping[str, tuple[str, ...]] = {"jax": (".stablehlo", ".safetensors"), "onnx": (".onnx",)}
"""Endings of the files that a backend computes with."""

_WEIGHTS = "weights.safetensors"

NEEDED = ("signature.json", "golden.json", "metrics.json", "model.stablehlo", _WEIGHTS)
"""Files that every bundle has."""

_REPLAYED = 16  # golden examples at a time, by jax

_SUFFIX = {"jax": "stablehlo", "onnx": "onnx"}

_OTHER = "this runtime or device computes something else than the model that was exported"


class Runner(Protocol):
    """What computes the graph of a bundle."""

    def run(self, tensors: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """The outputs for tensors, rows on dim 0."""
        ...


class Bundle:
    """A bundle that is verified: the hash of every file, and the golden examples on the device that is here."""

    def __init__(self, path: Path | str, backend: Backend = "jax", file: str | None = None) -> None:
        """Loads a version folder, the latest version of a model, or that of the only model of a repository.

        file: of the graph, with backend "onnx": `model.onnx` by default; `model.int8.onnx` is smaller.

        Raises ConfigError for what is no bundle, a newer format and a missing runtime (with what to install), and
        Damaged for a file that is not what was written and for a golden example whose outputs are others.
        """
        if backend not in _READ:
            raise ConfigError(f"there is no backend {backend!r}: {' or '.join(_READ)}")
        if file is not None and backend != "onnx":
            raise ConfigError(f"file={file!r} is a graph of ONNX: give backend='onnx' too")
        given, self.backend = Path(path), backend
        self.folder = version_folder(given)
        self.manifest = BundleManifest.read(self.folder)
        self._contents = self.manifest.verified(self.folder, (".json", *_READ[backend]))
        for name in NEEDED:
            if name not in self.manifest.files:
                raise Damaged(str(self.folder / name), None, "it is missing")
        with _damage(self.folder / "signature.json"):
            found = Signature.from_json(self.json("signature.json"), str(self.folder / "signature.json"))
        self.signature = found.with_tokenizers(self.folder)
        self.metrics: Mapping[str, Any] = self.json("metrics.json")
        """The evaluation of each split, under `splits`, and what else was measured."""
        if not isinstance(self.metrics, dict) or self.signature.name != self.manifest.name:
            raise Damaged(str(self.folder), None, "metrics.json is no object, or signature.json is of another model")
        self.rows_at_a_time = 1 if file == INT8_FILE else self._best_rows()
        """How many rows are computed at a time: in int8 one, since the activations of a call have one scale, by which
        rows would change each other.
        """
        self._check_config(required=given != self.folder)
        self._runner: Any = self._load(backend, file)
        self._steps = self._load_steps()
        self._contents = {name: each for name, each in self._contents.items() if name.endswith(".json")}
        self.replay()

    @property
    def name(self) -> str:
        """The model's name."""
        return self.manifest.name

    @functools.cached_property
    def golden(self) -> Sequence[GoldenExample]:
        """The golden examples."""
        with _damage(self.folder / "golden.json"):
            where = str(self.folder / "golden.json")
            return golden_examples(self.json("golden.json"), self.signature, where)

    def json(self, name: str) -> Any:
        """The value of a file of JSON. Raises ConfigError for a newer format, and Damaged where it is no JSON."""
        if name not in self._contents:
            raise ConfigError(f"{self.folder} has no {name}")
        with _damage(self.folder / name):
            found = parsed_json(self._contents[name], str(self.folder / name))
        if isinstance(found, dict) and "format" in found:
            check_format(found, str(self.folder / name))
        return found

    def predict(self, values: Sequence[Any] | Mapping[str, Sequence[Any]]) -> dict[str, np.ndarray]:
        """The outputs by name, rows on dim 0, of raw inputs: rows by name, bare values of the one input, or columns.

        Raises ConfigError, naming row and input, for what the signature does not take.
        """
        return self.run(self.signature.tensors_of(self.signature.rows(values)))

    @property
    def steps(self) -> StepPair:
        """The graphs that continue texts. Raises ConfigError where there are none."""
        if self._steps is None:
            why = (
                "it is of no language model with a cache"
                if self.signature.generation is None
                else "none of ONNX could be made: use backend='jax'"
            )
            raise ConfigError(f"{self.folder} has no graphs that continue texts: {why}")
        return self._steps

    def generate(
        self,
        prompts: Sequence[str],
        tokens: int | None = None,
        sampling: Any = None,
        seed: int = 0,
        stop: Sequence[str] = (),
    ) -> list[str]:
        """The text that follows each prompt, as `jaxtrain generate` gives it for the run.

        tokens: the most for each prompt; None is 200, or what the cache has room for. sampling: a
        `jaxtrain.generation.Sampling`; None draws from the model's own distribution. seed: of prompt 0, of each other
        one the next. stop: texts that end a row, and are no part of it.

        It needs jax, to draw the same tokens, with either backend. Raises ConfigError for what does not fit.
        """
        texts = [""] * len(prompts)
        continuation = importlib.import_module("jaxtrain.deploy.continuation")  # and jax with it
        for number, piece in continuation.continued(self, prompts, tokens, sampling, seed, stop):
            texts[number] += piece
        return texts

    def run(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs for tensors, at most `rows_at_a_time` at a time."""
        return self._in_parts(tensors, self.rows_at_a_time)

    def _in_parts(self, tensors: Mapping[str, np.ndarray], most: int) -> dict[str, np.ndarray]:
        rows = len(next(iter(tensors.values())))
        if rows <= most:
            return dict(self._runner.run(tensors))
        parts = [
            self._runner.run({name: x[start : start + most] for name, x in tensors.items()})
            for start in range(0, rows, most)
        ]
        return {each.name: np.concatenate([part[each.name] for part in parts]) for each in self.signature.outputs}

    def lines(self, values: Iterable[Any]) -> list[str]:
        """One line for each raw input, with the outputs for it."""
        outputs = self.predict([*values])
        rows = len(next(iter(outputs.values())))
        return [self.describe({name: x[row] for name, x in outputs.items()}) for row in range(rows)]

    def describe(self, outputs: Mapping[str, np.ndarray]) -> str:
        """One row of outputs as a line: classes with their probabilities, the largest first, or the numbers."""
        return prediction_line(outputs, {each.name: each.classes for each in self.signature.outputs})

    def replay(self) -> None:
        """Computes the golden examples. Raises Damaged, with the first difference, where an output is another."""
        examples = self.golden
        inputs, most = [each.inputs for each in examples], self.rows_at_a_time
        if self.backend == "jax":  # filled up with the first ones, so that one number of rows is compiled
            most = _REPLAYED
            inputs += [inputs[number % len(inputs)] for number in range(-len(inputs) % most)]
        with _damage(self.folder / "golden.json"):
            tensors = self.signature.tensors_of(inputs)
        outputs = self._in_parts(tensors, most)
        if any(outputs[each.name].shape[1:] != each.shape for each in self.signature.outputs):
            raise Damaged(str(self.folder / self.file), None, OTHER_SIGNATURE)
        tolerance = self._int8_tolerance() if self.file == INT8_FILE else TOLERANCE
        if difference := first_difference(examples, outputs, tolerance):
            raise Damaged(
                str(self.folder / self.file),
                None,
                f"{difference}: {_OTHER}",
            )
        if self._steps is not None and self.signature.generation is not None:
            where = str(self.folder / "golden.json")
            with _damage(self.folder / "golden.json"):
                texts = golden_texts(self.json("golden.json"), self.signature.generation, where)
            if difference := text_difference(texts, self._steps, self.signature.generation)[0]:
                raise Damaged(
                    str(self.folder / f"{STEP_FILES[1]}.{_SUFFIX[self.backend]}"), None, f"{difference}: {_OTHER}"
                )

    def _best_rows(self) -> int:
        """What export measured for this backend; older bundles have one number for all."""
        measured = self.json("batch.json") if "batch.json" in self._contents else {}
        with _damage(self.folder / "batch.json"):
            return best_rows(measured, self.backend) or self.signature.max_batch

    def _int8_tolerance(self) -> float:
        """How far outputs in int8 may be from the golden ones, as measured by the export."""
        found = self.metrics.get("int8_tolerance")
        if not isinstance(found, int | float) or not 0 <= found <= 1e9:
            raise Damaged(str(self.folder / "metrics.json"), None, f"its 'int8_tolerance' is {quoted(found)}")
        return found

    def _load(self, backend: Backend, file: str | None) -> Runner:
        if backend == "jax":
            self.file = "model.stablehlo"
            stablehlo = importlib.import_module("jaxtrain.deploy.stablehlo")  # and jax with it
            weights = _weights(self._contents, self.folder)
            graph = self._contents["model.stablehlo"]
            return stablehlo.StableHlo(graph, weights, self.signature, str(self.folder / self.file))
        self.file = file or MODEL_FILE
        if self.file not in self.manifest.files:
            raise ConfigError(f"{self.folder} has no {self.file}: export it again where ONNX can be made")
        with needs("a bundle with backend='onnx'", "onnxruntime", "onnx"):
            runtime = importlib.import_module("jaxtrain.deploy.onnx.runtime")
        content = self._contents.get(self.file, self.folder / self.file)  # the bytes that were verified
        return runtime.OnnxModel(content, takes=self.signature, name=str(self.folder / self.file))

    def weights(self) -> dict[str, np.ndarray]:
        """The weights by path, read and verified anew. Raises Damaged."""
        return _weights(self.manifest.verified(self.folder, (_WEIGHTS,)), self.folder)

    def _load_steps(self) -> StepPair | None:
        """The graphs of a language model; None where the bundle has none for this backend."""
        generation, suffix = self.signature.generation, _SUFFIX[self.backend]
        if generation is None:
            return None
        graphs = {f"{name}.{suffix}": graph for name, graph in zip(STEP_FILES, generation.graphs, strict=True)}
        missing = [name for name in graphs if name not in self.manifest.files]
        if self.backend == "onnx" and len(missing) == len(graphs):
            return None
        if missing:
            raise Damaged(str(self.folder / missing[0]), None, "it is missing")
        if self.backend == "onnx":
            runtime = importlib.import_module("jaxtrain.deploy.onnx.runtime")
            pair = StepPair(*(runtime.OnnxModel(self.folder / name, takes=graph).run for name, graph in graphs.items()))
            self.manifest.verified(self.folder, ())  # again: ONNX Runtime has read the graphs and their weights itself
            return pair
        made, weights = importlib.import_module("jaxtrain.deploy.stablehlo").StableHlo, self._runner.weights
        at = {name: str(self.folder / name) for name in graphs}
        return StepPair(*(made(self._contents[name], weights, graph, at[name]).step for name, graph in graphs.items()))

    def _check_config(self, required: bool) -> None:
        """Raises Damaged where config.pbtxt is not made of the signature.

        required: that it is there, since the folder of the model or of the repository was named.
        """
        file = self.folder.parent / CONFIG_FILE
        if (config := config_of(self.folder)) is None:
            if required:
                raise Damaged(str(file), None, "it is missing")
            return
        if not fits_signature(config, self.signature):
            raise Damaged(str(file), None, "it is not what signature.json says")


def _weights(contents: Mapping[str, bytes], folder: Path) -> dict[str, np.ndarray]:
    """From verified contents; from the file where that is too large to be held twice."""
    if _WEIGHTS in contents:
        return tensors_of(contents[_WEIGHTS], folder / _WEIGHTS)
    return {name: each.read() for name, each in stored_tensors(folder / _WEIGHTS).items()}


@contextlib.contextmanager
def _damage(file: Path) -> Generator[None]:
    """Around what reads a file whose hash is right: where the content is wrong all the same, somebody else wrote it."""
    try:
        yield
    except NewerFormat:
        raise
    except ConfigError as error:
        raise Damaged(str(file), None, f"it is not what jaxtrain writes ({cut(str(error), 500)})") from error

"""`Bundle`: a trained model in a folder that jaxtrain exported. Loading it runs no code of it, and verifies all of it.

With `backend="onnx"` it needs neither jax nor training code. Not here: writing it.
"""

import contextlib
import functools
import importlib
from collections.abc import Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, Protocol

import numpy as np

from jaxtrain.base.errors import ConfigError, Damaged
from jaxtrain.base.files import parsed_json
from jaxtrain.base.packages import needs
from jaxtrain.base.tensors import tensors_of
from jaxtrain.base.text import cut
from jaxtrain.deploy.golden import TOLERANCE, GoldenExample, first_difference, golden_examples
from jaxtrain.deploy.manifest import CONFIG_FILE, BundleManifest, config_of, version_folder
from jaxtrain.deploy.signature import NewerFormat, Signature, check_format
from jaxtrain.deploy.triton import fits_signature
from jaxtrain.deploy.values import quoted
from jaxtrain.tasks.lines import prediction_line

Backend = Literal["jax", "onnx"]

NEEDED = ("signature.json", "golden.json", "metrics.json", "model.stablehlo", "weights.safetensors")
"""Files that every bundle has."""

_REPLAYED = 16  # golden examples at a time


class Runner(Protocol):
    """What computes the graph of a bundle."""

    def run(self, tensors: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """The outputs for tensors, rows on dim 0."""
        ...


class Bundle:
    """A bundle that is verified: the hash of every file, and the golden examples on the device that is here."""

    def __init__(self, path: Path | str, backend: Backend = "jax", file: str | None = None) -> None:
        """Loads a version folder, the latest version of a model, or that of the only model of a repository.

        file: of the ONNX graph, `model.onnx` by default; `model.int8.onnx` is smaller.

        Raises ConfigError for what is no bundle, a newer format and a missing runtime (with what to install), and
        Damaged for a file that is not what was written and for a golden example whose outputs are others.
        """
        given, self.backend = Path(path), backend
        self.folder = version_folder(given)
        self.manifest = BundleManifest.read(self.folder)
        self._contents = self.manifest.verified(self.folder)
        for name in NEEDED:
            if name not in self._contents:
                raise Damaged(str(self.folder / name), None, "it is missing")
        with _damage(self.folder / "signature.json"):
            found = Signature.from_json(self.json("signature.json"), str(self.folder / "signature.json"))
        self.signature = found.with_tokenizers(self.folder)
        self.metrics: Mapping[str, Any] = self.json("metrics.json")
        """The evaluation of each split, under `splits`, and what else was measured."""
        if not isinstance(self.metrics, dict) or self.signature.name != self.manifest.name:
            raise Damaged(str(self.folder), None, "metrics.json is no object, or signature.json is of another model")
        self._check_config(required=given != self.folder)
        self._runner = self._load(backend, file)
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

    def run(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs for tensors, at most `max_batch` rows at a time."""
        return self._in_parts(tensors, self.signature.max_batch)

    def _in_parts(self, tensors: Mapping[str, np.ndarray], most: int) -> dict[str, np.ndarray]:
        parts = [
            self._runner.run({name: x[start : start + most] for name, x in tensors.items()})
            for start in range(0, len(next(iter(tensors.values()))), most)
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
        examples, int8 = self.golden, self.file == "model.int8.onnx"
        # Filled up with the first ones, so that one number of rows is compiled.
        filled = [
            examples[number % len(examples)].inputs for number in range(-(-len(examples) // _REPLAYED) * _REPLAYED)
        ]
        with _damage(self.folder / "golden.json"):
            tensors = self.signature.tensors_of(filled)
        outputs = self._in_parts(tensors, _REPLAYED)
        if any(outputs[each.name].shape[1:] != each.shape for each in self.signature.outputs):
            self._is_of_another_signature()
        tolerance = self._int8_tolerance() if int8 else TOLERANCE
        if difference := first_difference(examples, outputs, tolerance):
            raise Damaged(
                str(self.folder / self.file),
                None,
                f"{difference}: this runtime or device computes something else than the model that was exported",
            )

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
            weights = tensors_of(self._contents["weights.safetensors"], self.folder / "weights.safetensors")
            graph = self._contents["model.stablehlo"]
            return stablehlo.StableHlo(graph, weights, self.signature, str(self.folder / self.file))
        if backend != "onnx":
            raise ConfigError(f"there is no backend {backend!r}: jax or onnx")
        self.file = file or "model.onnx"
        if self.file not in self.manifest.files:
            raise ConfigError(f"{self.folder} has no {self.file}: export it again where ONNX can be made")
        with needs("a bundle with backend='onnx'", "onnxruntime", "onnx"):
            runtime = importlib.import_module("jaxtrain.deploy.onnx.runtime")
        model = runtime.OnnxModel(self.folder / self.file)
        # Before any row is made: a signature may state rows of any size.
        shapes, outputs = {each.name: each.shape for each in self.signature.tensors}, self.signature.outputs
        if {*model.outputs} != {each.name for each in outputs} or not model.inputs.items() <= shapes.items():
            self._is_of_another_signature()
        return model

    def _is_of_another_signature(self) -> NoReturn:
        raise Damaged(str(self.folder / self.file), None, "it takes or gives other arrays than signature.json says")

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


@contextlib.contextmanager
def _damage(file: Path) -> Generator[None]:
    """Around what reads a file whose hash is right: where the content is wrong all the same, somebody else wrote it."""
    try:
        yield
    except NewerFormat:
        raise
    except ConfigError as error:
        raise Damaged(str(file), None, f"it is not what jaxtrain writes ({cut(str(error), 500)})") from error

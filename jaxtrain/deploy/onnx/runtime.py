"""Runs a graph of ONNX by ONNX Runtime on the CPU. Needs neither jax nor training code."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxtrain.base.errors import ConfigError, Damaged
from jaxtrain.base.packages import needs
from jaxtrain.base.text import cut
from jaxtrain.deploy.generation import StepGraph
from jaxtrain.deploy.inputs import Tensor
from jaxtrain.deploy.signature import OTHER_SIGNATURE, Signature


class OnnxModel:
    """A graph with its weights, on any number of rows."""

    def __init__(
        self,
        graph: Path | bytes,
        threads: int | None = None,
        takes: Signature | StepGraph | None = None,
        name: str = "model.onnx",
    ) -> None:
        """From a file, or its bytes, which messages call `name`.

        threads: of one operation; None leaves it to ONNX Runtime, which takes all cores.
        takes: what the signature says that it takes and gives; None is anything.

        Raises ConfigError where ONNX Runtime is not installed, and Damaged for what is no graph that it runs, or is
        another.
        """
        with needs("a bundle with backend='onnx'", "onnxruntime", "onnx"):
            import onnxruntime
        where = self._where = name if isinstance(graph, bytes) else str(graph)
        if isinstance(graph, Path) and not graph.is_file():
            raise ConfigError(f"there is no ONNX model {graph}")
        try:
            options = _options(onnxruntime, threads)
            if isinstance(graph, bytes):  # else a graph could read data of the folder that the process happens to be in
                options.add_session_config_entry(_DATA_FOLDER, str(Path(name).absolute().parent))
            content = graph if isinstance(graph, bytes) else str(graph)
            self._session = onnxruntime.InferenceSession(content, options, _PROVIDERS)
        except Exception as error:
            if not _is_of_runtime(error) and not isinstance(error, UnicodeDecodeError):
                raise
            why = f"ONNX Runtime {onnxruntime.__version__} cannot load it ({cut(str(error), 300)})"
            raise Damaged(where, None, why) from error
        self.inputs: Mapping[str, tuple[Any, ...]] = {
            each.name: tuple(each.shape[1:]) for each in self._session.get_inputs()
        }
        """By name the shape of a row."""
        self._outputs = tuple(each.name for each in self._session.get_outputs())
        self.outputs = tuple(name.removeprefix(_OUTPUT) for name in self._outputs)
        if takes is not None:  # before any row is made: a signature may state rows of any size
            shapes = {each.name: each.shape for each in takes.tensors}
            outputs = {each.name for each in takes.outputs}
            if {*self.outputs} != outputs or not self.inputs.items() <= shapes.items():
                raise Damaged(where, None, OTHER_SIGNATURE)

    def run(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs by name, rows on dim 0."""
        try:
            found: Any = self._session.run(self._outputs, {name: tensors[name] for name in self.inputs})
        except Exception as error:
            if not _is_of_runtime(error):
                raise
            raise Damaged(self._where, None, f"ONNX Runtime cannot compute it ({cut(str(error), 300)})") from error
        return dict(zip(self.outputs, found, strict=True))


def names_of_outputs(tensors: Sequence[Tensor], outputs: Sequence[Tensor]) -> list[str]:
    """The names that outputs have in a graph: another one where an input has the same, since ONNX takes each once."""
    inputs = {each.name for each in tensors}
    return [f"{_OUTPUT}{each.name}" if each.name in inputs else each.name for each in outputs]


def _is_of_runtime(error: Exception) -> bool:
    """Each kind of fault has a class of its own, all of them of C++."""
    return type(error).__module__.partition(".")[0] == "onnxruntime"


_OUTPUT = "output/"  # a name of a signature has no slash

_DATA_FOLDER = "session.model_external_initializers_file_folder_path"

_PROVIDERS = ["CPUExecutionProvider"]


def _options(onnxruntime: Any, threads: int | None) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    # Idle threads sleep: spinning threads would take the cores of other models that are served here.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.log_severity_level = 3  # warnings are about the graph, which the user did not write
    return options

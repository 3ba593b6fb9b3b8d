"""One way of computing a bundle, in a process of its own, for bench_export.py.

    python scripts/bench_export_worker.py WAY BUNDLE RUN ROWS.npz

It loads, gives a first answer, and prints a line about that. For every line "rows seconds" of the standard input it then
computes so many rows again and again for so long, and prints the least and the median seconds of one call, and its CPU
seconds. 0 rows are one raw input with all that becomes of it before the graph. Every way imports no more than it needs.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Call = Callable[[], Any]
Prepared = Callable[[int], Call]
"""The call that computes so many rows, which are prepared before."""


def repeated(tensors: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """So many rows of tensors, by repeating theirs."""
    import numpy as np

    return {name: np.resize(x, (rows, *x.shape[1:])) for name, x in tensors.items()}


def jit(bundle: Path, run: Path, rows: Path) -> tuple[Prepared, dict[str, float]]:
    """The live model of the run, by the program's own jit; its batch is on the host."""
    import jax
    import numpy as np

    from jaxtrain.deploy.golden import golden_examples
    from jaxtrain.deploy.predictor import Predictor
    from jaxtrain.deploy.signature import Signature
    from jaxtrain.runs.folder import Run
    from jaxtrain.sharding.layout import Layout

    restored = Run(run).restore(None, Layout(), jax.devices()[:1])
    predictor = Predictor.restored(restored, "model")
    signature = Signature.read(bundle / "signature.json")
    golden = golden_examples(json.loads((bundle / "golden.json").read_text()), signature, "golden.json")
    inputs = [each.inputs for each in golden[:8]]

    def prepared(count: int) -> Call:
        some = [inputs[number % len(inputs)] for number in range(max(count, 1))]
        if predictor.raw.example_of is not None:
            batch = predictor.kept.prepare([predictor.raw.example_of(row) for row in some])
        else:
            tokens = next(iter(signature.tensors_of(some).values())).astype(np.int32)
            batch = {"tokens": tokens, "mask": np.ones(len(tokens), bool)}
        return lambda: jax.device_get(restored.program.predict(restored.state, batch))

    prepared(1)()
    return prepared, {}


def of_bundle(bundle: Path, rows: Path, **options: Any) -> tuple[Prepared, dict[str, float]]:
    """A bundle, from raw inputs or their tensors."""
    start = time.perf_counter()
    from jaxtrain import Bundle

    imported = time.perf_counter()
    found = Bundle(bundle, **options)
    loaded = time.perf_counter()
    raw = found.golden[0].inputs
    found.predict([raw])
    parts = {"import": imported - start, "Bundle": loaded - imported, "answer": time.perf_counter() - loaded}

    def prepared(count: int) -> Call:
        import numpy as np

        if count == 0:
            lists = {name: np.asarray(value) for name, value in raw.items() if isinstance(value, list)}
            kinds = {each.name: each.spec().dtype for each in found.signature.inputs}
            given = {**raw, **{name: x.astype(kinds[name]) for name, x in lists.items()}}
            return lambda: found.predict([given])
        found.rows_at_a_time = max(found.rows_at_a_time, count)
        tensors = repeated(np.load(rows), count)
        return lambda: found.run(tensors)

    return prepared, parts


def by_hand(bundle: Path, rows: Path, like_bundle: bool) -> tuple[Prepared, dict[str, float]]:
    """ONNX Runtime alone; nothing is verified."""
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if like_bundle:
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(bundle / "model.onnx"), options, ["CPUExecutionProvider"])

    def prepared(count: int) -> Call:
        tensors = repeated(np.load(rows), max(count, 1))
        return lambda: session.run(None, tensors)

    prepared(1)()
    return prepared, {}


def timed(call: Call, seconds: float) -> tuple[float, float, float]:
    """The least and the median seconds of a call, and the mean of the CPU seconds."""
    call()
    taken, cpu, until = [], time.process_time(), time.perf_counter() + seconds
    while not taken or time.perf_counter() < until:
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return min(taken), statistics.median(taken), (time.process_time() - cpu) / len(taken)


def main() -> None:
    """Answers on the standard output."""
    way, bundle, run, rows = sys.argv[1], *map(Path, sys.argv[2:])
    ways: dict[str, Callable[[], tuple[Prepared, dict[str, float]]]] = {
        "jit": lambda: jit(bundle, run, rows),
        "stablehlo": lambda: of_bundle(bundle, rows),
        "onnx": lambda: of_bundle(bundle, rows, backend="onnx"),
        "int8": lambda: of_bundle(bundle, rows, backend="onnx", file="model.int8.onnx"),
        "hand": lambda: by_hand(bundle, rows, like_bundle=True),
        "hand, defaults": lambda: by_hand(bundle, rows, like_bundle=False),
    }
    prepared, parts = ways[way]()
    print(json.dumps(parts), flush=True)
    calls: dict[int, Call] = {}
    for line in sys.stdin:
        count, seconds = int(line.split()[0]), float(line.split()[1])
        if count not in calls:
            calls[count] = prepared(count)
        print(json.dumps(timed(calls[count], seconds)), flush=True)


if __name__ == "__main__":
    main()

"""Raw inputs through every path: the live model, StableHLO, ONNX Runtime in Python, Node and Chromium, and C++."""

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from paths import PATHS, ROOT, Exported, Rows
from PIL import Image

from jaxtrain import Experiment, load
from jaxtrain.data import Categories, Columns, Pipeline, Source, Standardize, Take
from jaxtrain.deploy.client.web import write_web
from jaxtrain.deploy.export import export_run
from jaxtrain.deploy.onnx.int8 import Int8Gate
from jaxtrain.models import Model
from jaxtrain.optimizers import AdamW, ConstantRate
from jaxtrain.runs.folder import Run
from jaxtrain.sharding.layout import Layout
from jaxtrain.tasks import Classification
from jaxtrain.train import train

pytestmark = pytest.mark.slow

TOLERANCE = 1e-4

OPTIMIZER = AdamW(schedule=ConstantRate(peak=3e-3))


@dataclass(frozen=True)
class Case:
    """Raw inputs of an experiment, by what is special about them.

    limited: those that some paths cannot read: what these are given, what the live model is, and the paths that refuse.
    refused: those that all paths refuse.
    """

    taken: Mapping[str, Mapping[str, Any]]
    limited: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any], tuple[str, ...]]]
    refused: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Flats(Source):
    """A table with a number, an integer and a category."""

    rows: int

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> dict[str, Any]:
        size, rooms = np.float32(30 + 7 * (index % 11)), np.int32(1 + index % 5)
        label = np.int32(size / rooms > 30)
        return {"size": size, "rooms": rooms, "city": ("Oslo", "Roma", "São Paulo")[index % 3], "label": label}

    def identity(self) -> str:
        return f"flats:{self.rows}"


def known(x_BD: jax.Array) -> jax.Array:
    """Numbers with 0 for those that are missing, and which these are: f32[B, 2 D]."""
    missing_BD = jnp.isnan(x_BD)
    return jnp.concatenate([jnp.where(missing_BD, 0, x_BD), missing_BD.astype(x_BD.dtype)], axis=-1)


@dataclass(frozen=True)
class Hidden(Model):
    """Two hidden layers, of a table in which numbers may be missing."""

    def build(self, rngs: nnx.Rngs, inputs: Any) -> nnx.Module:
        first, second = nnx.Linear(6, 128, rngs=rngs), nnx.Linear(128, 128, rngs=rngs)
        return nnx.Sequential(known, first, nnx.gelu, second, nnx.gelu, nnx.Linear(128, 2, rngs=rngs))

    def allowed(self) -> None:
        """Everything, NaN too."""


def table() -> Experiment:
    """Of flats."""
    transforms = Standardize(("size",)), Categories("city"), Columns(("size", "rooms", "city"), "x")
    data = Pipeline(Flats(64), transforms, batch_size=16)
    return Experiment(
        task=Classification(model=Hidden(), inputs="x", classes=("small", "large")),
        data=data,
        optimizer=OPTIMIZER,
        steps=60,
        evals={"test": replace(data, source=Flats(40), shuffle=False)},
    )


def shipped(name: str, steps: int, rows: int) -> Experiment:
    """A few steps of a shipped experiment, evaluated on a few rows."""
    one = load(str(ROOT / "experiments" / f"{name}.py"))[0]
    test = replace(one.evals["test"], source=Take(one.evals["test"].source, rows), batch_size=rows)
    return replace(one, optimizer=OPTIMIZER, steps=steps, evals={"test": test})


EXPERIMENTS: Mapping[str, Callable[[], Experiment]] = {
    "sentiment": lambda: shipped("sentiment", 40, 64),
    "digits": lambda: shipped("digits", 60, 64),
    "table": table,
}

PORTUGUESE = "Adorei! Se eu pudesse dar 1000 estrelas não daria nenhuma :)"
ENGLISH = "I loved it! If I could give it 1000 stars I would not give any :)"

DIGIT = (np.add.outer(np.arange(8), np.arange(8)) % 6)[:, :, None].astype(np.float32) / 5
"""An image whose pixels a PNG file holds exactly."""


def png(pixels: np.ndarray) -> bytes:
    """An image on the scale of 0 to 1 as a file."""
    file = io.BytesIO()
    Image.fromarray(np.round(pixels[:, :, 0] * 255).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


FLAT = {"size": 55.5, "rooms": 2, "city": "Roma"}
APART = FLAT | {"city": "Sa\u0303o Paulo"}

TEXTS = {
    "Portuguese": PORTUGUESE,
    "English": ENGLISH,
    "empty": "",
    "very long": "It is a long film. " * 1000,
    "cut in a letter": "x" * 4095 + "🙂",
    "emoji": "🙂🙃 👩‍👩‍👧‍👦 🇧🇷 ½",
    "accents apart": "Sa\u0303o Paulo, cafe\u0301",
    "no UTF-8": b"\xff\xfe broken \xe9\x80 bytes \xc3",
    "NUL bytes": "good\0film\0\0",
    "NUL bytes alone": b"\0\0",
}

CASES: Mapping[str, Case] = {
    "sentiment": Case(
        taken={what: {"text": text} for what, text in TEXTS.items()},
        limited={},
        refused={
            "a number": {"text": 3},
            "null": {"text": None},
            "half of a surrogate pair": {"text": "a\ud800"},
            "a list": {"text": ["a"]},
            "another name": {"texts": "a"},
            "no input": {},
        },
    ),
    "digits": Case(
        taken={
            "ordinary": {"image": DIGIT.tolist()},
            "all least": {"image": np.zeros((8, 8, 1)).tolist()},
            "all most": {"image": np.ones((8, 8, 1)).tolist()},
            "turned around": {"image": DIGIT[::-1].tolist()},
        },
        limited={"a PNG file": ({"image": png(DIGIT)}, {"image": DIGIT}, ("Node", "Chromium", "C++"))},
        refused={
            "above the scale": {"image": (2 * DIGIT).tolist()},
            "infinite": {"image": np.full((8, 8, 1), np.inf).tolist()},
            "missing": {"image": np.where(np.arange(64).reshape(8, 8, 1) == 9, np.nan, DIGIT).tolist()},
            "another shape": {"image": np.zeros((8, 8)).tolist()},
            "ragged": {"image": [*np.zeros((7, 8, 1)).tolist(), [[0.0]]]},
            "text": {"image": "7"},
            "no image file": {"image": b"\x89PNG"},
        },
    ),
    "table": Case(
        taken={
            "ordinary": FLAT,
            "missing number": FLAT | {"size": None},
            "number left out": {"rooms": 2, "city": "Oslo"},
            "very large": FLAT | {"size": 1e30},
            "very small": FLAT | {"size": -1e30},
            "tiny": FLAT | {"size": 1e-40},
            "largest integer": FLAT | {"rooms": 2**24},
            "true": FLAT | {"rooms": True},
            "accents": FLAT | {"city": "São Paulo"},
            "unknown": FLAT | {"city": "Paris"},
            "no text": FLAT | {"city": ""},
        },
        limited={"accents apart": (APART, APART, ("C++",))},
        refused={
            "beyond float32": FLAT | {"size": 1e39},
            "infinite": FLAT | {"size": np.inf},
            "no integer": FLAT | {"rooms": 2.5},
            "an integer that float32 skips": FLAT | {"rooms": 2**24 + 1},
            "missing integer": FLAT | {"rooms": None},
            "a category of another type": FLAT | {"city": 3},
            "missing category": {"size": 55.5, "rooms": 2},
            "a text for a number": FLAT | {"size": "55.5"},
            "a list": FLAT | {"size": [55.5]},
            "another name": FLAT | {"town": "Roma"},
        },
    ),
}


@pytest.fixture(scope="module", params=[*EXPERIMENTS])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, Exported]:
    """A case, and its experiment trained for a few steps and exported."""
    folder = tmp_path_factory.mktemp(request.param)
    run, _ = train(EXPERIMENTS[request.param](), folder / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxtrain.deploy.batch_curve._SECONDS", 0.0)
        patch.setattr("jaxtrain.deploy.batch_curve.SIZES", (4,))
        bundle = export_run(run, folder / "out", request.param, gate=Int8Gate())
    return CASES[request.param], Exported(Run(folder / "run"), bundle, write_web(bundle, folder / "page"))


def live(run: Run, rows: Rows) -> dict[str, np.ndarray]:
    """What the run's own program predicts for rows that its own transforms prepare."""
    restored, outputs = run.restore(None, Layout(), jax.devices()[:1]), []
    data = run.without_data().experiment.data
    for row in rows:
        whole = {"size": None, **row} if "rooms" in row else row
        example = {name: _as_read(name, value) for name, value in whole.items()}
        outputs.append(jax.device_get(restored.program.predict(restored.state, data.prepare([example]))))
    return {name: np.concatenate([each[name] for each in outputs]) for name in outputs[0]}


def _as_read(name: str, value: Any) -> Any:
    """A value as the source of the run reads it."""
    if name == "size":
        return np.float32(np.nan if value is None else value)
    if name == "rooms":
        return np.int32(value)
    if name == "image":
        return np.asarray(value, np.float32)
    return value


def test_every_path_answers_as_the_live_model(exported, tmp_path):
    case, made = exported
    rows = {**case.taken, **{what: row for what, (row, _, _) in case.limited.items()}}
    wanted = live(made.run, [*case.taken.values(), *(row for _, row, _ in case.limited.values())])
    assert np.ptp(wanted["probabilities"], axis=0).max() > 0.02  # else every path would agree, whatever it reads
    for name, answers in PATHS.items():
        cannot = [what for what, (_, _, paths) in case.limited.items() if name in paths]
        can = [what for what in rows if what not in cannot]
        places = [number for number, what in enumerate(rows) if what in can]
        refused = {**case.refused, **{what: rows[what] for what in cannot}}
        folder = tmp_path / name
        folder.mkdir()
        found = answers(made, folder, "model.onnx", [rows[what] for what in can], [*refused.values()])
        assert found.outputs.keys() == wanted.keys()
        for output, x in wanted.items():
            message = f"{name}: {output} of {can}"
            np.testing.assert_allclose(found.outputs[output], x[places], rtol=0, atol=TOLERANCE, err_msg=message)
        why = dict(zip(refused, found.refused, strict=True))
        assert all(why.values()), f"{name} takes {[what for what, error in why.items() if not error]}"


def test_int8_answers_within_its_gate_on_every_path(exported, tmp_path, capsys):
    case, made = exported
    metrics = json.loads((made.bundle / "metrics.json").read_text())
    if "recipe" not in metrics["int8"]:
        assert not (made.bundle / "model.int8.onnx").exists()
        assert made.bundle.parent.name == "digits", metrics["int8"]["why"]  # after few steps its classes are close
        return
    wanted = live(made.run, [*case.taken.values()])["probabilities"]
    seen = {}
    for name, answers in [*PATHS.items()][1:]:
        folder = tmp_path / name
        folder.mkdir()
        found = answers(made, folder, "model.int8.onnx", [*case.taken.values()], []).outputs["probabilities"]
        assert np.array_equal(np.isnan(found), np.isnan(wanted)), name
        seen[name] = float(np.nanmax(np.abs(found - wanted)))
    with capsys.disabled():
        print(f"\n{made.bundle.parent.name}: int8 is from the live model, of probabilities, by at most", end=" ")
        print(", ".join(f"{each:.4f} ({name})" for name, each in seen.items()))
    assert min(seen.values()) > 0
    assert max(seen.values()) <= Int8Gate().difference

"""Transforms that are fitted on the training split: their values, who shares them, where they are kept."""

import json
import pickle
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import QuantileTransformer, StandardScaler

from jaxtrain import ConfigError, Experiment, Run, fit
from jaxtrain.cli.flags import parse
from jaxtrain.data import (
    Arrays,
    Categories,
    Csv,
    Example,
    FittedTransform,
    Mapped,
    Normalize,
    Pipeline,
    Quantiles,
    Select,
    Standardize,
    TfIdf,
    Transform,
)
from jaxtrain.evaluate import evaluate_run
from jaxtrain.experiment.experiment import fingerprint
from jaxtrain.models import Model
from jaxtrain.optimizers import SGD, ConstantRate
from jaxtrain.tasks import Context, HostMetric, Regression
from jaxtrain.train import train

RNG = np.random.default_rng(0)


def examples(**columns: Any) -> list[Example]:
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def test_standardize_by_hand():
    # 1, 3, 5, 7: mean 4, squares 9 + 1 + 1 + 9 over 4 is 5.
    fitted = Standardize(("x", "y")).fit(examples(x=[1, 3, 5, 7], y=[[2.0, 0.0], [2, 1], [2, 0], [2, 1]]))
    assert [one.mean for one in fitted.known()] == [(4.0,), (2.0, 0.5)]
    assert [one.std for one in fitted.known()] == [(pytest.approx(5**0.5),), (1.0, 0.5)]
    new = fitted({"x": 9, "y": np.array([3.0, 1.0])}, RNG)
    assert new["x"] == pytest.approx(5**0.5)
    assert new["x"].dtype == new["y"].dtype == np.float32
    assert new["y"].tolist() == [1.0, 1.0]
    assert fitted({"y": np.array([2.0, 0.5])}, RNG)["y"].tolist() == [0.0, 0.0]  # as for predictions, without x
    np.testing.assert_allclose(fitted.undo("y", np.array([[1, 1], [0, -1]], np.float32)), [[3, 1], [2, 0]])
    assert fitted.undo("z", 3.0) == 3.0


def test_standardize_is_scikit_learns_scaler_far_from_zero_and_over_time():
    rows = np.random.default_rng(1).normal((1e7, -3, 0), (0.1, 5, 1e-6), (50, 4, 3))
    fitted, scaler = Standardize(("x",)).fit(examples(x=rows)), StandardScaler().fit(rows.reshape(-1, 3))
    np.testing.assert_allclose(fitted.known()[0].mean, scaler.mean_, rtol=1e-12)
    np.testing.assert_allclose(fitted.known()[0].std, rows.reshape(-1, 3).std(0), rtol=1e-7)
    expected = scaler.transform(rows[7])
    np.testing.assert_allclose(fitted({"x": rows[7]}, RNG)["x"], expected, rtol=1e-5, atol=1e-5)


def test_quantiles_are_scikit_learns():
    rows = np.random.default_rng(2).exponential(size=(200, 2)).round(1)  # with ties
    fitted = Quantiles(("x",), count=11).fit(examples(x=rows))
    peer = QuantileTransformer(n_quantiles=11, subsample=None).fit(rows)
    asked = np.array([[-1.0, 0.3], [0.7, 99.0], rows[5]])
    np.testing.assert_allclose(fitted({"x": asked}, RNG)["x"], peer.transform(asked), atol=1e-6)


def test_quantiles_by_hand_there_and_back():
    fitted = Quantiles(("x",), count=3).fit(examples(x=[0.0, 10, 20, 30, 100]))
    assert fitted.known() == (((0.0, 20.0, 100.0),),)
    assert fitted({"x": 10.0}, RNG)["x"] == 0.25
    assert fitted({"x": 60.0}, RNG)["x"] == 0.75
    np.testing.assert_allclose(fitted.undo("x", jnp.float32([0.25, 0.75, 2])), [10, 60, 100])
    np.testing.assert_allclose(fitted.undo("x", jnp.float32([[0.25], [0.75]])), [[10], [60]])
    two = Quantiles(("x",), count=2).fit(examples(x=[[0.0, 1.0], [2.0, 5.0]]))
    np.testing.assert_allclose(two.undo("x", jnp.float32([[0.5, 0.5]])), [[1, 3]])
    middle = Quantiles(("x",), count=5).fit(examples(x=[0.0, 1, 1, 1, 9]))
    assert middle({"x": 1.0}, RNG)["x"] == 0.5  # it is the quantiles 1/4 to 3/4


def test_categories_are_numbered_in_sorted_order_and_0_is_what_training_lacks():
    fitted = Categories("c", least=2).fit(examples(c=["b", b"a", "b", "rare", "a"]))
    assert fitted.known() == ("a", "b")
    numbers = [fitted({"c": value}, RNG)["c"] for value in ("a", b"b", "rare", "new")]
    assert numbers == [1, 2, 0, 0]
    assert numbers[0].dtype == np.int32
    assert Categories("c").fit(examples(c=np.array([7, -2, 7]))).known() == (-2, 7)
    assert fitted({"d": 1}, RNG) == {"d": 1}


def test_tf_idf_is_scikit_learns():
    texts = ["The film, the FILM was good", "a bad film", "good good actors é2", "the the the"]
    peer = TfidfVectorizer(max_features=5).fit(texts)
    fitted = TfIdf("text", size=5).fit(examples(text=texts))
    assert list(fitted.known().words) == sorted(peer.vocabulary_) == ["actors", "bad", "film", "good", "the"]
    for text in ("good good film by the sea", "nothing known"):
        new = fitted({"text": text, "label": 1}, RNG)
        np.testing.assert_allclose(new["features"], peer.transform([text]).toarray()[0], rtol=1e-6)
        assert new.keys() == {"features", "label"}
    padded = TfIdf("text", size=9, to="v").fit(examples(text=[b"one two"]))({"text": "two two"}, RNG)["v"]
    assert padded.tolist() == [0, 1, 0, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("kind", [Standardize, Quantiles])
def test_what_cannot_be_fitted_is_refused(kind: Any):
    with pytest.raises(ConfigError, match=r"'x' in example 1 of the training split is not finite numbers"):
        kind(("x",)).fit(examples(x=[1.0, np.nan]))
    with pytest.raises(ConfigError, match="is not finite numbers"):
        kind(("x",)).fit(examples(x=["a"]))
    with pytest.raises(ConfigError, match=r"example 1 of the training split has 3 channels .* before it 2"):
        kind(("x",)).fit(examples(x=[np.zeros(2), np.zeros(3)]))
    with pytest.raises(ConfigError, match="no field 'y' in the example"):
        kind(("y",)).fit(examples(x=[1.0]))
    with pytest.raises(ConfigError, match="no values in 'x'"):
        kind(("x",)).fit(examples(x=[np.zeros((0, 2))]))
    fitted = kind(("x",)).fit(examples(x=[np.zeros(2), np.ones(2)]))
    with pytest.raises(ConfigError, match=r"fitted on 2 channels, but 'x' has shape \(3,\)"):
        fitted({"x": np.zeros(3)}, RNG)


def test_categories_of_both_kinds_and_of_floats_are_refused():
    with pytest.raises(ConfigError, match="both text and integers"):
        Categories("c").fit(examples(c=["a", 1]))
    with pytest.raises(ConfigError, match="neither a text nor an integer"):
        Categories("c").fit(examples(c=[1.5]))
    with pytest.raises(ConfigError, match="must be str or bytes, got int"):
        TfIdf("c").fit(examples(c=[1]))


def test_a_transform_that_is_not_fitted_is_refused_in_words():
    pipeline = Pipeline(Arrays({"x": np.arange(4.0)}), (Standardize(("x",)),), batch_size=2)
    with pytest.raises(ConfigError, match=r"Standardize\(.* is not fitted: .*jaxtrain.fit\(experiment\)"):
        pipeline.example()
    with pytest.raises(ConfigError, match="give it to the pipeline's transforms"):
        Mapped(pipeline.source, pipeline.transforms)
    done = Standardize(("x",)).fit(pipeline.source[index] for index in range(4))
    assert Mapped(pipeline.source, (done,))[3]["x"] == pytest.approx(1.5 / 1.25**0.5)


@dataclass(frozen=True, kw_only=True)
class Same(Model):
    """The first input times a parameter that is 1 at first."""

    def build(self, rngs: nnx.Rngs, inputs: Any) -> nnx.Module:
        return Factor()


class Factor(nnx.Module):
    def __init__(self) -> None:
        self.factor = nnx.Param(jnp.ones(1), axes=(None,))

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        return x.reshape(-1, 1) * self.factor[...]


@dataclass(frozen=True)
class Added(Transform):
    """Adds 100 in training alone."""

    @property
    def training_only(self) -> bool:
        return True

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        return {**example, "x": example["x"] + 100}


@dataclass(frozen=True)
class Largest(HostMetric):
    """The largest error of a prediction, and the largest label."""

    @property
    def fields(self) -> tuple[str, ...]:
        return ("y",)

    def value(self, predictions: Mapping[str, Any], labels: Mapping[str, Any]) -> dict[str, float]:
        error = np.abs(predictions["values"][:, 0] - labels["y"])
        return {"error": float(error.max()), "label": float(labels["y"].max())}


def written(folder: Path) -> tuple[Csv, Csv]:
    """Training rows with x = 1, 3, 5, 7 and y = 10 x, and others."""
    (folder / "train.csv").write_text("x,y\n1,10\n3,30\n5,50\n7,70\n")
    (folder / "test.csv").write_text("x,y\n1000,10000\n2000,20000\n")
    train, test = (Csv((str(folder / name),), floats=("x", "y")) for name in ("train.csv", "test.csv"))
    return train, test


def experiment(folder: Path) -> Experiment:
    """A model that predicts the target exactly in standard deviations."""
    source, other = written(folder)
    data = Pipeline(source, (Standardize(("x",)), Standardize(("y",))), batch_size=2)
    return Experiment(
        task=Regression(model=Same(), inputs="x", target="y"),
        data=data,
        optimizer=SGD(schedule=ConstantRate(peak=0.0)),
        steps=2,
        evals={"test": replace(data, source=other, shuffle=False)},
        host_metrics={"largest": Largest()},
    )


def test_the_training_split_alone_is_fitted_once_for_all(tmp_path: Path):
    made = experiment(tmp_path)
    done = fit(made)
    x, y = done.data.transforms
    assert isinstance(x, Standardize)
    assert x.known()[0].mean == (4.0,)
    assert x.known()[0].std == (pytest.approx(5**0.5),)
    assert done.evals["test"].transforms == done.data.transforms
    assert (x.unfitted(), y.unfitted() if isinstance(y, FittedTransform) else None) == made.data.transforms
    batch = next(done.evals["test"].epoch())
    np.testing.assert_allclose(batch["x"], (np.array([1000, 2000]) - 4) / 5**0.5, rtol=1e-6)
    assert fit(done) == done
    plain = replace(made, data=replace(made.data, transforms=()), evals={})
    assert fit(plain) is plain


def test_each_transform_is_fitted_on_what_those_before_it_make_in_evaluation(tmp_path: Path):
    made = experiment(tmp_path)
    data = replace(made.data, transforms=(Added(), Normalize(1.0, 2.0, field="x"), Standardize(("x",)), Select(("x",))))
    _, _, fitted, _ = fit(replace(made, data=data, evals={})).data.transforms
    assert isinstance(fitted, Standardize)
    assert fitted.known()[0].mean == (1.5,)  # of 0, 1, 2, 3


def test_what_is_not_of_the_training_data_is_not_fitted(tmp_path: Path):
    made = experiment(tmp_path)
    other = replace(made.evals["test"], transforms=(Standardize(("x", "y")),))
    with pytest.raises(ConfigError, match=r"evals.test: Standardize\(.* is not among the transforms of `data`"):
        fit(replace(made, evals={"test": other}))
    twice = replace(made.data, transforms=(Standardize(("x",)), Standardize(("x",))))
    with pytest.raises(ConfigError, match="is there twice"):
        fit(replace(made, data=twice, evals={}))


def test_the_hash_of_the_fitted_values_is_in_the_fingerprint(tmp_path: Path):
    one = fit(experiment(tmp_path))
    x, y = one.data.transforms
    assert isinstance(x, Standardize)
    other = replace(x, fitted=(replace(x.known()[0], mean=(4.5,)),))
    changed = replace(one, data=replace(one.data, transforms=(other, y)))
    assert fingerprint(changed) != fingerprint(one) == fingerprint(fit(experiment(tmp_path)))
    assert x.identity() != other.identity()
    assert x.unfitted().identity() == "not fitted"


def test_worker_processes_get_the_fitted_values(tmp_path: Path):
    data = fit(experiment(tmp_path)).data
    copy = pickle.loads(pickle.dumps(data.steps()))
    np.testing.assert_array_equal(copy[1]["x"], data.steps()[1]["x"])


@pytest.fixture
def refitting(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The transforms that were fitted, from now on."""
    names, fitted = [], Standardize.fit

    def counted(self: Standardize, rows: Iterable[Example]) -> Standardize:
        names.append(self.fields[0])
        return fitted(self, rows)

    monkeypatch.setattr(Standardize, "fit", counted)
    return names


def test_a_run_keeps_its_fitted_values_and_predicts_in_the_units_of_the_data(tmp_path: Path, refitting: list[str]):
    made, folder = experiment(tmp_path), tmp_path / "run"
    train(made, folder)
    assert refitting == ["x", "y"]
    saved = json.loads((folder / "experiment.json").read_text())
    (values,) = saved["experiment"]["data"]["transforms"][0]["fitted"]
    assert (values["mean"], values["std"]) == ([4.0], [5**0.5])
    assert saved["config"]["data.transforms.1.identity"].startswith("fitted:")

    train(replace(made, steps=3), folder)  # resumes
    scores = evaluate_run(Run(folder))["test"]
    assert scores["largest/error"] < 1e-2
    assert scores["largest/label"] == pytest.approx(20000)
    assert scores["absolute_error"] < 1e-4  # in standard deviations
    assert Run(folder, experiment=made).experiment.data.transforms == Run(folder).experiment.data.transforms
    assert refitting == ["x", "y"]

    for name in ("train.csv", "test.csv"):
        (tmp_path / name).unlink()
    run = Run(folder).without_data()
    restored = run.restore()
    batch = run.experiment.data.prepare([{"x": 1000.0}])
    np.testing.assert_allclose(restored.program.predict(restored.state, batch)["values"], [[10000]], rtol=1e-5)


def test_a_run_of_other_rows_is_refused(tmp_path: Path):
    train(experiment(tmp_path), tmp_path / "run")
    (tmp_path / "new").mkdir()
    made = experiment(tmp_path / "new")
    (tmp_path / "new" / "train.csv").write_text("x,y\n1,10\n3,30\n5,50\n9,90\n")
    with pytest.raises(ConfigError, match="run of another experiment"):
        train(made, tmp_path / "run")


def test_fitted_values_are_no_flags_but_the_other_fields_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "e.py").write_text(
        "import test_fit\nfrom pathlib import Path\nfrom jaxtrain import Experiment\n\n\n"
        f"def main() -> Experiment:\n    return test_fit.experiment(Path({str(tmp_path)!r}))\n"
    )
    where = str(tmp_path / "e.py")
    (x, _) = parse(where, ["--data.transforms.0.fields", "x", "y"]).experiment.data.transforms
    assert x == Standardize(("x", "y"))
    with pytest.raises(SystemExit):
        parse(where, ["--data.transforms.0.fitted", "None"])

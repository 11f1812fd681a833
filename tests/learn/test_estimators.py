"""scikit-learn's own checks, and what its face promises on slides."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.utils.estimator_checks import parametrize_with_checks

from histotl.core.errors import IdentityError, TableError, UsageError
from histotl.learn.bags import BagStore
from histotl.learn.config import TrainConfig
from histotl.learn.estimators import KNNClassifier, LinearProbe, MILClassifier, MultiTaskEstimator
from histotl.learn.model import load_model, save_model

QUICK = TrainConfig(members=1, min_steps=80, max_steps=80, learning_rates=(0.02,), device="cpu", ood=())


@parametrize_with_checks([LinearProbe(config=QUICK), KNNClassifier(n_neighbors=5)])
def test_scikit_learn_agrees(estimator: object, check: Callable[[object], None]) -> None:
    check(estimator)


def slides(n: int = 60, seed: int = 0) -> tuple[list[np.ndarray], np.ndarray]:
    """Positive slides hold a few shifted tiles."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    x = [rng.normal(size=(int(rng.integers(2, 15)), 8)) for _ in range(n)]
    for each, label in zip(x, y, strict=True):
        each[: 1 + len(each) // 4] += 3.0 * label
    return x, np.where(y, "lesion", "clear")


def test_slides_are_classified_cloned_searched_and_kept(tmp_path: Path) -> None:
    x, y = slides()
    model = MILClassifier(aggregator="abmil(hidden=16, attention=8)", hidden=16, config=QUICK)
    assert clone(model).get_params() == model.get_params()
    found = model.fit(x[:40], y[:40], groups=np.arange(40) // 2)
    assert found is model
    assert model.score(x[40:], y[40:]) > 0.9
    p = model.predict_proba(x[40:])
    np.testing.assert_allclose(p.sum(axis=1), 1)
    assert list(model.classes_) == ["clear", "lesion"]
    assert (model.classes_[p.argmax(axis=1)] == model.predict(x[40:])).all()
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).predict_proba(x[40:]), p)
    np.testing.assert_array_equal(clone(model).fit(x[:40], y[:40], groups=np.arange(40) // 2).predict_proba(x[40:]), p)
    save_model(model.model_, tmp_path / "m")
    assert load_model(tmp_path / "m").tasks == model.model_.tasks
    # scikit-learn's tools index lists of arrays by themselves.
    ragged = np.empty(len(x), dtype=object)
    ragged[:] = x
    assert cross_val_score(model, ragged, y, cv=3).mean() > 0.85
    search = GridSearchCV(model, {"hidden": [0, 8]}, cv=2).fit(ragged, y)
    assert search.best_params_["hidden"] in (0, 8)


def test_several_tasks_with_missing_labels() -> None:
    x, y = slides()
    rng = np.random.default_rng(1)
    frame = pd.DataFrame({"lesion": y, "size": [float(len(each)) for each in x]})
    frame["size"] = np.where(y == "lesion", 5.0, 1.0) + rng.normal(size=len(y)) * 0.1
    frame.loc[rng.random(len(y)) < 0.3, "lesion"] = None
    tasks = ("lesion: binary(classes=('clear', 'lesion'))", "size: regression")
    model = MultiTaskEstimator(tasks, hidden=16, config=QUICK).fit(x[:40], frame[:40])
    said = model.predict(x[40:])
    assert list(said.columns) == ["lesion", "size"]
    assert (said["lesion"].to_numpy() == y[40:]).mean() > 0.85
    assert set(model.predict_proba(x[40:])) == {"lesion", "size"}
    assert model.score(x[40:], frame[40:]) > 0.7
    assert clone(model).get_params() == model.get_params()
    rows = MultiTaskEstimator(tasks, hidden=0, config=QUICK).fit(np.stack([each.mean(0) for each in x]), frame)
    assert rows.model_.architecture.aggregator == ""


def test_a_store_brings_its_identity(
    slide_cohort: tuple[pd.DataFrame, Path], tmp_path: Path, write_slide: Callable[..., Path]
) -> None:
    table, features = slide_cohort
    store = BagStore.open(features)
    y = table.set_index("slide_id").loc[list(store.ids), "lesion"].to_numpy()
    model = MILClassifier(aggregator="mean", hidden=16, config=QUICK).fit(store, y)
    assert model.score(store, y) > 0.9
    assert model.model_.identity == store.identity
    write_slide(tmp_path / "other", "S00", np.zeros((4, 16)), stain="macenko")
    with pytest.raises(IdentityError, match="stain"):
        model.predict(BagStore.open(tmp_path / "other"))


def test_neighbours_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(200, 6)), rng.integers(0, 3, 200)
    ours = KNNClassifier(n_neighbors=7, temperature=1e6).fit(x, y).predict_proba(x)
    centred = x - x.mean(axis=0)
    theirs = KNeighborsClassifier(7, metric="cosine").fit(centred, y).predict_proba(centred)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_bad_input_is_named() -> None:
    x, y = slides(20)
    model = MILClassifier(config=QUICK)
    with pytest.raises(UsageError, match="single rows"):
        model.fit(np.zeros((20, 3)), y)
    with pytest.raises(UsageError, match="3 groups for 20 cases"):
        model.fit(x, y, groups=[1, 2, 3])
    with pytest.raises(TableError, match="1 class"):
        model.fit(x, ["a"] * 20)
    with pytest.raises(TableError, match="3 labels for 20"):
        model.fit(x, y[:3])
    with pytest.raises(UsageError, match="shapes"):
        model.fit([np.zeros((3, 2)), np.zeros((3, 4))], ["a", "b"])
    with pytest.raises(UsageError, match="validation is 1"):
        MILClassifier(validation=1, config=QUICK).fit(x, y)
    with pytest.raises(TableError, match="no column 'b'"):
        MultiTaskEstimator(("b: regression",)).fit(x, {"a": y})
    with pytest.raises(UsageError, match="n_neighbors is 0"):
        KNNClassifier(n_neighbors=0).fit(np.eye(4), [0, 1, 0, 1])


def told_slides(n: int = 80) -> tuple[list[np.ndarray], np.ndarray, dict[str, list[object]]]:
    """Slides whose class is on the tiles at one site and turned round at the other; and the sites."""
    x, y = slides(n)
    site = np.arange(n) // 2 % 2
    turned = np.where(site == 1, np.where(y == "lesion", "clear", "lesion"), y)
    return (
        x,
        turned,
        {"hospital": ["north" if each else "south" for each in site], "age": [50.0 + i % 30 for i in range(n)]},
    )


TOLD = TrainConfig(
    members=1,
    min_steps=200,
    max_steps=200,
    learning_rates=(0.02,),
    device="cpu",
    ood=(),
    covariate=("site: category(column='hospital')", "age"),
)


def test_slides_are_answered_with_what_is_known_of_them(tmp_path: Path) -> None:
    """The class depends on the site as on the tiles: neither says anything alone."""
    x, y, known = told_slides()
    model = MILClassifier(aggregator="abmil(hidden=16, attention=8)", hidden=32, dropout=0.0, config=TOLD)
    frame = pd.DataFrame(known)
    model.fit(x[:60], y[:60], covariates=frame[:60])
    assert model.score(x[60:], y[60:], covariates=frame[60:]) > 0.9
    swapped = frame[60:].assign(hospital=["south" if each == "north" else "north" for each in frame.hospital[60:]])
    assert model.score(x[60:], y[60:], covariates=swapped) < 0.1
    save_model(model.model_, tmp_path / "m")
    kept = load_model(tmp_path / "m").covariates
    assert [covariate.column for covariate in kept.covariates] == ["hospital", "age"]


def test_several_tasks_are_answered_with_what_is_known() -> None:
    x, y, known = told_slides()
    model = MultiTaskEstimator(["type: binary(classes=('clear', 'lesion'))"], hidden=32, dropout=0.0, config=TOLD)
    columns = {"type": list(y)}
    with_gaps = known | {"age": [None, *known["age"][1:]]}
    model.fit(x, columns, covariates=with_gaps)
    assert model.score(x, columns, covariates=with_gaps) > 0.9
    assert list(model.predict(x, covariates=with_gaps).columns) == ["type"]


def test_covariates_that_are_missing_or_unknown_are_refused() -> None:
    x, y, known = told_slides(40)
    model = MILClassifier(aggregator="mean", config=TOLD)
    with pytest.raises(UsageError, match="the networks are told hospital, age") as caught:
        model.fit(x, y)
    assert "covariates=" in caught.value.hint
    with pytest.raises(TableError, match="'age' of the covariates has 39 values for 40 cases"):
        model.fit(x, y, covariates=known | {"age": known["age"][1:]})
    with pytest.raises(TableError, match="no column 'hospital'"):
        model.fit(x, y, covariates={"age": known["age"]})
    with pytest.raises(UsageError, match="the networks are told none"):
        MILClassifier(aggregator="mean", config=QUICK).fit(x, y, covariates=known)
    asks_the_site = MultiTaskEstimator(["hospital: binary(classes=('north', 'south'))"], config=TOLD)
    with pytest.raises(UsageError, match="covariate 'site' is the column 'hospital', which task 'hospital'"):
        asks_the_site.fit(x, {"hospital": known["hospital"]}, covariates=known)
    with pytest.raises(UsageError, match="takes no covariates"):
        LinearProbe(config=TOLD).fit(np.stack([each.mean(axis=0) for each in x]), y)
    fitted = model.fit(x, y, covariates=known)
    with pytest.raises(UsageError, match="the networks are told hospital, age"):
        fitted.predict(x)

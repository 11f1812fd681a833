"""Covariates from the table to the answers: training, the model's folder, prediction, folds, explanations, flags."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from histotl.cli.main import call
from histotl.core.errors import TableError, UsageError
from histotl.core.progress import Step
from histotl.evaluate.config import EvaluateConfig
from histotl.evaluate.stage import evaluate_predictions
from histotl.evaluate.stain.judge import load_judge
from histotl.learn import model as model_module
from histotl.learn.bags import BagStore
from histotl.learn.cohort import build_cohort
from histotl.learn.cohort_training import train_cohort
from histotl.learn.config import PredictConfig, TrainConfig
from histotl.learn.cross_config import CrossConfig
from histotl.learn.cross_validate import cross_validate
from histotl.learn.estimators import LinearProbe, MultiTaskEstimator
from histotl.learn.explain_config import ExplainConfig
from histotl.learn.explaining import explain
from histotl.learn.model import load_model, save_model
from histotl.learn.predict import predict
from histotl.learn.predictions import read_predictions
from histotl.learn.task import Task, parse_task
from histotl.learn.train import preview, train
from histotl.learn.training_sets import training_key
from histotl.store.tile_scores import read_tile_scores

DIM = 16
LESION = (Task(name="lesion", kind="binary", classes=("no", "yes")),)
TOLD = ("age", "site: category", "sex: category(column='Sex', fusion='film')")
Cohort = tuple[pd.DataFrame, Path]


@pytest.fixture
def cohort(tmp_path: Path, write_slide: Callable[..., Path]) -> Cohort:
    """60 slides whose tiles say little of the lesion, and whose patients' age says much of it."""
    rng, folder, rows = np.random.default_rng(3), tmp_path / "20x_224px_0px_overlap" / "features_scattering", []
    for i in range(60):
        yes = i % 2
        x = rng.normal(size=(int(rng.integers(4, 12)), DIM))
        x[:, 0] += 0.2 * yes
        write_slide(folder, f"S{i:02}", x, views=x[None] + 0.1)
        age = "" if i % 10 == 7 else str(round(50 + 20 * yes + float(rng.normal(0, 3)), 1))
        split = "train" if i < 32 else "val" if i < 46 else "test"
        rows.append(
            {
                "slide_id": f"S{i:02}",
                "patient": f"P{i:02}",
                "split": split,
                "lesion": ("no", "yes")[yes],
                "age": age,
                "site": "ABC"[i % 3],
                "Sex": "fm"[i // 2 % 2],
                "size": str(i % 7),
            }
        )
    return pd.DataFrame(rows), folder


@pytest.fixture
def config(quick: TrainConfig) -> TrainConfig:
    return replace(quick, covariate=TOLD, min_steps=150, max_steps=150, ood=())


@pytest.fixture
def model(cohort: Cohort, config: TrainConfig, tmp_path: Path) -> Path:
    return train(*cohort, tmp_path / "model", tasks=LESION, config=config).folder


def answers(model: Path, cohort: Cohort, out: Path, **more: object) -> pd.DataFrame:
    """Predictions with a table, or without one for None."""
    table = more.pop("frame", cohort[0])
    if table is not None:
        out.mkdir(parents=True, exist_ok=True)
        path = out / "asked.csv"
        table.to_csv(path, index=False)  # type: ignore[attr-defined]
        more["table"] = str(path)
    report = more.pop("report", None)
    settings = PredictConfig(device="cpu", **more)  # type: ignore[arg-type]
    extra = {} if report is None else {"report": report}
    return read_predictions(predict(model, cohort[1], out / "p", config=settings, **extra)).frame  # type: ignore[arg-type]


def test_what_the_age_says_reaches_the_answers(
    cohort: Cohort, config: TrainConfig, model: Path, tmp_path: Path
) -> None:
    table, plain = cohort[0], replace(config, covariate=())
    without = train(*cohort, tmp_path / "plain", tasks=LESION, config=plain).folder
    test = table["split"] == "test"
    right = {}
    for name, folder in (("with", model), ("without", without)):
        found = answers(folder, cohort, tmp_path / name)
        right[name] = (found["lesion"][test] == table["lesion"][test]).mean()
    assert right["with"] > 0.85
    assert right["with"] > right["without"] + 0.2
    written = json.loads((model / "training.json").read_text())
    assert written["covariates"]["age"] == {"missing": 6, "other": {}}
    loaded = load_model(model)
    assert [c.name for c in loaded.covariates.covariates] == ["age", "site", "sex"]
    assert loaded.setting("covariate") == list(TOLD)
    told = table[(table["split"] == "train") & (table["age"] != "")]["age"].astype(float)
    assert loaded.covariates.parts[0].mean == pytest.approx((told.mean(),))
    assert loaded.covariates.parts[0].std == pytest.approx(told.std(ddof=0))


def test_a_saved_model_answers_bit_for_bit(cohort: Cohort, model: Path, tmp_path: Path) -> None:
    loaded = load_model(model)
    save_model(loaded, tmp_path / "copy")
    copy = load_model(tmp_path / "copy")
    assert copy.covariates == loaded.covariates
    found = answers(model, cohort, tmp_path / "a")
    again = answers(tmp_path / "copy", cohort, tmp_path / "b")
    pd.testing.assert_frame_equal(*(each.drop(columns="model_split") for each in (found, again)), check_exact=True)
    shuffled = cohort[0].sample(frac=1, random_state=0)
    again = answers(model, cohort, tmp_path / "c", frame=shuffled).set_index("slide_id").loc[found["slide_id"]]
    np.testing.assert_allclose(again["lesion:yes"], found["lesion:yes"], atol=1e-6, err_msg="the order of rows")


def test_what_the_table_says_of_test_cases_changes_nothing(
    cohort: Cohort, config: TrainConfig, model: Path, tmp_path: Path
) -> None:
    table, features = cohort
    test = table["split"] == "test"
    changed = table.assign(
        age=np.where(test, "999", table["age"]),
        site=np.where(test, "Z", table["site"]),
        Sex=np.where(test, "", table["Sex"]),
    )
    again = train(changed, features, tmp_path / "again", tasks=LESION, config=config).folder
    assert (again / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()
    assert load_model(again).covariates == load_model(model).covariates
    store = BagStore.open(features)
    frames = table, changed, table.assign(age=["61", *table["age"][1:]])
    keys = [training_key(build_cohort(frame, store, LESION, config), store, "slide", config) for frame in frames]
    assert keys[0] == keys[1] != keys[2], "an interrupted training goes on where nothing of train and val is other"


def test_predicting_without_covariates_has_to_be_said(cohort: Cohort, model: Path, tmp_path: Path) -> None:
    table = cohort[0]
    with pytest.raises(UsageError, match="is told age, site, Sex, and no table says them") as caught:
        answers(model, cohort, tmp_path / "x", frame=None)
    assert "--covariates-missing" in caught.value.hint
    with pytest.raises(TableError, match=r"is told Sex, and .* has no such column") as caught:
        answers(model, cohort, tmp_path / "x", frame=table.drop(columns="Sex"))
    assert "--covariates-missing" in caught.value.hint
    with pytest.raises(TableError, match="column 'age' holds 'old'"):
        answers(model, cohort, tmp_path / "x", frame=table.assign(age="old"))
    assert not (tmp_path / "x" / "p").exists()
    said: list[Step] = []
    nothing = answers(model, cohort, tmp_path / "n", frame=None, covariates_missing=True, report=said.append)
    empty = answers(model, cohort, tmp_path / "e", frame=table.assign(age="", site="", Sex=""))
    absent = table.drop(columns=["age", "site", "Sex"])
    columns = answers(model, cohort, tmp_path / "c", frame=absent, covariates_missing=True)
    pd.testing.assert_frame_equal(nothing, empty, check_exact=True)
    pd.testing.assert_frame_equal(nothing, columns, check_exact=True)
    texts = [step.message for step in said]
    assert "covariate age: missing in 60 of 60 cases" in texts
    assert any(text.startswith("covariate sex: missing in 60 of 60 cases; no training case") for text in texts)


def test_a_new_site_is_said_and_counted(cohort: Cohort, model: Path, tmp_path: Path) -> None:
    table, said = cohort[0], list[Step]()
    new = table.assign(site=["Z" if i < 3 else site for i, site in enumerate(table["site"])])
    found = answers(model, cohort, tmp_path / "n", frame=new, report=said.append)
    assert any("'Z' in 3 of 60 cases is none of 'A', 'B', 'C' of training" in step.message for step in said)
    meta = json.loads((tmp_path / "n" / "p" / "predictions.json").read_text())
    assert meta["covariates"]["site"] == {"missing": 0, "other": {"Z": 3}}
    nowhere = answers(model, cohort, tmp_path / "m", frame=table.assign(site=[""] * 3 + list(table["site"][3:])))
    np.testing.assert_array_equal(found["lesion:yes"], nowhere["lesion:yes"], "training had neither other nor missing")


def test_a_label_is_no_covariate(cohort: Cohort, config: TrainConfig, tmp_path: Path) -> None:
    for text, told in (
        ("x: category(column='lesion')", "which task 'lesion' is to predict"),
        ("patient: category", "which holds the patient"),
        ("slide_id: category", "which holds the name of the case"),
        ("split: category", "which holds the split"),
    ):
        with pytest.raises(UsageError, match=told):
            preview(*cohort, tasks=LESION, config=replace(config, covariate=(text,)))
    with pytest.raises(TableError, match="no column 'agee'"):
        preview(*cohort, tasks=LESION, config=replace(config, covariate=("agee",)))
    with pytest.raises(UsageError, match="without a covariate"):
        preview(*cohort, tasks=LESION, config=replace(config, covariate=(), covariate_dropout=0.3))
    direct = replace(config, aggregator="additive(hidden=8, attention=4, inner=4)")
    with pytest.raises(UsageError, match="covariates cannot reach it"):
        train(*cohort, tmp_path / "direct", tasks=LESION, config=direct)
    assert not (tmp_path / "direct" / "model.json").exists()


def test_a_folder_of_before_still_loads(
    cohort: Cohort, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = train(*cohort, tmp_path / "m", tasks=LESION, config=replace(config, covariate=())).folder
    before = answers(folder, cohort, tmp_path / "a", frame=None)
    meta = json.loads((folder / "model.json").read_text())
    assert meta.pop("covariates") == []
    assert meta["architecture"].pop("covariates") == []
    assert meta["architecture"].pop("covariate_dropout") == 0
    assert meta["config"].pop("covariate") == []
    meta.pop("digest")
    (folder / "model.json").write_text(json.dumps(meta | {"digest": model_module._digest(meta)}))
    pd.testing.assert_frame_equal(before, answers(folder, cohort, tmp_path / "b", frame=None), check_exact=True)


@pytest.mark.parametrize(
    "settings",
    [
        {"aggregator": "abmil(hidden=16, attention=8)", "members": 2, "covariate_dropout": 0.2},
        {"aggregator": "abmil(hidden=16, attention=8, rows='task')"},
        {"level": "tile"},
        {"views": True},
        {"views": True, "level": "tile"},
        {"sharing": "mtan", "balancing": "pcgrad", "optimizer": "sam(rho=0.05)"},
        {"sharing": "cooperative", "dropout": 0.3},
    ],
    ids=str,
)
def test_every_way_of_training_is_told(
    cohort: Cohort, config: TrainConfig, tmp_path: Path, settings: dict[str, object]
) -> None:
    table, tasks = cohort[0], [*LESION, parse_task("size: regression")]
    config = replace(config, compare_single=settings == {"level": "tile"}, **settings)  # type: ignore[arg-type]
    folder = train(*cohort, tmp_path / "m", tasks=tasks, config=config).folder
    found = answers(folder, cohort, tmp_path / "p", tta="views" in settings)
    test = table["split"] == "test"
    assert (found["lesion"][test] == table["lesion"][test]).mean() > 0.75
    swapped = table.assign(age=["50" if age and float(age) > 60 else "70" if age else "" for age in table["age"]])
    turned = answers(folder, cohort, tmp_path / "t", frame=swapped, tta="views" in settings)
    given = (table["age"] != "") & test
    up = (turned["lesion:yes"] > found["lesion:yes"])[given]
    assert (up == (table["lesion"][given] == "no")).mean() > 0.9, "another age, another answer"


def test_bags_of_patches_are_told(patch_cohort: Cohort, quick: TrainConfig, tmp_path: Path) -> None:
    table, features = patch_cohort
    table = table.assign(age=(50 + table["patient"].str[1:].astype(int)).astype(str), ward=table["path"].str[0])
    high = parse_task("any_high: binary(column='label', classes=('no', 'yes'), map={'high': 'yes', '*': 'no'})")
    config = replace(quick, bag="patient", covariate=("age: number(fusion='film')",), ood=())
    folder = train(table, features, tmp_path / "m", tasks=[high], config=config).folder
    found = answers(folder, (table, features), tmp_path / "p", splits=("test",))
    assert list(found["patient"]) == [f"P{i}" for i in range(32, 40)]
    with pytest.raises(TableError, match="the rows of one case hold"):
        preview(table, features, tasks=[high], config=replace(config, covariate=("ward: category",)))
    with pytest.raises(UsageError, match="which holds the"):
        preview(table, features, tasks=[high], config=replace(config, covariate=("patient: category",)))
    rows = replace(config, bag="", covariate=("age", "ward: category"))
    single = train(table, features, tmp_path / "s", tasks=[high], config=rows).folder
    assert len(answers(single, (table, features), tmp_path / "ps")) == 240


def test_every_fold_scales_by_its_own_training_cases(cohort: Cohort, config: TrainConfig, tmp_path: Path) -> None:
    table, features = cohort
    config = replace(config, covariate=("age", "site: category"))
    store = BagStore.open(features)
    whole = build_cohort(table, store, LESION, config)
    means = []
    for first in (0, 20):
        splits = ["train" if first <= i < first + 20 else "val" if i < 50 else "test" for i in range(60)]
        found = train_cohort(whole.with_splits(splits), store, "slide", config, {}).model
        ages = table["age"][first : first + 20]
        means.append(found.covariates.parts[0].mean[0])
        assert means[-1] == pytest.approx(ages[ages != ""].astype(float).mean())
    assert means[0] != means[1]
    cross = CrossConfig(folds=3, seeds=1)
    result = cross_validate(table, features, tmp_path / "cv", tasks=LESION, config=config, cross=cross)
    assert result.metrics["lesion"]["balanced_accuracy"].value > 0.8
    table.to_csv(tmp_path / "t.csv", index=False)
    out = evaluate_predictions(
        result.predictions[0],
        tmp_path / "t.csv",
        tmp_path / "e",
        config=EvaluateConfig(bootstrap=20, split_column="out_of_fold"),
    )
    assert out is not None


def test_explanations_are_those_of_the_slide_as_it_is(cohort: Cohort, config: TrainConfig, tmp_path: Path) -> None:
    table, features = cohort
    config = replace(config, hidden=0, aggregator="abmil(hidden=16, attention=8)")
    folder = train(*cohort, tmp_path / "m", tasks=LESION, config=config).folder
    ask = ExplainConfig(device="cpu", faithfulness=3)
    with pytest.raises(UsageError, match="no table says them"):
        explain(folder, features, tmp_path / "x", config=ask)
    path = tmp_path / "t.csv"
    table.to_csv(path, index=False)
    found = explain(folder, features, tmp_path / "x", config=replace(ask, table=str(path), splits=("test",)))
    assert found.slides == 14
    assert not found.left_out
    assert set(found.tested_on) <= set(table.loc[table["split"] == "val", "slide_id"])
    columns = read_tile_scores(tmp_path / "x" / "tile_scores" / "S50.h5").columns
    loaded = load_model(folder)
    packed = build_cohort(table, BagStore.open(features), LESION, config).bags.gather(np.array([50]))
    logit = float(loaded.outputs(packed)[0]["lesion"][0])
    network = loaded.members[0]
    told = torch.from_numpy(loaded.covariates.encode(packed.covariates))
    rest = float(network.answer(network.bag_mean[None], told)["lesion"].detach())
    assert columns["lesion:yes:contribution"].sum() == pytest.approx(logit - rest, abs=1e-4)
    again = explain(folder, features, tmp_path / "y", config=replace(ask, covariates_missing=True))
    assert again.slides == 60


def test_flags(cohort: Cohort, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, features = tmp_path / "t.csv", str(cohort[1])
    cohort[0].to_csv(table, index=False)
    model, task = str(tmp_path / "m"), ["--task", "lesion: binary(classes=('no', 'yes'))"]
    quick = ["--members", "1", "--max-steps", "20", "--min-steps", "20", "--ood", "none", "--device", "cpu", "--quiet"]
    told = ["--covariate", "age", "--covariate", "site: category(fusion='film')", "--covariate-dropout", "0.1"]
    assert call(["train", str(table), features, model, *task, *told, *quick]) == 0
    assert load_model(model).architecture.covariates == (("age", "concat", 2), ("site", "film", 5))
    asked = [model, features, str(tmp_path / "p"), "--device", "cpu", "--quiet"]
    assert call(["predict", *asked]) == 2
    assert "--covariates-missing" in capsys.readouterr().err
    assert call(["predict", *asked, "--covariates-missing"]) == 0
    assert call(["predict", *asked, "--table", str(table)]) == 0
    assert call(["train", str(table), features, model, *task, "--covariate", "lesion: category", *quick]) == 2
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        f'[[step]]\nverb = "train"\ntable = "{table}"\nfeatures = "{features}"\nout = "{tmp_path}/r"\n'
        'covariate = ["age", "site: category"]\nmembers = 1\nmax_steps = 20\nmin_steps = 20\nood = []\n'
        '[[task]]\nname = "lesion"\nkind = "binary"\nclasses = ["no", "yes"]\n'
    )
    assert call(["run", str(recipe), "--quiet"]) == 0
    assert [name for name, _, _ in load_model(tmp_path / "r").architecture.covariates] == ["age", "site"]


def test_faces_without_a_table_refuse(cohort: Cohort, config: TrainConfig, model: Path) -> None:
    x, y = np.random.default_rng(0).normal(size=(20, 4)), np.arange(20) % 2
    with pytest.raises(UsageError, match="this estimator takes no covariates") as caught:
        LinearProbe(config=config).fit(x, y)
    assert "MultiTaskEstimator" in caught.value.hint
    with pytest.raises(UsageError, match="the networks are told age"):
        MultiTaskEstimator(["size: regression"], config=config).fit(x, {"size": y})
    packed = BagStore.open(cohort[1]).bags([[0]]).gather(np.array([0]))
    with pytest.raises(UsageError, match="is told age, site, Sex, and these cases come without"):
        load_model(model).answer(packed)
    with pytest.raises(UsageError, match="which the slides alone do not say"):
        load_judge(str(model), [], torch.device("cpu"))

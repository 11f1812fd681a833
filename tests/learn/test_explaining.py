"""The stage explain on a small cohort whose positive slides hold a few shifted tiles."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from histotl.cli.main import call
from histotl.core.errors import IdentityError, StoreError, TableError, UsageError
from histotl.learn.config import PredictConfig, TrainConfig
from histotl.learn.explain_config import ExplainConfig
from histotl.learn.explaining import explain
from histotl.learn.predict import predict
from histotl.learn.readout import RANDOM
from histotl.learn.task import Task
from histotl.learn.train import train
from histotl.store.tile_scores import add_tile_scores, read_tile_scores

Cohort = tuple[pd.DataFrame, Path]
LESION = (Task(name="lesion", kind="binary", classes=("no", "yes")),)
CPU = ExplainConfig(device="cpu")


def make(cohort: Cohort, folder: Path, config: TrainConfig, **changes: object) -> Path:
    table, features = cohort
    return train(table, features, folder, tasks=LESION, config=replace(config, **changes)).folder  # type: ignore[arg-type]


def test_columns_stand_beside_those_of_predict(slide_cohort: Cohort, quick: TrainConfig, tmp_path: Path) -> None:
    table, features = slide_cohort
    model = make(
        slide_cohort,
        tmp_path / "m",
        quick,
        aggregator="abmil(hidden=16, attention=8)",
        hidden=0,
        members=2,
        max_steps=200,
    )
    out = predict(model, features, tmp_path / "out", config=PredictConfig(device="cpu"))
    path = tmp_path / "table.csv"
    table.to_csv(path, index=False)
    found = explain(model, features, out, config=replace(CPU, table=str(path), splits=("test",)))
    assert found.slides == 8
    assert not found.left_out
    assert set(found.tested_on) <= set(table.loc[table["split"] == "val", "slide_id"])
    scores = read_tile_scores(out / "tile_scores" / "S29.h5")
    assert list(scores.columns) == [
        "attention",
        "ood_score",
        "lesion:attention",
        *(f"lesion:yes:{m}" for m in ("contribution", "grad_x_input", "integrated_gradients", "leave_one_out")),
    ]
    np.testing.assert_allclose(scores.columns["lesion:attention"], scores.columns["attention"], atol=1e-6)
    n = len(scores.coords_l0)
    shifted = np.arange(n) < 1 + n // 4
    assert (
        scores.columns["lesion:yes:contribution"][shifted].mean()
        > scores.columns["lesion:yes:contribution"][~shifted].mean()
    )
    assert set(read_tile_scores(out / "tile_scores" / "S01.h5").columns) == {"attention", "ood_score"}, (
        "not of the split"
    )
    written = json.loads((out / "explanation.json").read_text())
    assert written["tested_on"] == list(found.tested_on)
    table_ = found.faithfulness["lesion"]
    assert table_["leave_one_out"].score.value > table_[RANDOM].score.value
    assert list(written["faithfulness"]["lesion"]) == list(table_)


def test_patches_of_bags_are_scored_in_a_table(patch_cohort: Cohort, quick: TrainConfig, tmp_path: Path) -> None:
    """The one rare class makes a bag positive, so its patches are what speaks for it."""
    table, features = patch_cohort
    path = tmp_path / "table.csv"
    table.sample(frac=1.0, random_state=0).to_csv(path, index=False)
    task = Task(name="high", kind="binary", column="label", classes=("no", "yes"), map={"high": "yes", "*": "no"})
    config = replace(quick, bag="patient", aggregator="abmil(hidden=16, attention=8)", hidden=0, max_steps=300)
    model = train(table, features, tmp_path / "m", tasks=[task], config=config).folder
    with pytest.raises(TableError, match="no table says which"):
        explain(model, features, tmp_path / "out", config=CPU)
    asked = replace(CPU, table=str(path), splits=("test",), faithfulness=4)
    found = explain(model, features, tmp_path / "out", config=asked)
    assert (found.slides, found.unit, found.scores) == (8, "bags", tmp_path / "out" / "patch_scores.csv")
    assert set(found.tested_on) <= {f"P{i}" for i in range(24, 32)}, "bags of validation"
    assert len(found.tested_on) == 4
    scores = pd.read_csv(found.scores)
    test = table[table["split"] == "test"]
    assert set(zip(scores["patient"], scores["path"], strict=True)) == set(
        zip(test["patient"], test["path"], strict=True)
    )
    assert not (tmp_path / "out" / "tile_scores").exists()
    # Each row has the score of its own patch: those of the rare class speak for it.
    rare = scores["path"].str.startswith("c/")
    for method in ("contribution", "leave_one_out"):
        assert scores.loc[rare, f"high:yes:{method}"].min() > scores.loc[~rare, f"high:yes:{method}"].mean(), method
    alone = explain(model, features, tmp_path / "one", config=replace(asked, method=("contribution",), faithfulness=0))
    again = pd.read_csv(alone.scores)
    assert list(again.columns) == ["patient", "path", "high:yes:contribution"]
    pd.testing.assert_frame_equal(again, scores[again.columns])
    predict(model, features, tmp_path / "out", config=PredictConfig(device="cpu", table=str(path)))
    assert not found.scores.exists(), "scores of another run do not stay beside new answers"


def test_what_has_no_meaning_is_left_out_or_refused(slide_cohort: Cohort, quick: TrainConfig, tmp_path: Path) -> None:
    features = slide_cohort[1]
    model = make(slide_cohort, tmp_path / "m", quick)
    found = explain(model, features, tmp_path / "out", config=replace(CPU, faithfulness=0))
    assert set(found.left_out) == {"attention", "contribution"}
    assert found.faithfulness == {}
    with pytest.raises(UsageError, match="not linear"):
        explain(model, features, tmp_path / "out", config=replace(CPU, method=("contribution",)))
    with pytest.raises(UsageError, match="no task 'grade'"):
        explain(model, features, tmp_path / "out", config=replace(CPU, task=("grade",)))
    with pytest.raises(UsageError, match="without a table"):
        ExplainConfig(splits=("test",))
    tiles = make(slide_cohort, tmp_path / "t", quick, level="tile")
    with pytest.raises(UsageError, match="answers for single tiles"):
        explain(tiles, features, tmp_path / "out", config=CPU)


def test_another_models_predictions_are_not_touched(slide_cohort: Cohort, quick: TrainConfig, tmp_path: Path) -> None:
    features = slide_cohort[1]
    one, other = make(slide_cohort, tmp_path / "a", quick), make(slide_cohort, tmp_path / "b", quick, seed=5)
    out = predict(one, features, tmp_path / "out", config=PredictConfig(device="cpu"))
    with pytest.raises(IdentityError, match="another model"):
        explain(other, features, out, config=CPU)


def test_columns_of_other_tiles_are_refused(tmp_path: Path) -> None:
    path, coords = tmp_path / "S.h5", np.arange(6).reshape(3, 2)
    add_tile_scores(path, coords, {"a": np.ones(3)}, {"one": 1})
    add_tile_scores(path, coords, {"b": np.zeros(3)}, {"two": 2})
    found = read_tile_scores(path)
    assert list(found.columns) == ["a", "b"]
    assert found.attributes == {"one": 1, "two": 2}
    with pytest.raises(StoreError, match="scores of 3 tiles"):
        add_tile_scores(path, coords[:2], {"c": np.zeros(2)}, {})


def test_the_verb(slide_cohort: Cohort, quick: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = make(slide_cohort, tmp_path / "m", quick)
    argv = ["explain", str(model), str(slide_cohort[1]), str(tmp_path / "out"), "--method", "leave_one_out", "--quiet"]
    assert call(argv) == 0
    text = capsys.readouterr().out
    assert "leave_one_out" in text
    assert "an order by chance has 0" in text
    assert call([*argv, "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["lesion"]) == {"leave_one_out", "random"}

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from histotl.core.errors import CorruptFileError, IdentityError, StoreError, TableError, UsageError
from histotl.core.progress import Step
from histotl.learn.bags import BagStore
from histotl.learn.columns import columns_of
from histotl.learn.config import PredictConfig, TrainConfig
from histotl.learn.model import load_model
from histotl.learn.predict import predict
from histotl.learn.predictions import read_predictions
from histotl.learn.task import Task, parse_task
from histotl.learn.train import train
from histotl.store.tile_scores import read_tile_scores

Cohort = tuple[pd.DataFrame, Path]
PATCH_TASKS = (
    parse_task("label: multiclass"),
    parse_task("dysplasia: binary(column='label', classes=('no', 'yes'), map={'normal': 'no', '*': 'yes'})"),
    parse_task("grade: ordinal(column='label', classes=('normal', 'low', 'high'))"),
    parse_task("size: regression"),
)
LESION = (Task(name="lesion", kind="binary", classes=("no", "yes")),)
CPU = PredictConfig(device="cpu")


@pytest.fixture
def patch_model(patch_cohort: Cohort, quick: TrainConfig, tmp_path: Path) -> Path:
    table, features = patch_cohort
    return train(table, features, tmp_path / "model", tasks=PATCH_TASKS, config=replace(quick, members=2)).folder


def test_patches_end_to_end(patch_cohort: Cohort, patch_model: Path, tmp_path: Path) -> None:
    table, features = patch_cohort
    told: list[Step] = []
    out = predict(patch_model, features, tmp_path / "pred", config=replace(CPU, batch_tiles=50), report=told.append)
    found = read_predictions(out)
    frame = found.frame
    assert found.id_column == "path"
    assert list(frame["path"]) == list(table["path"])
    assert [task.name for task in found.tasks] == ["label", "dysplasia", "grade", "size"]
    assert found.tasks[0].classes == ("high", "low", "normal")
    for task in found.tasks[:3]:
        p = frame[[f"{task.name}:{name}" for name in task.classes]].to_numpy()
        np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-6)
        assert set(frame[task.name]) <= set(task.classes)
        before = frame[[f"{task.name}:{name}:uncalibrated" for name in task.classes]].to_numpy()
        np.testing.assert_allclose(before.sum(axis=1), 1, atol=1e-6)
        np.testing.assert_array_equal(before.argmax(axis=1)[:5], p.argmax(axis=1)[:5])
    assert {"ood_score", "ood_p", "ood_flag", "ood_mahalanobis", "ood_knn", "failure_score", "n_tiles"} <= set(frame)
    assert frame["ood_flag"].dtype == bool
    test = table["split"].to_numpy() == "test"
    assert (frame["model_split"].to_numpy() == table["split"].to_numpy()).all()
    assert (frame["label"][test].to_numpy() == table["label"][test].to_numpy()).mean() > 0.8
    assert np.corrcoef(frame["size"][test], table["size"][test])[0, 1] > 0.7
    assert found.meta["level"] == "tile"
    assert [step.done for step in told] == [50, 100, 150, 200, 240]
    assert found.tile_scores("x") is None


def test_model_folder_says_what_it_is(patch_model: Path) -> None:
    meta = json.loads((patch_model / "model.json").read_text())
    training = json.loads((patch_model / "training.json").read_text())
    counts = training["label_counts"]["label"]["train"]
    assert sum(counts.values()) == 144
    assert counts == meta["label_counts"]["label"]["train"]
    assert meta["priors"]["label"] == pytest.approx([counts[name] / 144 for name in ("high", "low", "normal")])
    assert set(training) >= {"history", "chosen", "validation", "notes", "cases"}
    assert training["cases"] == {"train": 144, "val": 48, "test": 48}
    assert training["validation"]["label"]["balanced_accuracy"] > 0.7
    splits = pd.read_csv(patch_model / "splits.csv")
    assert list(splits.columns) == ["path", "patient", "split"]
    assert splits["split"].value_counts()["train"] == 144


def test_training_and_prediction_repeat_bit_for_bit(
    patch_cohort: Cohort, patch_model: Path, quick: TrainConfig, tmp_path: Path
) -> None:
    table, features = patch_cohort
    path = tmp_path / "table.csv"
    table.to_csv(path, index=False)
    again = train(path, features, tmp_path / "again", tasks=PATCH_TASKS, config=replace(quick, members=2)).folder
    assert (again / "model.safetensors").read_bytes() == (patch_model / "model.safetensors").read_bytes()
    texts = [
        (predict(model, features, tmp_path / f"p{i}", config=CPU) / "predictions.csv").read_text()
        for i, model in enumerate((patch_model, again, patch_model))
    ]
    assert texts[0] == texts[1] == texts[2]


def test_a_loaded_model_answers_bit_for_bit(patch_cohort: Cohort, patch_model: Path) -> None:
    from histotl.learn.model import save_model

    model, store = load_model(patch_model), BagStore.open(patch_cohort[1])
    packed = store.bags([[i] for i in range(20)]).gather(np.arange(20))
    save_model(model, patch_model.parent / "copy")
    copy = load_model(patch_model.parent / "copy")
    for name, values in model.answer(packed).tasks.items():
        np.testing.assert_array_equal(values, copy.answer(packed).tasks[name])
    assert model.gate is not None
    assert copy.gate is not None
    np.testing.assert_array_equal(model.gate.score(packed.x).score, copy.gate.score(packed.x).score)
    assert (copy.tasks, copy.calibrations, copy.facts) == (model.tasks, model.calibrations, model.facts)
    assert copy.decisions == model.decisions


def test_other_features_are_refused_with_the_differences(
    patch_cohort: Cohort, patch_model: Path, tmp_path: Path, write_patches: Callable[..., Path]
) -> None:
    x = np.zeros((3, 16))
    for change, message in (({"stain": "macenko"}, "stain: 'none' != 'macenko'"), ({"name": "other"}, "backbone.name")):
        other = write_patches(tmp_path / "other" / f"{message[:5]}.h5", ["a", "b", "c"], x, **change)
        with pytest.raises(IdentityError, match=message):
            predict(patch_model, other, tmp_path / "pred")
    with pytest.raises(IdentityError, match="16 wide, these are 4"):
        replace(load_model(patch_model), identity=None).check(None, 4)
    with pytest.raises(IdentityError, match="say what they were made by"):
        load_model(patch_model).check(None, 16)
    assert not (tmp_path / "pred").exists()


def test_damaged_model_folders_are_refused(patch_model: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no model folder"):
        load_model(tmp_path)
    weights = patch_model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(CorruptFileError, match="is not the file"):
        load_model(patch_model)


@pytest.mark.parametrize("aggregator", ["mean", "abmil(hidden=16, attention=8)"])
def test_slides_end_to_end(slide_cohort: Cohort, quick: TrainConfig, tmp_path: Path, aggregator: str) -> None:
    table, features = slide_cohort
    config = replace(quick, aggregator=aggregator, min_steps=150, max_steps=150)
    result = train(table, features.parent.parent, tmp_path / "model", tasks=LESION, config=config)
    assert result.level == "slide"
    out = predict(result.folder, features, tmp_path / "pred", config=replace(CPU, batch_tiles=30))
    found = read_predictions(out)
    frame = found.frame.set_index("slide_id")
    test = table[table["split"] == "test"].set_index("slide_id")
    assert (frame.loc[test.index, "lesion"] == test["lesion"]).all()
    assert {"ood_tiles", "ood_knn"} <= set(frame.columns)
    path = found.tile_scores("S03")
    assert path is not None
    scores = read_tile_scores(path)
    assert set(scores.columns) == ({"ood_score"} if aggregator == "mean" else {"attention", "ood_score"})
    assert len(scores.coords_l0) == frame.loc["S03", "n_tiles"]
    if aggregator != "mean":
        assert scores.columns["attention"].sum() == pytest.approx(1, abs=1e-5)


def test_tile_level_on_slides(slide_cohort: Cohort, quick: TrainConfig, tmp_path: Path) -> None:
    table, features = slide_cohort
    result = train(table, features, tmp_path / "model", tasks=LESION, config=replace(quick, level="tile"))
    found = read_predictions(predict(result.folder, features, tmp_path / "pred", config=CPU))
    path = found.tile_scores("S01")
    assert path is not None
    tiles = read_tile_scores(path).columns["lesion:yes"]
    row = found.frame.set_index("slide_id").loc["S01"]
    assert row["lesion:yes"] == pytest.approx(tiles.mean(), abs=1e-5)
    assert len(found.frame) == 36


def test_bags_of_patches(patch_cohort: Cohort, quick: TrainConfig, tmp_path: Path) -> None:
    table, features = patch_cohort
    csv = tmp_path / "t.csv"
    table.to_csv(csv, index=False)
    config = replace(quick, bag="patient")
    with pytest.raises(TableError, match="no row in train has the class normal"):
        train(csv, features, tmp_path / "model", tasks=PATCH_TASKS[2:], config=config)
    high = parse_task("any_high: binary(column='label', classes=('no', 'yes'), map={'high': 'yes', '*': 'no'})")
    result = train(csv, features, tmp_path / "model", tasks=[high, PATCH_TASKS[3]], config=config)
    assert (result.level, result.cases["train"]) == ("slide", 24)
    with pytest.raises(TableError, match="no table says which"):
        predict(result.folder, features, tmp_path / "pred")
    chosen = replace(CPU, table=str(csv), splits=("test",))
    found = read_predictions(predict(result.folder, features, tmp_path / "pred", config=chosen))
    assert found.id_column == "patient"
    assert list(found.frame["patient"]) == [f"P{i}" for i in range(32, 40)]
    assert set(found.frame["n_tiles"]) == {6}


def test_gate_flags_what_is_far_away_and_can_be_left_out(
    patch_cohort: Cohort, quick: TrainConfig, patch_model: Path, tmp_path: Path, write_patches: Callable[..., Path]
) -> None:
    table, features = patch_cohort
    strange = np.random.default_rng(0).normal(size=(20, 16)) * 6
    far = write_patches(tmp_path / "far" / "far.h5", [f"far{i}" for i in range(20)], strange)
    frame = read_predictions(predict(patch_model, far, tmp_path / "pred", config=CPU)).frame
    assert frame["ood_flag"].mean() > 0.9
    assert frame["model_split"].isna().all()
    without = train(table, features, tmp_path / "plain", tasks=PATCH_TASKS[:1], config=replace(quick, ood=())).folder
    assert load_model(without).gate is None
    columns = read_predictions(predict(without, features, tmp_path / "pred2", config=CPU)).frame.columns
    assert not any(name.startswith("ood") for name in columns)


def test_wrong_levels_and_tables(
    patch_cohort: Cohort, slide_cohort: Cohort, quick: TrainConfig, patch_model: Path, tmp_path: Path
) -> None:
    (patches, patch_file), (slides, slide_folder) = patch_cohort, slide_cohort
    with pytest.raises(UsageError, match="without bags"):
        train(patches, patch_file, tmp_path / "m", tasks=PATCH_TASKS, config=replace(quick, level="slide"))
    with pytest.raises(UsageError, match="no task"):
        train(slides, slide_folder, tmp_path / "m", tasks=())
    with pytest.raises(UsageError, match="two tasks"):
        train(slides, slide_folder, tmp_path / "m", tasks=LESION * 2)
    assert not (tmp_path / "m").exists()
    csv = tmp_path / "none.csv"
    csv.write_text("path,split\nnowhere.jpg,test\n")
    with pytest.raises(TableError, match="no row of"):
        predict(patch_model, patch_file, tmp_path / "p", config=replace(CPU, table=str(csv)))
    with pytest.raises(UsageError, match="without a table"):
        PredictConfig(splits=("test",))


def test_predictions_folder_is_checked(patch_cohort: Cohort, patch_model: Path, tmp_path: Path) -> None:
    with pytest.raises(TableError, match="no predictions folder"):
        read_predictions(tmp_path)
    out = predict(patch_model, patch_cohort[1], tmp_path / "pred", config=CPU)
    table = out / "predictions.csv"
    pd.read_csv(table).drop(columns="grade:expected").to_csv(table, index=False)
    with pytest.raises(TableError, match="lacks the column 'grade:expected'"):
        read_predictions(out)
    assert columns_of(PATCH_TASKS[3]) == ["size"]


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["tasks"][0].update(classes=["low", "high", "normal"]),
        lambda m: m["calibrations"]["label"].update(temperature=9),
        lambda m: m.update(members=0),
        lambda m: m.pop("digest"),
    ],
)
def test_an_edited_description_is_refused(patch_model: Path, change: Callable[[dict[str, object]], object]) -> None:
    path = patch_model / "model.json"
    meta = json.loads(path.read_text())
    change(meta)
    path.write_text(json.dumps(meta))
    with pytest.raises(CorruptFileError, match="was changed after training"):
        load_model(patch_model)
    path.write_text("[1]")
    with pytest.raises(StoreError, match="describes no model"):
        load_model(patch_model)


def test_nothing_of_an_earlier_run_stays(slide_cohort: Cohort, quick: TrainConfig, tmp_path: Path) -> None:
    table, features = slide_cohort
    out = tmp_path / "pred"
    abmil = train(table, features, tmp_path / "a", tasks=LESION, config=replace(quick, aggregator="abmil(hidden=8)"))
    predict(abmil.folder, features, out, config=CPU)
    assert read_predictions(out).tile_scores("S03") is not None
    plain = train(table, features, tmp_path / "b", tasks=LESION, config=replace(quick, ood=()))
    predict(plain.folder, features, out, config=CPU)
    assert read_predictions(out).tile_scores("S03") is None


def test_own_names_of_columns_serve_prediction_too(slide_cohort: Cohort, quick: TrainConfig, tmp_path: Path) -> None:
    table, features = slide_cohort
    table = table.rename(columns={"slide_id": "wsi", "split": "fold"}).replace({"fold": {"test": "TEST"}})
    table.loc[len(table)] = ["S99", "P99", "test", ""]
    table.to_csv(tmp_path / "t.csv", index=False)
    config = replace(quick, id_column="wsi", split_column="fold")
    model = train(tmp_path / "t.csv", features, tmp_path / "m", tasks=LESION, config=config).folder
    told: list[Step] = []
    chosen = replace(CPU, table=str(tmp_path / "t.csv"), splits=("test",))
    found = read_predictions(predict(model, features, tmp_path / "p", config=chosen, report=told.append))
    assert list(found.frame["slide_id"]) == [f"S{i}" for i in range(28, 36)]
    assert found.meta["table_id_column"] == "wsi"
    assert "S99" in told[0].message
    with pytest.raises(TableError, match="has fold holdout") as caught:
        predict(model, features, tmp_path / "p", config=replace(chosen, splits=("holdout",)))
    assert "test, train, val" in caught.value.hint


def test_features_of_another_kind_are_named_as_such(patch_model: Path, slide_cohort: Cohort, tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match="trained on patches, these are slides"):
        predict(patch_model, slide_cohort[1], tmp_path / "p")


def test_spoilt_predictions_are_refused(patch_cohort: Cohort, patch_model: Path, tmp_path: Path) -> None:
    out = predict(patch_model, patch_cohort[1], tmp_path / "pred", config=CPU)
    table = out / "predictions.csv"
    whole = pd.read_csv(table)
    for name in ("label:low", "label:low:uncalibrated", "ood_score", "failure_score", "size", "grade:expected"):
        whole.assign(**{name: "x"}).to_csv(table, index=False)
        with pytest.raises(TableError, match=f"'{name}' holds 'x'"):
            read_predictions(out)
    whole.assign(path="").to_csv(table, index=False)
    with pytest.raises(TableError, match="a row has no path"):
        read_predictions(out)
    # A table program writes booleans its own way.
    whole.assign(ood_flag="TRUE").to_csv(table, index=False)
    assert read_predictions(out).frame["ood_flag"].all()


def test_sets_intervals_and_thresholds_follow_the_model(
    patch_cohort: Cohort, quick: TrainConfig, tmp_path: Path
) -> None:
    table, features = patch_cohort
    config = replace(quick, calibration="vector", threshold="sensitivity=1.0", coverage=0.8, sets="raps")
    told: list[Step] = []
    result = train(table, features, tmp_path / "m", tasks=PATCH_TASKS, config=config, report=told.append)
    model = load_model(result.folder)
    assert set(model.calibrations) == {"label", "dysplasia", "grade"}
    assert any("vector needs 60: temperature instead" in step.message for step in told)
    training = json.loads((result.folder / "training.json").read_text())
    threshold = training["chosen"]["decisions"]["dysplasia"]["threshold"]
    assert threshold["sensitivity"] == 1
    # Eight validation patients allow a bound for 80 % coverage, not for the usual 90 %.
    assert model.decisions["label"].conformal is not None
    assert model.decisions["label"].conformal.patients == 8
    assert model.decisions["label"].conformal.bound is not None
    out = predict(result.folder, features, tmp_path / "p", config=CPU)
    found = read_predictions(out)
    frame = found.frame
    said = frame["dysplasia:yes"] >= threshold["value"]
    assert (np.where(said, "yes", "no") == frame["dysplasia"]).all()
    assert found.meta["decisions"]["dysplasia"]["threshold"] == threshold  # type: ignore[index]
    test = table["split"].to_numpy() == "test"
    for name in ("label", "dysplasia", "grade"):
        pairs = zip(frame[name], frame[f"{name}:set"], strict=True)
        assert all(answer in members.split(";") for answer, members in pairs)
    held = [truth in members.split(";") for truth, members in zip(table["label"], frame["label:set"], strict=True)]
    assert np.array(held)[test].mean() > 0.7
    assert ((frame["size:low"] < frame["size"]) & (frame["size"] < frame["size:high"])).all()
    alone = PredictConfig(device="cpu", batch_tiles=7)
    again = read_predictions(predict(result.folder, features, tmp_path / "q", config=alone)).frame
    assert (again["label:set"] == frame["label:set"]).all(), "a set depends on the batch"
    without = train(table, features, tmp_path / "w", tasks=PATCH_TASKS, config=replace(quick, coverage=0)).folder
    columns = read_predictions(predict(without, features, tmp_path / "r", config=CPU)).frame.columns
    assert not any(name.endswith(":set") or name in ("size:low", "size:high") for name in columns)

"""Patients with several slides: one answer a patient, and scores in the file of every slide."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from histotl.core.errors import TableError
from histotl.evaluate.config import EvaluateConfig
from histotl.evaluate.stage import evaluate_predictions
from histotl.learn.bags import Packed
from histotl.learn.config import PredictConfig, TrainConfig
from histotl.learn.cross_config import CrossConfig
from histotl.learn.cross_validate import cross_validate
from histotl.learn.explain_config import ExplainConfig
from histotl.learn.explaining import explain
from histotl.learn.model import load_model
from histotl.learn.predict import predict
from histotl.learn.predictions import read_predictions
from histotl.learn.task import Task
from histotl.learn.train import train
from histotl.store.embeddings import open_embeddings
from histotl.store.tile_scores import read_tile_scores

LESION = (Task(name="lesion", kind="binary", classes=("no", "yes")),)
GRAPH = "graph(hidden=16, attention=8, hops=1)"


@pytest.fixture
def cohort(tmp_path: Path, write_slide: Callable[..., Path]) -> tuple[pd.DataFrame, Path]:
    """36 patients with one to three slides; of a positive patient one slide shows it, the label is of the patient."""
    rng, folder, rows = np.random.default_rng(5), tmp_path / "20x_224px_0px_overlap" / "features_scattering", []
    for i in range(36):
        split = "train" if i < 20 else "val" if i < 28 else "test"
        for k in range(1 + i % 3):
            x = rng.normal(size=(int(rng.integers(4, 12)), 16))
            x[:3] += 4.0 * (i % 2) * (k == 0)
            name = f"S{2 * i + 100 * k:03d}"  # slides of a patient are no neighbours in the folder
            write_slide(folder, name, x)
            rows.append({"slide_id": name, "patient": f"P{i:02d}", "split": split, "lesion": ["no", "yes"][i % 2]})
    return pd.DataFrame(rows), folder


@pytest.mark.parametrize("aggregator", ["abmil(hidden=16, attention=8)", GRAPH])
def test_patients_with_several_slides(
    cohort: tuple[pd.DataFrame, Path], quick: TrainConfig, tmp_path: Path, aggregator: str
) -> None:
    table, features = cohort
    path = tmp_path / "table.csv"
    table.to_csv(path, index=False)
    config = replace(quick, bag="patient", aggregator=aggregator, hidden=0, max_steps=150, min_steps=150)
    model = train(path, features, tmp_path / "m", tasks=LESION, config=config)
    assert dict(model.cases) == {"train": 20, "val": 8, "test": 8}

    out = predict(model.folder, features, tmp_path / "out", config=PredictConfig(device="cpu", table=str(path)))
    frame = read_predictions(out).frame
    assert sorted(frame["patient"]) == [f"P{i:02d}" for i in range(36)]
    sizes = {name: open_embeddings(features / f"{name}.h5").n for name in table["slide_id"]}
    tiles = table.assign(n=table["slide_id"].map(sizes)).groupby("patient")["n"].sum()
    assert dict(zip(frame["patient"], frame["n_tiles"], strict=True)) == tiles.to_dict()

    # The shares of a patient's tiles sum to 1 over the slides, whose files have their own corners.
    for patient, slides in table.groupby("patient")["slide_id"]:
        scores = [read_tile_scores(out / "tile_scores" / f"{name}.h5") for name in slides]
        np.testing.assert_allclose(sum(s.columns["attention"].sum() for s in scores), 1, rtol=1e-5, err_msg=patient)
        for name, found in zip(slides, scores, strict=True):
            np.testing.assert_array_equal(found.coords_l0, open_embeddings(features / f"{name}.h5").coords_l0)

    evaluate_predictions(out, path, tmp_path / "report", config=EvaluateConfig(bootstrap=50))
    measured = json.loads((tmp_path / "report" / "metrics.json").read_text(encoding="utf-8"))
    assert "auroc" in json.dumps(measured)
    written = read_predictions(out).members
    assert {name: set(slides) for name, slides in written.items()} == {
        name: set(slides) for name, slides in table.groupby("patient")["slide_id"]
    }

    asked = ExplainConfig(
        device="cpu", table=str(path), splits=("test",), method=("leave_one_out", "attention"), faithfulness=4
    )
    explained = explain(model.folder, features, out, config=asked)
    assert (explained.slides, explained.unit) == (8, "bags")
    assert set(explained.tested_on) <= {f"P{i:02d}" for i in range(20, 28)}
    positive = table[(table["split"] == "test") & (table["lesion"] == "yes")].groupby("patient")["slide_id"].first()
    shown = [read_tile_scores(out / "tile_scores" / f"{name}.h5").columns for name in positive]
    speaks = [columns["lesion:yes:leave_one_out"] for columns in shown]
    assert np.mean([s[:3].mean() for s in speaks]) > np.mean([s[3:].mean() for s in speaks]), "the shifted tiles"
    for columns in shown:
        np.testing.assert_allclose(columns["lesion:attention"], columns["attention"], atol=1e-5)
    train_only = table.loc[table["split"] == "train", "slide_id"].iloc[0]
    assert "lesion:yes:leave_one_out" not in read_tile_scores(out / "tile_scores" / f"{train_only}.h5").columns


def test_the_place_of_another_slide_does_not_change_an_answer(
    cohort: tuple[pd.DataFrame, Path], quick: TrainConfig, tmp_path: Path
) -> None:
    """Tables name a patient's slides in any order."""
    table, features = cohort
    config = replace(quick, bag="patient", aggregator=GRAPH, hidden=0)
    model = train(table, features, tmp_path / "m", tasks=LESION, config=config).folder
    answers = []
    for name, frame in (("a", table), ("b", table.iloc[::-1])):
        path = tmp_path / f"{name}.csv"
        frame.to_csv(path, index=False)
        out = predict(model, features, tmp_path / name, config=PredictConfig(device="cpu", table=str(path)))
        answers.append(read_predictions(out).frame.set_index("patient")["lesion:yes"].sort_index())
    pd.testing.assert_series_equal(*answers, rtol=1e-5)
    # The same as on one slide with so much glass between the parts that none has neighbours in another.
    loaded = load_model(model)
    for patient, slides in table.groupby("patient")["slide_id"]:
        files = [open_embeddings(features / f"{name}.h5") for name in slides]
        corners = [np.asarray(file.coords_l0) + 448 * 1000 * k for k, file in enumerate(files)]
        x = torch.from_numpy(np.concatenate([file.read() for file in files])).float()
        packed = Packed(x=x, offsets=torch.tensor([0, len(x)]), coords=torch.from_numpy(np.concatenate(corners)))
        wanted = loaded.answer(packed).tasks["lesion"][0, 1]
        assert answers[0][patient] == pytest.approx(wanted, rel=1e-4), patient


def test_a_slide_of_two_patients_is_refused(
    cohort: tuple[pd.DataFrame, Path], quick: TrainConfig, tmp_path: Path
) -> None:
    table, features = cohort
    config = replace(quick, bag="patient", aggregator="mean")
    model = train(table, features, tmp_path / "m", tasks=LESION, config=config).folder
    path = tmp_path / "twice.csv"
    pd.concat([table, table.tail(1).assign(patient="P99")]).to_csv(path, index=False)
    with pytest.raises(TableError, match="is in two bags: 'P35' and 'P99'"):
        predict(model, features, tmp_path / "out", config=PredictConfig(device="cpu", table=str(path)))


def test_patients_are_cross_validated(cohort: tuple[pd.DataFrame, Path], quick: TrainConfig, tmp_path: Path) -> None:
    table, features = cohort
    config = replace(quick, bag="patient", aggregator="abmil(hidden=16, attention=8)", hidden=0)
    done = cross_validate(
        table.drop(columns="split"),
        features,
        tmp_path / "cv",
        tasks=LESION,
        config=config,
        cross=CrossConfig(folds=3, seeds=1),
    )
    frame = read_predictions(done.predictions[0]).frame
    assert sorted(frame["patient"]) == sorted(table["patient"].unique())

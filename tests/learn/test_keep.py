"""Tiles that do not satisfy a condition on their quality are not learnt from and get no say in an answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from histotl.core.errors import StoreError, TableError, UsageError
from histotl.core.progress import Step
from histotl.learn.bags import BagStore
from histotl.learn.config import PredictConfig, TrainConfig
from histotl.learn.predict import predict
from histotl.learn.predictions import read_predictions
from histotl.learn.task import Task
from histotl.learn.train import train

Write = Callable[..., Path]
TASKS = [Task(name="lesion", kind="binary", classes=("no", "yes"))]


@pytest.fixture
def folder(tmp_path: Path, write_slide: Write) -> Path:
    """Three slides: pen on some tiles, on none, and on all but one that could not be measured."""
    rng = np.random.default_rng(0)
    where = tmp_path / "features_scattering"
    for name, pen in (("A", [0.0, 0.5, 0.0, 0.9]), ("B", [0.0, 0.0]), ("C", [0.7, np.nan])):
        write_slide(where, name, rng.normal(size=(len(pen), 16)), pen=np.array(pen))
    return where


def test_rows_that_fail_are_left_out_and_emptied_slides_are_named(folder: Path) -> None:
    whole, kept = BagStore.open(folder), BagStore.open(folder, keep="pen < 0.1")
    assert (kept.ids, kept.emptied) == (("A", "B"), ("C",)), "NaN satisfies no comparison"
    packed = kept.bags([[0], [1]]).gather(np.array([0, 1]))
    everything = whole.bags([[0, 1, 2]]).gather(np.array([0]))
    np.testing.assert_array_equal(packed.x, everything.x[[0, 2, 4, 5]])
    assert packed.offsets.tolist() == [0, 2, 4]
    assert BagStore.open(folder, keep="pen < 0.1 or pen > 0.6").ids == ("A", "B", "C")


def test_conditions_that_cannot_be_met_are_refused(folder: Path, tmp_path: Path, write_slide: Write) -> None:
    with pytest.raises(UsageError, match="'pin' was not measured"):
        BagStore.open(folder, keep="pin < 0.1")
    with pytest.raises(StoreError, match="no row of 8 satisfies 'pen > 2'"):
        BagStore.open(folder, keep="pen > 2")
    bare = write_slide(tmp_path / "bare", "S", np.zeros((2, 16)))
    with pytest.raises(StoreError, match="has no quality figures"):
        BagStore.open(bare, keep="pen < 0.1")
    for config in (TrainConfig, PredictConfig):
        with pytest.raises(UsageError, match="cannot be read"):
            config(keep="pen <")


def test_the_model_remembers_what_it_was_trained_on(tmp_path: Path, write_slide: Write, quick: TrainConfig) -> None:
    rng = np.random.default_rng(1)
    features, rows = tmp_path / "features_scattering", []
    for i in range(24):
        # Clean tiles tell the class; inked ones say the opposite, louder.
        positive, inked = i % 2, np.arange(8) >= 4
        x = rng.normal(size=(8, 16)) + np.where(inked, -6.0, 3.0)[:, None] * (1 if positive else -1)
        write_slide(features, f"S{i:02d}", x, pen=inked * (1.0 if i else 0.8))
        split = "train" if i < 14 else "val" if i < 20 else "test"
        lesion = "yes" if positive else "no"
        rows.append({"slide_id": f"S{i:02d}", "patient": f"P{i}", "split": split, "lesion": lesion})
    write_slide(features, "inked", rng.normal(size=(3, 16)), pen=np.ones(3))
    config = replace(quick, keep="pen < 0.1", min_steps=60, max_steps=60)
    rows.append({"slide_id": "inked", "patient": "P99", "split": "train", "lesion": "no"})
    with pytest.raises(TableError, match=r"1 of the slides have no row that satisfies 'pen < 0\.1': inked"):
        train(pd.DataFrame(rows), features, tmp_path / "model", tasks=TASKS, config=config)
    config = replace(config, allow_missing_features=True)
    model = train(pd.DataFrame(rows), features, tmp_path / "model", tasks=TASKS, config=config).folder
    told: list[Step] = []
    out = predict(model, features, tmp_path / "out", config=PredictConfig(device="cpu"), report=told.append)
    frame = read_predictions(out).frame.set_index("slide_id")
    assert set(frame["n_tiles"]) == {4}
    assert "inked" not in frame.index
    sentence = "1 of the slides have no row that satisfies 'pen < 0.1': inked; they get no answer"
    assert any(sentence in step.message for step in told)
    meta = json.loads((out / "predictions.json").read_text())
    assert (meta["keep"], meta["no_row_kept"]) == ("pen < 0.1", ["inked"])
    wanted = pd.DataFrame(rows).set_index("slide_id")["lesion"].drop("inked")
    assert (frame.loc[wanted.index, "lesion"] == wanted).mean() > 0.9

"""Sharing, balancing and optimisers from the table to predictions."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from histotl.core.errors import UnknownNameError, UsageError
from histotl.learn.config import PredictConfig, TrainConfig, check_plugins
from histotl.learn.predict import predict
from histotl.learn.predictions import read_predictions
from histotl.learn.task import parse_task
from histotl.learn.train import train

Cohort = tuple[pd.DataFrame, Path]
TASKS = (parse_task("label: multiclass"), parse_task("size: regression"))
CPU = PredictConfig(device="cpu")


@pytest.mark.parametrize(
    "settings",
    [
        {"sharing": "none"},
        {"sharing": "soft(norm='l2')", "balancing": "uncertainty"},
        {"sharing": "mtan", "balancing": "upgrad", "optimizer": "sam(rho=0.05)"},
        {"sharing": "mmoe(experts=3)", "balancing": "nash", "optimizer": "fmtl"},
        {"sharing": "cross_attention", "balancing": "cagrad(c=0.4)", "gradients": "parameters"},
        {"sharing": "cooperative"},
        {"sharing": "cooperative(exchange='concat')", "optimizer": "cooperative_flat(perturb='noise', rho_w=0.02)"},
    ],
    ids=str,
)
def test_patches_are_learnt_saved_and_predicted(
    patch_cohort: Cohort, quick: TrainConfig, tmp_path: Path, settings: dict[str, str]
) -> None:
    table, features = patch_cohort
    config = replace(quick, min_steps=100, max_steps=100, **settings)  # type: ignore[arg-type]
    model = train(table, features, tmp_path / "model", tasks=TASKS, config=config).folder
    frame = read_predictions(predict(model, features, tmp_path / "pred", config=CPU)).frame
    test = table["split"].to_numpy() == "test"
    assert (frame["label"][test].to_numpy() == table["label"][test].to_numpy()).mean() > 0.8
    assert np.corrcoef(frame["size"][test], table["size"][test])[0, 1] > 0.7


@pytest.mark.parametrize(
    "settings",
    [
        {"balancing": "mgda"},
        {"sharing": "none", "balancing": "pcgrad"},
        {"sharing": "mtan", "balancing": "aligned", "gradients": "parameters"},
        {"sharing": "cooperative"},
        {"balancing": "famo", "optimizer": "sam"},
    ],
    ids=str,
)
def test_slides_are_learnt_through_an_aggregator(
    slide_cohort: Cohort, quick: TrainConfig, tmp_path: Path, settings: dict[str, str]
) -> None:
    table, features = slide_cohort
    table = table.assign(size=np.where(table["lesion"] == "yes", 2.0, 0.0) + np.arange(len(table)) % 3)
    tasks = (parse_task("lesion: binary(classes=('no', 'yes'))"), parse_task("size: regression"))
    config = replace(quick, aggregator="abmil(hidden=16, attention=8)", learning_rates=(0.01,), **settings)  # type: ignore[arg-type]
    model = train(table, features.parent, tmp_path / "model", tasks=tasks, config=config).folder
    frame = read_predictions(predict(model, features.parent, tmp_path / "pred", config=CPU)).frame
    truth = table.set_index("slide_id")["lesion"]
    test = table["split"].to_numpy() == "test"
    found = frame.set_index("slide_id")["lesion"][truth.index[test]]
    assert (found == truth[test]).mean() >= 0.75


def test_settings_that_do_not_go_together_are_refused_before_the_first_step(
    patch_cohort: Cohort, quick: TrainConfig, tmp_path: Path
) -> None:
    table, features = patch_cohort
    for settings, match in (
        ({"sharing": "none", "balancing": "mgda"}, "nothing for a rule that weighs gradients"),
        ({"sharing": "cooperative", "balancing": "rlw"}, "nothing to balance"),
        ({"optimizer": "cooperative_flat"}, "read each other"),
        ({"balancing": "static(weights=(1.0,))"}, "1 static weights for 2 tasks"),
    ):
        with pytest.raises(UsageError, match=match) as caught:
            train(table, features, tmp_path / "model", tasks=TASKS, config=replace(quick, **settings))  # type: ignore[arg-type]
        assert caught.value.hint


def test_names_are_checked_before_anything_is_read() -> None:
    for wrong in ({"optimizer": "smm"}, {"sharing": "hrad"}, {"balancing": "uppgrad"}):
        with pytest.raises(UnknownNameError):
            check_plugins(TrainConfig(**wrong))  # type: ignore[arg-type]
    check_plugins(TrainConfig())
    assert {"sharing", "balancing", "gradients", "optimizer"} <= {f.name for f in dataclasses.fields(TrainConfig)}

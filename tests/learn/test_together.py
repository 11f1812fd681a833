"""Cross-validation with the networks of all folds and seeds trained together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from histotl.core.errors import UsageError
from histotl.learn import together as module
from histotl.learn.bags import BagStore
from histotl.learn.cohort import build_cohort
from histotl.learn.config import TrainConfig
from histotl.learn.cross_config import CrossConfig
from histotl.learn.cross_validate import cross_validate
from histotl.learn.fit import Labelled
from histotl.learn.predictions import read_predictions
from histotl.learn.sweep import Entry, sweep
from histotl.learn.task import parse_task
from histotl.learn.together import Deal, fit_together, is_together

Cohort = tuple[pd.DataFrame, Path]
YES = parse_task("any: binary(column='label', classes=('no', 'yes'), map={'normal': 'no', '*': 'yes'})")
LESION = parse_task("lesion: binary(classes=('no', 'yes'))")
SIZE = parse_task("size: regression")
RISK = parse_task("time: survival(event='dead')")


def test_each_deal_gets_what_the_sweep_gives_with_its_best_rate(patch_cohort: Cohort, quick: TrainConfig) -> None:
    table, features = patch_cohort
    config = replace(quick, learning_rates=(1e-5, 0.01), members=2)
    store = BagStore.open(features)
    cohort = build_cohort(table, store, (YES, SIZE), config)
    splits = cohort.cases.splits
    swapped = tuple({"val": "test", "test": "val"}.get(split, split) for split in splits)
    deals = [Deal(splits=splits, seed=0), Deal(splits=swapped, seed=4)]
    found = fit_together(cohort, deals, store, "tile", config)
    everything = Labelled(bags=cohort.bags, targets=cohort.cases.targets)
    for deal, fitted in zip(deals, found, strict=True):
        assert fitted.learning_rate == 0.01
        assert fitted.tried[0.01] < fitted.tried[1e-5]
        assert len(fitted.members) == 2
        assert {(look["member"], look["learning_rate"]) for look in fitted.history} == {(0, 1e-5), (0, 0.01), (1, 0.01)}
        split = np.array(deal.splits, dtype=object)
        parts = [np.flatnonzero(split == name) for name in ("train", "val")]
        entries = [Entry(train=parts[0], val=parts[1], seed=deal.seed * 1000, rate=0.01)]
        (alone,) = sweep(everything, entries, tasks=(YES, SIZE), config=config)
        assert fitted.facts == alone.facts, "facts are of the deal's own training cases"
    a, b = (network.state_dict() for network in found[0].members)
    assert not torch.equal(a["heads.0.weight"], b["heads.0.weight"])


@pytest.mark.parametrize("aggregator", ["mean", "abmil(hidden=12, attention=6)"])
def test_slides(slide_cohort: Cohort, quick: TrainConfig, tmp_path: Path, aggregator: str) -> None:
    table, features = slide_cohort
    config = replace(quick, aggregator=aggregator, ood=(), min_steps=80, max_steps=80)
    cross = CrossConfig(folds=3, seeds=2, together="yes")
    result = cross_validate(table, features, tmp_path / "cv", tasks=(LESION,), config=config, cross=cross)
    outside = table[table["split"] != "test"]
    for folder in result.predictions:
        assert list(read_predictions(folder).frame["slide_id"]) == list(outside["slide_id"])
    assert result.metrics["lesion"]["balanced_accuracy"].value > 0.7


def test_every_task_alone_is_trained_together_too(
    patch_cohort: Cohort, quick: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, features = patch_cohort
    one_by_one = []
    monkeypatch.setattr("histotl.learn.cross_validate.train_cohort", lambda *args, **_: one_by_one.append(args))
    config, cross = replace(quick, ood=()), CrossConfig(folds=3, together="yes")
    result = cross_validate(table, features, tmp_path / "cv", tasks=(YES, SIZE), config=config, cross=cross)
    assert not one_by_one
    assert set(result.comparison) == {"any", "size"}
    assert result.metrics["any"]["balanced_accuracy"].value > 0.7


def test_auto_is_one_by_one_on_a_cpu_and_where_networks_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig(device="cpu")
    assert not is_together("auto", config, "mean", (YES,))
    monkeypatch.setattr(module, "choose_device", lambda name: torch.device("cuda"))
    assert is_together("auto", config, "mean", (YES,))
    assert is_together("auto", config, "abmil", (YES, SIZE))
    assert not is_together("auto", config, "transmil", (YES,))
    assert not is_together("auto", config, "mean", (YES, RISK)), "its loss is of all rows together"
    assert not is_together("no", config, "mean", (YES,))


def test_what_cannot_be_together_is_refused_when_asked_for(
    patch_cohort: Cohort, quick: TrainConfig, tmp_path: Path
) -> None:
    table, features = patch_cohort
    with pytest.raises(UsageError, match="cannot be trained together"):
        cross_validate(
            table,
            features,
            tmp_path / "cv",
            tasks=(YES, SIZE),
            config=replace(quick, balancing="pcgrad"),
            cross=CrossConfig(folds=3, together="yes"),
        )

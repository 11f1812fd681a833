"""Folds keep patients whole, nothing is answered by a model that saw it, and multi-task has single-task beside it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import log_loss

from histotl.cli.main import call
from histotl.core.errors import LeakageError, TableError, UsageError
from histotl.evaluate.config import EvaluateConfig
from histotl.evaluate.stage import evaluate_predictions
from histotl.learn import cross_validate as module
from histotl.learn.bags import BagStore
from histotl.learn.cohort import build_cohort
from histotl.learn.compare import difference, mean_draws
from histotl.learn.concordance import concordance
from histotl.learn.config import TrainConfig
from histotl.learn.cross_config import CrossConfig
from histotl.learn.cross_validate import cross_validate
from histotl.learn.predictions import read_predictions
from histotl.learn.split import fold_patients
from histotl.learn.task import Task, parse_task
from histotl.learn.train import train

Cohort = tuple[pd.DataFrame, Path]
TASKS = (
    parse_task("any: binary(column='label', classes=('no', 'yes'), map={'normal': 'no', '*': 'yes'})"),
    parse_task("size: regression"),
)
BINARY = Task(name="t", kind="binary", classes=("n", "y"))


@pytest.mark.parametrize("folds", [3, 5])
def test_folds_keep_patients_whole_and_spread_classes(folds: int) -> None:
    rng = np.random.default_rng(0)
    patients = [f"P{i}" for i in rng.integers(0, 60, 400)]
    rare = (np.unique(patients, return_inverse=True)[1] % 12 == 0).astype(float)
    found = fold_patients(patients, [BINARY], {"t": rare}, folds=folds, seed=1)
    assert sorted(set(found.tolist())) == list(range(folds))
    assert all(len(set(found[np.array(patients) == name].tolist())) == 1 for name in set(patients))
    assert np.bincount(found).min() > 0.7 * len(found) / folds
    if folds == 5:
        assert all(rare[found == fold].sum() > 0 for fold in range(folds))
    assert (fold_patients(patients, [BINARY], {"t": rare}, folds=folds, seed=1) == found).all()
    assert (fold_patients(patients, [BINARY], {"t": rare}, folds=folds, seed=2) != found).any()


def test_too_few_patients_are_refused() -> None:
    with pytest.raises(UsageError, match="5 folds of 4 patients"):
        fold_patients(list("abcd"), [BINARY], {"t": np.zeros(4)}, folds=5, seed=0)
    with pytest.raises(UsageError, match="folds is 2"):
        CrossConfig(folds=2)


def test_every_case_is_answered_once_by_models_that_never_saw_its_patient(
    patch_cohort: Cohort, quick: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, features = patch_cohort
    seen: list[tuple[set[str], set[str]]] = []
    run = module._run

    def spy(cohort: module.Cohort, *args: object) -> object:
        cases = cohort.cases
        who = np.array(cases.patients, dtype=object)
        learnt = np.isin(np.array(cases.splits, dtype=object), ["train", "val"])
        seen.append((set(who[learnt]), set(who[~learnt])))
        return run(cohort, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_run", spy)
    config = replace(quick, ood=(), compare_single=False)
    result = cross_validate(
        table, features, tmp_path / "cv", tasks=TASKS, config=config, cross=CrossConfig(folds=3, seeds=2)
    )
    assert len(seen) == 6
    assert all(not learnt & tested for learnt, tested in seen)
    outside = table["split"] != "test"
    assert set.union(*(tested for _, tested in seen)) == set(table.loc[outside, "patient"])
    for number, folder in enumerate(result.predictions):
        frame = read_predictions(folder).frame
        assert list(frame["path"]) == list(table.loc[outside, "path"]), "the order of the table, test rows left out"
        assert set(frame["fold"]) == {0, 1, 2}
        assert set(frame["model_split"]) == {"test"}
        found = evaluate_predictions(
            folder, table, tmp_path / f"e{number}", config=EvaluateConfig(split_column="out_of_fold", bootstrap=50)
        )
        (size,) = (task for task in found.evidence.tasks if task.answers.name == "size")
        assert size.metrics["mae"].value == pytest.approx(result.by_seed["size"]["mae"][number], abs=1e-6)
        (any_,) = (task for task in found.evidence.tasks if task.answers.name == "any")
        ours = result.by_seed["any"]["balanced_accuracy"][number]
        assert any_.metrics["balanced_accuracy"].value == pytest.approx(ours, abs=1e-9)
    mean = result.metrics["any"]["balanced_accuracy"]
    assert mean.value == pytest.approx(np.mean(result.by_seed["any"]["balanced_accuracy"]))
    assert mean.low <= mean.value <= mean.high
    assert mean.value > 0.7
    assert result.comparison == {}
    written = json.loads((tmp_path / "cv" / "crossval.json").read_text())
    assert written["cases"] == int(outside.sum())
    assert written["seeds"] == [0, 1]


def test_leakage_between_folds_is_refused(patch_cohort: Cohort) -> None:
    table, features = patch_cohort
    cohort = build_cohort(table, BagStore.open(features), TASKS, TrainConfig())
    splits = list(cohort.cases.splits)
    splits[0] = "test"
    with pytest.raises(LeakageError, match="P00 in train and test"):
        cohort.with_splits(splits)
    with pytest.raises(TableError, match="no case of split val"):
        cohort.with_splits(["train"] * len(splits))


def test_tables_without_a_split_are_used_whole(
    patch_cohort: Cohort, quick: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, features = patch_cohort
    path = tmp_path / "t.csv"
    table.drop(columns="split").to_csv(path, index=False)
    argv = [
        "crossval",
        str(path),
        str(features),
        str(tmp_path / "cv"),
        "--folds",
        "3",
        "--members",
        "1",
        "--ood",
        "none",
    ]
    argv += ["--learning-rates", "0.01", "--min-steps", "30", "--max-steps", "30", "--hidden", "8", "--device", "cpu"]
    argv += ["--task", "any: binary(column='label', classes=('no', 'yes'), map={'normal': 'no', '*': 'yes'})"]
    argv += ["--task", "size: regression", "--quiet"]
    assert call(argv) == 0
    text = capsys.readouterr().out
    assert "difference (95 %)" in text
    assert len(read_predictions(tmp_path / "cv" / "seed_0").frame) == len(table)
    written = json.loads((tmp_path / "cv" / "crossval.json").read_text())
    for metrics in written["compared_with_single_tasks"].values():
        for found in metrics.values():
            assert found["delta"]["value"] == pytest.approx(found["multi"] - found["single"])
            assert found["delta"]["low"] <= found["delta"]["value"] <= found["delta"]["high"]


def test_training_compares_with_single_tasks(patch_cohort: Cohort, quick: TrainConfig, tmp_path: Path) -> None:
    table, features = patch_cohort
    result = train(table, features, tmp_path / "m", tasks=TASKS, config=quick)
    training = json.loads((tmp_path / "m" / "training.json").read_text())
    assert training["compared_with_single_tasks"] == result.comparison
    assert set(result.comparison) == {"any", "size"}
    alone = train(table, features, tmp_path / "a", tasks=TASKS[1:], config=quick)
    assert alone.comparison == {}
    single = result.comparison["size"]["mae"]["single"]
    assert single == pytest.approx(alone.validation["size"]["mae"], abs=1e-5), "alone is what train gives alone"
    without = train(table, features, tmp_path / "w", tasks=TASKS, config=replace(quick, compare_single=False))
    assert without.comparison == {}
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("m", "w")]
    assert weights[0] == weights[1], "the comparison changes nothing"


def test_the_difference_is_paired() -> None:
    rng = np.random.default_rng(0)
    n = 200
    truth = rng.integers(0, 2, n).astype(float)
    hard = rng.normal(size=n) * 2
    task = BINARY

    def model(gain: float) -> tuple[np.ndarray, np.ndarray]:
        p = 1 / (1 + np.exp(-((truth * 2 - 1) * gain + hard)))
        return np.stack([1 - p, p], axis=1), (p >= 0.5).astype(np.int64)

    patients = [f"P{i // 2}" for i in range(n)]
    found = difference(task, [model(1.2)], [model(1.0)], truth, patients, seed=0)["nll"]
    delta = found["delta"]
    assert isinstance(delta, dict)
    assert delta["high"] < 0, "a steady small gain is seen, though each interval alone is wide"
    alone = mean_draws(task, [model(1.0)], truth, patients, seed=0)["nll"]
    assert np.quantile(alone, 0.975) - np.quantile(alone, 0.025) > 3 * (delta["high"] - delta["low"])
    same = difference(task, [model(1.0)], [model(1.0)], truth, patients, seed=0)["balanced_accuracy"]["delta"]
    assert (same["low"], same["high"]) == (0, 0)  # type: ignore[index]
    truth = np.full(n, np.nan)
    assert difference(task, [model(1.0)], [model(1.0)], truth, patients, seed=0) == {}


def test_labels_and_risks_are_compared_too() -> None:
    rng = np.random.default_rng(3)
    n = 60
    patients = [f"P{i // 2}" for i in range(n)]
    decided = np.zeros(n, dtype=np.int64)
    labels = Task(name="found", kind="multilabel", columns=("a", "b", "c"))
    truth = (rng.random((n, 3)) < 0.4).astype(float)
    truth[rng.random((n, 3)) < 0.3] = np.nan
    truth[:4] = np.nan
    good, poor = (np.clip(np.where(truth == 1, p, 1 - p), 0.01, 0.99) for p in (0.8, 0.6))
    found = difference(labels, [(good, decided)], [(poor, decided)], truth, patients, seed=0)["nll_labels"]
    known = ~np.isnan(truth)
    assert found["multi"] == pytest.approx(log_loss(truth[known], good[known], labels=[0, 1]))
    assert found["delta"]["high"] < 0  # type: ignore[index]

    risk = Task(name="time", kind="survival", event="dead")
    ends = np.stack([rng.exponential(size=n) + 0.1, (rng.random(n) < 0.6).astype(float)], axis=1)
    right, wrong = -ends[:, :1], rng.normal(size=(n, 1))
    found = difference(risk, [(right, decided)], [(wrong, decided)], ends, patients, seed=0)["c_index"]
    assert found["multi"] == 1.0
    assert found["single"] == pytest.approx(float(concordance(wrong[:, 0], ends[:, 0], ends[:, 1] > 0)))
    assert found["delta"]["low"] > 0  # type: ignore[index]

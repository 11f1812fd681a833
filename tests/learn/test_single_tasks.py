"""A task that others harm is answered by its own networks: when, and everywhere a model is used."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from histotl.core.errors import CorruptFileError, UsageError
from histotl.learn.cohort_training import train_cohort
from histotl.learn.config import PredictConfig, TrainConfig
from histotl.learn.cross_config import CrossConfig
from histotl.learn.cross_validate import cross_validate
from histotl.learn.explain_config import ExplainConfig
from histotl.learn.explaining import explain
from histotl.learn.model import META_NAME, load_model, save_model
from histotl.learn.predict import predict
from histotl.learn.predictions import read_predictions
from histotl.learn.single_tasks import better_alone, compared, train_alone, with_fallback
from histotl.learn.task import parse_task
from histotl.learn.train import prepare, train
from histotl.learn.trained import Trained
from histotl.store.tile_scores import read_tile_scores

FIRST = "first: binary(classes=('no', 'yes'))"
SECOND = "second: binary(classes=('no', 'yes'))"
SIZE = "size: regression"


@pytest.fixture
def rivals(tmp_path: Path, write_patches: Callable[..., Path]) -> tuple[pd.DataFrame, Path]:
    """240 patches of 80 patients; two classes and a number that depend on different directions."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(240, 16))
    patient = np.arange(240) // 3
    frame = pd.DataFrame(
        {
            "path": [f"{i:03d}.png" for i in range(240)],
            "patient": [f"P{p:02d}" for p in patient],
            "split": np.where(patient < 40, "train", np.where(patient < 60, "val", "test")),
            "first": np.where(x[:, 0] > 0, "yes", "no"),
            "second": np.where(x[:, 1] > 0, "yes", "no"),
            "size": x[:, 2],
        }
    )
    return frame, write_patches(tmp_path / "features_scattering" / "patches.h5", frame["path"].tolist(), x)


def narrow(quick: TrainConfig, **settings: object) -> TrainConfig:
    """A trunk of one unit, which cannot serve two directions."""
    return replace(quick, hidden=1, min_steps=200, max_steps=200, learning_rates=(0.03,), ood=(), **settings)  # type: ignore[arg-type]


def answers(model: Path, features: Path, out: Path) -> pd.DataFrame:
    return read_predictions(predict(model, features, out, config=PredictConfig(device="cpu"))).frame


def test_the_model_answers_with_whichever_is_better(
    rivals: tuple[pd.DataFrame, Path], quick: TrainConfig, tmp_path: Path
) -> None:
    table, features = rivals
    tasks, config = (FIRST, SECOND, SIZE), narrow(quick)
    plain = train(table, features, tmp_path / "plain", tasks=tasks, config=config)
    result = train(table, features, tmp_path / "model", tasks=tasks, config=replace(config, fallback="single_task"))
    assert plain.answered_alone == ()
    assert result.comparison == plain.comparison
    # One unit serves one direction at most: two tasks of the three are better off alone.
    assert len(result.answered_alone) >= 2
    for task in ("first", "second", "size"):
        delta = result.comparison[task]["mae" if task == "size" else "nll"]["delta"]
        assert isinstance(delta, dict)
        assert (task in result.answered_alone) == (delta["low"] > 0)
    told = json.loads((tmp_path / "model" / "training.json").read_text())
    assert told["answered_alone"] == list(result.answered_alone)
    together = answers(plain.folder, features, tmp_path / "a")
    found = answers(result.folder, features, tmp_path / "b")
    for text, name in zip(tasks, ("first", "second", "size"), strict=True):
        alone = train(table, features, tmp_path / name, tasks=(text,), config=config)
        own = answers(alone.folder, features, tmp_path / f"{name}_out")
        wanted, score = (own, alone) if name in result.answered_alone else (together, plain)
        for column in [each for each in found.columns if each == name or each.startswith(f"{name}:")]:
            if found[column].dtype == float:
                np.testing.assert_allclose(found[column], wanted[column], atol=1e-6, err_msg=column)
            else:
                assert found[column].tolist() == wanted[column].tolist(), column
        assert result.validation[name] == score.validation[name]


def test_a_task_that_others_help_stays_with_them(
    rivals: tuple[pd.DataFrame, Path], quick: TrainConfig, tmp_path: Path
) -> None:
    table, features = rivals
    # Few labels of the one, many of the other that says the same.
    few = np.where((np.arange(240) >= 12) & (table["split"] == "train"), None, table["first"])
    table = table.assign(second=table["first"], first=few)
    config = replace(quick, ood=(), fallback="single_task")
    result = train(table, features, tmp_path / "model", tasks=(FIRST, SECOND), config=config)
    delta = result.comparison["first"]["nll"]["delta"]
    assert isinstance(delta, dict)
    assert delta["value"] < 0
    assert "first" not in result.answered_alone
    plain = train(table, features, tmp_path / "plain", tasks=(FIRST, SECOND), config=replace(config, fallback="none"))
    assert json.loads((plain.folder / META_NAME).read_text())["schema"] == 2


def test_the_rule_wants_more_than_chance() -> None:
    def entry(low: float | None, metric: str = "nll") -> dict[str, dict[str, object]]:
        return {metric: {"delta": {"value": 0.1, "low": low, "high": 0.4}}}

    comparison = {
        "harmed": entry(0.05),
        "unclear": entry(-0.01),
        "helped": entry(-0.2),
        "one_patient": entry(None),
        "number": entry(0.2, "mae"),
        # Higher accuracy together is no reason.
        "accuracy": entry(0.3, "balanced_accuracy"),
        "risk": {},
    }
    assert better_alone(comparison) == ("harmed", "number")


def test_without_the_comparison_there_is_nothing_to_decide_on() -> None:
    with pytest.raises(UsageError, match="without the comparison") as caught:
        TrainConfig(fallback="single_task", compare_single=False)
    assert caught.value.hint == "drop --no-compare-single"


@pytest.fixture
def mixed(slide_cohort: tuple[pd.DataFrame, Path], quick: TrainConfig) -> tuple[Trained, dict[str, Trained], Trained]:
    """A slide model of two tasks, each task's own, and one that answers the second alone."""
    table, features = slide_cohort
    table = table.assign(other=np.where(np.arange(len(table)) % 3 == 0, "yes", "no"))
    config = replace(quick, aggregator="abmil(hidden=8, attention=4)", fallback="single_task", ood=("knn",))
    tasks = [
        parse_task(text) for text in ("lesion: binary(classes=('no', 'yes'))", "other: binary(classes=('no', 'yes'))")
    ]
    store, level, cohort = prepare(table, features, tasks, config)
    trained = train_cohort(cohort, store, level, config, {})
    alone = train_alone(trained, cohort, config, lambda part, one: train_cohort(part, store, level, one, {}))
    comparison = compared(trained, alone, cohort, 0)
    assert comparison.keys() == alone.keys() == {"lesion", "other"}
    forced = {"lesion": {}, "other": {"nll": {"delta": {"low": 0.1}}}}
    return trained, alone, with_fallback(trained, alone, forced, config)


def test_slides_attention_and_explanations_are_those_of_the_network_that_answers(
    mixed: tuple[Trained, dict[str, Trained], Trained], slide_cohort: tuple[pd.DataFrame, Path], tmp_path: Path
) -> None:
    features, folders = slide_cohort[1], {}
    for name, found in zip(("together", "mixed"), (mixed[0], mixed[2]), strict=True):
        save_model(found.model, tmp_path / name)
        folders[name] = predict(tmp_path / name, features, tmp_path / f"{name}_out", config=PredictConfig(device="cpu"))
    save_model(mixed[1]["other"].model, tmp_path / "alone")
    folders["alone"] = predict(tmp_path / "alone", features, tmp_path / "alone_out", config=PredictConfig(device="cpu"))
    frames = {name: read_predictions(folder).frame for name, folder in folders.items()}
    np.testing.assert_allclose(frames["mixed"]["lesion:yes"], frames["together"]["lesion:yes"], atol=1e-6)
    np.testing.assert_allclose(frames["mixed"]["other:yes"], frames["alone"]["other:yes"], atol=1e-6)
    assert np.abs(frames["mixed"]["other:yes"] - frames["together"]["other:yes"]).max() > 1e-4
    np.testing.assert_array_equal(frames["mixed"]["ood_score"], frames["together"]["ood_score"])
    config = ExplainConfig(method=("attention", "leave_one_out"), faithfulness=2, device="cpu")
    for name, folder in folders.items():
        explain(tmp_path / name, features, folder, config=config)
    scores = {name: read_tile_scores(folder / "tile_scores" / "S05.h5").columns for name, folder in folders.items()}
    np.testing.assert_allclose(scores["mixed"]["attention:lesion"], scores["together"]["attention"], atol=1e-3)
    np.testing.assert_allclose(scores["mixed"]["attention:other"], scores["alone"]["attention"], atol=1e-3)
    for column in [each for each in scores["mixed"] if each.startswith(("lesion:", "other:"))]:
        wanted = scores["alone" if column.startswith("other") else "together"]
        np.testing.assert_allclose(scores["mixed"][column], wanted[column], atol=1e-3, err_msg=column)


def test_such_a_model_is_kept_whole(mixed: tuple[Trained, dict[str, Trained], Trained], tmp_path: Path) -> None:
    model = mixed[2].model
    save_model(model, tmp_path / "model")
    again = load_model(tmp_path / "model").to(torch.device("cpu"))
    assert json.loads((tmp_path / "model" / META_NAME).read_text())["schema"] == 3
    assert again.own.keys() == {"other"}
    assert again.answering("other") is again.own["other"]
    assert again.answering("lesion") is again
    assert again.own["other"].gate is None
    assert again.calibrations.keys() == model.calibrations.keys()
    for ours, kept in ((model, again), (model.own["other"], again.own["other"])):
        for one, two in zip(ours.members, kept.members, strict=True):
            assert all(
                torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True)
            )
    path = tmp_path / "model" / META_NAME
    meta = json.loads(path.read_text())
    meta["own"]["other"]["architecture"]["hidden"] = 3
    path.write_text(json.dumps(meta))
    with pytest.raises(CorruptFileError, match="changed after training"):
        load_model(tmp_path / "model")


def test_the_attention_of_a_task_is_its_own_behind_a_helper(
    slide_cohort: tuple[pd.DataFrame, Path], quick: TrainConfig, tmp_path: Path
) -> None:
    """An auxiliary task before it leaves a column of attention that belongs to nobody."""
    table, features = slide_cohort
    tasks = [
        parse_task("helper: binary(column='lesion', classes=('no', 'yes'), auxiliary=True)"),
        parse_task("lesion: binary(classes=('no', 'yes'))"),
    ]
    config = replace(quick, aggregator="abmil(hidden=8, attention=4, rows='task')", ood=(), compare_single=False)
    store, level, cohort = prepare(table, features, tasks, config)
    model = train_cohort(cohort, store, level, config, {}).model
    packed = cohort.bags.gather(np.arange(3))
    weights = model.answer(packed).weights
    assert weights is not None
    with torch.inference_mode():
        plain = model.members[0](packed.x, packed.offsets, packed.coords).weights
    assert weights.shape == (len(packed.x), 1)
    np.testing.assert_allclose(weights[:, 0], plain[:, 1], atol=1e-6)


def test_folds_answer_with_it_too(rivals: tuple[pd.DataFrame, Path], quick: TrainConfig, tmp_path: Path) -> None:
    table, features = rivals
    found = {}
    for fallback in ("none", "single_task"):
        config = narrow(quick, fallback=fallback)
        found[fallback] = cross_validate(
            table, features, tmp_path / fallback, tasks=(FIRST, SECOND), config=config, cross=CrossConfig(folds=3)
        ).comparison
    lost = [
        found[name]["second"]["nll"]["delta"]["value"] + found[name]["first"]["nll"]["delta"]["value"] for name in found
    ]  # type: ignore[index,operator]
    # What was lost by training together is not lost where each task may answer alone.
    assert lost[1] < 0.5 * lost[0]

"""The embedding head: what it learns, how it answers, and on the whole way from table to predictions."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from histotl.core.errors import UsageError
from histotl.core.progress import Step
from histotl.evaluate.config import EvaluateConfig
from histotl.evaluate.stage import evaluate_predictions
from histotl.learn.bags import Bags
from histotl.learn.calibrators import averaged
from histotl.learn.config import PredictConfig, TrainConfig
from histotl.learn.cross_config import CrossConfig
from histotl.learn.cross_validate import cross_validate
from histotl.learn.estimators import MultiTaskEstimator
from histotl.learn.explain_config import ExplainConfig
from histotl.learn.explaining import explain
from histotl.learn.finishing import finished, outputs_of
from histotl.learn.fit import Labelled, fit
from histotl.learn.heads.embedding import Embedding
from histotl.learn.heads.multiclass import Multiclass
from histotl.learn.in_memory import bare_model
from histotl.learn.model import Model, load_model, save_model
from histotl.learn.objective import Objective
from histotl.learn.predict import predict
from histotl.learn.predictions import read_predictions
from histotl.learn.rows import ArrayRows
from histotl.learn.task import Task, parse_task
from histotl.learn.train import train
from histotl.store.tile_scores import read_tile_scores

Cohort = tuple[pd.DataFrame, Path]
CPU = PredictConfig(device="cpu")
LABEL = "label: embedding(width=12, k=5)"


def rings(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A disc, a ring around it and another one."""
    y = rng.integers(0, 3, n)
    angle, radius = rng.uniform(0, 2 * np.pi, n), y * 2.0 + rng.uniform(0.5, 1.5, n)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1), y


def blobs(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two classes of two blobs each, in opposite corners."""
    corner = rng.integers(0, 2, (n, 2))
    return corner * 4.0 + rng.normal(size=(n, 2)) * 0.6, corner[:, 0] ^ corner[:, 1]


@pytest.mark.parametrize("options", ["", "loss='triplet'", "loss='supcon', cross_entropy=0", "hash_bits=24"])
@pytest.mark.parametrize("shape", [rings, blobs])
def test_classes_that_no_line_separates(options: str, shape: Callable[..., tuple[np.ndarray, np.ndarray]]) -> None:
    rng = np.random.default_rng(0)
    (x, y), (new, truth) = shape(300, rng), shape(300, rng)
    config = TrainConfig(
        members=1, min_steps=400, max_steps=400, learning_rates=(0.01,), batch_size=64, device="cpu", ood=()
    )
    settings = {"config": config, "hidden": 32, "dropout": 0.0}
    found = MultiTaskEstimator([f"type: embedding({options})"], **settings).fit(x, {"type": y})
    assert found.score(new, {"type": truth}) > 0.93
    line = MultiTaskEstimator(["type: multiclass"], **(settings | {"hidden": 0})).fit(x, {"type": y})
    assert line.score(new, {"type": truth}) < 0.8


def test_the_loss_is_cross_entropy_and_what_rows_cost_beside_each_other() -> None:
    head = Embedding(width=4, cross_entropy=0.5)
    outputs = torch.randn(20, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target, weight = torch.arange(20) % 3, torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    plain = Multiclass().row_losses(outputs[:, 4:], target, weight)
    torch.testing.assert_close(head.row_losses(outputs, target, weight), 0.5 * plain)
    alone = head.compared(outputs, target, None)
    torch.testing.assert_close(head.compared(outputs, target, weight), alone * weight[target])
    shares = torch.eye(3, dtype=torch.float64)[target]
    torch.testing.assert_close(head.compared(outputs, shares, weight), alone * weight[target])
    task = Task(name="t", kind="embedding", classes=("a", "b", "c"), options={"width": 4, "cross_entropy": 0.5})
    targets = {"t": target.double().numpy()}
    objective = Objective([task], targets, class_balance="none")
    joint = objective.losses({"t": outputs}, objective.tensor(targets))["t"]
    torch.testing.assert_close(joint, (0.5 * Multiclass().row_losses(outputs[:, 4:], target, None) + alone).mean())
    # Its unit is what the constant predictor pays: half the entropy of 7, 7 and 6 rows.
    p = np.array([7, 7, 6]) / 20
    assert objective.priors["t"] == pytest.approx(-0.5 * (p * np.log(p)).sum(), rel=1e-6)


def test_without_cross_entropy_losses_count_in_nats() -> None:
    task = Task(name="t", kind="embedding", classes=("a", "b"), options={"cross_entropy": 0.0})
    assert Objective([task], {"t": np.arange(8) % 2.0}).priors == {"t": 1.0}


def test_a_step_without_a_label_and_with_one_class_is_a_step() -> None:
    task = Task(name="t", kind="embedding", classes=("a", "b"), options={"width": 3})
    objective = Objective([task], {"t": np.arange(8) % 2.0})
    outputs = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    target = torch.tensor([[1.0], [torch.nan], [1.0], [1.0], [torch.nan], [1.0]])
    loss = objective.losses({"t": outputs}, target)["t"]
    known = ~torch.isnan(target[:, 0])
    torch.testing.assert_close(loss, objective.losses({"t": outputs[known]}, target[known])["t"])
    loss.backward()
    assert outputs.grad is not None
    assert (outputs.grad[~known] == 0).all()
    assert torch.isfinite(outputs.grad).all()
    assert not objective.losses({"t": outputs}, torch.full((6, 1), torch.nan))


def sides(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3.0
    return rng.normal(size=(n, 8)) + 2 * np.eye(8)[y.astype(int)], y


def trained(train_set: Labelled, val_set: Labelled, task: Task, config: TrainConfig) -> Model:
    return finished(bare_model(fit(train_set, val_set, tasks=[task], config=config)), train_set)


def test_a_missing_label_is_an_absent_row(labelled: Callable[..., Labelled], quick: TrainConfig) -> None:
    (x, y), (new, truth) = sides(60, 0), sides(30, 1)
    task, gaps = parse_task("t: embedding(width=6, classes=('a', 'b', 'c'))"), y.copy()
    gaps[::4] = np.nan
    x[::4] = 50.0
    known = ~np.isnan(gaps)
    val = labelled(new, {"t": truth})
    one = trained(labelled(x, {"t": gaps}), val, task, quick)
    other = trained(labelled(x[known], {"t": y[known]}), val, task, quick)
    packed = val.bags.gather(np.arange(30))
    assert torch.equal(one.outputs(packed)[0]["t"][0], other.outputs(packed)[0]["t"][0])
    kept = one.members[0].recall("t")
    assert kept is not None
    assert kept.case.tolist() == np.flatnonzero(known).tolist()
    assert one.tasks[0].options["bank"] == known.sum()


def test_members_keep_rows_as_they_see_them_and_their_votes_are_averaged(
    labelled: Callable[..., Labelled], quick: TrainConfig, tmp_path: Path
) -> None:
    (x, y), (new, truth) = sides(90, 0), sides(40, 1)
    task = parse_task("t: embedding(width=6, k=7, classes=('a', 'b', 'c'))")
    train_set, val = labelled(x, {"t": y}), labelled(new, {"t": truth})
    model = trained(train_set, val, task, replace(quick, members=2))
    kept = [member.recall("t") for member in model.members]
    assert kept[0] is not None
    assert kept[1] is not None
    assert not torch.equal(kept[0].bank, kept[1].bank)
    assert torch.equal(kept[0].case, kept[1].case)
    packed = val.bags.gather(np.arange(40))
    raw = fit(train_set, val, tasks=[task], config=replace(quick, members=2)).members
    shares = []
    for member, own in zip(raw, kept, strict=True):
        with torch.inference_mode():
            seen = member(packed.x, packed.offsets).tasks["t"][:, :6]
        cosine = torch.nn.functional.normalize(seen, dim=1) @ own.bank.T
        near = y[np.argsort(-cosine.numpy(), axis=1)[:, :7]]
        shares.append((near[:, :, None] == np.arange(3)).mean(axis=1))
    np.testing.assert_allclose(model.answer(packed).uncalibrated["t"], np.mean(shares, axis=0), atol=1e-5)
    save_model(model, tmp_path / "m")
    again = load_model(tmp_path / "m")
    assert again.tasks == model.tasks
    assert again.architecture == model.architecture
    np.testing.assert_array_equal(again.answer(packed).tasks["t"], model.answer(packed).tasks["t"])


def test_no_more_rows_are_kept_than_asked_for(labelled: Callable[..., Labelled], quick: TrainConfig) -> None:
    (x, y), val = sides(60, 0), sides(30, 1)
    task = parse_task("t: embedding(width=6, most=25, classes=('a', 'b', 'c'), bank=3)")
    model = trained(labelled(x, {"t": y}), labelled(val[0], {"t": val[1]}), task, replace(quick, members=2))
    first, second = (member.recall("t") for member in model.members)
    assert first is not None
    assert second is not None
    assert len(first.bank) == 25
    assert torch.equal(first.case, second.case)
    assert (torch.diff(first.case) > 0).all()
    wanted = torch.eye(3)[torch.from_numpy(y).long()[first.case]]
    assert torch.equal(first.votes, wanted)
    # The answers take for granted the classes of the rows that vote.
    np.testing.assert_allclose(model.facts["t"].implied, wanted.mean(dim=0), rtol=1e-6)


def test_patches_on_the_whole_way(patch_cohort: Cohort, quick: TrainConfig, tmp_path: Path) -> None:
    table, features = patch_cohort
    tasks = (LABEL, "size: regression", "helper: embedding(column='label', width=4, auxiliary=True)")
    config = replace(quick, members=2, min_steps=200, max_steps=200)
    folder = train(table, features, tmp_path / "m", tasks=tasks, config=config).folder
    model, meta = load_model(folder), json.loads((folder / "model.json").read_text())
    assert [name for name, _ in model.architecture.recalls] == ["label"]
    assert model.tasks[0].options["bank"] == 144
    assert meta["train_cases"]["ids"] == table.loc[table["split"] == "train", "path"].tolist()
    out = predict(folder, features, tmp_path / "p", config=CPU)
    found = read_predictions(out)
    test = table["split"].to_numpy() == "test"
    assert (found.frame["label"] == table["label"])[test].mean() > 0.85
    names = [f"label:{name}" for name in model.tasks[0].classes]
    np.testing.assert_allclose(found.frame[names].sum(axis=1), 1, atol=1e-6)
    shares = found.frame[[f"{name}:uncalibrated" for name in names]].to_numpy()
    # Two members with five votes each: tenths.
    np.testing.assert_allclose(shares * 10, np.round(shares * 10), atol=1e-4)
    result = evaluate_predictions(out, table, tmp_path / "e", config=EvaluateConfig(bootstrap=50))
    measured = json.loads(result.metrics_json.read_text())["tasks"]["label"]["metrics"]
    assert measured["balanced_accuracy"]["value"] > 0.75
    assert measured["set_coverage"]["value"] > 0.75


def test_cross_validation_and_other_priors(patch_cohort: Cohort, quick: TrainConfig, tmp_path: Path) -> None:
    table, features = patch_cohort
    cross = CrossConfig(folds=3, seeds=1)
    found = cross_validate(table, features, tmp_path / "cv", tasks=[LABEL], config=quick, cross=cross)
    assert found.metrics["label"]["balanced_accuracy"].value > 0.7
    assert read_predictions(found.predictions[0]).tasks[0].kind == "embedding"
    folder = train(table, features, tmp_path / "m", tasks=[LABEL], config=replace(quick, calibration="none")).folder
    prior = "label: high=0.8 low=0.1 normal=0.1"
    plain = read_predictions(predict(folder, features, tmp_path / "a", config=CPU)).frame
    moved = read_predictions(predict(folder, features, tmp_path / "b", config=replace(CPU, prior=(prior,)))).frame
    # Votes take the shares of the training rows for granted, whatever weights their classes had in the loss.
    share = table.loc[table["split"] == "train", "label"].value_counts(normalize=True)
    odds = [frame["label:high"] / frame["label:low"] for frame in (plain, moved)]
    np.testing.assert_allclose(odds[1] / odds[0], 8 * share["low"] / share["high"], rtol=1e-4)


def lesion(options: str = "") -> list[str]:
    return [f"lesion: embedding(width=8, k=3, classes=('no', 'yes'){options})"]


@pytest.mark.parametrize("aggregator", ["abmil(hidden=16, attention=8)", "mean", "additive(hidden=16, attention=8)"])
def test_slides_by_an_aggregator(aggregator: str, slide_cohort: Cohort, quick: TrainConfig, tmp_path: Path) -> None:
    table, features = slide_cohort
    config = replace(quick, aggregator=aggregator, min_steps=250, max_steps=250)
    folder = train(table, features, tmp_path / "m", tasks=lesion(), config=config).folder
    model = load_model(folder)
    kept = model.members[0].recall("lesion")
    assert kept is not None
    assert kept.case.tolist() == list(range(20))
    assert (kept.corner == -1).all()
    found = read_predictions(predict(folder, features, tmp_path / "p", config=CPU)).frame
    test = table["split"].to_numpy() == "test"
    assert (found["lesion"] == table["lesion"])[test].mean() >= 0.75


def test_tiles_of_slides(slide_cohort: Cohort, quick: TrainConfig, tmp_path: Path) -> None:
    table, features = slide_cohort
    folder = train(table, features, tmp_path / "m", tasks=lesion(), config=replace(quick, level="tile")).folder
    model = load_model(folder)
    kept = model.members[0].recall("lesion")
    assert kept is not None
    assert len(kept.bank) > 100
    assert kept.case.unique().tolist() == list(range(20))
    first = kept.case == 0
    n = int(first.sum())
    wanted = np.stack([np.arange(n) % 8, np.arange(n) // 8], axis=1) * 448
    np.testing.assert_array_equal(kept.corner[first], wanted)
    out = predict(folder, features, tmp_path / "p", config=CPU)
    scores = read_tile_scores(out / "tile_scores" / "S30.h5")
    both = scores.columns["lesion:no"] + scores.columns["lesion:yes"]
    np.testing.assert_allclose(both, 1, atol=1e-6)


def test_explanations_of_votes(slide_cohort: Cohort, quick: TrainConfig, tmp_path: Path) -> None:
    table, features = slide_cohort
    config = replace(quick, aggregator="abmil(hidden=16, attention=8)", hidden=0, min_steps=250, max_steps=250)
    counted = train(table, features, tmp_path / "a", tasks=lesion(), config=config).folder
    asked = ExplainConfig(device="cpu", faithfulness=4)
    found = explain(counted, features, tmp_path / "out", config=asked)
    assert set(found.left_out) == {"contribution", "grad_x_input", "integrated_gradients"}
    columns = set(read_tile_scores(tmp_path / "out" / "tile_scores" / "S01.h5").columns)
    assert {"lesion:no:leave_one_out", "lesion:yes:leave_one_out"} <= columns
    with pytest.raises(UsageError, match="no slope"):
        explain(counted, features, tmp_path / "b", config=replace(asked, method=("grad_x_input",)))
    with pytest.raises(UsageError, match="vote of training rows"):
        explain(counted, features, tmp_path / "b", config=replace(asked, method=("contribution",)))
    weighed = train(table, features, tmp_path / "c", tasks=lesion(", temperature=0.2"), config=config).folder
    found = explain(weighed, features, tmp_path / "d", config=asked)
    assert set(found.left_out) == {"contribution"}


def test_an_interrupted_training_keeps_the_same_rows(slide_cohort: Cohort, quick: TrainConfig, tmp_path: Path) -> None:
    table, features = slide_cohort
    config = replace(quick, aggregator="abmil(hidden=16, attention=8)", members=2, ood=())

    def stop(step: Step) -> None:
        if step.done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(table, features, tmp_path / "a", tasks=lesion(), config=config, report=stop)
    told: list[Step] = []
    train(table, features, tmp_path / "a", tasks=lesion(), config=config, report=told.append)
    assert sum("of the start before" in step.message for step in told) == 1
    train(table, features, tmp_path / "b", tasks=lesion(), config=config)
    one, other = (load_model(tmp_path / name) for name in "ab")
    for first, second in zip(one.members, other.members, strict=True):
        state = second.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in first.state_dict().items())


def test_codes_are_kept_as_bytes(patch_cohort: Cohort, quick: TrainConfig, tmp_path: Path) -> None:
    table, features = patch_cohort
    config = replace(quick, min_steps=300, max_steps=300, batch_size=48, threshold="youden")
    words = "column='label', classes=('no', 'yes'), map={'normal': 'no', '*': 'yes'}"
    folder = train(
        table, features, tmp_path / "m", tasks=[f"ill: embedding({words}, hash_bits=32)"], config=config
    ).folder
    model = load_model(folder)
    assert model.decisions["ill"].threshold is not None
    kept = model.members[0].recall("ill")
    assert kept is not None
    assert kept.bank.dtype == torch.int8
    assert kept.bank.shape == (144, 32)
    found = read_predictions(predict(folder, features, tmp_path / "p", config=CPU)).frame
    test = table["split"].to_numpy() == "test"
    assert ((found["ill"] == "no") == (table["label"] == "normal"))[test].mean() > 0.8


def test_votes_of_readers_are_votes_of_neighbours(labelled: Callable[..., Labelled], quick: TrainConfig) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 8))
    yes = 1 / (1 + np.exp(-3 * x[:, 0]))
    targets = {"t": np.stack([1 - yes, yes], axis=1)}
    bags = Bags.singles(ArrayRows(x.astype(np.float32)), np.arange(80))
    task = Task(name="t", kind="embedding", votes=("n", "y"), options={"width": 6, "k": 9})
    model = trained(Labelled(bags=bags, targets=targets), Labelled(bags=bags, targets=targets), task, quick)
    kept = model.members[0].recall("t")
    assert kept is not None
    np.testing.assert_allclose(kept.votes, targets["t"], rtol=1e-6)
    p = averaged(model.tasks[0], outputs_of(model, bags)["t"])
    assert np.corrcoef(p[:, 1], yes)[0, 1] > 0.9

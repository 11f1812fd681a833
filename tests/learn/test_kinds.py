"""Every kind of task on the whole way: table, training, model folder, predictions, evidence."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score

from histotl.core.errors import TableError, UsageError
from histotl.core.provenance import Provenance
from histotl.core.values import BackboneCard, FeatureIdentity
from histotl.evaluate.config import EvaluateConfig
from histotl.evaluate.stage import evaluate_predictions
from histotl.learn.columns import columns_of
from histotl.learn.config import PredictConfig, TrainConfig
from histotl.learn.model import load_model
from histotl.learn.predict import predict
from histotl.learn.predictions import read_predictions
from histotl.learn.prior import shifted
from histotl.learn.train import train
from histotl.store.embeddings import EmbeddingsMeta, EmbeddingsWriter

N, DIM = 300, 8
CPU = PredictConfig(device="cpu")
GRADES = "ordinal(column='grade', classes=('g0', 'g1', 'g2'), "
TASKS = (
    "type: multiclass(classes=('HP', 'TA', 'TVA'))",
    "dysplasia: binary(classes=('LG', 'HG'), applies_if=\"type in ('TA', 'TVA')\")",
    "signs: multilabel(columns=('mucin', 'necrosis'))",
    "votes: binary(classes=('no', 'yes'), votes=('v_no', 'v_yes'))",
    f"coral: {GRADES}loss='coral')",
    f"odds: {GRADES}loss='cumulative_link')",
    f"both: {GRADES}loss='ce+regression')",
    f"emd: {GRADES}loss='emd2')",
    "spread: regression(column='size', loss='gaussian_nll')",
    "bounds: regression(column='size', loss='quantile')",
    "cox: survival(column='months', event='dead', times=(5, 20))",
    "bins: survival(column='months', event='dead', loss='discrete', bins=4)",
    "age: regression(auxiliary=True)",
    "site: binary(classes=('A', 'B'), adversary=0.5)",
)


@pytest.fixture(scope="module")
def study() -> tuple[pd.DataFrame, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, DIM))
    kind = np.digitize(x[:, 0], [-0.5, 0.5])
    time = rng.exponential(20 * np.exp(-1.5 * x[:, 4])) + 0.1
    end = rng.exponential(40, N) + 0.1
    yes = rng.binomial(7, 1 / (1 + np.exp(-3 * x[:, 5])))
    frame = pd.DataFrame(
        {
            "path": [f"{i:03d}.jpg" for i in range(N)],
            "patient": [f"P{i // 2:03d}" for i in range(N)],
            "split": np.where(np.arange(N) < 160, "train", np.where(np.arange(N) < 220, "val", "test")),
            "type": np.take(["HP", "TA", "TVA"], kind),
            "dysplasia": np.where(x[:, 1] > 0, "HG", "LG"),
            "mucin": np.where(rng.random(N) < 0.3, None, (x[:, 2] > 0.5).astype(int).astype(str)),
            "necrosis": (x[:, 3] > 0).astype(int).astype(str),
            "v_no": (7 - yes).astype(str),
            "v_yes": yes.astype(str),
            "grade": np.take(["g0", "g1", "g2"], np.digitize(x[:, 6], [-0.6, 0.6])),
            "size": np.round(10 + 3 * x[:, 7] + rng.normal(size=N), 4).astype(str),
            "age": np.round(60 + 10 * x[:, 0], 3).astype(str),
            "site": np.where(rng.random(N) < 0.5, "A", "B"),
            "months": np.round(np.minimum(time, end), 4).astype(str),
            "dead": (time <= end).astype(int).astype(str),
        }
    )
    return frame, x


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, study: tuple[pd.DataFrame, np.ndarray]) -> tuple[Path, Path]:
    frame, x = study
    folder = tmp_path_factory.mktemp("kinds")
    features = folder / "features_scattering" / "patches.h5"
    card = BackboneCard(name="scattering", dim=DIM, pooling="avg", input_px=224, mean=(0.5,) * 3, std=(0.5,) * 3)
    identity = FeatureIdentity.of(card, None, stain="none", compute="fp32", dtype="fp32")
    meta = EmbeddingsMeta(identity=identity, card=card, provenance=Provenance.now(), items=tuple(frame["path"]))
    with EmbeddingsWriter(features, n=N, dim=DIM, dtype="fp32", meta=meta) as writer:
        writer.put(np.arange(N), x.astype(np.float32))
        writer.seal()
    config = TrainConfig(
        hidden=0, members=2, min_steps=300, max_steps=300, learning_rates=(0.02,), dropout=0.0, device="cpu", ood=()
    )
    return train(frame, features, folder / "model", tasks=TASKS, config=config).folder, features


def test_answers_of_all_kinds(made: tuple[Path, Path], study: tuple[pd.DataFrame, np.ndarray], tmp_path: Path) -> None:
    frame, x = study
    found = read_predictions(predict(*made, tmp_path / "pred", config=CPU))
    answers, test = found.frame, frame["split"].to_numpy() == "test"
    assert [task.name for task in found.tasks] == [text.split(":")[0] for text in TASKS[:-2]]
    assert all(set(columns_of(task)) <= set(answers) for task in found.tasks)
    assert not any(name.startswith(("age", "site")) for name in answers), "a task that only helps has answers"
    for name in ("coral", "odds", "both", "emd"):
        p = answers[[f"{name}:g{i}" for i in range(3)]].to_numpy()
        np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-6)
        assert (answers[name] == frame["grade"])[test].mean() > 0.7
    joint = answers["dysplasia:HG"] * (answers["type:TA"] + answers["type:TVA"])
    np.testing.assert_allclose(answers["dysplasia:HG:joint"], joint, atol=1e-6)
    np.testing.assert_allclose(answers["dysplasia:applies"], 1 - answers["type:HP"], atol=1e-6)
    both = (answers["signs:mucin"] >= 0.5) & (answers["signs:necrosis"] >= 0.5)
    assert set(answers["signs"][both]) == {"mucin;necrosis"}
    assert (answers["spread:sd"] > 0).all()
    assert (answers["bounds:q5"] < answers["bounds"]).all()
    assert (answers["bounds"] < answers["bounds:q95"]).all()
    survival = answers[["cox:S(5)", "cox:S(20)"]].to_numpy()
    assert ((survival > 0) & (survival < 1) & (survival[:, :1] > survival[:, 1:])).all()
    # What the risk means: higher for an earlier event.
    for name in ("cox", "bins"):
        assert np.corrcoef(answers[name][test], x[test, 4])[0, 1] > 0.7
    # The baseline makes them the chances of real rows.
    seen = frame["split"].to_numpy() == "train"
    dead = (frame["months"].astype(float) <= 5) & (frame["dead"] == "1")
    assert 1 - answers["cox:S(5)"][seen].mean() == pytest.approx(dead[seen].mean(), abs=0.08)


def test_the_model_folder_keeps_what_heads_learnt_and_drops_who_only_helped(made: tuple[Path, Path]) -> None:
    model, meta = load_model(made[0]), json.loads((made[0] / "model.json").read_text())
    tasks = {task.name: task for task in model.tasks}
    assert len(tasks["bins"].options["edges"]) == 4  # type: ignore[arg-type]
    assert len(tasks["cox"].options["baseline"]) == 2  # type: ignore[arg-type]
    assert meta["architecture"]["dropped"] == ["age", "site"]
    assert "age" not in model.facts
    at = [name for name, _ in model.architecture.outputs].index("age")
    assert not any(name.startswith(f"heads.{at}.") for name in model.members[0].state_dict())
    assert sum(meta["priors"]["votes"]) == pytest.approx(1)


def test_evidence_of_all_kinds(made: tuple[Path, Path], study: tuple[pd.DataFrame, np.ndarray], tmp_path: Path) -> None:
    frame, _ = study
    predictions = predict(*made, tmp_path / "pred", config=CPU)
    result = evaluate_predictions(predictions, frame, tmp_path / "out", config=EvaluateConfig(bootstrap=50))
    tasks = json.loads(result.metrics_json.read_text())["tasks"]
    lead = {
        "type": ("auroc_macro_ovr", 0.8, 0.5),
        "dysplasia": ("auroc", 0.8, 0.5),
        "signs": ("auroc_labels", 0.8, 0.5),
        "votes": ("auroc", 0.8, 0.5),
        "coral": ("quadratic_kappa", 0.6, 0.0),
        "cox": ("c_index", 0.65, 0.5),
        "bins": ("c_index", 0.65, 0.5),
    }
    for name, (metric, least, chance) in lead.items():
        found = tasks[name]["metrics"][metric]
        assert found["value"] > least, name
        assert found["low"] <= found["value"] <= found["high"]
        assert tasks[name]["majority_baseline"][metric] == pytest.approx(chance)
    # A task that applies to some is measured on these alone.
    test = frame["split"] == "test"
    assert tasks["dysplasia"]["n"] == int((test & (frame["type"] != "HP")).sum())
    assert tasks["votes"]["metrics"]["soft_nll"]["value"] < tasks["votes"]["majority_baseline"]["soft_nll"]
    for name in ("spread", "bounds"):
        assert 0.7 < tasks[name]["metrics"]["coverage_90"]["value"] <= 1
        assert tasks[name]["metrics"]["mae"]["value"] < tasks[name]["majority_baseline"]["mae"]
        assert tasks[name]["metrics"]["width_90"]["value"] < tasks[name]["majority_baseline"]["width_90"]
    assert tasks["signs"]["labels"]["mucin"]["n"] == int((test & frame["mucin"].notna()).sum())
    assert tasks["cox"]["n_events"] == int((test & (frame["dead"] == "1")).sum())
    page = result.report_html.read_text()
    for text in (
        "Each label",
        "Lower and higher risk",
        "Predicted against true value",
        "Coverage of 90 %",
        "C-index",
        "majority counts as the class",
    ):
        assert text in page
    assert "| mucin |" in result.metrics_md.read_text()


def test_a_split_without_events_is_refused(
    made: tuple[Path, Path], study: tuple[pd.DataFrame, np.ndarray], quick: TrainConfig, tmp_path: Path
) -> None:
    frame = study[0].copy()
    frame.loc[frame["split"] == "val", "dead"] = "0"
    with pytest.raises(TableError, match="no row of val has the event"):
        train(frame, made[1], tmp_path / "m", tasks=["cox: survival(column='months', event='dead')"], config=quick)


def test_answers_move_to_another_prior(made: tuple[Path, Path], tmp_path: Path) -> None:
    plain = read_predictions(predict(*made, tmp_path / "a", config=CPU)).frame
    prior = ("type: HP=0.8 TA=0.1 TVA=0.1", "signs: mucin=0.9 necrosis=0.5")
    moved = read_predictions(predict(*made, tmp_path / "b", config=replace(CPU, prior=prior))).frame
    facts, names = load_model(made[0]).facts, ["type:HP", "type:TA", "type:TVA"]
    expected = shifted(plain[names].to_numpy(), np.array(facts["type"].implied), np.array([0.8, 0.1, 0.1]))
    np.testing.assert_allclose(moved[names], expected, rtol=1e-6)
    assert (moved["type:HP"] > plain["type:HP"]).mean() > 0.95
    # What is certain to six digits cannot rise.
    has_room = plain["signs:mucin"] < 0.999999
    assert has_room.mean() > 0.9
    assert (moved["signs:mucin"] > plain["signs:mucin"])[has_room].all()
    np.testing.assert_array_equal(moved["coral:g0"], plain["coral:g0"])
    with pytest.raises(UsageError, match="no task 'size'"):
        predict(*made, tmp_path / "c", config=replace(CPU, prior=("size: a=1",)))


def test_a_helper_is_trained_and_changes_nothing_that_is_not_shared(
    study: tuple[pd.DataFrame, np.ndarray], made: tuple[Path, Path], quick: TrainConfig, tmp_path: Path
) -> None:
    (frame, _), features = study, made[1]
    config, main = replace(quick, hidden=0, ood=()), TASKS[0]
    texts = []
    for name, tasks in (("with", (main, "age: regression(auxiliary=True)")), ("without", (main,))):
        model = train(frame, features, tmp_path / name, tasks=tasks, config=config).folder
        texts.append((predict(model, features, tmp_path / f"p_{name}", config=CPU) / "predictions.csv").read_text())
    # Linear heads share nothing, so the helper is all that the two runs differ in.
    assert texts[0] == texts[1]


def test_labels_are_calibrated_and_answered_from_their_thresholds(
    made: tuple[Path, Path], study: tuple[pd.DataFrame, np.ndarray], tmp_path: Path
) -> None:
    frame, _ = study
    config = TrainConfig(
        members=1, min_steps=100, max_steps=100, learning_rates=(0.02,), device="cpu", ood=(), threshold="cost=20"
    )
    folder = train(frame, made[1], tmp_path / "model", tasks=TASKS[2:3], config=config).folder
    chosen = json.loads((folder / "training.json").read_text())["chosen"]
    assert chosen["calibrations"]["signs"]["kind"] == "temperature"
    least = [label["value"] for label in chosen["decisions"]["signs"]["labels"]]
    assert len(least) == 2
    assert max(abs(value - 0.5) for value in least) > 0.1, "a missed one costs twenty"
    predictions = predict(folder, made[1], tmp_path / "pred", config=CPU)
    answers = read_predictions(predictions).frame
    has = answers[["signs:mucin", "signs:necrosis"]].to_numpy() >= np.array(least)
    assert set(answers["signs"][has.all(axis=1)]) == {"mucin;necrosis"}
    assert set(answers["signs"][~has.any(axis=1)]) <= {"none"}
    result = evaluate_predictions(predictions, frame, tmp_path / "out", config=EvaluateConfig(bootstrap=50))
    found = json.loads(result.metrics_json.read_text())["tasks"]["signs"]["metrics"]["f1_labels"]["value"]
    test = (frame["split"] == "test").to_numpy()
    scores = []
    for c, name in enumerate(("mucin", "necrosis")):
        known = test & frame[name].notna().to_numpy()
        scores.append(f1_score(frame[name][known] == "1", has[known, c]))
    assert found == pytest.approx(np.mean(scores))
    assert "the labels, in their order, are answered from probabilities of" in result.report_html.read_text()

"""The stage: its files, its numbers, and what it refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as oracle

from histotl.core.errors import LeakageError, TableError, UsageError
from histotl.evaluate.config import EvaluateConfig
from histotl.evaluate.stage import EvaluationResult
from histotl.evaluate.stage import evaluate_predictions as evaluate

Study = Callable[..., object]
CLASSES = ["normal", "lgin", "hgin", "adenoca"]


def _evaluate(made: object, out: Path, **options: object) -> EvaluationResult:
    return evaluate(made.predictions, made.table, out, config=EvaluateConfig(**{"bootstrap": 200, **options}))


def test_the_numbers_are_those_of_scikit_learn(study: Study, tmp_path: Path) -> None:
    made = study(n=200)
    found = json.loads(_evaluate(made, tmp_path / "out").metrics_json.read_text())
    test = made.labels[(made.labels["split"] == "test") & (made.labels["label"] != "")]
    rows = made.frame.set_index("slide_id").loc[test["slide_id"]]
    truth = (test["label"] != "normal").to_numpy()
    binary = found["tasks"]["dysplasia"]["metrics"]
    assert binary["auroc"]["value"] == pytest.approx(oracle.roc_auc_score(truth, rows["dysplasia:yes"]), abs=1e-8)
    assert binary["brier"]["value"] == pytest.approx(oracle.brier_score_loss(truth, rows["dysplasia:yes"]), abs=1e-8)
    expected = oracle.balanced_accuracy_score(test["label"].to_numpy(), rows["lesion"].to_numpy())
    assert found["tasks"]["lesion"]["metrics"]["balanced_accuracy"]["value"] == pytest.approx(expected, abs=1e-12)
    numbers = test["fraction"].astype(float).to_numpy()
    expected = oracle.r2_score(numbers, rows["fraction"])
    assert found["tasks"]["fraction"]["metrics"]["r2"]["value"] == pytest.approx(expected, abs=1e-7)
    expected = oracle.confusion_matrix(test["label"], rows["grade"].to_numpy(), labels=CLASSES)
    assert found["tasks"]["grade"]["confusion_matrix"] == expected.tolist()


def test_every_interval_holds_its_value_and_counts_are_right(study: Study, tmp_path: Path) -> None:
    made = study(n=200)
    found = json.loads(_evaluate(made, tmp_path / "out").metrics_json.read_text())
    assert (found["n"], found["n_patients"]) == (100, 50)
    for task in found["tasks"].values():
        assert task["n"] == 97
        for name, entry in task["metrics"].items():
            assert entry["low"] <= entry["high"]
            if name != "ece":  # its resamples lean upwards
                assert entry["low"] <= entry["value"] <= entry["high"]


def test_missing_labels_do_not_count_and_majority_is_from_training_rows(study: Study, tmp_path: Path) -> None:
    made = study(n=200)
    found = _evaluate(made, tmp_path / "out").metrics
    majority = found["tasks"]["lesion"]["majority_baseline"]
    assert majority["balanced_accuracy"] == pytest.approx(0.25)
    assert majority["auroc_macro_ovr"] == pytest.approx(0.5)
    test = made.labels[(made.labels["split"] == "test") & (made.labels["label"] != "")]
    train = made.labels[made.labels["split"] == "train"]
    top = max(CLASSES, key=lambda name: (train["label"] == name).sum())  # the first of equals
    assert majority["accuracy"] == pytest.approx((test["label"] == top).mean())
    numbers = test["fraction"].astype(float)
    expected = (numbers - train["fraction"].astype(float).mean()).abs().mean()
    assert found["tasks"]["fraction"]["majority_baseline"]["mae"] == pytest.approx(expected)


def test_gate_shares_and_both_readings(study: Study, tmp_path: Path) -> None:
    made = study(n=200)
    gate = _evaluate(made, tmp_path / "out").metrics["gate"]
    by_place = {(entry["split"], entry["site"]): entry for entry in gate["flagged_share"]}
    assert set(by_place) == {("train", "A"), ("train", "B"), ("test", "A"), ("test", "B"), ("ood", "brain")}
    joined = made.labels.merge(made.frame, on="slide_id")
    test_a = joined[(joined["split"] == "test") & (joined["site"] == "A")]
    assert by_place[("test", "A")]["flagged"] == int(test_a["ood_flag"].sum())
    assert by_place[("test", "A")]["n"] == len(test_a)
    known, foreign = joined[joined["split"] == "test"], joined[joined["split"] == "ood"]
    score = np.concatenate([known["ood_score"], foreign["ood_score"]])
    is_ood = np.repeat([0, 1], [len(known), len(foreign)])
    assert gate["separation"]["ood_score"]["auroc"]["value"] == pytest.approx(oracle.roc_auc_score(is_ood, score))
    assert set(gate["separation"]) == {"ood_score", "ood_knn"}
    assert {"id_flagged_at_95_ood_recall", "ood_missed_at_95_id_kept"} < set(gate["separation"]["ood_knn"])
    assert len(gate["flagged"]) == int(made.frame["ood_flag"].sum())
    assert "only 8 marked OOD rows" in gate["notes"][0]


def test_a_column_can_mark_ood_rows(study: Study, tmp_path: Path) -> None:
    made = study(n=120)
    made.labels["split"] = made.labels["split"].replace("ood", "test")
    made.labels["ood"] = np.where(made.labels["site"] == "brain", "yes", "no")
    made.labels.loc[made.labels["site"] == "brain", "patient"] = "foreign"
    made.labels.to_csv(made.table, index=False)
    found = _evaluate(made, tmp_path / "out").metrics
    assert (found["gate"]["n_ood"], found["gate"]["n_id"], found["n"]) == (8, 60, 68)


def test_failure_score_obeys_the_augrc_identity(study: Study, tmp_path: Path) -> None:
    entry = _evaluate(study(n=200), tmp_path / "out").metrics["failure_score"]["lesion"]
    right = 1 - entry["errors"] / entry["n"]
    expected = (1 - entry["auroc"]["value"]) * right * (1 - right) + 0.5 * (1 - right) ** 2
    assert entry["augrc"]["value"] == pytest.approx(expected, abs=1e-12)
    assert entry["risk"][-1] == pytest.approx(1 - right)


def test_same_input_same_files_but_for_the_time(study: Study, tmp_path: Path) -> None:
    made = study(n=120)
    first, second = (_evaluate(made, tmp_path / name) for name in ("a", "b"))
    for name in ("metrics_json", "metrics_md", "report_html"):
        texts = [
            getattr(result, name).read_text().replace(result.evidence.provenance.made_at, "")
            for result in (first, second)
        ]
        assert texts[0] == texts[1]


def test_rows_without_prediction_are_refused_with_their_names(study: Study, tmp_path: Path) -> None:
    made = study(n=120)
    path = made.predictions / "predictions.csv"
    frame = pd.read_csv(path)
    frame[~frame["slide_id"].isin(["slide-100", "slide-101"])].to_csv(path, index=False)
    with pytest.raises(TableError, match="2 of 60 rows of split 'test' have no prediction: slide-100, slide-101"):
        _evaluate(made, tmp_path / "out")
    found = _evaluate(made, tmp_path / "out", allow_missing=True)
    assert found.metrics["missing_predictions"] == ["slide-100", "slide-101"]
    assert found.metrics["n"] == 58
    assert "slide-101" in found.report_html.read_text()


def _break(made: object, how: str) -> None:
    labels = made.labels
    if how == "no split":
        labels = labels.drop(columns="split")
    elif how == "empty split":
        labels["split"] = "train"
    elif how == "twice":
        labels = pd.concat([labels, labels.iloc[:1]])
    elif how == "no patient":
        labels.loc[labels["slide_id"] == "slide-090", "patient"] = ""
    elif how == "stranger":
        labels.loc[labels["slide_id"] == "slide-090", "label"] = "lymphoma"
    elif how == "no column":
        labels = labels.drop(columns="fraction")
    elif how == "no labels":
        labels[["label", "fraction"]] = ""
    labels.to_csv(made.table, index=False)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no split", "has no column 'split'"),
        ("empty split", "no row of the table has split = 'test'"),
        ("twice", "slide_id 'slide-000' comes twice"),
        ("no patient", "row 'slide-090' of the table has no patient"),
        ("stranger", "lymphoma"),
        ("no column", "no column 'fraction'"),
        ("no labels", "no row of split 'test' has a label for dysplasia, lesion, grade, fraction"),
    ],
)
def test_a_wrong_table_is_refused(study: Study, tmp_path: Path, how: str, message: str) -> None:
    made = study(n=120)
    _break(made, how)
    with pytest.raises(TableError, match=message) as caught:
        _evaluate(made, tmp_path / "out")
    assert caught.value.hint


def _rewrite(made: object, **columns: object) -> None:
    path = made.predictions / "predictions.csv"
    pd.read_csv(path).assign(**columns).to_csv(path, index=False)


def test_a_patient_in_two_splits_is_refused(study: Study, tmp_path: Path) -> None:
    made = study(n=120)
    made.labels.loc[0, "patient"] = made.labels.loc[100, "patient"]
    made.labels.to_csv(made.table, index=False)
    with pytest.raises(LeakageError, match="more than one split"):
        _evaluate(made, tmp_path / "out")


def test_rows_that_training_has_seen_are_refused(study: Study, tmp_path: Path) -> None:
    made = study(n=120)
    split = made.labels.set_index("slide_id")["split"]
    _rewrite(made, model_split=split.to_numpy())
    assert _evaluate(made, tmp_path / "out").metrics["n"] == 60
    _rewrite(made, model_split=split.mask(split.index == "slide-100", "val").to_numpy())
    with pytest.raises(LeakageError, match=r"1 rows of split 'test' were in val when .* 'slide-100'"):
        _evaluate(made, tmp_path / "out")


def test_a_split_made_by_training_serves_when_the_table_has_none(study: Study, tmp_path: Path) -> None:
    made = study(n=120)
    _rewrite(made, model_split=made.labels["split"].to_numpy())
    with_split = _evaluate(made, tmp_path / "a").metrics
    made.labels.drop(columns="split").to_csv(made.table, index=False)
    assert _evaluate(made, tmp_path / "b").metrics["tasks"] == with_split["tasks"]


def test_bags_get_the_label_that_training_gives_them(study: Study, tmp_path: Path) -> None:
    """Table of patches, predictions of patients: the worst grade of a patient's patches is its label."""
    made = study(n=120)
    table = made.labels[made.labels["split"] != "ood"].rename(columns={"slide_id": "path"}).drop(columns="fraction")
    made.labels["slide_id"] = made.labels["patient"]
    frame = made.frame.iloc[: len(table) : 2].drop(columns=["fraction", "lesion", *(f"lesion:{c}" for c in CLASSES)])
    frame = frame.rename(columns={"slide_id": "patient"}).assign(patient=table["patient"].to_numpy()[::2])
    frame.to_csv(made.predictions / "predictions.csv", index=False)
    path = made.predictions / "predictions.json"
    meta = json.loads(path.read_text())
    tasks = [task for task in meta["tasks"] if task["name"] in ("grade", "dysplasia")]
    path.write_text(json.dumps({**meta, "id_column": "patient", "bag": "patient", "tasks": tasks}))
    table.to_csv(made.table, index=False)
    found = _evaluate(made, tmp_path / "out").metrics
    assert (found["n"], found["n_patients"]) == (30, 30)
    test = table[(table["split"] == "test") & (table["label"] != "")]
    worst = test["label"].map(CLASSES.index).groupby(test["patient"]).max()
    expected = np.bincount(worst, minlength=4)
    assert np.sum(found["tasks"]["grade"]["confusion_matrix"], axis=1).tolist() == expected.tolist()


def test_probabilities_before_temperature_are_compared(study: Study, tmp_path: Path) -> None:
    made = study(n=200)
    yes = 0.5 + 0.5 * np.sign(made.frame["dysplasia:yes"] - 0.5)  # as sure as can be
    _rewrite(made, **{"dysplasia:yes:uncalibrated": yes, "dysplasia:no:uncalibrated": 1 - yes})
    result = _evaluate(made, tmp_path / "out")
    task = result.metrics["tasks"]["dysplasia"]
    assert task["ece_before_temperature"]["value"] == pytest.approx(1 - task["metrics"]["accuracy"]["value"])
    assert "before calibration" in result.report_html.read_text()
    assert result.metrics["tasks"]["lesion"]["ece_before_temperature"] is None


def test_without_patients_rows_are_drawn_and_the_report_says_so(study: Study, tmp_path: Path) -> None:
    made = study(n=120)
    made.labels.drop(columns="patient").to_csv(made.table, index=False)
    result = _evaluate(made, tmp_path / "out")
    assert result.metrics["interval"]["draws"] == "slide"
    assert "patients are unknown" in result.metrics["notes"][0]
    assert "patients are unknown" in result.report_html.read_text()


def test_small_sets_are_marked(study: Study, tmp_path: Path) -> None:
    result = _evaluate(study(n=60), tmp_path / "out")
    notes = " ".join(result.metrics["tasks"]["lesion"]["notes"])
    assert "only 14 patients" in notes
    assert re.search(r"class 'adenoca' has only \d rows", notes)


def test_no_intervals_when_none_are_asked_for(study: Study, tmp_path: Path) -> None:
    found = _evaluate(study(n=60), tmp_path / "out", bootstrap=0).metrics
    assert found["tasks"]["lesion"]["metrics"]["accuracy"]["low"] is None


def test_configuration_refuses_nonsense() -> None:
    for wrong in ({"bootstrap": -1}, {"seed": -1}, {"max_slides": -1}):
        with pytest.raises(UsageError):
            EvaluateConfig(**wrong)


def test_a_data_frame_gives_the_same_numbers(study: Study, tmp_path: Path) -> None:
    made = study(n=60)
    frame = pd.read_csv(made.table, dtype=str)
    options = EvaluateConfig(bootstrap=0)
    found = [evaluate(made.predictions, table, tmp_path / "out", config=options) for table in (made.table, frame)]
    assert found[0].metrics["tasks"] == found[1].metrics["tasks"]
    assert set(found[1].evidence.provenance.inputs) == {"predictions.csv"}


def test_the_ids_may_stand_in_another_column(study: Study, tmp_path: Path) -> None:
    made = study(n=60)
    expected = _evaluate(made, tmp_path / "out").metrics["tasks"]
    table = pd.read_csv(made.table, dtype=str).rename(columns={"slide_id": "case"})
    table.to_csv(made.table, index=False)
    with pytest.raises(TableError, match="no column 'slide_id'") as caught:
        _evaluate(made, tmp_path / "out")
    assert "--id-column" in caught.value.hint
    assert _evaluate(made, tmp_path / "out", id_column="case").metrics["tasks"] == expected
    meta = json.loads((made.predictions / "predictions.json").read_text())
    (made.predictions / "predictions.json").write_text(json.dumps(meta | {"table_id_column": "case"}))
    assert _evaluate(made, tmp_path / "out").metrics["tasks"] == expected


def test_a_file_in_the_way_of_the_results_is_refused(study: Study, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("x")
    with pytest.raises(UsageError, match="is a file"):
        _evaluate(study(n=60), tmp_path / "out")


def test_small_sets_get_fewer_bins_in_the_curve_and_say_so(study: Study, tmp_path: Path) -> None:
    result = _evaluate(study(n=80), tmp_path / "out", bootstrap=0)
    curve = result.metrics["tasks"]["dysplasia"]["reliability"]
    assert len(curve) == 3
    assert min(entry["n"] for entry in curve) >= 10
    assert "3 bins of equal mass (fewer than 15" in result.report_html.read_text()


def test_sets_and_intervals_are_measured_and_thresholds_named(study: Study, tmp_path: Path) -> None:
    made = study(n=200)
    table, meta = made.predictions / "predictions.csv", made.predictions / "predictions.json"
    frame = pd.read_csv(table, keep_default_na=False)
    frame["lesion:set"] = ["normal;lgin"] * len(frame)
    frame["fraction:low"], frame["fraction:high"] = 0.0, 0.5
    frame.to_csv(table, index=False)
    bound = {"coverage": 0.9, "patients": 12, "rows": 20, "penalty": 0.0, "free": 1}
    chosen = {"rule": "youden", "value": 0.3, "sensitivity": 0.9, "specificity": 0.8, "rows": 20}
    decisions = {
        "dysplasia": {"threshold": chosen, "conformal": None},
        "lesion": {"threshold": None, "conformal": {**bound, "kind": "classes", "bound": 0.8}},
        "fraction": {"threshold": None, "conformal": {**bound, "kind": "interval", "bound": None}},
    }
    meta.write_text(json.dumps({**json.loads(meta.read_text()), "decisions": decisions}))
    found = _evaluate(made, tmp_path / "out")
    test = made.labels[(made.labels["split"] == "test") & (made.labels["label"] != "")]
    tasks = json.loads(found.metrics_json.read_text())["tasks"]
    lesion, fraction = tasks["lesion"]["metrics"], tasks["fraction"]["metrics"]
    assert lesion["set_coverage"]["value"] == pytest.approx(test["label"].isin(["normal", "lgin"]).mean())
    assert lesion["set_size"]["value"] == 2
    assert fraction["set_coverage"]["value"] == pytest.approx((test["fraction"].astype(float) <= 0.5).mean())
    assert fraction["interval_width"]["value"] == pytest.approx(0.5)
    assert "set_coverage" not in tasks["dysplasia"]["metrics"]
    assert tasks["lesion"]["majority_baseline"]["set_coverage"] is None
    page = found.report_html.read_text(encoding="utf-8")
    assert "from a probability of 0.3 on, chosen on validation by youden" in page
    assert "interval for 90% coverage from 20 validation cases of 12 patients; these patients are too few" in page
    frame["fraction:high"] = np.inf
    frame.to_csv(table, index=False)
    tasks = json.loads(_evaluate(made, tmp_path / "out").metrics_json.read_text())["tasks"]
    assert tasks["fraction"]["metrics"]["set_coverage"]["value"] == 1
    assert "interval_width" not in tasks["fraction"]["metrics"]

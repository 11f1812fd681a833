from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from histotl.core.errors import LeakageError, TableError
from histotl.learn.bags import BagStore
from histotl.learn.cohort import build_cohort, label_counts
from histotl.learn.config import TrainConfig
from histotl.learn.reading import read_table
from histotl.learn.split import split_patients
from histotl.learn.table import build_cases
from histotl.learn.task import Task

TASK = Task(name="yes", kind="binary", column="label", classes=("n", "y"))


def frame(n: int = 12) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "slide_id": [f"{i:03d}" for i in range(n)],
            "patient": [f"P{i // 2}" for i in range(n)],
            "label": ["n" if i % 2 else "y" for i in range(n)],
            "split": ["train"] * 6 + ["val"] * 4 + ["test"] * (n - 10),
        }
    )


def cases(table: pd.DataFrame, tasks: tuple[Task, ...] = (TASK,), **named: str):  # type: ignore[no-untyped-def]
    return build_cases(table, tasks, **({"id_column": "slide_id", "patient": "patient", "split": "split"} | named))


def test_a_csv_keeps_its_text(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("slide_id , patient,label,split\n001,NA,y,train\n002,P1,,val\n")
    table = read_table(path)
    found = cases(table)
    assert found.ids == ("001", "002")
    assert found.patients == ("NA", "P1")
    np.testing.assert_array_equal(found.targets["yes"], [1, np.nan])
    for content in ("slide_id,label\n", ""):
        path.write_text(content)
        with pytest.raises(TableError):
            read_table(path)
    with pytest.raises(TableError, match="cannot be read"):
        read_table(tmp_path / "absent.csv")


@pytest.mark.parametrize(
    ("change", "message", "hint"),
    [
        (lambda t: t.rename(columns={"slide_id": "slideid"}), "no column 'slide_id'", "did you mean slideid"),
        (lambda t: t.rename(columns={"label": "labels"}), "no column 'label'", "did you mean labels"),
        (lambda t: t.rename(columns={"patient": "patients"}), "no column 'patient'", "--patient slide_id"),
        (lambda t: t.assign(slide_id=["000"] * 3 + list(t.slide_id[3:])), "ids come more than once", "one row"),
        (lambda t: t.assign(split=["training"] * len(t)), "holds training", "train, val, test"),
        (lambda t: t.assign(label=["maybe"] * len(t)), "'maybe', not among its classes", "map="),
        (lambda t: t.assign(patient=[None, *list(t.patient[1:])]), "empty in 1 rows, the first is line 2", "fill"),
    ],
)
def test_wrong_tables_are_refused(change: Callable[[pd.DataFrame], pd.DataFrame], message: str, hint: str) -> None:
    with pytest.raises(TableError, match=message) as caught:
        cases(change(frame()))
    assert hint in caught.value.hint


def test_a_patient_in_two_splits_is_named() -> None:
    table = frame()
    table.loc[1, "split"] = "test"
    with pytest.raises(LeakageError, match="P0 in train and test"):
        cases(table)
    # A row without a split, or with the evaluation's "ood", is not used in training, so it leaks nothing.
    for unused in (None, "ood"):
        table.loc[1, "split"] = unused
        assert cases(table).splits[1] == ""


def test_bags_take_the_worst_any_mean_and_the_one_class() -> None:
    tasks = (
        TASK,
        Task(name="grade", kind="ordinal", classes=("a", "b", "c")),
        Task(name="size", kind="regression"),
        Task(name="type", kind="multiclass", classes=("u", "v")),
    )
    table = pd.DataFrame(
        {
            "path": ["1", "2", "3", "4"],
            "patient": ["P", "P", "Q", "Q"],
            "label": ["n", "y", None, None],
            "grade": ["c", "a", "b", None],
            "size": [1.0, 3.0, 5.0, None],
            "type": ["u", "u", "v", None],
            "split": "train",
        }
    )
    found = cases(table, tasks, id_column="path", bag="patient")
    assert found.members == (("1", "2"), ("3", "4"))
    expected = {"yes": [1, np.nan], "grade": [2, 1], "size": [2, 5], "type": [0, 1]}
    for name, values in expected.items():
        np.testing.assert_array_equal(found.targets[name], values)
    with pytest.raises(TableError, match="several classes: u, v"):
        cases(table.assign(type=["u", "v", "v", "v"]), tasks, id_column="path", bag="patient")
    with pytest.raises(LeakageError, match="several patients"):
        cases(table.assign(ward="W"), tasks, id_column="path", bag="ward")


@pytest.mark.parametrize("seed", range(5))
def test_made_splits_keep_patients_whole_and_classes_spread(seed: int) -> None:
    rng = np.random.default_rng(seed)
    patient = rng.integers(0, 60, 600)
    target = np.where(rng.random(600) < 0.05, 2.0, rng.integers(0, 2, 600)) + 0.0
    target[rng.random(600) < 0.2] = np.nan
    tasks = (Task(name="t", kind="multiclass", classes=("a", "b", "rare")), Task(name="r", kind="regression"))
    names = [f"P{p}" for p in patient]
    targets = {"t": target, "r": rng.normal(size=600)}
    splits = np.array(split_patients(names, tasks, targets, shares=(0.6, 0.2, 0.2), seed=seed))
    assert all(len(set(splits[patient == p])) == 1 for p in np.unique(patient))
    for split, share in (("train", 0.6), ("val", 0.2), ("test", 0.2)):
        assert abs((splits == split).mean() - share) < 0.06
        for c in range(3):
            assert abs((splits[target == c] == split).mean() - share) < (0.12 if c < 2 else 0.25)
    assert list(splits) == split_patients(names, tasks, targets, shares=(0.6, 0.2, 0.2), seed=seed)
    two = split_patients(names, tasks, targets, shares=(0.8, 0.2, 0), seed=seed)
    assert set(two) == {"train", "val"}


@pytest.fixture
def store(tmp_path: Path, write_slide: Callable[..., Path]) -> BagStore:
    rng = np.random.default_rng(0)
    for i in range(12):
        write_slide(tmp_path / "features_x", f"{i:03d}", rng.normal(size=(2 + i % 3, 16)))
    return BagStore.open(tmp_path / "features_x")


def test_cohort_counts_what_is_left_out(store: BagStore) -> None:
    table = frame(14)
    table = table.drop(index=3)
    table["label"] = ["y", "n"] * 6 + ["y"]
    table.loc[11, "split"] = None
    cohort = build_cohort(table, store, [TASK], TrainConfig())
    # 012 and 013 are test rows without features, 003 has features and no row, 011 has no split.
    assert cohort.notes["rows_without_features"] == 2
    assert cohort.notes["features_without_row"] == 1
    assert cohort.notes["cases_without_split"] == 1
    assert cohort.cases.ids == tuple(f"{i:03d}" for i in range(11) if i != 3)
    np.testing.assert_array_equal(cohort.bags.sizes, [2 + i % 3 for i in range(11) if i != 3])
    counts = label_counts(cohort.cases)
    assert sum(counts["yes"]["train"].values()) == 5


def test_missing_features_are_refused_unless_allowed(store: BagStore) -> None:
    table = frame()
    table["slide_id"] = table["slide_id"].replace({"001": "lost"})
    with pytest.raises(TableError, match="1 rows of train and val have no features: lost") as caught:
        build_cohort(table, store, [TASK], TrainConfig())
    assert "--allow-missing-features" in caught.value.hint
    cohort = build_cohort(table, store, [TASK], TrainConfig(allow_missing_features=True))
    assert len(cohort.bags) == 11
    with pytest.raises(TableError, match="no id of the table is among the features"):
        build_cohort(frame().assign(slide_id=[f"x{i}" for i in range(12)]), store, [TASK], TrainConfig())


def test_tasks_must_be_learnable(store: BagStore) -> None:
    table = frame()
    table.loc[:5, "label"] = "n"
    with pytest.raises(TableError, match="no row in train has the class y"):
        build_cohort(table, store, [TASK], TrainConfig())
    table.loc[:5, "label"] = None
    with pytest.raises(TableError, match="no labelled row in train"):
        build_cohort(table, store, [TASK], TrainConfig())
    with pytest.raises(TableError, match="holds no train"):
        build_cohort(frame().assign(split="test"), store, [TASK], TrainConfig())


def test_splits_are_made_when_there_are_none(store: BagStore) -> None:
    config = TrainConfig(seed=3)
    made = build_cohort(frame().drop(columns="split"), store, [TASK], config)
    assert "made here" in str(made.notes["split"])
    assert {len(made.cases.in_split(s)) > 0 for s in ("train", "val")} == {True}
    assert build_cohort(frame(), store, [TASK], replace(config, split_column="")).cases.splits == made.cases.splits
    table = frame().assign(split=["train"] * 10 + ["test"] * 2)
    carved = build_cohort(table, store, [TASK], config)
    assert "became val" in str(carved.notes["split"])
    assert list(carved.cases.splits).count("test") == 2
    assert carved.split_table("slide_id")["split"].tolist() == list(carved.cases.splits)
    with pytest.raises(TableError, match="no column 'fold'"):
        build_cohort(frame(), store, [TASK], replace(config, split_column="fold"))


def test_a_split_column_of_another_case_is_not_passed_over() -> None:
    table = frame().rename(columns={"split": "Split"})
    with pytest.raises(TableError, match="has a column 'Split'") as caught:
        cases(table)
    assert "--split-column Split" in caught.value.hint
    assert cases(table, split="Split").splits == cases(frame()).splits


def test_another_name_of_the_patient_is_offered() -> None:
    with pytest.raises(TableError) as caught:
        cases(frame().rename(columns={"patient": "case_id"}))
    assert "--patient case_id" in caught.value.hint

"""Table and features brought together: which case has which rows, checked once before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from histotl.core.errors import TableError
from histotl.learn.bags import Bags, BagStore
from histotl.learn.config import TrainConfig
from histotl.learn.covariate_specs import Covariate, parse_covariates
from histotl.learn.covariate_values import CovariateValues, read_values, refuse_answers
from histotl.learn.joining import check_cohorts, cohort_counts, join_tables
from histotl.learn.labels import hard, known_rows
from histotl.learn.reading import column
from histotl.learn.split import split_patients
from histotl.learn.table import SPLITS, Cases, build_cases, refuse_leakage
from histotl.learn.task import Task


@dataclass(frozen=True, kw_only=True, eq=False)
class Cohort:
    """Cases that have features and a split.

    Args:
        cases: The cases, in the order of the table.
        bags: The feature rows of each case, with what is known of it.
        notes: What was left out and why, as counts, and how the split came about.
        split_made: Whether the table had no split, so that one was made here.
    """

    cases: Cases
    bags: Bags
    notes: dict[str, object] = field(default_factory=dict)
    split_made: bool = False

    def subset(self, keep: npt.NDArray[np.int64]) -> Cohort:
        """Some of the cases, by their places."""
        return replace(self, cases=_take(self.cases, keep.tolist()), bags=self.bags.subset(keep))

    def of_task(self, task: Task) -> Cohort:
        """The same cases with one task's labels only; its condition has done its part in them."""
        targets = {task.name: self.cases.targets[task.name]}
        alone = replace(task, applies_if="")
        return replace(self, cases=replace(self.cases, tasks=(alone,), targets=targets))

    def with_splits(self, splits: Sequence[str]) -> Cohort:
        """The same cases in other splits.

        Raises:
            LeakageError: A patient stands in two of them.
            TableError: Train or val is empty, or train lacks labels or a class of a task.
        """
        refuse_leakage(self.cases.patients, splits)
        cases = replace(self.cases, splits=tuple(splits))
        check_labels(cases)
        return replace(self, cases=cases)

    def split_table(self, id_column: str) -> pd.DataFrame:
        """Id, patient and split of every case."""
        cases = self.cases
        return pd.DataFrame({id_column: cases.ids, "patient": cases.patients, "split": cases.splits})


def build_cohort(
    table: Path | str | pd.DataFrame, store: BagStore, tasks: Sequence[Task], config: TrainConfig
) -> Cohort:
    """Check table and features and join them.

    Args:
        table: Path of a CSV, or a DataFrame; ``config.more_tables`` are joined to it.
        store: The features.
        tasks: What is to be predicted.
        config: Names of columns and how to split.

    Raises:
        TableError: See :func:`histotl.learn.table.build_cases`; features missing; a task without labels, or with a
            class that no training case has; a covariate cannot be read; or one data set where several are to be
            balanced.
        UsageError: A covariate is the column of a task.
        LeakageError: A patient stands in two splits.
    """
    id_column = config.id_column or store.id_column
    frame, cohort_column = join_tables(table, config, id_column)
    cases = build_cases(
        frame,
        tasks,
        id_column=id_column,
        patient=config.patient,
        split=config.split_column,
        bag=config.bag,
        cohort=cohort_column,
    )
    split_made = not any(cases.splits)
    cases, made = _with_splits(cases, config)
    cohort = join(cases, store, allow_missing=config.allow_missing_features)
    check_labels(cohort.cases)
    check_cohorts(cohort.cases, config)
    covariates = parse_covariates(config.covariate)
    if covariates:
        names = {config.patient: "patient", id_column: "name of the case", config.bag: "name of the bag"}
        refuse_answers(covariates, cases.tasks, names | {config.split_column: "split"})
        values = _values(frame, covariates, cohort.cases, id_column)
        cohort = replace(cohort, bags=replace(cohort.bags, covariates=values))
    notes = cohort.notes | {"split": made, "rows_in_table": len(frame), **cohort_counts(cohort.cases)}
    return replace(cohort, notes=notes, split_made=split_made)


def _values(frame: pd.DataFrame, covariates: Sequence[Covariate], cases: Cases, id_column: str) -> CovariateValues:
    """What the table says of each case beside its labels."""
    rows = {name: row for row, name in enumerate(column(frame, id_column, flag="--id-column"))}
    return read_values(frame, covariates, [[rows[name] for name in members] for members in cases.members])


def join(cases: Cases, store: BagStore, *, allow_missing: bool) -> Cohort:
    """Cases with a split and with features.

    Raises:
        TableError: Cases of train or val lack features, and that is not allowed; or nothing matches.
    """
    place = {name: i for i, name in enumerate(store.ids)}
    found = [[place[name] for name in members if name in place] for members in cases.members]
    lacking = [name for members in cases.members for name in members if name not in place]
    needed = [
        name
        for members, split in zip(cases.members, cases.splits, strict=True)
        for name in members
        if split in ("train", "val") and name not in place
    ]
    if len(lacking) == sum(map(len, cases.members)):
        fact = f"no id of the table is among the features: table {lacking[0]!r}, features {store.ids[0]!r}"
        raise TableError(fact, hint="set --id-column to the column that names them as the features do")
    if needed and not allow_missing:
        shown = ", ".join(needed[:5]) + (f" and {len(needed) - 5} more" if len(needed) > 5 else "")
        cure = "embed them, or pass --allow-missing-features"
        raise TableError(f"{len(needed)} rows of train and val have no features: {shown}", hint=cure)
    keep = [i for i, rows in enumerate(found) if rows and cases.splits[i]]
    in_table = {name for members in cases.members for name in members}
    notes: dict[str, object] = {
        "rows_without_features": len(lacking),
        "rows_without_features_examples": lacking[:5],
        "cases_without_split": sum(not split for split in cases.splits),
        "features_without_row": sum(name not in in_table for name in store.ids),
    }
    return Cohort(cases=_take(cases, keep), bags=store.bags([found[i] for i in keep]), notes=notes)


def label_counts(cases: Cases) -> dict[str, dict[str, dict[str, int]]]:
    """Task -> split -> class, label (or ``labelled``, ``events``) -> cases; with ``missing`` for those without any."""
    counts: dict[str, dict[str, dict[str, int]]] = {}
    for task in cases.tasks:
        counts[task.name] = {}
        for split in SPLITS:
            target = cases.targets[task.name][cases.in_split(split)]
            known = target[known_rows(target)]
            counts[task.name][split] = _counts(task, known) | {"missing": len(target) - len(known)}
    return counts


def _counts(task: Task, known: npt.NDArray[np.float64]) -> dict[str, int]:
    if task.is_classification:
        index = hard(known)
        return {name: int((index == i).sum()) for i, name in enumerate(task.classes)}
    if task.nature.answers == "labels":
        return {name: int((known[:, i] == 1).sum()) for i, name in enumerate(task.classes)} | {"labelled": len(known)}
    return {"labelled": len(known)} | ({"events": int((known[:, 1] > 0).sum())} if task.event else {})


def _with_splits(cases: Cases, config: TrainConfig) -> tuple[Cases, str]:
    """Cases with splits: the table's; val taken from train where the table has none; or all made here."""
    given = set(cases.splits) - {""}
    if not given:
        splits = split_patients(
            cases.patients,
            cases.tasks,
            cases.targets,
            shares=config.fractions,
            seed=config.seed,
            groups=cases.groups(),
        )
        return replace(cases, splits=tuple(splits)), f"made here: fractions {config.fractions}, seed {config.seed}"
    if "train" not in given:
        raise TableError(f"column {config.split_column!r} holds no train", hint="mark training rows with train")
    if "val" in given:
        return cases, f"column {config.split_column!r}"
    rows = cases.in_split("train")
    share = config.fractions[1] / (config.fractions[0] + config.fractions[1])
    targets = {name: target[rows] for name, target in cases.targets.items()}
    patients = [cases.patients[row] for row in rows]
    groups = cases.groups()
    parts = split_patients(
        patients,
        cases.tasks,
        targets,
        shares=(1 - share, share, 0),
        seed=config.seed,
        groups=None if groups is None else groups[rows],
    )
    splits = list(cases.splits)
    for row, part in zip(rows, parts, strict=True):
        splits[row] = part
    made = (
        f"column {config.split_column!r} has no val: {share:.0%} of the train patients became val, seed {config.seed}"
    )
    return replace(cases, splits=tuple(splits)), made


def check_labels(cases: Cases) -> None:
    """Raise if train or val is empty, or train lacks labels or a class of a task.

    Raises:
        TableError: Says which.
    """
    for split, cure in (
        ("train", "mark some rows with train, and embed them"),
        ("val", "validation chooses and calibrates the model: mark some patients with val, and embed them"),
    ):
        if not len(cases.in_split(split)):
            raise TableError(f"no case of split {split} has features", hint=cure)
    train = cases.in_split("train")
    for task in cases.tasks:
        target = cases.targets[task.name][train]
        known = target[known_rows(target)]
        if not len(known):
            cure = "check the task's column and map, or drop the task"
            raise TableError(f"task {task.name!r} has no labelled row in train", hint=cure)
        labels = task.nature.answers == "labels"
        held = [(known[:, i] == 1 if labels else hard(known) == i).any() for i in range(task.n_classes)]
        for split in ("train", "val") if task.event else ():
            ends = cases.targets[task.name][cases.in_split(split)]
            if not (ends[:, 1] > 0).any():
                cure = (
                    "check event= of the task: 1, true or yes is an event; else move patients to it, or drop the task"
                )
                raise TableError(f"task {task.name!r}: no row of {split} has the event", hint=cure)
        absent = [name for name, found in zip(task.classes, held, strict=True) if not found]
        # With votes, a class may have learners without a majority.
        if absent and not task.votes:
            cure = "move a patient with it to train, or map it to another class or to None"
            raise TableError(f"task {task.name!r}: no row in train has the class {', '.join(absent)}", hint=cure)


def _take(cases: Cases, keep: Sequence[int]) -> Cases:
    rows: npt.NDArray[np.int64] = np.asarray(keep, dtype=np.int64)
    return replace(
        cases,
        ids=tuple(cases.ids[i] for i in keep),
        members=tuple(cases.members[i] for i in keep),
        patients=tuple(cases.patients[i] for i in keep),
        splits=tuple(cases.splits[i] for i in keep),
        targets={name: target[rows] for name, target in cases.targets.items()},
        cohorts=tuple(cases.cohorts[i] for i in keep) if cases.cohorts else (),
    )

"""The label table: read as text, checked once, one case a row or a bag of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from histotl.core.errors import LeakageError, TableError
from histotl.learn.applies import check_parents, masked
from histotl.learn.labels import known_rows
from histotl.learn.objective import Targets
from histotl.learn.reading import PATIENT_COLUMNS, column, nearest
from histotl.learn.task import Task

SPLITS = ("train", "val", "test")
OOD_SPLIT = "ood"
"""Marks foreign rows for the evaluation of the gate; training leaves them out like rows with no split."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Cases:
    """What gets one answer each: slides, patches, or bags of them. n cases.

    Args:
        ids: Name of each case.
        members: Names of features of each case: itself, or the slides or patches of a bag.
        patients: Patient of each case.
        splits: ``train``, ``val``, ``test``, or empty for a case that the table gives no split.
        tasks: Tasks with their classes known.
        targets: Task name -> float64 (n,) or (n, c), NaN where missing.
        cohorts: Data set of each case; empty where nothing says which.
    """

    ids: tuple[str, ...]
    members: tuple[tuple[str, ...], ...]
    patients: tuple[str, ...]
    splits: tuple[str, ...]
    tasks: tuple[Task, ...]
    targets: Targets
    cohorts: tuple[str, ...] = ()

    def in_split(self, split: str) -> npt.NDArray[np.int64]:
        """Places of the cases of a split."""
        return np.flatnonzero(np.array(self.splits, dtype=object) == split).astype(np.int64)

    def groups(self) -> npt.NDArray[np.int64] | None:
        """int64 (n,): number of the data set of each case; None where nothing says which."""
        return np.unique(self.cohorts, return_inverse=True)[1].astype(np.int64) if self.cohorts else None


def patient_column(frame: pd.DataFrame, name: str, id_column: str) -> list[str]:
    """Patient of each row.

    Raises:
        TableError: No such column, or a row without a patient.
    """
    if name not in frame.columns:
        near = nearest(frame, name, PATIENT_COLUMNS)
        guess = f"did you mean --patient {near}? else " if near else ""
        cure = f"{guess}--patient {id_column} says that every row is another patient"
        raise TableError(f"the table has no column {name!r} that names the patient", hint=cure)
    return filled(frame, name, flag="--patient")


def build_cases(
    frame: pd.DataFrame,
    tasks: Sequence[Task],
    *,
    id_column: str,
    patient: str,
    split: str,
    bag: str = "",
    cohort: str = "",
) -> Cases:
    """Check a table and turn it into cases. ``splits`` are all empty when the table has no split column.

    Raises:
        TableError: Unknown column, id missing or twice, value that is no class, no patient, unknown split.
        LeakageError: A patient stands in two splits.
    """
    names = filled(frame, id_column, flag="--id-column")
    twice = sorted(pd.Series(names)[pd.Series(names).duplicated()].unique())
    if twice:
        cure = "keep one row each" if bag else "keep one row each, or gather rows into bags with --bag"
        raise TableError(f"{len(twice)} ids come more than once in {id_column!r}: {_some(twice)}", hint=cure)
    patients = patient_column(frame, patient, id_column)
    splits = _splits(frame, split)
    refuse_leakage(patients, splits)
    cohorts = filled(frame, cohort, flag="--cohort-column") if cohort else []
    tasks = tuple(task.resolved(*read_columns(frame, task)) for task in tasks)
    check_parents(tasks, {task.name for task in tasks if task.is_classification})
    targets = {task.name: task.targets(*read_columns(frame, task)) for task in tasks}
    if not bag:
        members = tuple((name,) for name in names)
        return Cases(
            ids=tuple(names),
            members=members,
            patients=tuple(patients),
            splits=tuple(splits),
            tasks=tasks,
            targets=masked(tasks, targets),
            cohorts=tuple(cohorts),
        )
    bags = filled(frame, bag, flag="--bag")
    return _bagged(names, patients, splits, cohorts, bags, tasks, targets)


def read_columns(frame: pd.DataFrame, task: Task) -> list[list[str | None]]:
    """The columns that a task's labels stand in, as text.

    Raises:
        TableError: One is not in the table.
    """
    flags = {task.event: "event=", **dict.fromkeys(task.votes, "votes="), **dict.fromkeys(task.columns, "columns=")}
    return [column(frame, name, flag=f"{flags.get(name, 'column=')} of task {task.name}") for name in task.reads]


def refuse_leakage(patients: Sequence[str], splits: Sequence[str]) -> None:
    """Raise if a patient stands in two splits.

    Raises:
        LeakageError: Names the patients.
    """
    seen: dict[str, set[str]] = {}
    for patient, split in zip(patients, splits, strict=True):
        if split:
            seen.setdefault(patient, set()).add(split)
    both = sorted(patient for patient, found in seen.items() if len(found) > 1)
    if both:
        first = " and ".join(sorted(seen[both[0]], key=SPLITS.index))
        fact = f"{len(both)} patients stand in more than one split: {_some(both)} ({both[0]} in {first})"
        raise LeakageError(fact, hint="give each patient one split, or drop the split column to have one made")


def _bagged(
    names: list[str],
    patients: list[str],
    splits: list[str],
    cohorts: list[str],
    bags: list[str],
    tasks: tuple[Task, ...],
    targets: dict[str, npt.NDArray[np.float64]],
) -> Cases:
    rows: dict[str, list[int]] = {}
    for row, bag in enumerate(bags):
        rows.setdefault(bag, []).append(row)
    named = [("patients", patients), ("splits", splits), *([("cohorts", cohorts)] if cohorts else [])]
    for bag, places in rows.items():
        for what, values in named:
            found = sorted({values[place] for place in places})
            if len(found) > 1:
                raise LeakageError(f"bag {bag!r} holds rows of several {what}: {_some(found)}", hint="use finer bags")
    firsts = [places[0] for places in rows.values()]
    joined = {
        task.name: np.array([_bag_label(task, bag, targets[task.name][places]) for bag, places in rows.items()])
        for task in tasks
    }
    return Cases(
        ids=tuple(rows),
        members=tuple(tuple(names[place] for place in places) for places in rows.values()),
        patients=tuple(patients[first] for first in firsts),
        splits=tuple(splits[first] for first in firsts),
        tasks=tasks,
        targets=masked(tasks, joined),
        cohorts=tuple(cohorts[first] for first in firsts) if cohorts else (),
    )


def _bag_label(task: Task, bag: str, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64] | float:
    """Label of a bag: the worst grade, positive if any row is, the mean number, the one class that all rows have.

    Of several labels each that any row has, of votes the mean shares, of survival the one time that all rows have.
    """
    known = values[known_rows(values)]
    if not len(known):
        return np.full(values.shape[1:], np.nan) if values.ndim > 1 else float("nan")
    answers = task.nature.answers
    if answers == "labels":
        found = np.where(np.isnan(known), -1.0, known).max(axis=0)
        return np.where(found < 0, np.nan, found)
    if answers == "risk" and len(np.unique(known, axis=0)) > 1:
        cure = "give all rows of a bag the same time and event"
        raise TableError(f"task {task.name!r}: the rows of bag {bag!r} have several times or events", hint=cure)
    if values.ndim > 1:
        return np.asarray(known.mean(axis=0))
    if task.nature.worst:
        return float(known.max())
    if not task.is_classification:
        return float(known.mean())
    if len(set(known.tolist())) > 1:
        found = _some(sorted(task.classes[int(value)] for value in set(known.tolist())))
        cure = "make the task ordinal (the worst row counts), or add a column with the bag's own label"
        raise TableError(f"task {task.name!r}: the rows of bag {bag!r} have several classes: {found}", hint=cure)
    return float(known[0])


def _splits(frame: pd.DataFrame, name: str) -> list[str]:
    if not name or (name not in frame.columns and name == "split"):
        _refuse_near_split(frame, name)
        return [""] * len(frame)
    values = [(value or "").lower() for value in column(frame, name, flag="--split-column")]
    values = ["" if value == OOD_SPLIT else value for value in values]
    unknown = sorted(set(values) - {*SPLITS, ""})
    if unknown:
        raise TableError(
            f"column {name!r} holds {_some(unknown)}", hint=f"write {', '.join(SPLITS)}, {OOD_SPLIT}, or leave it empty"
        )
    if not any(values):
        raise TableError(f"column {name!r} is empty", hint="fill it, or drop the column to have a split made")
    return values


def _refuse_near_split(frame: pd.DataFrame, name: str) -> None:
    """Raise if a split would be made although the table has one, under a name of another case."""
    near = [str(label) for label in frame.columns if name and str(label).lower() == name]
    if near:
        cure = f"--split-column {near[0]}, or rename it to have a split made"
        raise TableError(f"the table has a column {near[0]!r}, but none called {name!r}", hint=cure)


def filled(frame: pd.DataFrame, name: str, *, flag: str) -> list[str]:
    """A column as text that has no empty cell.

    Raises:
        TableError: It has, or there is no such column.
    """
    values = column(frame, name, flag=flag)
    missing = [row + 2 for row, value in enumerate(values) if value is None]
    if missing:
        fact = f"column {name!r} is empty in {len(missing)} rows, the first is line {missing[0]}"
        raise TableError(fact, hint="fill it, or remove these rows")
    return [value or "" for value in values]


def _some(values: Sequence[str], limit: int = 5) -> str:
    more = f" and {len(values) - limit} more" if len(values) > limit else ""
    return ", ".join(values[:limit]) + more

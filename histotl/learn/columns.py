"""Answers as columns of the predictions: their names, and their values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from histotl.learn.applies import chances
from histotl.learn.decisions import Decision, decide, labels_of, set_columns
from histotl.learn.heads.base import Decoding
from histotl.learn.labels import NO_LABEL, SEPARATOR
from histotl.learn.task import Task

Columns = dict[str, npt.NDArray[np.generic]]
Floats = npt.NDArray[np.float64]

UNCALIBRATED = ":uncalibrated"
"""End of the names of columns with the probabilities before calibration."""

JOINT = ":joint"
"""End of the names of columns with the probability that the task applies and the class is this one."""


def probability_column(task: Task, name: str) -> str:
    """Column that holds the probability of class ``name``."""
    return f"{task.name}:{name}"


def expected_column(task: Task) -> str:
    """Column of the expected grade of a task with ordered classes."""
    return f"{task.name}:expected"


def applies_column(task: Task) -> str:
    """Column of the probability that a task with a condition applies."""
    return f"{task.name}:applies"


def columns_of(task: Task) -> list[str]:
    """Columns that a task has in the table, but for those before calibration."""
    columns = [task.name, *(probability_column(task, name) for name in task.classes)]
    if task.nature.ordered:
        columns.append(expected_column(task))
    if isinstance(task.head, Decoding):
        columns += [f"{task.name}:{extra}" for extra in task.head.extras]
    if task.applies_if:
        columns.append(applies_column(task))
        columns += [f"{probability_column(task, name)}{JOINT}" for name in task.classes]
    return columns


def is_text(task: Task) -> bool:
    """Whether the task's own column holds names of classes or labels, not a number."""
    return bool(task.classes)


def answer_columns(
    tasks: Sequence[Task],
    answers: Mapping[str, Floats],
    uncalibrated: Mapping[str, Floats],
    *,
    decisions: Mapping[str, Decision],
    ids: Sequence[str],
) -> Columns:
    """Columns of all tasks.

    Args:
        tasks: What is predicted.
        answers: Task -> (n, k) probabilities, or (n, 1 + extras).
        uncalibrated: The same of tasks with classes or labels, before calibration.
        decisions: Task -> its threshold and sets.
        ids: Name of each row.
    """
    columns: Columns = {}
    applies = chances(tasks, answers)
    for task in tasks:
        values = answers[task.name]
        if not task.classes:
            extras = task.head.extras if isinstance(task.head, Decoding) else ()
            names = [task.name, *(f"{task.name}:{extra}" for extra in extras)]
            columns |= {name: values[:, i] for i, name in enumerate(names)}
        else:
            columns[task.name] = _named(task, values, decisions.get(task.name))
            columns |= {probability_column(task, name): values[:, i] for i, name in enumerate(task.classes)}
        columns |= set_columns(task, values, decisions.get(task.name, Decision()), ids)
        if task.nature.ordered:
            columns[expected_column(task)] = values @ np.arange(task.n_classes)
        if task.name in applies:
            columns[applies_column(task)] = applies[task.name]
            names = [f"{probability_column(task, name)}{JOINT}" for name in task.classes]
            columns |= {name: values[:, i] * applies[task.name] for i, name in enumerate(names)}
        if task.name in uncalibrated:
            names = [f"{probability_column(task, name)}{UNCALIBRATED}" for name in task.classes]
            columns |= {name: uncalibrated[task.name][:, i] for i, name in enumerate(names)}
    return columns


def _named(task: Task, values: Floats, decision: Decision | None) -> npt.NDArray[np.generic]:
    """The class of each row, or its labels joined as in a label table."""
    if task.is_classification:
        return np.array(task.classes, dtype=object)[decide(task, values, decision)]
    rows = [[name for name, has in zip(task.classes, row, strict=True) if has] for row in labels_of(values, decision)]
    return np.array([SEPARATOR.join(row) or NO_LABEL for row in rows], dtype=object)

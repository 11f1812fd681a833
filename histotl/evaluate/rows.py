"""Predictions meet the label table: which rows are evaluated, what their labels are, who their patients are."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from histotl.core.errors import TableError
from histotl.evaluate.cases import build, refuse_shared_patients, refuse_trained_on, refuse_twice
from histotl.evaluate.config import EvaluateConfig
from histotl.evaluate.metrics import Floats
from histotl.evaluate.results import Answers
from histotl.learn.columns import UNCALIBRATED, columns_of, expected_column, probability_column
from histotl.learn.decisions import HIGH, LABEL_FROM, LOW, SET
from histotl.learn.heads.base import Spread
from histotl.learn.labels import as_text, hard, joined_targets, known_rows, split_cell
from histotl.learn.predictions import Predictions
from histotl.learn.task import Task

OUTSIDE = "(not in the table)"
OOD_SPLIT = "ood"
TRAIN_SPLIT = "train"
_TRUE = ("1", "true", "yes", "y", "ood")


@dataclass(frozen=True, kw_only=True, eq=False)
class Joined:
    """Predictions and labels side by side.

    Args:
        predicted: Predictions of the evaluated rows (n rows).
        names: Their identifiers.
        targets: Task name -> label of each (n,) or (n, c), NaN where missing.
        unit_names: Patient of each, or the row's own identifier when the table has no patient column.
        by_patient: Whether ``unit_names`` are patients.
        train_targets: Task name -> labels of the training rows, for the baseline.
        everything: All predictions with ``name``, ``split``, ``site``, ``unit_name`` and ``marked_ood``, for the gate.
        missing: Rows of the split without a prediction.
        outside: Predictions that the table does not know.
    """

    predicted: pd.DataFrame
    names: tuple[str, ...]
    targets: Mapping[str, Floats]
    unit_names: tuple[str, ...]
    by_patient: bool
    train_targets: Mapping[str, Floats]
    everything: pd.DataFrame
    missing: tuple[str, ...]
    outside: int


def join(predictions: Predictions, table: pd.DataFrame, config: EvaluateConfig) -> Joined:
    """Join on the identifier and pick the rows of the split.

    Raises:
        TableError: A column is missing, an identifier comes twice, the split is empty, rows have no prediction (unless
            ``allow_missing``), a row has no patient, or a label is no class.
        LeakageError: A patient stands in two splits, or the model was trained on rows of the evaluated split.
    """
    frame = predictions.frame.set_index(predictions.id_column, drop=False)
    refuse_twice(frame.index, f"{predictions.folder}")
    cases = build(predictions, table, config)
    splits = cases.frame[config.split_column].to_numpy(dtype=object)
    by_patient = config.patient in cases.frame.columns
    if by_patient:
        refuse_shared_patients(cases.frame, list(splits), config)
    inside = splits == config.split
    if not inside.any():
        held = ", ".join(sorted(set(splits) - {""})) or "no split at all"
        raise TableError(f"no row of the table has {config.split_column} = {config.split!r}", hint=f"it has: {held}")
    known = cases.frame.index.isin(frame.index)
    missing = tuple(map(str, cases.frame.index[inside & ~known]))
    _check_missing(missing, int(inside.sum()), config)
    kept, names = np.flatnonzero(inside & known), tuple(map(str, cases.frame.index[inside & known]))
    predicted = frame.loc[list(names)]
    refuse_trained_on(predicted, config)
    return Joined(
        predicted=predicted,
        names=names,
        targets={name: values[kept] for name, values in cases.targets.items()},
        unit_names=_patients(cases.frame.iloc[kept], config) if by_patient else names,
        by_patient=by_patient,
        train_targets={name: values[splits == TRAIN_SPLIT] for name, values in cases.targets.items()},
        everything=_everything(frame, cases.frame, config),
        missing=missing,
        outside=int((~frame.index.isin(cases.frame.index)).sum()),
    )


def answers_of(task: Task, joined: Joined) -> Answers | None:
    """Answers of one task on its labelled rows; None when no row has a label.

    Raises:
        TableError: A prediction is no class, or no finite number.
    """
    target = joined.targets[task.name]
    kept = np.flatnonzero(known_rows(target))
    if not len(kept):
        return None
    frame, names = joined.predicted.iloc[kept], [joined.names[i] for i in kept]
    units = [joined.unit_names[i] for i in kept]
    nothing = np.zeros(len(kept))
    answers = Answers(
        name=task.name,
        kind=task.kind,
        answers=task.nature.answers,
        classes=task.classes,
        names=tuple(names),
        truth=nothing,
        predicted=nothing,
        probability=None,
        unit=pd.factorize(np.asarray(units, dtype=object))[0].astype(np.int64),
    )
    if task.nature.answers in ("classes", "number"):
        truth = hard(target[kept]) if task.is_classification else target[kept]
        covered, size = _sets(frame, task, truth) or (None, None)
        answers = dataclasses.replace(answers, covered=covered, set_size=size)
    fill = {"classes": _classes, "labels": _labels, "number": _values, "risk": _risk}[task.nature.answers]
    return fill(answers, task, target[kept], frame)


def _classes(answers: Answers, task: Task, target: Floats, frame: pd.DataFrame) -> Answers:
    before = [f"{probability_column(task, name)}{UNCALIBRATED}" for name in task.classes]
    return dataclasses.replace(
        answers,
        truth=hard(target),
        predicted=_class_index(frame[task.name], task),
        shares=target if task.votes else None,
        probability=_numbers(frame, [probability_column(task, name) for name in task.classes], task),
        uncalibrated=_numbers(frame, before, task) if set(before) <= set(frame.columns) else None,
        expected=_numbers(frame, [expected_column(task)], task)[:, 0] if task.nature.ordered else None,
    )


def _labels(answers: Answers, task: Task, target: Floats, frame: pd.DataFrame) -> Answers:
    p = _numbers(frame, [probability_column(task, name) for name in task.classes], task)
    cells = [split_cell(value) for value in frame[task.name]]
    if None in cells:
        fact = f"predictions column {task.name!r} is empty in row {cells.index(None) + 1}"
        raise TableError(fact, hint="predict again; a case without any label has the answer none")
    predicted = joined_targets(f"predictions column {task.name!r}", cells, task.classes)
    return dataclasses.replace(answers, truth=target, predicted=predicted, probability=p)


def _values(answers: Answers, task: Task, target: Floats, frame: pd.DataFrame) -> Answers:
    values = _numbers(frame, columns_of(task), task)
    interval = task.head.central(values) if isinstance(task.head, Spread) else None
    return dataclasses.replace(answers, truth=target, predicted=values[:, 0], interval=interval)


def _risk(answers: Answers, task: Task, target: Floats, frame: pd.DataFrame) -> Answers:
    risk = _numbers(frame, [task.name], task)[:, 0]
    return dataclasses.replace(answers, truth=target[:, 0], event=target[:, 1] > 0, predicted=risk)


def majority_of(task: Task, answers: Answers, joined: Joined, config: EvaluateConfig) -> tuple[Answers, str]:
    """The same rows answered without looking: most frequent class and class shares, mean value, or one same risk.

    Returns:
        The answers, and where the frequencies are from: ``train`` or the evaluated split itself when the table has no
        labelled training rows.
    """
    target = joined.train_targets[task.name]
    seen, source = target[known_rows(target)], TRAIN_SPLIT
    if not len(seen):
        target = joined.targets[task.name]
        seen, source = target[known_rows(target)], config.split
    n, k = len(answers), task.n_classes
    blind = dataclasses.replace(
        answers, probability=None, expected=None, uncalibrated=None, interval=None, covered=None
    )
    if answers.answers == "risk":
        return dataclasses.replace(blind, predicted=np.zeros(n)), source
    if answers.answers == "number":
        ends = None if answers.interval is None else np.tile(np.quantile(seen, [0.05, 0.95]), (n, 1))
        return dataclasses.replace(blind, predicted=np.full(n, seen.mean()), interval=ends), source
    if answers.answers == "labels":
        known = (~np.isnan(seen)).sum(axis=0)
        p = np.tile(np.nansum(seen, axis=0) / np.maximum(known, 1), (n, 1))
        return dataclasses.replace(blind, predicted=(p >= LABEL_FROM).astype(np.float64), probability=p), source
    shares = seen.mean(axis=0) if seen.ndim == 2 else np.bincount(seen.astype(np.int64), minlength=k) / len(seen)
    grade = np.full(n, shares @ np.arange(k)) if answers.expected is not None else None
    predicted, probability = np.full(n, float(shares.argmax())), np.tile(shares, (n, 1))
    return dataclasses.replace(blind, predicted=predicted, probability=probability, expected=grade), source


def _check_missing(missing: Sequence[str], n: int, config: EvaluateConfig) -> None:
    if not missing or (config.allow_missing and len(missing) < n):
        return
    shown = ", ".join(missing[:10]) + (f" and {len(missing) - 10} more" if len(missing) > 10 else "")
    cure = "predict them, or --allow-missing to evaluate the others" if len(missing) < n else "predict them first"
    raise TableError(f"{len(missing)} of {n} rows of split {config.split!r} have no prediction: {shown}", hint=cure)


def _patients(labels: pd.DataFrame, config: EvaluateConfig) -> tuple[str, ...]:
    patients = labels[config.patient].map(as_text)
    if patients.isna().any():
        name = labels.index[patients.isna()][0]
        cure = "fill it in: the intervals draw patients"
        raise TableError(f"row {name!r} of the table has no {config.patient}", hint=cure)
    return tuple(patients)


def _everything(frame: pd.DataFrame, table: pd.DataFrame, config: EvaluateConfig) -> pd.DataFrame:
    """All predictions with what the table knows of them."""
    known = table.reindex(frame.index)

    def texts(name: str, empty: str) -> list[str]:
        values = known[name] if name in known.columns else pd.Series(None, index=known.index, dtype=object)
        return [as_text(value) or empty for value in values]

    names = [str(name) for name in frame.index]
    split = [
        value or ("" if name in table.index else OUTSIDE)
        for name, value in zip(names, texts(config.split_column, ""), strict=True)
    ]
    marks = [mark.lower() in _TRUE for mark in texts(config.ood, "")]
    patients = texts(config.patient, "")
    return frame.reset_index(drop=True).assign(
        name=names,
        split=split,
        site=texts(config.site, ""),
        unit_name=[patient or name for patient, name in zip(patients, names, strict=True)],
        marked_ood=[mark or part == OOD_SPLIT for mark, part in zip(marks, split, strict=True)],
    )


def _numbers(frame: pd.DataFrame, columns: Sequence[str], task: Task) -> Floats:
    values = frame[list(columns)].to_numpy(dtype=np.float64, na_value=np.nan)
    bad = ~np.isfinite(values).all(axis=1)
    if bad.any():
        name = frame.index[bad][0]
        raise TableError(f"task {task.name!r}: the prediction of {name!r} is no finite number", hint="predict again")
    return np.asarray(values)


def _sets(frame: pd.DataFrame, task: Task, truth: Floats) -> tuple[Floats, Floats] | None:
    """Whether the set or interval of each row holds the truth, and its size; None when the model gives none."""
    if not task.is_classification:
        if not {task.name + LOW, task.name + HIGH} <= set(frame.columns):
            return None
        low, high = (frame[task.name + end].to_numpy(dtype=np.float64) for end in (LOW, HIGH))
        return np.asarray((low <= truth) & (truth <= high), dtype=np.float64), np.asarray(high - low)
    if task.name + SET not in frame.columns:
        return None
    sets = [set(str(text).split(";")) for text in frame[task.name + SET]]
    held = [task.classes[int(label)] in members for label, members in zip(truth, sets, strict=True)]
    return np.array(held, dtype=np.float64), np.array([len(members) for members in sets], dtype=np.float64)


def _class_index(predicted: pd.Series, task: Task) -> Floats:
    index: dict[str, int] = {name: i for i, name in enumerate(task.classes)}
    texts = [as_text(value) or "" for value in predicted]
    strangers = sorted(set(texts) - set(index))
    if strangers:
        raise TableError(f"task {task.name!r}: predicted {strangers[0]!r} is no class", hint="predict again")
    return np.array([index[text] for text in texts], dtype=np.float64)

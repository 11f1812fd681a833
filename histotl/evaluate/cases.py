"""The label table as one row a case, with the labels of every task, and the checks against leakage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from histotl.core.errors import LeakageError, TableError
from histotl.evaluate.config import EvaluateConfig
from histotl.evaluate.metrics import Floats
from histotl.learn.applies import masked
from histotl.learn.labels import as_text
from histotl.learn.predictions import Predictions
from histotl.learn.reading import column, with_ids
from histotl.learn.table import SPLITS, build_cases, read_columns, refuse_leakage

MODEL_SPLIT = "model_split"
"""Column of the predictions with the split in which training used the row."""

_ROW = "row of the table"


@dataclass(frozen=True, kw_only=True, eq=False)
class Cases:
    """The table as one row a case (slide, patch or bag). m cases.

    Args:
        frame: Indexed by the case's name.
        targets: Task name -> float64 (m,) or (m, c), NaN where missing.
    """

    frame: pd.DataFrame
    targets: Mapping[str, Floats]


def build(predictions: Predictions, table: pd.DataFrame, config: EvaluateConfig) -> Cases:
    """One row a case; the rows of a bag become one, with the labels that training gives a bag.

    Raises:
        TableError: A column is missing, an identifier is empty or comes twice, or a label is no class.
        LeakageError: A bag holds rows of several splits or patients.
    """
    table = _with_split(table, predictions, config)
    key, bag = predictions.id_column, predictions.meta.get("bag")
    read = {task.name: read_columns(table, task) for task in predictions.tasks}
    if not bag:
        frame = table.set_index(key, drop=False)
        refuse_twice(frame.index, "the table")
        targets = {task.name: task.targets(*read[task.name]) for task in predictions.tasks}
        return Cases(frame=frame, targets=masked(predictions.tasks, targets))
    for name in (config.split_column, config.patient):
        if name != key and name in table.columns and table[[key, name]].drop_duplicates()[key].duplicated().any():
            raise LeakageError(f"bags of {key!r} hold rows of several values of {name!r}", hint="use finer bags")
    patient = config.patient if config.patient in table.columns else key
    numbered = table.copy()
    numbered[_ROW] = range(len(table))
    bags = build_cases(numbered, predictions.tasks, id_column=_ROW, patient=patient, split="", bag=str(bag))
    first = table.drop_duplicates(key).set_index(key, drop=False)
    return Cases(frame=first.loc[list(bags.ids)], targets=bags.targets)


def refuse_twice(names: pd.Index, where: str) -> None:
    """Raise if a name comes twice."""
    twice = names[names.duplicated()].astype(str).unique()
    if len(twice):
        raise TableError(f"{where}: {names.name} {twice[0]!r} comes twice", hint="keep one row of each")


def refuse_shared_patients(frame: pd.DataFrame, splits: Sequence[str], config: EvaluateConfig) -> None:
    """Raise if a patient stands in two of train, val and test.

    Raises:
        LeakageError: Names the patients.
    """
    patients = [as_text(value) or "" for value in frame[config.patient]]
    pairs = [(who, part) for who, part in zip(patients, splits, strict=True) if who and part in SPLITS]
    refuse_leakage([who for who, _ in pairs], [part for _, part in pairs])


def refuse_trained_on(predicted: pd.DataFrame, config: EvaluateConfig) -> None:
    """Raise if rows are to be evaluated as unseen that training has used.

    Raises:
        LeakageError: Names one of them.
    """
    if MODEL_SPLIT not in predicted.columns or config.split in ("train", "val"):
        return
    seen = predicted[MODEL_SPLIT].isin(["train", "val"])
    if seen.any():
        name, part = predicted.index[seen][0], predicted[MODEL_SPLIT][seen].iloc[0]
        fact = f"{int(seen.sum())} rows of split {config.split!r} were in {part} when the model was trained: {name!r} …"
        raise LeakageError(fact, hint="evaluate with the table that the model was trained with")


def _with_split(table: pd.DataFrame, predictions: Predictions, config: EvaluateConfig) -> pd.DataFrame:
    """The table with clean names and a lower-case split: its own, else the one that training made."""
    key, table = predictions.id_column, with_ids(table, predictions.id_column).copy()
    trained = str(predictions.meta.get("table_id_column") or "")
    names = config.id_column or (trained if trained in table.columns else key)
    table[key] = column(table, names, flag="--id-column")
    if table[key].isna().any():
        line = int(np.flatnonzero(table[key].isna())[0]) + 2
        raise TableError(f"column {names!r} is empty in line {line}", hint="fill it, or remove the row")
    if config.split_column in table.columns:
        table[config.split_column] = [(as_text(value) or "").lower() for value in table[config.split_column]]
        return table
    if MODEL_SPLIT not in predictions.frame.columns:
        column(table, config.split_column, flag="--split-column")
    made = dict(zip(predictions.frame[key], predictions.frame[MODEL_SPLIT], strict=True))
    table[config.split_column] = [as_text(made.get(name)) or "" for name in table[key]]
    return table

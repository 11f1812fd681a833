"""Label tables of several cohorts, brought together into one.

Cohorts seldom have the same labels: a column that a table lacks is empty in its rows, and an empty cell is a missing
label. Everything else must be there in every table, and no name may stand for two cases.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from histotl.core.errors import TableError
from histotl.learn.config import TrainConfig
from histotl.learn.reading import read_table, with_ids
from histotl.learn.table import SPLITS, Cases, filled, patient_column

TABLE_COLUMN = "(table)"
"""Column that says which table a row is from, where each table is a data set."""

Table = Path | str | pd.DataFrame


def join_tables(table: Table, config: TrainConfig, id_column: str) -> tuple[pd.DataFrame, str]:
    """The rows of the table and of those in ``config.more_tables``, one after the other.

    Args:
        table: Path of a CSV, or a DataFrame.
        config: Names of columns.
        id_column: Column of ids; ``slide_id`` goes by other names too.

    Returns:
        Every value as text, and the column that names each row's data set: empty where nothing does.

    Raises:
        TableError: A table cannot be read, is given twice, or lacks ids, patients, bags, data sets or, unlike another,
            splits; or an id stands in two tables.
    """
    if not config.more_tables:
        return with_ids(read_table(table), id_column), config.cohort_column
    tables = [table, *config.more_tables]
    frames = {_name(each): with_ids(read_table(each), id_column) for each in tables}
    if len(frames) < len(tables):
        names = [_name(each) for each in tables]
        twice = next(name for name in names if names.count(name) > 1)
        raise TableError(f"{twice} is given twice", hint="name each table once")
    for name, frame in frames.items():
        _check_columns(name, frame, config, id_column)
    _refuse_same_ids(frames, id_column)
    _refuse_some_splits(frames, config.split_column)
    if not config.cohort_column:
        frames = {name: frame.assign(**{TABLE_COLUMN: name}) for name, frame in frames.items()}
    columns = list(dict.fromkeys(label for frame in frames.values() for label in frame.columns))
    # Columns of one type each: what is joined stays as it was read.
    parts = [frame.astype(object).reindex(columns=columns).astype(object) for frame in frames.values()]
    return pd.concat(parts, ignore_index=True), config.cohort_column or TABLE_COLUMN


def check_cohorts(cases: Cases, config: TrainConfig) -> None:
    """Raise if data sets are to be balanced, and the training cases are all of one.

    Raises:
        TableError: Names it.
    """
    found = {cases.cohorts[row] for row in cases.in_split("train")} if cases.cohorts else set[str]()
    if config.sampling == "dataset_balanced" and len(found) == 1:
        cure = "check --cohort-column, or drop --sampling dataset_balanced"
        raise TableError(f"all training cases are of one data set, {found.pop()!r}", hint=cure)


def cohort_counts(cases: Cases) -> dict[str, dict[str, dict[str, int]]]:
    """``cohorts``: data set -> split -> cases, as a note; nothing where nothing says which they are of."""
    if not cases.cohorts:
        return {}
    counts = {name: dict.fromkeys(SPLITS, 0) for name in sorted(set(cases.cohorts))}
    for name, split in zip(cases.cohorts, cases.splits, strict=True):
        counts[name][split] += 1
    return {"cohorts": counts}


def _name(table: Table) -> str:
    return "the table" if isinstance(table, pd.DataFrame) else str(table)


def _check_columns(name: str, frame: pd.DataFrame, config: TrainConfig, id_column: str) -> None:
    """Raise if a column that every table must have is not there or has gaps; the message names the table."""
    try:
        filled(frame, id_column, flag="--id-column")
        patient_column(frame, config.patient, id_column)
        for wanted, flag in ((config.bag, "--bag"), (config.cohort_column, "--cohort-column")):
            if wanted:
                filled(frame, wanted, flag=flag)
    except TableError as error:
        raise TableError(f"{name}: {error.message}", hint=error.hint) from error


def _refuse_same_ids(frames: Mapping[str, pd.DataFrame], id_column: str) -> None:
    """Raise if an id stands in two tables; within one it is looked for later."""
    owner: dict[str, str] = {}
    for name, frame in frames.items():
        ids = set(filled(frame, id_column, flag="--id-column"))
        both = sorted(ids & owner.keys())
        if both:
            shown = ", ".join(both[:5]) + (f" and {len(both) - 5} more" if len(both) > 5 else "")
            cure = "give the slides of one cohort other names, in its table and its features"
            raise TableError(f"{owner[both[0]]} and {name} have {len(both)} ids in common: {shown}", hint=cure)
        owner |= dict.fromkeys(ids, name)


def _refuse_some_splits(frames: Mapping[str, pd.DataFrame], column: str) -> None:
    """Raise if some tables have a split and others none, whose cases would all be left out."""
    has = {name: column in frame.columns for name, frame in frames.items()}
    if any(has.values()) and not all(has.values()):
        one, other = (next(name for name, found in has.items() if found is wanted) for wanted in (True, False))
        cure = "add it to all tables, or drop it from all to have splits made"
        raise TableError(f"{one} has a column {column!r}, {other} has none", hint=cure)

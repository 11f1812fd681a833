"""Label tables as people have them: commas, semicolons or tabs, and the names of columns that other tools use."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from histotl.core.errors import TableError
from histotl.learn.labels import as_text
from histotl.wsi.manifest import ID_COLUMNS, PATH_COLUMNS

SLIDE_COLUMN = "slide_id"

PATIENT_COLUMNS = ("patient_id", "case_id", "case", "subject_id", "subject", "donor_id", "donor")
"""Names that others give the column of patients; they are offered, never taken by themselves."""


def read_table(table: Path | str | pd.DataFrame) -> pd.DataFrame:
    """The table with every value as text; empty cells are missing, empty rows are left out.

    Raises:
        TableError: The file cannot be read, a column is there twice, or there is no row.
    """
    frame = _from_frame(table) if isinstance(table, pd.DataFrame) else _from_file(Path(table))
    name = "the table" if isinstance(table, pd.DataFrame) else str(table)
    frame.columns = pd.Index([str(label).strip() for label in frame.columns], dtype=object)
    twice = frame.columns[frame.columns.duplicated()].unique().tolist()
    if twice:
        raise TableError(f"{name}: column {twice[0]!r} is there twice", hint="rename or remove one")
    if frame.empty:
        raise TableError(f"{name} has no rows", hint="give one row a slide or patch")
    return frame


def _from_frame(table: pd.DataFrame) -> pd.DataFrame:
    # An index with a name, as set_index leaves it, is a column like the others.
    return table.reset_index(drop=table.index.name is None or table.index.name in table.columns)


def _from_file(table: Path) -> pd.DataFrame:
    try:
        with table.open(encoding="utf-8-sig") as file:
            first = file.readline()
        # Without header=None, pandas would rename a second column of one name, and shift rows that are too long.
        frame = pd.read_csv(
            table,
            sep=max(",;\t", key=first.count),
            header=None,
            dtype=str,
            keep_default_na=False,
            na_values=[""],
            encoding="utf-8-sig",
        )
    except UnicodeDecodeError as error:
        raise TableError(f"{table} is not UTF-8 text: {error.reason}", hint="save it as CSV UTF-8") from error
    except pd.errors.ParserError as error:
        fact = f"{table} cannot be read: {str(error).strip()}"
        raise TableError(fact, hint="give every row as many cells as the header; quote cells with commas") from error
    except OSError as error:
        raise TableError(f"{table} cannot be read: {error.strerror}", hint="give a CSV file") from error
    except ValueError as error:
        raise TableError(f"{table} cannot be read: {error}", hint="give a CSV file with one row a case") from error
    names = [f"column {i}" if pd.isna(name) else str(name) for i, name in enumerate(frame.iloc[0], 1)]
    return frame.iloc[1:].dropna(how="all").reset_index(drop=True).set_axis(names, axis=1)


def column(frame: pd.DataFrame, name: str, *, flag: str) -> list[str | None]:
    """A column as text, None where missing.

    Raises:
        TableError: There is no such column; the hint gives the nearest.
    """
    if name not in frame.columns:
        near = nearest(frame, name)
        columns = ", ".join(map(str, frame.columns[:20]))
        cure = f"did you mean {near}? say so with {flag}" if near else f"set {flag} to one of: {columns}"
        raise TableError(f"the table has no column {name!r}", hint=cure)
    return [as_text(value) for value in frame[name].tolist()]


def nearest(frame: pd.DataFrame, name: str, others: Sequence[str] = ()) -> str:
    """The column that was meant, perhaps: of another case, one of ``others``, or of nearly that name; else empty."""
    lower = {_plain(label): str(label) for label in frame.columns}
    found = next((lower[known] for known in (_plain(name), *others) if known in lower), "")
    return found or next(iter(difflib.get_close_matches(name, map(str, frame.columns), n=1, cutoff=0.6)), "")


def with_ids(frame: pd.DataFrame, id_column: str) -> pd.DataFrame:
    """The table with the column of slide names, which ``tile`` and ``embed`` find under other names too.

    Without ``slide_id``, it is one of the columns that mean the same, else the file names without suffix.

    Args:
        frame: The table.
        id_column: The column wanted; only ``slide_id`` has other names.
    """
    if id_column != SLIDE_COLUMN or id_column in frame.columns:
        return frame
    lower = {_plain(label): str(label) for label in frame.columns}
    named = next((lower[name] for name in ID_COLUMNS if name in lower), None)
    if named is not None:
        return frame.assign(**{id_column: frame[named]})
    file = next((lower[name] for name in PATH_COLUMNS if name in lower), None)
    if file is None:
        return frame
    stems = pd.Series([_stem(as_text(value)) for value in frame[file].tolist()], index=frame.index, dtype=object)
    return frame.assign(**{id_column: stems})


def _stem(path: str | None) -> str | None:
    if path is None:
        return None
    place = Path(path.replace("\\", "/"))
    return place.stem.removesuffix(".ome") if place.suffix.lower() in (".tif", ".tiff") else place.stem


def _plain(label: object) -> str:
    return re.sub(r"[\s\-]+", "_", str(label).strip().lower())

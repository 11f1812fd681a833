"""Cells of a label table as targets: classes, labels, votes, numbers, times. Missing ones are NaN."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from histotl.core.errors import TableError

Floats = npt.NDArray[np.float64]

SEPARATOR = ";"
"""Stands between the labels of one cell."""

NO_LABEL = "none"
"""A cell that says that a row has none of the labels, which an empty one does not say."""

YES, NO = ("1", "true", "yes", "y"), ("0", "false", "no", "n")
"""Words of a column that holds one label, or whether an event was seen."""

_WHOLE = re.compile(r"^([+-]?\d+)\.0+$")


def as_text(value: object) -> str | None:
    """A table value as text, None where missing; 1, 1.0 and "1" are the same."""
    if value is None or value is pd.NA or value is pd.NaT:
        return None
    if isinstance(value, float | np.floating):
        if math.isnan(value):
            return None
        return str(int(value)) if float(value).is_integer() else repr(float(value))
    return str(value).strip() or None


def label_text(value: object) -> str | None:
    """As :func:`as_text`, and "1.0", which a table program makes of 1 in a column with gaps, is "1"."""
    text = as_text(value)
    return text if text is None else _WHOLE.sub(r"\1", text)


def shown(values: Sequence[str], limit: int = 6) -> str:
    """Some of them in quotes, for a message."""
    more = f" and {len(values) - limit} more" if len(values) > limit else ""
    return ", ".join(repr(value) for value in values[:limit]) + more


def known_rows(target: Floats) -> npt.NDArray[np.bool_]:
    """Which rows (n,) of targets (n,) or (n, c) have a label; of several labels, at least one."""
    return np.asarray(~np.isnan(target) if target.ndim == 1 else ~np.isnan(target).all(axis=1))


def hard(target: Floats) -> Floats:
    """Class index of each row (n,) from class indices (n,) or shares of votes (n, k); the lowest of a tie.

    NaN where missing.
    """
    if target.ndim == 1:
        return target
    return np.where(known_rows(target), np.nan_to_num(target).argmax(axis=1), np.nan)


def class_targets(where: str, texts: Sequence[str | None], classes: Sequence[str]) -> Floats:
    """Index of the class (n,).

    Args:
        where: Task and column, for messages.
        texts: Values after the map.
        classes: In order.

    Raises:
        TableError: Values that are no class; the message lists them.
    """
    index = {name: float(i) for i, name in enumerate(classes)}
    _refuse_strangers(where, {text for text in texts if text is not None}, index)
    return np.array([np.nan if text is None else index[text] for text in texts], dtype=np.float64)


def number_targets(where: str, texts: Sequence[str | None]) -> Floats:
    """Numbers (n,).

    Raises:
        TableError: Values that are no finite numbers; the message lists them.
    """
    numbers = [np.nan if text is None else _number(text) for text in texts]
    bad = sorted({str(text) for text, number in zip(texts, numbers, strict=True) if number is None})
    if bad:
        cure = "give numbers with a decimal point, or map the words to numbers or None"
        raise TableError(f"{where} holds {shown(bad)}, no finite numbers", hint=cure)
    return np.array(numbers, dtype=np.float64)


def flag_targets(where: str, values: Iterable[object]) -> Floats:
    """1 for yes, 0 for no (n,).

    Raises:
        TableError: Other words; the message lists them.
    """
    texts = [None if text is None else text.lower() for text in map(label_text, values)]
    strange = sorted({text for text in texts if text is not None and text not in (*YES, *NO)})
    if strange:
        raise TableError(f"{where} holds {shown(strange)}, neither yes nor no", hint="write 1 or 0, or leave it empty")
    return np.array([np.nan if text is None else float(text in YES) for text in texts], dtype=np.float64)


def joined_targets(where: str, cells: Sequence[Sequence[str] | None], classes: Sequence[str]) -> Floats:
    """1 for each label that a cell names, else 0 (n, k); a missing cell is NaN in all.

    Args:
        where: Task and column, for messages.
        cells: From :func:`split_cell`, after the map.
        classes: The labels in order.

    Raises:
        TableError: A name that is no label.
    """
    index = {name: float(i) for i, name in enumerate(classes)}
    _refuse_strangers(where, {name for cell in cells for name in cell or ()}, index)
    rows = np.full((len(cells), len(classes)), np.nan)
    for row, cell in zip(rows, cells, strict=True):
        if cell is not None:
            row[:] = 0.0
            row[[int(index[name]) for name in cell]] = 1.0
    return rows


def split_cell(value: object) -> tuple[str, ...] | None:
    """Names in a cell, joined by ``;``; none for ``none`` or a lone ``;``; None for an empty cell."""
    text = as_text(value)
    if text is None:
        return None
    names = [name for name in (label_text(part) for part in text.split(SEPARATOR)) if name]
    return () if [name.lower() for name in names] == [NO_LABEL] else tuple(names)


def vote_targets(where: str, columns: Sequence[Sequence[str | None]], names: Sequence[str]) -> Floats:
    """Shares of the votes (n, k), rows summing to 1; NaN where a cell is empty or all are 0.

    Args:
        where: Task, for messages.
        columns: Values of each column, as counts or shares.
        names: Of the columns.

    Raises:
        TableError: Values that are no numbers, or negative.
    """
    counts = np.stack([number_targets(f"{where} column {n!r}", c) for n, c in zip(names, columns, strict=True)], axis=1)
    if (counts < 0).any():
        cure = "give counts or shares of 0 or more"
        raise TableError(f"{where} columns of votes hold {np.nanmin(counts):g}", hint=cure)
    total = counts.sum(axis=1, keepdims=True)
    return np.where(total > 0, counts / np.where(total > 0, total, 1.0), np.nan)


def time_targets(where: str, times: Sequence[str | None], events: Iterable[object], names: tuple[str, str]) -> Floats:
    """Time, and 1 where the event was seen (n, 2); NaN in both where either is missing.

    Raises:
        TableError: Times that are no numbers or not above 0, or words that say neither yes nor no.
    """
    time = number_targets(f"{where} column {names[0]!r}", times)
    if (time <= 0).any():
        cure = "give the time from the beginning to the event or the last look, above 0"
        raise TableError(f"{where} column {names[0]!r} holds the time {np.nanmin(time):g}", hint=cure)
    both = np.stack([time, flag_targets(f"{where} column {names[1]!r}", events)], axis=1)
    both[np.isnan(both).any(axis=1)] = np.nan
    return both


def clean_map(mapping: Mapping[str, str | None]) -> dict[str, str | None]:
    """Keys and values as :func:`label_text` gives them."""
    return {label_text(key) or "": label_text(value) for key, value in mapping.items()}


def _refuse_strangers(where: str, found: set[str], index: Mapping[str, float]) -> None:
    bad = sorted(found - index.keys())
    if bad:
        cure = f"name them in map=, as one of {', '.join(index)} or None"
        raise TableError(f"{where} holds {shown(bad)}, not among its classes", hint=cure)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None

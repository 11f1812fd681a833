"""Small tables beside a run's results: one frozen dataclass of texts a row, one column a field."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Protocol, TypeVar

from histotl.core.atomic import write_text
from histotl.store.hdf5 import cannot_write


class _Row(Protocol):
    @property
    def slide_id(self) -> str: ...


R = TypeVar("R", bound=_Row)


def write_rows(path: Path, kind: type[R], rows: Iterable[R]) -> None:
    """Write a table sorted by slide, or remove an old one when there are no rows.

    Raises:
        StoreError: The folder cannot be written to.
    """
    ordered = sorted(rows, key=lambda row: row.slide_id)
    if not ordered:
        path.unlink(missing_ok=True)
        return
    text = io.StringIO()
    table = csv.DictWriter(text, _names(kind), lineterminator="\n")
    table.writeheader()
    table.writerows(asdict(row) for row in ordered)  # type: ignore[call-overload]
    try:
        write_text(path, text.getvalue())
    except OSError as error:
        raise cannot_write(path, error) from error


def read_rows(path: Path, kind: type[R]) -> list[R]:
    """Read such a table; empty when there is none."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [kind(**{name: row.get(name) or "" for name in _names(kind)}) for row in csv.DictReader(file)]


def _names(kind: type) -> list[str]:
    return [field.name for field in fields(kind)]

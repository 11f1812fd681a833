"""Which slides: a file, a folder, a pattern, or a table with the columns that people already have."""

from __future__ import annotations

import csv
import glob
import io
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from histotl.core.errors import TableError
from histotl.core.values import SlideEntry
from histotl.wsi._folder import claimed, find_slides
from histotl.wsi._opening import slide_name

_TABLES = (".csv", ".tsv")
_OTHER_TABLES = (".xlsx", ".xls", ".ods", ".parquet", ".json", ".txt")

# The first name of each is ours; the others are those of TRIDENT, hs2p, CLAM, STAMP, Patho-Bench and plain habit.
PATH_COLUMNS = (
    *("path", "wsi", "wsi_path", "slide_path", "image_path", "image", "filename", "file_name", "file", "filepath"),
    *("file_path", "full_path"),
)
ID_COLUMNS = ("slide_id", "sample_id", "wsi_id", "image_id", "slide_name")
MPP_COLUMNS = (
    *("mpp", "spacing_at_level_0", "spacing", "mpp_override", "pixel_size", "pixel_size_um", "um_per_px"),
    *("microns_per_pixel",),
)
EITHER_COLUMN = "slide"
"""The file in tables that have no other column for it, else the name."""


def load_manifest(slides: str | Path, *, mpp_override: float | None = None) -> list[SlideEntry]:
    """The slides that a person means.

    - A file: that slide.
    - A folder: all slides in it and in its folders, by the suffixes that the readers claim. Hidden files and companions
      (the data of MIRAX and VMS) are left out; DICOM files of one series are one slide.
    - A pattern such as ``scans/*.svs``.
    - A table (.csv, .tsv): one row a slide. Paths are relative to the table's folder. Columns may have the names that
      other tools use (``wsi``, ``image_path``, ``FILENAME``, ``slide_id``, ``spacing_at_level_0`` …); others are
      ignored. A missing file is kept, and fails when it is opened.

    Args:
        slides: One of these.
        mpp_override: Pixel size in µm for all slides, whatever the table or the files say.

    Returns:
        Sorted by slide_id, each of which is there once.

    Raises:
        TableError: Nothing found, no usable column, an empty or unreadable cell, or two slides of one name.
    """
    if not str(slides):
        raise TableError("the name of the slides is empty", hint="give a slide, a folder, a pattern or a CSV table")
    place = Path(slides)
    if place.is_file() and place.suffix.lower() in _TABLES:
        entries = _from_table(place)
    elif place.is_file() and place.suffix.lower() in _OTHER_TABLES:
        raise TableError(f"{place}: a table of slides must be a CSV", hint="save it as .csv, with a column path")
    elif place.is_file():
        entries = [SlideEntry(path=place, slide_id=slide_name(place))]
    elif place.is_dir():
        entries = [SlideEntry(path=path, slide_id=name) for path, name in find_slides(place)]
        if not entries:
            raise TableError(f"{place}: no slide in this folder", hint="see `histotl list reader` for the formats")
    else:
        entries = _from_pattern(str(slides))
    if mpp_override is not None:
        entries = [
            SlideEntry(path=entry.path, slide_id=entry.slide_id, mpp=mpp_override, mpp_source="--mpp-override")
            for entry in entries
        ]
    entries.sort(key=lambda entry: (entry.slide_id, str(entry.path)))
    _refuse_twins(entries)
    return entries


def _from_pattern(pattern: str) -> list[SlideEntry]:
    found = [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]  # noqa: PTH207 - absolute patterns too
    paths = claimed(path for path in found if path.is_file())
    if not paths:
        seen = f"; it matches {len(found)} other files" if found else ""
        cure = "give a slide, a folder, a pattern in quotes such as 'scans/*.svs', or a CSV table"
        raise TableError(f"{pattern}: no such file and no slide by that pattern{seen}", hint=cure)
    return [SlideEntry(path=path, slide_id=slide_name(path)) for path in paths]


def _refuse_twins(entries: list[SlideEntry]) -> None:
    seen: dict[str, Path] = {}
    for entry in entries:
        if entry.slide_id in seen:
            fact = f"two slides are called {entry.slide_id!r}: {seen[entry.slide_id]} and {entry.path}"
            cure = "give a CSV with a column slide_id that tells them apart; a slide may be in it only once"
            raise TableError(fact, hint=cure)
        seen[entry.slide_id] = entry.path


def _from_table(table: Path) -> list[SlideEntry]:
    header, rows = _read(table)
    columns = {key: _column(table, header, names) for key, names in _WANTED.items()}
    if EITHER_COLUMN in header:
        free = next((key for key in ("path", "slide_id") if columns[key] is None), None)
        columns |= {free: EITHER_COLUMN} if free else {}
    if columns["path"] is None and columns["slide_id"] is None:
        cure = f"name the column of the files path (or {', '.join(PATH_COLUMNS[1:4])} …)"
        raise TableError(f"{table}: no column of slides among: {', '.join(header)}", hint=cure)
    beside = {name: path for path, name in find_slides(table.parent)} if columns["path"] is None else {}
    entries = [_entry(table, line, row, columns, beside) for line, row in rows]
    if not entries:
        raise TableError(f"{table}: the table has no rows", hint="add one row for each slide")
    return entries


_WANTED = {"path": PATH_COLUMNS, "slide_id": ID_COLUMNS, "mpp": MPP_COLUMNS}


def _entry(
    table: Path, line: int, row: Mapping[str, str], columns: Mapping[str, str | None], beside: Mapping[str, Path]
) -> SlideEntry:
    cell = {key: row.get(name, "").strip() if name else "" for key, name in columns.items()}
    if columns["path"] is None:
        path = beside.get(cell["slide_id"])
        if path is None:
            fact = f"{table} line {line}: no slide called {cell['slide_id']!r} in the table's folder"
            raise TableError(fact, hint="add a column path with the files")
    elif not cell["path"]:
        raise TableError(f"{table} line {line}: the column {columns['path']} is empty", hint="give the slide's file")
    else:
        path = table.parent / Path(cell["path"]).expanduser()
    name = cell["slide_id"] or slide_name(path)
    if re.search(r"[/\\]", name) or name in (".", ".."):
        fact = f"{table} line {line}: slide_id {name!r} cannot name a file"
        raise TableError(fact, hint="leave out slashes")
    # A name with the slide's own suffix (`a.svs`) means the slide a.
    name = slide_name(Path(name)) if name == path.name else name
    return SlideEntry(path=path, slide_id=name, mpp=_mpp(table, line, cell["mpp"]))


def _mpp(table: Path, line: int, text: str) -> float | None:
    if text.lower() in ("", "na", "nan", "none", "null"):
        return None
    try:
        value = float(text.replace(",", "."))  # spreadsheets of many countries write 0,25
    except ValueError:
        value = -1.0
    if not value > 0:
        fact = f"{table} line {line}: mpp is {text!r}"
        raise TableError(fact, hint="give micrometres per pixel, such as 0.25, or leave it empty")
    return value


def _column(table: Path, header: list[str], names: tuple[str, ...]) -> str | None:
    found = [name for name in names if name in header]
    if len(found) > 1 and names[0] != found[0]:
        raise TableError(f"{table}: columns {' and '.join(found)} mean the same", hint=f"call the right one {names[0]}")
    return found[0] if found else None


def _read(table: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Header in lower case with underscores, and (line number, row) of every row that is not empty."""
    try:
        text = table.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise TableError(f"{table}: not UTF-8 text: {error.reason}", hint="save it as CSV UTF-8") from error
    except OSError as error:
        raise TableError(f"{table}: {error.strerror}", hint="check the file's permissions") from error
    if not text.strip():
        raise TableError(f"{table}: the table is empty", hint="write a header with a column path, and one row a slide")
    first = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count)
    # Strict: a quote that is never closed would otherwise swallow all rows after it.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header = [re.sub(r"[\s\-]+", "_", name.strip().lower()) for name in next(reader, [])]
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:
        raise TableError(f"{table}: column {twice[0]} is there twice", hint="rename or remove one")
    try:
        return header, list(_rows(table, reader, header))
    except csv.Error as error:
        fact = f"{table} line {reader.line_num}: {error}"
        raise TableError(fact, hint="close every quote, and double those inside of quoted cells") from error


def _rows(table: Path, reader: Iterable[list[str]], header: list[str]) -> Iterator[tuple[int, dict[str, str]]]:
    for line, cells in enumerate(reader, start=2):
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) > len(header):
            fact = f"{table} line {line}: {len(cells)} cells for {len(header)} columns"
            raise TableError(fact, hint="put cells that hold commas in quotes")
        yield line, dict(zip(header, cells, strict=False))
